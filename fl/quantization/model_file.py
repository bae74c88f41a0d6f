"""How a model file is laid out: the one place that saves and loads them.

`final_model.pt` is a plain FP32 state dict. Every `model_<name>.pt` is a dict of `model_state_dict`,
`quantization_info` and `made_from` (the SHA-256 of the file it was converted from). All of them load with
`weights_only=True`. State dicts of the network that others saved are taken too: `state_dicts.py` says which.
"""

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fl.core.console import say
from fl.core.errors import ConfigError, ModelFileError, printable
from fl.core.files import read_json, sha256, write_bytes
from fl.core.pixels import USUAL
from fl.core.run_folder import SETTINGS, run_of
from fl.core.targets import Target
from fl.models.architecture import NET, Architecture, architecture_of, described, network_named
from fl.models.net import Network
from fl.quantization import empty_model, precision_of
from fl.quantization.file_content import read
from fl.quantization.half import fp16_wanted, prepare
from fl.quantization.precisions import SHORT, word
from fl.quantization.state_dicts import as_fp32, check_names, check_shapes, find, plain

BITS_PER_BYTE, FEWEST_BITS, LONGEST = 8, 2, 1000

OURS = {"precision", "num_classes"}
"""In `quantization_info` of files of this project; others' may have the first."""
"""FEWEST_BITS: of a value in a file. LONGEST: characters of a line about a file."""


@dataclass(frozen=True)
class LoadedFile:
    """A model file's content; `info` is empty for any but our own, `notes` says what was done to take another's.

    Attributes:
        state: names and tensors; empty for files of others until the network is known, see `load_fp32`.
        info: `quantization_info`.
        made_from: SHA-256 of the FP32 file, where it is another.
        sha256: of this one.
        num_bytes: of this one.
        notes: what was done to take it.
        content: of files of others.
    """

    state: dict[str, Tensor]
    info: dict[str, Any]
    made_from: str | None
    sha256: str
    num_bytes: int
    notes: tuple[str, ...] = ()
    content: Any = None

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


def save_trained(path: Path, state: Mapping[str, Tensor], architecture: Architecture) -> str:
    """Writes what was trained, whole, and returns the SHA-256 of the file.

    It is a plain state dict; where its images are none of the usual, it is a `model_fp32.pt`, which says what they are
    and what they are normalised by.
    """
    if architecture.pixels == USUAL:
        return save_state(path, state)
    network = architecture.build()
    network.load_state_dict(dict(state))
    info = dict(precision_of("fp32").convert(network).quantization_info)
    content = to_bytes({"model_state_dict": dict(state), "quantization_info": info})
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
    """Reads a `model_<name>.pt`, or any other file with tensors; nothing in it is executed.

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
        return LoadedFile({}, {}, None, digest, size, content=loaded)


def load_fp32(path: Path, model: Target | None = None) -> tuple[Network, LoadedFile]:
    """Returns the FP32 network in evaluation mode, from any state dict of it in floats or our `model_fp32.pt`.

    Args:
        path: of the file.
        model: names the network; where it is None, the file or the run beside it does, else it is the EuroSAT CNN.

    Raises:
        ModelFileError: another precision, wrong keys or shapes, values that are not finite; see also `read_file`.
        ConfigError: the network is a class of somebody's own, and `model` is None.
    """
    file = read_file(path)
    precision = file.info.get("precision", "fp32")
    if precision != "fp32":
        raise ModelFileError(f"{path}: is an {str(precision).upper()} model; give the FP32 file it was made from")
    architecture = network_of(path, file, model)
    with _about(path):
        if not file.info:
            state, entry = find(file.content, architecture.shapes)
            file = replace(file, state=state, content=None, notes=(f"took entry {entry!r}",) if entry else ())
        state, notes, architecture = as_fp32(file.state, architecture)
    network = architecture.build()
    network.load_state_dict(state)
    return network.eval(), replace(file, state=state, notes=(*file.notes, *notes))


def network_of(path: Path, file: LoadedFile, model: Target | None) -> Architecture:
    """Returns which network a file is of.

    Args:
        path: of the file.
        file: its content.
        model: names the network, if the user did.

    Raises:
        ModelFileError: what the file says of it cannot be used.
        ConfigError: it is a class of somebody's own, and `model` is not it.
    """
    try:
        if isinstance(told := file.info.get("network"), Mapping):
            return told_network(path, told, model)
        if "num_classes" in file.info:
            return Architecture(model or NET, int(file.info["num_classes"]))
        found = None if file.info else _trained(path, file.sha256)
        if found and (model is None or found.get("_target_") == model.target):
            return Architecture(_target(path, {key: value for key, value in found.items() if key != "weights"}, model))
    except (ValueError, TypeError, OverflowError) as error:
        raise ModelFileError(f"{path}: quantization_info cannot be used ({error!r})") from error
    return Architecture(model or NET)


def told_network(path: Path, told: Mapping[str, Any], model: Target | None) -> Architecture:
    """Returns what `Architecture.describe` told in or beside a file; arguments and errors as those of `network_of`."""
    return described(told, lambda config: _target(path, config, model))


def _target(path: Path, config: Mapping[str, Any], model: Target | None) -> Target:
    try:
        return Target.from_config("model", config, [model.target] if model else [])
    except ConfigError as error:
        name = printable(str(config.get("_target_")))
        raise ConfigError(
            f"{path}: its network is {name}, a class that is neither this project's nor torchvision's: nothing is "
            f"run because a file says so; name it if it is yours: --model {name}, or fl.load_model(path, model=...)"
        ) from error


def _trained(path: Path, sha: str) -> Mapping[str, Any] | None:
    """Returns the `model` group of the run that made a file, if there is one that has it."""
    folder = run_of(path, sha)
    settings = read_json(folder / SETTINGS) if folder else None
    found = settings.get("model") if isinstance(settings, dict) else None
    return found if isinstance(found, Mapping) else None


def load_model(
    path: str | Path,
    device: str | torch.device = "auto",
    fp16: str | bool | None = None,
    model: str | Callable[..., Any] | None = None,
) -> Network:
    """Returns a ready model of the precision the file says, in evaluation mode.

    Its input is what `fl.models.architecture.input_of(model)` makes of images.
    `model.quantization_info` is a dict with `precision`, `num_parameters` and what the precision adds.

    Args:
        path: any `model_<name>.pt`, or a state dict of the network as others save it, which is loaded in FP32; a line
            says what was done for that.
        device: where to put it; "auto" is the GPU, if there is one, else the CPU.
        fp16: None for the precision of the file; for FP32 and FP16 files also what `inference.fp16` takes: yes, no, or
            "auto", half precision on a GPU. Where that differs from the file, `quantization_info` has `loaded_as`.
        model: which network it is: a name as `--model` takes it, or the class itself. Needed for classes of your own,
            and for files that neither tell it nor lie in their run's folder; without it those are the EuroSAT CNN.

    Raises:
        ModelFileError: see `read_file`; or the content does not fit the precision.
        ConfigError: `fp16` is no such word, `model` no network.
    """
    named = network_named(model) if model is not None else None
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if fp16 is None:
        network, file = load_with_info(Path(path), torch.device(device), named)
        file.tell(Path(path))
        return network
    wanted = fp16_wanted(fp16)
    network, file = load_with_info(Path(path), torch.device("cpu"), named)
    file.tell(Path(path))
    if file.info.get("precision", "fp32") not in ("fp32", "fp16"):
        raise ModelFileError(f"{path}: is an {file.info['precision'].upper()} model; fp16= is for FP32 and FP16 ones")
    whole = architecture_of(network).build()
    whole.load_state_dict(network.state_dict())
    options = file.info.get("options", {})
    ready = prepare(whole.eval(), torch.device(device), wanted, say, **options)
    changed = ready.input_dtype != network.input_dtype
    ready.quantization_info = {
        **network.quantization_info,
        **({"loaded_as": SHORT[ready.input_dtype]} if changed else {}),
    }
    return ready


def load_with_info(path: Path, device: torch.device, model: Target | None = None) -> tuple[Network, LoadedFile]:
    """As `load_model`, with what was read."""
    file = read_file(path)
    if not file.info:
        network, file = load_fp32(path, model)
        return precision_of("fp32").convert(network).to(device), file
    architecture = network_of(path, file, model)
    with _about(path):
        try:
            values = sum(tensor.numel() for tensor in architecture.shapes.values())
            if file.num_bytes * BITS_PER_BYTE < FEWEST_BITS * values:
                raise ValueError(f"a file of {file.num_bytes} bytes has not the {values:,} values of such a network")
            network = empty_model(file.info, architecture)
        except Exception as error:  # the file may say anything
            raise ModelFileError(f"quantization_info cannot be used ({error!r})") from error
        fill(network, file.state)
    return network.to(device).eval(), file


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
