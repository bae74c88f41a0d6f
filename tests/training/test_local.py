"""Local training is a plain PyTorch loop on images that are turned at random, at the round's rate."""

import dataclasses

import numpy as np
import pytest
import torch

from fl.core.targets import Target
from fl.models.net import initial_model, to_input
from fl.training.local import TrainingSettings, augment, learning_rate, train_locally

ADAM = Target("torch.optim.Adam")


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [1, 1, 1, 1]), ("linear", [1, 0.75, 0.5, 0.25]), ("cosine", [1, 0.8536, 0.5, 0.1464])],
)
def test_learning_rate_schedules(schedule, expected):
    assert [learning_rate(1.0, schedule, n, 4) for n in (1, 2, 3, 4)] == pytest.approx(expected, abs=1e-4)


def test_augmentation_permutes_pixels_and_reaches_every_symmetry():
    image = torch.arange(4 * 4 * 3, dtype=torch.uint8).reshape(1, 4, 4, 3)
    generator = torch.Generator().manual_seed(0)
    for kind, symmetries in (("none", 1), ("flips", 4), ("dihedral", 8)):
        outcomes = {tuple(augment(image, kind, generator).flatten().tolist()) for _ in range(200)}
        assert len(outcomes) == symmetries
        assert all(sorted(each) == sorted(image.flatten().tolist()) for each in outcomes)


def test_each_image_is_turned_on_its_own():
    images = torch.arange(4 * 4 * 3, dtype=torch.uint8).reshape(1, 4, 4, 3).repeat(200, 1, 1, 1)
    turned = augment(images, "dihedral", torch.Generator().manual_seed(0))
    assert len(torch.unique(turned, dim=0)) == 8


def settings(**changes):
    base = TrainingSettings(local_epochs=1, batch_size=8, augmentation="none", optimizer=ADAM, label_smoothing=0.0)
    return dataclasses.replace(base, **changes)


@pytest.mark.parametrize(
    ("smoothing", "mu", "optimizer"),
    [(0.0, 0.0, ADAM), (0.1, 0.0, ADAM), (0.0, 3.0, Target("torch.optim.SGD"))],
    ids=["plain", "label smoothing", "FedProx"],
)
def test_local_training_equals_a_plain_pytorch_loop(smoothing, mu, optimizer):
    """The last batch is a partial one. FedProx's gradient is mu times the distance to the received weights."""
    images = torch.randint(0, 256, (19, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(19) % 10
    ours, plain = initial_model(10, 0), initial_model(10, 0)
    generator, training = torch.Generator().manual_seed(5), settings(local_epochs=2, optimizer=optimizer)
    training = dataclasses.replace(training, label_smoothing=smoothing)
    loss = train_locally(ours, images, labels, training, lr=0.001, proximal_mu=mu, generator=generator)
    generator.manual_seed(5)
    start = [parameter.detach().clone() for parameter in plain.parameters()]
    stepper, losses = optimizer.build(plain.parameters(), lr=0.001), []
    plain.train()
    for _ in range(2):
        for batch in torch.randperm(19, generator=generator).split(8):
            stepper.zero_grad()
            logits = plain(to_input(images[batch]))
            torch.nn.functional.cross_entropy(logits, labels[batch], label_smoothing=smoothing).backward()
            for parameter, before in zip(plain.parameters(), start, strict=True):
                parameter.grad += mu * (parameter.detach() - before)
            stepper.step()
            logits, target = logits.detach(), labels[batch]
            losses += torch.nn.functional.cross_entropy(
                logits, target, label_smoothing=smoothing, reduction="none"
            ).tolist()
    assert len(losses) == 2 * 19
    assert loss == pytest.approx(np.mean(losses), rel=1e-6)
    for (name, a), b in zip(ours.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(a, b) if mu == 0 else torch.allclose(a, b, rtol=1e-4, atol=1e-7), name
