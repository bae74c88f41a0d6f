"""torch.export programs and TorchScript: the network as recorded operations, run without its Python code."""

import io
import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export.pt2_archive._package import PT2ArchiveReader
from torch.jit import _recursive as recursive
from torch.jit._trace import TracerWarning

from fl.core.files import write_bytes
from fl.deployment.formats.base import Executor, Format, example_input, quiet, tensor_bytes
from fl.models.architecture import Architecture, architecture_of
from fl.models.net import Network
from fl.quantization import precision_of
from fl.quantization.folding import replace_module
from fl.quantization.modules import QuantizedLayer
from fl.quantization.numeric import dequantize_weight

WEIGHT, WEIGHTS = "data/weights/weight_", "data/weights/model_weights_config.json"

PROGRAM, BUILD = "models/model.json", (".data/serialization_id",)
"""Parts of a `.pt2` file."""

WRITERS_OWN = ("version", ".data/serialization_id")
"""Parts of a `.ts` file that its writer makes of the others."""

NUMBERED = re.compile(rb"___torch_mangle_(\d+)")
"""Of class names in a `.ts` file."""

NOT_OURS = (
    "it is not the {} program that this version of quantfl and torch writes, and others are not run; write it again "
    "with compare_quantizations.py --formats"
)


class Recordable(nn.Module):
    """A `QuantizedLayer` in tensor operations alone: its reference path, with nothing of the data in Python.

    Weights stay int8; what it is given is rounded to uint8 and computed with in float32.
    """

    def __init__(self, layer: QuantizedLayer) -> None:
        super().__init__()
        self.geometry, self.relu, self.ranged = layer.geometry, layer.relu, layer.incoming() is not None
        for name, tensor in layer.named_buffers():
            if not name.startswith("output_"):
                self.register_buffer(name, tensor.detach().clone())
        added = layer.added_from[0].outgoing() if layer.added_from else None
        if added is not None:
            self.register_buffer("added_scale", torch.tensor(added.scale))
            self.register_buffer("added_zero_point", torch.tensor(added.zero_point))

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        own: Any = self
        weight, x = dequantize_weight(own.weight, own.weight_scale), self._rounded(x)
        if self.geometry is None:
            x = F.linear(x, weight, own.bias)
        else:
            x = F.conv2d(x, weight, own.bias, *self.geometry.lists())
        if other is not None:
            x = x + (_rounded(other, own.added_scale, own.added_zero_point) if hasattr(self, "added_scale") else other)
        return F.relu(x) if self.relu else x

    def _rounded(self, x: Tensor) -> Tensor:
        own: Any = self
        if self.ranged:
            scale, zero_point = own.input_scale, own.input_zero_point
        else:  # as `choose_activation_qparams`
            low, high = x.amin().double().clamp_max(0.0), x.amax().double().clamp_min(0.0)
            scale = ((high - low) / 255).float().clamp_min(torch.finfo(torch.float32).eps)
            zero_point = (-low / scale.double()).round().clamp(0, 255).float()
        return _rounded(x, scale, zero_point, is_image=self.ranged and zero_point.is_floating_point())


def _rounded(x: Tensor, scale: Tensor, zero_point: Tensor, is_image: bool = False) -> Tensor:
    """Returns what the integers of some values stand for."""
    steps = x / scale
    integers = (steps + zero_point).round() if is_image else steps.round() + zero_point
    return (integers.clamp(0, 255) - zero_point) * scale


def recordable(precision: str, model: Network, calibration: Tensor) -> nn.Module:
    """Returns a network in evaluation mode that can be recorded."""
    converted = precision_of(precision).convert(model, calibration)
    for name, layer in list(converted.named_modules()):
        if isinstance(layer, QuantizedLayer):
            replace_module(converted, name, Recordable(layer))
    return converted.eval()


def _empty(architecture: Architecture, most: int) -> Network:
    """Returns a network as a file of some bytes may hold it, which has a byte at least for each of its values.

    Raises:
        ValueError: it would be larger.
    """
    if (values := sum(tensor.numel() for tensor in architecture.shapes.values())) > most:
        raise ValueError(f"it claims to hold {values:,} values in {most:,} bytes")
    return architecture.build().eval()


class TorchExport(Format):
    """Programs of `torch.export`, for AOTInductor, ExecuTorch and other runtimes."""

    name, suffix, precisions = "torchexport", ".pt2", ("fp32", "int8", "int8_static")

    def export(self, precision: str, model: Network, calibration: Tensor, folder: Path) -> None:
        write_bytes(self.path(folder, precision), self._recorded(precision, model, calibration))

    def load(self, path: Path, threads: int, architecture: Architecture) -> Executor:
        """Loads a program that is, but for the values of its weights, one that `export` writes.

        Any other is refused, because torch unpickles, and evaluates as Python, what a file of this format asks for.
        """
        content = path.read_bytes()
        found = _records(content)
        told = json.loads(found[WEIGHTS])["config"].items()
        sizes = {name: tuple(size["as_int"] for size in each["tensor_meta"]["sizes"]) for name, each in told}
        precision, fitted = path.stem.removeprefix("model_"), architecture.fitted(sizes)
        expected = self._recorded(precision, _empty(fitted, len(content)), fitted.zeros(1))
        if _program(found) != _program(_records(expected)):
            raise ValueError(NOT_OURS.format(precision))
        torch.set_num_threads(threads)
        return torch.export.load(io.BytesIO(content)).module()

    def weight_bytes(self, path: Path) -> int:
        return sum(len(record) for name, record in _records(path.read_bytes()).items() if name.startswith(WEIGHT))

    def _recorded(self, precision: str, model: Network, calibration: Tensor) -> bytes:
        batch = {"x": {0: torch.export.Dim("batch", min=1)}}
        network, buffer = recordable(precision, model, calibration), io.BytesIO()
        with quiet():
            example = example_input(architecture_of(model))
            program = torch.export.export(network, (example,), dynamic_shapes=batch)
            program.example_inputs = None  # a device needs neither them nor the lines they were traced through
            for node in program.graph.nodes:
                for told in ("stack_trace", "from_node"):
                    node.meta.pop(told, None)
            torch.export.save(program, buffer)
        return buffer.getvalue()


def _without_lines(script: io.BytesIO) -> bytes:
    """Returns a TorchScript file without the lines of Python that it was traced through and the inputs for that."""
    reader, target = torch._C.PyTorchFileReader(io.BytesIO(script.getvalue())), io.BytesIO()
    writer = torch._C.PyTorchFileWriter(target)
    for name in reader.get_all_records():
        if not name.endswith(".debug_pkl") and not name.startswith("traced_inputs") and name not in WRITERS_OWN:
            record = reader.get_record(name)
            writer.write_record(name, record, len(record))
    writer.write_end_of_file()
    return target.getvalue()


def _records(content: bytes) -> dict[str, bytes]:
    """Returns the parts of a `.pt2` file, read as torch reads them."""
    archive = PT2ArchiveReader(io.BytesIO(content))
    return {name: archive.read_bytes(name) for name in archive.get_file_names()}


def _program(records: Mapping[str, bytes]) -> dict[str, Any]:
    """Returns all that is in a `.pt2` file but values of weights and what differs between builds of torch."""
    program: dict[str, Any] = {
        name: None if name.startswith(WEIGHT) else record for name, record in records.items() if name not in BUILD
    }
    program[PROGRAM] = {**json.loads(records[PROGRAM]), "torch_version": None}
    return program


def _script_records(content: bytes) -> dict[str, bytes]:
    """Returns the parts of a `.ts` file, read as torch reads them, none larger than the file."""
    stored = zipfile.ZipFile(io.BytesIO(content)).infolist()
    if any(each.compress_type != zipfile.ZIP_STORED for each in stored) or sum(e.file_size for e in stored) > len(
        content
    ):
        raise ValueError("it claims to hold more than it does")
    reader = torch._C.PyTorchFileReader(io.BytesIO(content))
    return {name: reader.get_record(name) for name in reader.get_all_records()}


def _script_weight_bytes(records: Mapping[str, bytes]) -> int:
    return sum(len(record) for name, record in records.items() if name.startswith("data/"))


def _script(records: Mapping[str, bytes]) -> dict[bytes, bytes]:
    """Returns all that is in a `.ts` file but values of weights, of whose tensors the sizes stay.

    torch numbers classes of one name by how many it has met in a process: here the first is 0.
    """
    own = {
        name.encode(): str(len(record)).encode() if name.startswith("data/") else record
        for name, record in records.items()
        if name not in WRITERS_OWN
    }
    numbers = sorted({int(n) for name, record in own.items() for n in NUMBERED.findall(name + record)})
    rank = {str(number).encode(): str(place).encode() for place, number in enumerate(numbers)}

    def renumbered(text: bytes) -> bytes:
        return NUMBERED.sub(lambda found: b"class " + rank[found[1]], text)

    return {renumbered(name): renumbered(record) for name, record in own.items()}


def _forget_classes() -> None:
    """Lets torch put classes into files as a new process does, the first of a name into that of its module."""
    torch._C._jit_clear_class_registry()
    recursive.concrete_type_store = recursive.ConcreteTypeStore()
    torch.jit._state._clear_class_state()


class TorchScript(Format):
    """TorchScript, for LibTorch in C++ and older runtimes; torch itself calls it deprecated."""

    name, suffix, precisions = "torchscript", ".ts", ("fp32", "int8", "int8_static")

    def export(self, precision: str, model: Network, calibration: Tensor, folder: Path) -> None:
        write_bytes(self.path(folder, precision), self._recorded(precision, model, calibration))

    def load(self, path: Path, threads: int, architecture: Architecture) -> Executor:
        """Loads a program that is, but for the values of its weights, one that `export` writes.

        Any other is refused: TorchScript can read and write files (`torch.from_file`).
        """
        content = path.read_bytes()
        precision, found = path.stem.removeprefix("model_"), _script_records(content)
        nothing = architecture.zeros(1)

        def size(classes: int) -> int:
            network = _empty(architecture.sized(classes), len(content))
            return tensor_bytes(recordable(precision, network, nothing).state_dict().values())

        each = size(2) - size(1)
        classes = 1 + (_script_weight_bytes(found) - size(1)) // each if each else architecture.num_classes
        network = _empty(architecture.sized(max(1, classes)), len(content))
        if _script(found) != _script(_script_records(self._recorded(precision, network, nothing))):
            raise ValueError(NOT_OURS.format(precision))
        torch.set_num_threads(threads)
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            module: nn.Module = torch.jit.load(io.BytesIO(content))
        for parameter in module.parameters():  # else what it answered once it cannot answer in inference mode
            parameter.requires_grad = False
        return module

    def weight_bytes(self, path: Path) -> int:
        return _script_weight_bytes(_script_records(path.read_bytes()))

    def _recorded(self, precision: str, model: Network, calibration: Tensor) -> bytes:
        network, buffer = recordable(precision, model, calibration), io.BytesIO()
        with warnings.catch_warnings(record=True, action="always") as told:
            _forget_classes()
            torch.jit.save(torch.jit.trace(network, example_input(architecture_of(model))), buffer)
        if lost := [each for each in told if issubclass(each.category, TracerWarning)]:
            raise ValueError(f"its code depends on values, of which it would keep one ({lost[0].message})")
        return _without_lines(buffer)
