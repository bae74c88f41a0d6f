"""What a run starts from: weights drawn by its seed, or given ones that both ends have."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as group
from torch import Tensor

from fl.core.errors import ConfigError, ModelFileError
from fl.core.groups import filled
from fl.core.pixels import Pixels
from fl.core.targets import Target
from fl.models.architecture import NET, WEIGHTS, Architecture
from fl.models.net import Network
from fl.quantization.model_file import read_file
from fl.quantization.state_dicts import as_fp32, find, renamed


@group(frozen=True, config=ConfigDict(extra="forbid", arbitrary_types_allowed=True))
class ModelSettings:
    """The model group: which network, and the weights that it starts from, if they are given."""

    network: Target = NET
    weights: Path | None = None

    @classmethod
    def from_config(cls, config: Any, trusted: Any = ()) -> "ModelSettings":
        """Splits the group into the network's own settings and this project's."""
        target = Target.from_config("model", config, trusted)
        own = {key: value for key, value in target.parameters.items() if key != WEIGHTS}
        network = Target(target.target, own, "model")
        Architecture(network).check()
        return filled(cls, {"network": network, WEIGHTS: target.parameters.get(WEIGHTS)})


@dataclass(frozen=True)
class Start:
    """A network and its first weights; every end makes them for itself, from the seed or from a file of its own.

    Attributes:
        architecture: of the network.
        seed: of the run.
        weights: a file; None for weights drawn by the seed.
        weights_sha256: of that file.
    """

    architecture: Architecture
    seed: int
    weights: Path | None = None
    weights_sha256: str | None = None

    def state(self) -> dict[str, Tensor]:
        """Returns the first weights and statistics.

        Raises:
            QuantflError: the file cannot be read, is another one than at the beginning, or is of another network.
        """
        drawn = self.architecture.initial(self.seed).state_dict()
        if self.weights is None:
            return dict(drawn)
        state, sha, _ = _given(self.weights, self.architecture)
        if self.weights_sha256 not in (None, sha):
            raise ConfigError(f"model.weights={self.weights}: is another file than the run began with")
        return {name: state.get(name, tensor) for name, tensor in drawn.items()}

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns `state` as NumPy arrays."""
        return {name: tensor.numpy() for name, tensor in self.state().items()}

    def network(self) -> Network:
        """Returns the network with any weights."""
        return self.architecture.build()


def start_of(settings: ModelSettings, num_classes: int, pixels: Pixels, seed: int) -> tuple[Start, str]:
    """Returns what a run starts from, and a line about it ("" where there is nothing to say).

    Args:
        settings: of the run.
        num_classes: of the images.
        pixels: what the images are like.
        seed: of the run.

    Raises:
        QuantflError: the network cannot answer for these images, or the weights are none of it.
    """
    architecture = Architecture(settings.network, num_classes, pixels)
    architecture.refuse_misfits()
    if settings.weights is None:
        return Start(architecture, seed), ""
    _, sha, notes = _given(settings.weights, architecture)
    told = f"Start: {settings.weights}" + "".join(f"\n  note: {note}" for note in notes)
    return Start(architecture, seed, settings.weights, sha), told


def _given(path: Path, architecture: Architecture) -> tuple[dict[str, Tensor], str, list[str]]:
    """Returns the weights of a file that fit, its SHA-256, and what was done to take them.

    A head for other classes is left out; so may the file leave out the head.
    """
    try:
        file = read_file(path)
        state = file.state or find(file.content, architecture.shapes)[0]
        head, known = architecture.head, renamed(state, architecture.shapes)[0]
        absent = not head & known.keys()  # a backbone alone
        if absent:
            state = {new: state[old[0]] for new, old in known.items()}
            state |= {name: torch.zeros(architecture.shapes[name].shape) for name in head}
        ready, notes, found = as_fp32(state, architecture)
    except ModelFileError as error:
        raise ConfigError(f"model.weights={error}") from error
    if found.bands != architecture.bands:
        raise ConfigError(
            f"model.weights={path}: is for images of {found.bands} bands; these have {architecture.bands}"
        )
    if absent or found.num_classes != architecture.num_classes:
        there = "none there" if absent else f"{found.num_classes} classes there"
        notes.append(f"{', '.join(sorted(head))}: drawn anew, {there}, {architecture.num_classes} in these images")
        ready = {name: tensor for name, tensor in ready.items() if name not in head}
    return ready, file.sha256, notes
