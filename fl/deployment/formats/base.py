"""What a deployment format is: files it writes, and an executor that answers from them."""

import contextlib
import importlib
import io
import logging
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fl.core.errors import ConfigError, suggestion
from fl.models.architecture import Architecture
from fl.models.net import Network

Executor = Callable[[Tensor], Tensor]
"""From float32 inputs [n, bands, height, width] to float32 logits [n, classes], for any n of at least 1."""


class Format(ABC):
    """A way of shipping the network. One class, one line in `fl/deployment/formats/__init__.py`.

    Attributes:
        name: on the command line.
        suffix: of its files.
        precisions: that it writes, in order; files are `model_<precision><suffix>`.
        needs: modules that must be importable.
        extra: of this project, that installs them.
    """

    name: str
    suffix: str
    precisions: tuple[str, ...]
    needs: tuple[str, ...] = ()
    extra: str = ""

    def check_installed(self, option: str) -> None:
        """Makes sure that what the format needs can be imported.

        Raises:
            ConfigError: says how to install it.
        """
        for module in self.needs:
            try:
                with quiet():
                    importlib.import_module(module)
            except ImportError as error:
                raise ConfigError(
                    f"{option} {self.name}: needs {module} ({error}); install it with: "
                    f"pip install -c constraints.txt -e '.[{self.extra}]'"
                ) from error

    @abstractmethod
    def export(self, precision: str, model: Network, calibration: Tensor, folder: Path) -> None:
        """Writes `model_<precision><suffix>` into `folder`.

        Args:
            precision: one of `precisions`.
            model: FP32, in evaluation mode.
            calibration: float32 [n, bands, height, width], training images.
            folder: may hold files of earlier precisions, made from the same model.
        """

    @abstractmethod
    def load(self, path: Path, threads: int, architecture: Architecture) -> Executor:
        """Returns what answers from a file on the CPU, with that many threads.

        Args:
            path: of the file.
            threads: to compute with.
            architecture: of the network in it, but for the numbers that the file tells.
        """

    @abstractmethod
    def weight_bytes(self, path: Path) -> int:
        """Returns the bytes of all tensors stored in a file."""

    def path(self, folder: Path, precision: str) -> Path:
        """Returns where a precision's file lies."""
        return folder / f"model_{precision}{self.suffix}"


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Returns what tensors take."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def example_input(architecture: Architecture, count: int = 2) -> Tensor:
    """Returns inputs to trace a network with."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(architecture.zeros(count).shape, generator=generator) * 2 - 1


class FloatOutput(nn.Module):
    """A network in half precision that takes and gives float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.half()).float()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps what converters and their native libraries write off the screen; exceptions pass."""
    silence, stderr, nothing = io.StringIO(), os.dup(2), os.open(os.devnull, os.O_WRONLY)
    logging.disable(logging.WARNING)
    os.dup2(nothing, 2)
    try:
        shut = contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence)
        with warnings.catch_warnings(action="ignore"), shut[0], shut[1]:
            yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nothing)
        logging.disable(logging.NOTSET)


def known(names: Sequence[str], choices: Sequence[Format], option: str) -> list[Format]:
    """Returns the formats of these names, installed; "all" stands for every one.

    Raises:
        ConfigError: there is no such format, or it is not installed.
    """
    by_name = {each.name: each for each in choices}
    for name in names:
        if name not in (*by_name, "all"):
            near = suggestion(name, by_name)
            raise ConfigError(
                f"{option} {name}: there is no such format; {near}valid choices: all, {', '.join(by_name)}"
            )
    chosen = list(choices) if "all" in names else [by_name[name] for name in dict.fromkeys(names)]
    for each in chosen:
        each.check_installed(option)
    return chosen
