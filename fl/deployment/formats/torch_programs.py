"""torch.export programs and TorchScript: the network as recorded operations, run without its Python code."""

import io
import json
import pickletools
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

from fl.core.files import write_bytes
from fl.deployment.formats.base import Executor, Format, example_input, quiet, tensor_bytes
from fl.models.net import Net, Network
from fl.quantization import precision_of
from fl.quantization.modules import CONVOLUTIONS, LAYERS, QuantizedNet
from fl.quantization.numeric import dequantize_weight

WEIGHT, WEIGHTS = "data/weights/weight_", "data/weights/model_weights_config.json"

PROGRAM, BUILD = "models/model.json", (".data/serialization_id",)
"""Parts of a `.pt2` file."""

WRITERS_OWN = ("version", ".data/serialization_id")
"""Parts of a `.ts` file that its writer makes of the others."""

NOT_OURS = (
    "it is not the {} program that this version of quantfl and torch writes, and others are not run; write it again "
    "with compare_quantizations.py --formats"
)


ONLY_NET = "programs are opened again only if they are what is written here, which is known for the EuroSAT CNN alone"


class RecordableNet(nn.Module):
    """A `QuantizedNet` in tensor operations alone: its reference path, with nothing that depends on the data in Python.

    Weights stay int8; what a layer is given is rounded to uint8 and computed with in float32.
    """

    def __init__(self, quantized: QuantizedNet) -> None:
        super().__init__()
        for name in LAYERS:
            self.add_module(name, nn.Module())
            for key, tensor in quantized.get_submodule(name).named_buffers():
                self.get_submodule(name).register_buffer(key, tensor.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        for name in LAYERS:
            layer: Any = self.get_submodule(name)
            weight = dequantize_weight(layer.weight, layer.weight_scale)
            x = self._rounded(x, layer)
            if name in CONVOLUTIONS:
                x = F.max_pool2d(F.relu(F.conv2d(x, weight, layer.bias)), 2)
                x = x.flatten(1) if name == CONVOLUTIONS[-1] else x
            else:
                x = F.linear(x, weight, layer.bias)
                x = x if name == LAYERS[-1] else F.relu(x)
        return x

    def _rounded(self, x: Tensor, layer: Any) -> Tensor:
        if hasattr(layer, "input_scale"):
            scale, zero_point = layer.input_scale, layer.input_zero_point
        else:  # as `choose_activation_qparams`
            low, high = x.amin().double().clamp_max(0.0), x.amax().double().clamp_min(0.0)
            scale = ((high - low) / 255).float().clamp_min(torch.finfo(torch.float32).eps)
            zero_point = (-low / scale.double()).round().clamp(0, 255).float()
        steps = x / scale
        is_image = hasattr(layer, "input_scale") and zero_point.is_floating_point()
        integers = (steps + zero_point).round() if is_image else steps.round() + zero_point
        return (integers.clamp(0, 255) - zero_point) * scale


def recordable(precision: str, model: Network, calibration: Tensor) -> nn.Module:
    """Returns a network in evaluation mode that can be recorded."""
    converted = precision_of(precision).convert(model, calibration)
    return RecordableNet(converted).eval() if isinstance(converted, QuantizedNet) else converted


class TorchExport(Format):
    """Programs of `torch.export`, for AOTInductor, ExecuTorch and other runtimes."""

    name, suffix, precisions = "torchexport", ".pt2", ("fp32", "int8", "int8_static")

    def lacks(self, precision: str, model: Network) -> str:
        return "" if type(model) is Net else ONLY_NET

    def export(self, precision: str, model: Network, calibration: Tensor, folder: Path) -> None:
        write_bytes(self.path(folder, precision), self._recorded(precision, model, calibration))

    def load(self, path: Path, threads: int) -> Executor:
        """Loads a program that is, but for the values of its weights, one that `export` writes.

        Any other is refused, because torch unpickles, and evaluates as Python, what a file of this format asks for.
        """
        content = path.read_bytes()
        found = _records(content)
        num_classes = json.loads(found[WEIGHTS])["config"]["fc3.bias"]["tensor_meta"]["sizes"][0]["as_int"]
        precision = path.stem.removeprefix("model_")
        expected = self._recorded(precision, Net(num_classes).eval(), torch.zeros(1, 3, 64, 64))
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
            program = torch.export.export(network, (example_input(),), dynamic_shapes=batch)
            program.example_inputs = None  # a device needs neither them nor the lines they were traced through
            for node in program.graph.nodes:
                node.meta.pop("stack_trace", None)
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


def _script(records: Mapping[str, bytes]) -> dict[str, Any]:
    """Returns all that is in a `.ts` file but values of weights.

    torch numbers classes of one name by how many it has met in a process: they are told by their order here.
    """
    pickled = [(operation.name, argument) for operation, argument, _ in pickletools.genops(records["data.pkl"])]
    named = [str(argument).replace(" ", ".") for name, argument in pickled if name == "GLOBAL"]
    order = {
        each: f"class {number}" for number, each in enumerate(dict.fromkeys(named)) if each.startswith("__torch__.")
    }
    files = {f"code/{each.rpartition('.')[0].replace('.', '/')}.py": told for each, told in order.items()}
    program: dict[str, Any] = {"data.pkl": [(n, order.get(str(a).replace(" ", "."), a)) for n, a in pickled]}
    for name, record in records.items():
        if name.startswith("code/"):
            code = re.sub(r"__torch__(\.\w+)+", lambda found: order.get(found[0], found[0]), record.decode())
            program[files.get(name, name)] = code
        elif name not in ("data.pkl", *WRITERS_OWN):
            program[name] = len(record) if name.startswith("data/") else record
    return program


class TorchScript(Format):
    """TorchScript, for LibTorch in C++ and older runtimes; torch itself calls it deprecated."""

    name, suffix, precisions = "torchscript", ".ts", ("fp32", "int8", "int8_static")

    def lacks(self, precision: str, model: Network) -> str:
        return "" if type(model) is Net else ONLY_NET

    def export(self, precision: str, model: Network, calibration: Tensor, folder: Path) -> None:
        write_bytes(self.path(folder, precision), self._recorded(precision, model, calibration))

    def load(self, path: Path, threads: int) -> Executor:
        """Loads a program that is, but for the values of its weights, one that `export` writes.

        Any other is refused: TorchScript can read and write files (`torch.from_file`).
        """
        content = path.read_bytes()
        precision, found, nothing = (
            path.stem.removeprefix("model_"),
            _script_records(content),
            torch.zeros(1, 3, 64, 64),
        )
        one, two = (tensor_bytes(recordable(precision, Net(n).eval(), nothing).state_dict().values()) for n in (1, 2))
        num_classes = max(1, 1 + (_script_weight_bytes(found) - one) // (two - one))
        if _script(found) != _script(_script_records(self._recorded(precision, Net(num_classes).eval(), nothing))):
            raise ValueError(NOT_OURS.format(precision))
        torch.set_num_threads(threads)
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            return torch.jit.load(io.BytesIO(content))

    def weight_bytes(self, path: Path) -> int:
        return _script_weight_bytes(_script_records(path.read_bytes()))

    def _recorded(self, precision: str, model: Network, calibration: Tensor) -> bytes:
        network, buffer = recordable(precision, model, calibration), io.BytesIO()
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            torch.jit.save(torch.jit.trace(network, example_input()), buffer)
        return _without_lines(buffer)
