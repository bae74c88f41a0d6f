"""The evaluation loop counts every image once, whatever the batches."""

import time
from functools import partial

import numpy as np
import pytest
import torch
from conftest import uneven_model

from fl.core.steps import OPEN
from fl.models.net import to_input
from fl.training.evaluation import evaluate

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def some():
    """21 images, their labels, and a model that is not sure of anything."""
    images = np.random.default_rng(0).integers(0, 256, (21, 64, 64, 3), dtype=np.uint8)
    return images, np.arange(21) % 10, uneven_model(torch.from_numpy(images))


@pytest.mark.parametrize("batch_size", [1, 8, 21, 250])
def test_every_image_counts_once_in_batches_of_any_size(some, batch_size):
    images, labels, model = some
    with torch.inference_mode():
        logits = model(to_input(torch.from_numpy(images)))
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)).item()
    done = []

    def followed(inputs):
        done.append(OPEN[-1].done)
        return model(inputs)

    found = evaluate(followed, images, labels, batch_size=batch_size, device=CPU)
    assert found.score.loss == pytest.approx(loss, rel=1e-5)
    assert found.score.accuracy == (logits.argmax(1).numpy() == labels).mean()
    assert np.array_equal(found.predictions, logits.argmax(1).numpy())
    np.testing.assert_allclose(found.logits, logits.numpy(), atol=1e-4)
    assert found.logits.dtype == np.float32
    assert done == list(range(0, 21, batch_size)), "images that were answered before each batch"
    assert not OPEN


def test_the_input_has_the_type_that_was_asked_for_and_the_time_is_per_image(some):
    images, labels, _ = some
    seen = []

    def undecided(x):
        seen.append((x.dtype, tuple(x.shape)))
        return torch.zeros(len(x), 10, dtype=x.dtype)

    found = evaluate(
        undecided, images, labels, batch_size=20, device=CPU, to_input=partial(to_input, dtype=torch.float16)
    )
    assert seen == [(torch.float16, (20, 3, 64, 64)), (torch.float16, (1, 3, 64, 64))]
    assert found.score.loss == pytest.approx(np.log(10), rel=1e-6)
    assert 0 < found.ms_per_image < 1000


def test_the_time_is_that_of_one_image():
    def slow(x):
        time.sleep(0.02 * len(x))
        return torch.zeros(len(x), 10)

    images = np.zeros((10, 64, 64, 3), np.uint8)
    for batch_size in (2, 10):
        found = evaluate(slow, images, np.zeros(10, np.int64), batch_size=batch_size, device=CPU)
        assert 20 <= found.ms_per_image < 200


def test_the_networks_input_is_centred():
    black_and_white = torch.tensor([0, 255, 51], dtype=torch.uint8).repeat(1, 64, 64, 1)
    x = to_input(black_and_white)
    assert x.shape == (1, 3, 64, 64)
    assert x.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(x[0, :, 5, 9], torch.tensor([-1.0, 1.0, -0.6]))
