"""What one client answers: its own images, the round's rate, and random numbers that belong to round and client."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from conftest import uneven_model
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from torch.amp import GradScaler

from fl.codec import ServerLink, Uniform
from fl.core.files import write_npz
from fl.core.targets import Target
from fl.data import Synthetic, open_images
from fl.federation.client_app import ClientSettings, make_client_app
from fl.federation.codecs import Codecs
from fl.federation.engine.in_process import InProcess
from fl.federation.messages import ARRAYS, CONFIG, METRICS, NUM_EXAMPLES, TRAIN_S
from fl.models.architecture import Architecture
from fl.models.net import initial_model
from fl.training.arithmetic import Fp32
from fl.training.compute import ComputeSettings, InferenceSettings
from fl.training.evaluation import evaluate
from fl.training.local import TrainingSettings
from fl.training.start import Start

SGD = Target("torch.optim.SGD")
SHARES = [range(8), range(8), range(20, 33)]
"""Of three clients; the first two hold the same images."""


@pytest.fixture(scope="module")
def images(cache_dir):
    return open_images(Synthetic(50).plan(cache_dir), cache_dir)


@pytest.fixture
def opened(images, tmp_path):
    """Opens a grid of three clients."""
    write_npz(tmp_path / "shares.npz", {str(n): np.array(share) for n, share in enumerate(SHARES)})

    @contextmanager
    def grid(seed=1, update=None, mods=(), architecture=Architecture(), **training):  # noqa: B008  it is frozen
        wanted = {"local_epochs": 1, "batch_size": 4, "augmentation": "none", "optimizer": SGD, "label_smoothing": 0.0}
        settings = ClientSettings(
            images_folder=images.folder,
            shares_file=tmp_path / "shares.npz",
            start=Start(architecture, seed),
            num_clients=len(SHARES),
            seed=seed,
            device="cpu",
            compute=ComputeSettings("cpu", 1, InferenceSettings("no")),
            training=TrainingSettings(**{**wanted, **training}),
            codecs=Codecs(update=update),
        )
        with InProcess().open(make_client_app(settings, mods), len(SHARES)) as opened:
            yield opened

    return grid


def asked(grid, client, server_round=1, kind="train", state=None, **config):
    """Returns the records of one client's answer."""
    arrays = ArrayRecord(state or initial_model(10, 0).state_dict())
    told = ConfigRecord({"lr": 0.01, "server-round": server_round, **config})
    (reply,) = grid.send_and_receive([Message(RecordDict({ARRAYS: arrays, CONFIG: told}), 2 + client, kind)])
    assert not reply.has_error(), reply.error
    return reply.content


def weights(content):
    return content[ARRAYS].to_torch_state_dict()["fc1.weight"]


def test_the_order_of_images_belongs_to_seed_round_and_client(opened):
    with opened() as grid:
        first = weights(asked(grid, client=0))
        assert torch.equal(first, weights(asked(grid, client=0))), "the same again"
        assert not torch.equal(first, weights(asked(grid, client=0, server_round=2)))
        assert not torch.equal(first, weights(asked(grid, client=1))), "a client with the same images"
    with opened(seed=2) as grid:
        assert not torch.equal(first, weights(asked(grid, client=0)))


def test_the_rounding_of_an_update_belongs_to_seed_round_and_client(opened):
    """The same change each time: one batch of all images, whose order makes no difference but in the last bits."""

    def change(seed, server_round, client):
        arrays = ArrayRecord(initial_model(10, 0).state_dict())
        start = {name: array.numpy() for name, array in arrays.items()}
        link = ServerLink(None, Uniform(4, "stochastic"), initial=lambda: start, seed=seed)
        link.begin(arrays)
        content = RecordDict({ARRAYS: arrays, CONFIG: ConfigRecord({"lr": 0.01, "server-round": server_round})})
        with opened(seed=seed, update=Uniform(4, "stochastic"), batch_size=8) as grid:
            (reply,) = grid.send_and_receive(link.send([Message(content, 2 + client, "train")]))
            assert not reply.has_error(), reply.error
            link.receive(reply)
        return weights(reply.content)

    first = change(1, 1, 0)
    assert torch.equal(first, change(1, 1, 0))
    for other in ((2, 1, 0), (1, 2, 0), (1, 1, 1)):
        assert (first != change(*other)).float().mean() > 0.2


def test_dropout_belongs_to_seed_round_and_client(opened):
    """With nothing else at random: one batch, in any order, of one step."""
    architecture = Architecture(Target("networks.Residual", {}, "model"))
    start = architecture.initial(0).state_dict()

    def change(seed, server_round, before=17):
        torch.manual_seed(before)
        with opened(seed=seed, batch_size=50, architecture=architecture) as grid:
            content = asked(grid, 0, server_round=server_round, state=start)
        return content[ARRAYS].to_torch_state_dict()["head.weight"]

    first = change(1, 1)
    assert torch.equal(first, change(1, 1, before=18)), "whatever was drawn before"
    assert not torch.allclose(first, change(1, 2), atol=1e-5)
    assert not torch.allclose(first, change(2, 1), atol=1e-5)


def test_a_client_trains_on_its_share_and_says_how_many_images_it_has(opened):
    with opened() as grid:
        first, other = asked(grid, client=0), asked(grid, client=2)
    assert [content[METRICS][NUM_EXAMPLES] for content in (first, other)] == [8, 13]
    assert first[METRICS]["train-loss"] != other[METRICS]["train-loss"]
    assert 0 < first[METRICS][TRAIN_S] < 60
    state = other[ARRAYS].to_torch_state_dict()
    assert list(state) == list(initial_model(10, 0).state_dict())
    assert state["bn1.num_batches_tracked"] == 4, "13 images in batches of 4"


def test_what_the_server_says_of_rate_and_proximal_term_is_obeyed(opened):
    start = initial_model(10, 0).fc1.weight
    with opened(batch_size=8) as grid:
        once, twice = (weights(asked(grid, 0, lr=lr)) - start for lr in (0.01, 0.02))
        torch.testing.assert_close(twice, 2 * once, rtol=1e-2, atol=1e-7)  # one step of SGD
    with opened(batch_size=4) as grid:
        plain, held, same = (weights(asked(grid, 0, **c)) for c in ({}, {"proximal-mu": 5.0}, {"proximal-mu": 0.0}))
    assert torch.equal(plain, same)
    assert (held - start).norm() < 0.99 * (plain - start).norm()


def test_a_client_evaluates_the_model_it_is_sent_on_its_own_images(opened, images):
    model = uneven_model(torch.from_numpy(images.images[:16]))
    with opened() as grid:
        content = asked(grid, client=2, kind="evaluate", state=model.state_dict())
    share = np.array(SHARES[2])
    score = evaluate(model, images.images[share], images.labels[share], batch_size=4, device=torch.device("cpu")).score
    assert set(content) == {METRICS}
    assert dict(content[METRICS]) == {
        NUM_EXAMPLES: 13,
        "loss": pytest.approx(score.loss, rel=1e-5),
        "accuracy": score.accuracy,
    }


class Scaled(Fp32):
    """FP32 with loss scaling that doubles after every step."""

    def scaler(self, device):
        return GradScaler(device, init_scale=4.0, growth_interval=1)


def test_a_client_remembers_how_its_loss_is_scaled(opened):
    with opened(arithmetic=Scaled()) as grid:
        scales = []
        for client in (0, 0, 1):
            asked(grid, client=client)
            scales.append(grid.states.get(2 + client)["quantfl.scaler"]["scale"])
    assert scales == [16.0, 64.0, 16.0], "two steps each"
    with opened() as grid:
        asked(grid, client=0)
        assert not grid.states.get(2).config_records, "nothing to remember in FP32"


def test_mods_go_around_training_only_the_first_outermost(opened):
    seen = []

    def named(name):
        def mod(message, context, call_next):
            seen.append((name, message.metadata.message_type))
            return call_next(message, context)

        return mod

    with opened(mods=[named("outer"), named("inner")]) as grid:
        for kind in ("train", "evaluate", "query"):
            content = asked(grid, client=1, kind=kind)
    assert seen == [("outer", "train"), ("inner", "train")]
    assert content[CONFIG]["partition-id"] == 1
