"""How a model file is laid out: the one place that saves and loads them.

`final_model.pt` is a plain FP32 state dict. Every `model_<name>.pt` is a dict of `model_state_dict`,
`quantization_info` and `made_from` (the SHA-256 of the file it was converted from). All of them load with
`weights_only=True`. State dicts of the network that others saved are taken too: `state_dicts.py` says which.
"""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fl.core.console import say
from fl.core.errors import ModelFileError, printable
from fl.core.files import sha256, write_bytes
from fl.models.net import Net, Network
from fl.quantization import empty_model, precision_of
from fl.quantization.file_content import read
from fl.quantization.half import fp16_wanted, prepare
from fl.quantization.precisions import SHORT, word
from fl.quantization.state_dicts import as_fp32, check_names, check_shapes, find, plain

BITS_PER_BYTE, LONGEST = 8, 1000

OURS = {"precision", "num_classes"}
"""In `quantization_info` of files of this project; others' may have the first."""
"""LONGEST: characters of a line about a file."""


@dataclass(frozen=True)
class LoadedFile:
    """A model file's content; `info` is empty for any but our own, `notes` says what was done to take another's."""

    state: dict[str, Tensor]
    info: dict[str, Any]
    made_from: str | None
    sha256: str
    num_bytes: int
    notes: tuple[str, ...] = ()

    def tell(self, path: Path) -> None:
        """Says in a line what was done to take the file, if anything was."""
        if self.notes:
            say(f"note: {path}: {', '.join(self.notes)}"[:LONGEST])


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


def save_model(path: Path, model: Network, made_from: str) -> None:
    """Writes a `model_<name>.pt`, whole; `model.quantization_info` says how to load it."""
    content = {
        "model_state_dict": dict(model.state_dict()),
        "quantization_info": dict(model.quantization_info),
        "made_from": made_from,
    }
    write_bytes(path, to_bytes(content))


def read_file(path: Path) -> LoadedFile:
    """Reads a `model_<name>.pt`, or the state dict in any other file; nothing in it is executed.

    Raises:
        ModelFileError: no such file, damaged, or something else than tensors and plain values.
    """
    with _about(path):
        content, loaded = read(path)
        digest, size = sha256(content), len(content)
        info = loaded.get("quantization_info") if isinstance(loaded, dict) else None
        if isinstance(info, dict) and "model_state_dict" in loaded and info.keys() >= OURS:
            made_from = loaded.get("made_from")
            made_from = made_from if isinstance(made_from, str) else None
            info = {**info, "dtype": word(str(info["precision"]))}  # older files have another word, or none
            return LoadedFile(plain(loaded["model_state_dict"]), info, made_from, digest, size)
        state, entry = find(loaded)
        return LoadedFile(state, {}, None, digest, size, (f"took entry {entry!r}",) if entry else ())


def load_fp32(path: Path) -> tuple[Net, LoadedFile]:
    """Returns the FP32 network in evaluation mode, from any state dict of it in floats or our `model_fp32.pt`.

    Raises:
        ModelFileError: another precision, wrong keys or shapes, values that are not finite; see also `read_file`.
    """
    file = read_file(path)
    precision = file.info.get("precision", "fp32")
    if precision != "fp32":
        raise ModelFileError(f"{path}: is an {str(precision).upper()} model; give the FP32 file it was made from")
    with _about(path):
        state, notes = as_fp32(file.state)
    model = Net(len(state["fc3.bias"]))
    model.load_state_dict(state)
    return model.eval(), replace(file, state=state, notes=(*file.notes, *notes))


def load_model(path: str | Path, device: str | torch.device = "auto", fp16: str | bool | None = None) -> Network:
    """Returns a ready model of the precision the file says, in evaluation mode.

    Its input is what `fl.models.net.to_input(images, model.input_dtype)` makes of uint8 images.
    `model.quantization_info` is a dict with `precision`, `num_parameters` and what the precision adds.

    Args:
        path: any `model_<name>.pt`, or a state dict of the network as others save it, which is loaded in FP32; a line
            says what was done for that.
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
        model, file = load_with_info(Path(path), torch.device(device))
        file.tell(Path(path))
        return model
    wanted = fp16_wanted(fp16)
    model, file = load_with_info(Path(path), torch.device("cpu"))
    file.tell(Path(path))
    if not isinstance(model, Net):
        raise ModelFileError(f"{path}: is an {file.info['precision'].upper()} model; fp16= is for FP32 and FP16 ones")
    network = Net(model.num_classes)
    network.load_state_dict(model.state_dict())
    options = file.info.get("options", {})
    ready = prepare(network.eval(), torch.device(device), wanted, say, **options)
    changed = ready.input_dtype != model.input_dtype
    ready.quantization_info = {
        **model.quantization_info,
        **({"loaded_as": SHORT[ready.input_dtype]} if changed else {}),
    }
    return ready


def load_with_info(path: Path, device: torch.device) -> tuple[Network, LoadedFile]:
    """As `load_model`, with what was read."""
    file = read_file(path)
    if not file.info:
        network, file = load_fp32(path)
        return precision_of("fp32").convert(network).to(device), file
    with _about(path):
        try:
            if file.num_bytes * BITS_PER_BYTE < Net.features * int(file.info["num_classes"]):
                raise ValueError(f"a file of {file.num_bytes} bytes has not that many classes")
            model = empty_model(file.info)
        except Exception as error:  # the file may say anything
            raise ModelFileError(f"quantization_info cannot be used ({error!r})") from error
        fill(model, file.state)
    return model.to(device).eval(), file


def fill(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Loads `state` into `model`.

    Raises:
        ModelFileError: names, shapes or types differ; the first few are named; without the path.
    """
    expected = model.state_dict()
    check_names(expected, state)
    check_shapes(expected, state, types=True)
    try:
        model.load_state_dict(dict(state))
    except ValueError as error:
        raise ModelFileError(str(error)) from error


@contextmanager
def _about(path: Path) -> Iterator[None]:
    """Puts the path before what is wrong with a file."""
    try:
        yield
    except ModelFileError as error:
        raise ModelFileError(printable(f"{path}: {error}")[:LONGEST]) from error
