"""Deployment formats: what a device runs that has neither this project nor, mostly, torch."""

from collections.abc import Sequence

from fl.formats.base import Executor, Format, known
from fl.formats.litert import LiteRt
from fl.formats.onnx import Onnx
from fl.formats.torch_programs import TorchExport, TorchScript

FORMATS: tuple[Format, ...] = (Onnx(), TorchExport(), TorchScript(), LiteRt())
__all__ = ["FORMATS", "Executor", "Format", "formats"]


def formats(names: Sequence[str], option: str) -> list[Format]:
    """Returns the formats of these names, installed; "all" stands for every one.

    Raises:
        ConfigError: there is no such format, or it is not installed.
    """
    return known(names, FORMATS, option)
