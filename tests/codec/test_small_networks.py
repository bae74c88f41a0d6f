"""Small networks of somebody else's train through a codec at its defaults as they do in plain FP32."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from fl.codec import Codec, Ecq
from fl.codec.broadcast import BroadcastChain
from fl.codec.payload import specs_of

CLIENTS, SAMPLES, ROUNDS = 4, 300, 10


class Attention(nn.Module):
    """One causal layer over a sequence, with its mask as most write it: a buffer of minus infinity."""

    def __init__(self, length: int = 12, width: int = 32) -> None:
        super().__init__()
        self.embed, self.out = nn.Linear(8, width), nn.Linear(width, 4)
        self.qkv, self.mix, self.norm = nn.Linear(width, 3 * width), nn.Linear(width, width), nn.LayerNorm(width)
        self.register_buffer("mask", torch.triu(torch.full((length, length), -math.inf), 1))
        self.width = width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x.unflatten(1, (-1, 8)))
        query, key, value = self.qkv(self.norm(x)).chunk(3, dim=-1)
        weights = (query @ key.transpose(1, 2) / math.sqrt(self.width) + self.mask).softmax(dim=-1)
        return self.out((x + self.mix(weights @ value)).mean(1))


@pytest.fixture(autouse=True)
def one_thread():
    """Networks so small are slower with more, by far on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


NETWORKS = {
    "mlp": lambda: nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)),
    "norm of 1,024": lambda: nn.Sequential(nn.Linear(32, 1024), nn.BatchNorm1d(1024), nn.ReLU(), nn.Linear(1024, 4)),
    "infinite mask": Attention,
}
INPUTS = {"mlp": (64, 10), "norm of 1,024": (32, 4), "infinite mask": (96, 4)}


def arrays_of(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


def load(model: nn.Module, arrays: dict[str, np.ndarray]) -> nn.Module:
    model.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    return model


def data(kind: str, seed: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points around two centres for each class."""
    features, classes = INPUTS[kind]
    centres = torch.randn(2 * classes, features, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(0, 2 * classes, (size,), generator=generator)
    spread = 0.85 if kind == "infinite mask" else 0.6
    return centres[which] * spread + torch.randn(size, features, generator=generator), which % classes


def trained(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> nn.Module:
    """Two epochs of SGD, or of Adam for attention."""
    model.train()
    adam = isinstance(model, Attention)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3) if adam else torch.optim.SGD(model.parameters(), 0.05)
    for _ in range(2):
        for batch in torch.arange(len(x)).split(25):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    return model


def accuracy(kind: str, codec: Codec | None) -> tuple[float, dict[str, np.ndarray]]:
    """Returns test accuracy after federated averaging with the codec in both directions, and the model."""
    torch.manual_seed(0)
    model = NETWORKS[kind]()
    exact = arrays_of(model)
    chain = BroadcastChain(codec, exact, seed=0) if codec else None
    for number in range(ROUNDS):
        held = chain.advance(exact) if chain else exact
        answers = []
        for client in range(CLIENTS):
            after = arrays_of(trained(load(model, held), *data(kind, 1 + client, SAMPLES)))
            if codec:
                payload = codec.encode(codec.differences(after, held), np.random.default_rng((number, client)))
                after = codec.applied(held, codec.decode(payload, specs_of(held)))
            answers.append(after)
        means = {name: np.mean([each[name] for each in answers], axis=0) for name in exact}
        exact = {name: np.asarray(mean, exact[name].dtype) for name, mean in means.items()}
    x, y = data(kind, 99, 4000)
    with torch.no_grad():
        return (load(model, exact).eval()(x).argmax(1) == y).float().mean().item(), exact


@pytest.mark.parametrize("kind", NETWORKS)
def test_small_networks_train_through_ecq_as_in_plain(kind):
    plain, _ = accuracy(kind, None)
    coded, model = accuracy(kind, Ecq())
    assert plain > 0.8, "there is something to learn"
    assert coded > plain - 0.02
    if kind == "infinite mask":
        assert np.array_equal(model["mask"], arrays_of(Attention())["mask"])


def test_the_networks_are_those_that_froze():
    sizes = {kind: sum(p.numel() for p in NETWORKS[kind]().parameters()) for kind in NETWORKS}
    assert sizes["mlp"] == 4810
