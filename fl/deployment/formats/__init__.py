"""Deployment formats: what a device runs that has neither this project nor, mostly, torch."""

from collections.abc import Sequence

from fl.deployment.formats.base import Executor, Format, known
from fl.deployment.formats.litert import LiteRt
from fl.deployment.formats.onnx import Onnx
from fl.deployment.formats.torch_programs import TorchExport, TorchScript

FORMATS: tuple[Format, ...] = (Onnx(), TorchExport(), TorchScript(), LiteRt())

__all__ = ["FORMATS", "Executor", "Format", "formats"]


def formats(names: Sequence[str], option: str) -> list[Format]:
    """Returns the formats of these names, installed; "all" stands for every one.

    Raises:
        ConfigError: there is no such format, or it is not installed.
    """
    return known(names, FORMATS, option)
