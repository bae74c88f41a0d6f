"""How a model file is laid out: the one place that saves and loads them.

`final_model.pt` is a plain FP32 state dict. Every `model_<name>.pt` is a dict of `model_state_dict`,
`quantization_info` and `made_from` (the SHA-256 of the file it was converted from). All of them load with
`weights_only=True`.
"""

import io
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from fl.console import say
from fl.errors import ModelFileError
from fl.inference import fp16_wanted, prepare
from fl.model import Net
from fl.quantization import Precision, empty_model
from fl.results import sha256, write_bytes

SHOWN = 3
"""How many wrong keys or shapes an error names."""


@dataclass(frozen=True)
class LoadedFile:
    """A model file's content; `info` is empty for a plain state dict."""

    state: dict[str, Tensor]
    info: dict[str, Any]
    made_from: str | None
    sha256: str
    num_bytes: int


def to_bytes(content: Any) -> bytes:
    """Returns torch's serialization, the same bytes whatever file they go to (`torch.save(path)` stores the name)."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def save_state(path: Path, state: Mapping[str, Tensor]) -> str:
    """Writes a plain state dict, whole, and returns the SHA-256 of the file."""
    content = to_bytes(dict(state))
    write_bytes(path, content)
    return sha256(content)


def save_model(path: Path, model: nn.Module, made_from: str) -> None:
    """Writes a `model_<name>.pt`, whole; `model.quantization_info` says how to load it."""
    content = {
        "model_state_dict": dict(model.state_dict()),
        "quantization_info": dict(model.quantization_info),  # type: ignore[arg-type]
        "made_from": made_from,
    }
    write_bytes(path, to_bytes(content))


def read_file(path: Path) -> LoadedFile:
    """Reads a state dict or a `model_<name>.pt`; nothing in it is executed.

    Raises:
        ModelFileError: no such file, damaged, or something else than tensors and plain values.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        if content[:2] == b"PK" and (damaged := zipfile.ZipFile(io.BytesIO(content)).testzip()):
            raise ValueError(f"checksum of {damaged} is wrong")  # torch does not look
        with warnings.catch_warnings(action="ignore"):  # torch advises to unpickle what it refuses
            loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        what = str(error).splitlines()[0]
        raise ModelFileError(
            f"{path}: refused, it is not a plain state dict or is damaged, and pickled objects are never run ({what})"
        ) from error
    except Exception as error:  # whatever torch makes of bytes it did not write
        what = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelFileError(f"{path}: not a whole model file ({what})") from error
    state: Any = loaded
    info: Any = {}
    made_from = None
    if isinstance(loaded, dict) and "model_state_dict" in loaded:
        state, info = loaded["model_state_dict"], loaded.get("quantization_info") or {}
        made_from = loaded.get("made_from")
    if not isinstance(state, dict) or not state or not isinstance(info, dict):
        raise ModelFileError(f"{path}: holds no state dict")
    wrong = [str(name) for name, value in state.items() if not isinstance(name, str) or not _is_plain(value)]
    if wrong:
        raise ModelFileError(f"{path}: not a state dict, these are no tensors: {', '.join(wrong[:SHOWN])}")
    made_from = made_from if isinstance(made_from, str) else None
    return LoadedFile(cast(dict[str, Tensor], dict(state)), info, made_from, sha256(content), len(content))


def _is_plain(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"


def load_fp32(path: Path) -> tuple[Net, LoadedFile]:
    """Returns the FP32 network in evaluation mode, from any FP32 state dict of it or our `model_fp32.pt`.

    Raises:
        ModelFileError: another precision, wrong keys or shapes, values that are not finite; see also `read_file`.
    """
    file = read_file(path)
    precision = file.info.get("precision", "fp32")
    if precision != "fp32":
        raise ModelFileError(f"{path}: is an {str(precision).upper()} model; give the FP32 file it was made from")
    for name, tensor in file.state.items():
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ModelFileError(f"{path}: {name} is {tensor.dtype}; an FP32 model is needed")
    model = Net(_num_classes(path, file.state))
    fill(path, model, file.state)
    for name, tensor in file.state.items():
        if not torch.isfinite(tensor).all():
            raise ModelFileError(f"{path}: {name} holds NaN or infinity; nothing can be measured on such a model")
        if name.endswith("running_var") and (tensor < 0).any():
            raise ModelFileError(f"{path}: {name} holds negative variances; the model is broken")
    return model.eval(), file


def load_model(path: str | Path, device: str | torch.device = "auto", fp16: str | bool | None = None) -> nn.Module:
    """Returns a ready model of the precision the file says, in evaluation mode.

    Its input is what `fl.model.to_input(images, model.input_dtype)` makes of uint8 images; `model.quantization_info`
    is a dict with `precision`, `num_parameters` and what the precision adds.

    Args:
        path: a plain state dict or any `model_<name>.pt`.
        device: where to put it; "auto" is the GPU, if there is one, else the CPU.
        fp16: None for the precision of the file; for FP32 and FP16 files also what `inference.fp16` takes: yes, no, or
            "auto", half precision on a GPU. Where that differs from the file, `quantization_info` has `loaded_as`.

    Raises:
        ModelFileError: see `read_file`; or the content does not fit the precision.
        ConfigError: `fp16` is no such word.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if fp16 is None:
        return load_with_info(Path(path), torch.device(device))[0]
    wanted = fp16_wanted(fp16)
    model, file = load_with_info(Path(path), torch.device("cpu"))
    if not isinstance(model, Net):
        raise ModelFileError(f"{path}: is an {file.info['precision'].upper()} model; fp16= is for FP32 and FP16 ones")
    network = Net(model.fc3.out_features)
    network.load_state_dict(model.state_dict())
    options = file.info.get("options", {})
    ready: Any = prepare(network.eval(), torch.device(device), wanted, say, **options)
    info: Any = model.quantization_info
    changed = ready.input_dtype != model.input_dtype
    ready.quantization_info = {**info, **({"loaded_as": str(ready.input_dtype)} if changed else {})}
    return cast(nn.Module, ready)


def load_with_info(path: Path, device: torch.device) -> tuple[nn.Module, LoadedFile]:
    """As `load_model`, with what was read."""
    file = read_file(path)
    if not file.info:
        network, file = load_fp32(path)
        return Precision("fp32").convert(network).to(device), file
    try:
        model = empty_model(file.info)
    except Exception as error:  # the file may say anything
        raise ModelFileError(f"{path}: quantization_info cannot be used ({error!r})") from error
    fill(path, model, file.state)
    return model.to(device).eval(), file


def fill(path: Path, model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Loads `state` into `model`.

    Raises:
        ModelFileError: names, shapes or types differ; the first few are named.
    """
    expected = model.state_dict()
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    if missing or unexpected:
        parts = [f"missing {', '.join(missing[:SHOWN])}"] if missing else []
        parts += [f"unexpected {', '.join(unexpected[:SHOWN])}"] if unexpected else []
        total = len(missing) + len(unexpected)
        raise ModelFileError(f"{path}: {total} wrong keys for this network: {'; '.join(parts)}")
    wrong = [
        f"{name} is {state[name].dtype}{list(state[name].shape)} instead of {old.dtype}{list(old.shape)}"
        for name, old in expected.items()
        if state[name].shape != old.shape or state[name].dtype != old.dtype
    ]
    if wrong:
        raise ModelFileError(f"{path}: {len(wrong)} wrong shapes or types: {'; '.join(wrong[:SHOWN])}")
    try:
        model.load_state_dict(dict(state))
    except ValueError as error:
        raise ModelFileError(f"{path}: {error}") from error


def _num_classes(path: Path, state: Mapping[str, Tensor]) -> int:
    bias = state.get("fc3.bias")
    if bias is None or bias.dim() != 1 or not len(bias):
        found = ", ".join(list(state)[:SHOWN])
        raise ModelFileError(f"{path}: wrong keys, fc3.bias of this network is missing or has no classes (has {found})")
    return len(bias)
