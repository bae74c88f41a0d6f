"""What a run needs to continue after it was killed."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import torch
from pydantic import ConfigDict, Field, TypeAdapter
from torch import Tensor

from fl.core.console import say
from fl.core.errors import ConfigError, DataError, ModelFileError, QuantflError, RunError
from fl.core.files import DEEPEST, read_regular, write_bytes
from fl.core.lines import Lines
from fl.core.run_folder import CHECKPOINT, CLIENTS, PREVIOUS_CHECKPOINT
from fl.federation.client_states import read_state
from fl.quantization.file_content import stored
from fl.quantization.model_file import to_bytes
from fl.quantization.state_dicts import check_names, check_shapes, plain

MARK = b"quantfl checkpoint SHA-256:"
"""Stands at the end of a checkpoint, with the hash of all before it."""

HASH_BYTES = 32
MOST_BYTES = 1 << 34

Mark = tuple[Annotated[int, Field(ge=0)], str]
"""See `Lines.mark`."""

MAY_CHANGE = (
    "data.path",
    "data.cache_dir",
    "data.split_files",
    "link.windows",
    "constellation.path",
    "engine",
    "report",
    "time_limit_min",
    "tracking",
)
"""Settings that make no difference to what a run's rounds are."""


@dataclass(frozen=True)
class Checkpoint:
    """State after a round.

    Attributes:
        round: the last one completed.
        state: the global model.
        strategy: what the strategy remembers.
        clients: which files of the folder `clients` hold what each client remembers, by node id; in a checkpoint of an
            older version its `Context.state` itself, serialized.
        link: what the server's end of the link remembers.
        records: `Lines.mark` of `rounds.jsonl` after that round; None in a checkpoint of an older version.
        inputs: what the run was made of, by name: a run that is continued must be made of the same.
        contacts: of a run that contacts drive: what is on the way, and when.
        timeline: `Lines.mark` of that run's timeline.
    """

    round: Annotated[int, Field(ge=1)]
    state: dict[str, Tensor]
    strategy: dict[str, Any]
    clients: Mapping[int, dict[str, str] | bytes]
    link: dict[str, Any]
    records: Mark | None = None
    inputs: Mapping[str, Any] | None = None
    contacts: Mapping[str, Any] | None = None
    timeline: Mark | None = None


STRICT = ConfigDict(arbitrary_types_allowed=True, strict=True)
KINDS = {
    name: TypeAdapter(kind, config=STRICT) for name, kind in get_type_hints(Checkpoint, include_extras=True).items()
}
"""What each part of a checkpoint must be."""


def save_checkpoint(run_dir: Path, checkpoint: Checkpoint, settle: Callable[[], object] = lambda: None) -> None:
    """Writes it whole; the one before stays as `checkpoint_previous.pt`.

    Args:
        run_dir: of the run.
        checkpoint: of a round that is complete.
        settle: called when no checkpoint is left but the one before, to delete what neither of the two needs.
    """
    content = to_bytes(vars(checkpoint))
    content += MARK + hashlib.sha256(content).digest()
    if (run_dir / CHECKPOINT).exists():
        os.replace(run_dir / CHECKPOINT, run_dir / PREVIOUS_CHECKPOINT)
    settle()
    write_bytes(run_dir / CHECKPOINT, content)


def newest_checkpoint(
    run_dir: Path,
    records: Lines,
    timeline: Lines | None = None,
    take: Callable[[Checkpoint], object] = lambda checkpoint: None,
) -> Checkpoint | None:
    """Returns the newest checkpoint that is whole and agrees with the run's lines; None: the run begins again.

    It begins again where no round's checkpoint was ever written. What is wrong with a newer one is said in a line.

    Args:
        run_dir: of the run.
        records: of `rounds.jsonl`.
        timeline: of a run that contacts drive.
        take: restores what a checkpoint holds; whatever it raises, but for errors of the user's, is damage too.

    Raises:
        RunError: rounds were recorded, but no checkpoint can be used.
    """
    problems = []
    for name in (CHECKPOINT, PREVIOUS_CHECKPOINT):
        if (run_dir / name).exists():
            try:
                found = _read(run_dir / name)
                if found.records is not None and not (
                    records.agrees(found.records) and records.count(found.records[0]) == found.round
                ):
                    raise RunError(f"{records.path}: is not what the checkpoint of round {found.round} was saved with")
                if timeline is not None and found.timeline is not None and not timeline.agrees(found.timeline):
                    raise RunError(f"{timeline.path}: is not what the checkpoint of round {found.round} was saved with")
                with _damage(run_dir / name):
                    take(found)
            except RunError as error:
                problems.append(str(error))
                continue
            if problems:
                say(f"note: {problems[0]}; going on after round {found.round}, from {name}")
                (run_dir / CHECKPOINT).unlink()  # or it would take the place of this one
            return found
    if records.count() > 1 or (run_dir / PREVIOUS_CHECKPOINT).exists():
        problems = problems or [f"{run_dir}: holds no {CHECKPOINT}, though rounds were recorded"]
        raise RunError(f"{'; '.join(problems)}; start the run again in a new folder")
    if problems:
        say(f"note: {problems[0]}; it was of the first round, which begins again")
    return None


def refuse_other_inputs(run_dir: Path, checkpoint: Checkpoint, inputs: Mapping[str, Any]) -> None:
    """Compares what the run is made of with what it was made of when the checkpoint was saved.

    Raises:
        QuantflError: a setting that rounds depend on, or the data, is another one now.
    """
    if checkpoint.inputs is None:
        return
    before, now = (_lasting(each["settings"]) for each in (checkpoint.inputs, inputs))
    for key in sorted({*before, *now}):
        if before.get(key) != now.get(key):
            raise ConfigError(
                f"{run_dir}: {key} was {before.get(key)!s:.200} when round {checkpoint.round} was saved, "
                f"and is {now.get(key)!s:.200} now; a run goes on with the settings it began with"
            )
    for key in ("images_sha256", "split_sha256", "weights_sha256", "contacts_sha256"):
        if checkpoint.inputs.get(key) != inputs.get(key):
            raise DataError(f"{run_dir}: the data has changed since the run began ({key}); it cannot be continued")


def _lasting(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that rounds depend on, flat, groups' own as `group.name`."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if name not in MAY_CHANGE:
            own = (
                {f"{name}.{key}": each for key, each in value.items()} if isinstance(value, Mapping) else {name: value}
            )
            flat |= {key: each for key, each in own.items() if key not in MAY_CHANGE}
    return flat


def _read(path: Path) -> Checkpoint:
    """Reads it back.

    Raises:
        RunError: it is damaged, or cannot be read.
    """
    try:
        content = read_regular(path, MOST_BYTES)
    except OSError as error:
        raise RunError(f"{path}: {error.strerror}") from error
    body, mark, digest = content[: -HASH_BYTES - len(MARK)], content[-HASH_BYTES - len(MARK) :], content[-HASH_BYTES:]
    marked = mark.startswith(MARK)
    if marked and hashlib.sha256(body).digest() != digest:
        raise RunError(f"{path}: is damaged (its content does not have its SHA-256)")
    with _damage(path):
        loaded = stored(body if marked else content)
        _refuse_unstored(loaded, len(content))
        loaded["clients"] = {node: _plain(held) for node, held in loaded["clients"].items()}
        found = Checkpoint(**{name: KINDS[name].validate_python(part) for name, part in loaded.items()})
        if found.inputs is not None:
            TypeAdapter(Mapping[str, Any]).validate_python(found.inputs["settings"])
    for held in found.clients.values():
        for name in held.values() if isinstance(held, dict) else ():
            read_state(path.parent / CLIENTS, name)
    if not marked:
        if found.records is not None:
            raise RunError(f"{path}: is damaged (its SHA-256 is missing)")
        say(f"note: {path}: is of an older version, without a checksum; it is taken as it is")
    return found


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Calls a checkpoint damaged, whatever is made of what it should not hold.

    Raises:
        RunError: names it.
    """
    try:
        yield
    except ModelFileError as error:
        raise RunError(f"{path}: is damaged ({str(error).partition(';')[0]})") from error
    except QuantflError:
        raise
    except Exception as error:  # whatever torch and others make of what they did not write
        raise RunError(f"{path}: is damaged ({type(error).__name__})") from error


def _refuse_unstored(loaded: Any, num_bytes: int) -> None:
    """Refuses what claims to hold more than a file of so many bytes does, before any of it is copied.

    What several satellites hold alike is stored once, and may be named several times under `contacts`.

    Raises:
        ModelFileError: says what it is.
    """
    if not isinstance(loaded, dict):
        raise ModelFileError(f"it is a {type(loaded).__name__}")
    claimed = 0
    for part, value in loaded.items():
        for leaf in _leaves(value, num_bytes):
            if isinstance(leaf, Tensor) and part != "inputs" and not leaf.requires_grad:
                plain({part: leaf})
                claimed += leaf.nbytes if part != "contacts" else 0
            elif not isinstance(leaf, str | int | float | None):
                raise ModelFileError(f"{part} holds a {type(leaf).__name__}")
    if claimed > num_bytes:
        raise ModelFileError(f"it claims tensors of {claimed:,} bytes, and has {num_bytes:,} in all")


def _leaves(value: Any, most: int) -> Iterator[Any]:
    """Yields what dicts, lists and sets are made of, as often as it is named there.

    Raises:
        ModelFileError: that is more often than `most`, or too deep.
    """
    levels, count = [iter([value])], 0
    while levels:
        for each in levels[-1]:
            count += 1
            if count > most or len(levels) > DEEPEST:
                raise ModelFileError("it is nested without end")
            if isinstance(each, dict | list | tuple | set):
                levels.append(iter(each.values() if isinstance(each, dict) else each))
                break
            yield each
        else:
            levels.pop()


def refuse_other_network(state: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> None:
    """Compares a global model with the one that the run began with.

    Raises:
        ModelFileError: names, shapes or types differ, a variance is negative, or a value is not finite that was.
    """
    check_names(start, state)
    check_shapes(start, state, types=True)
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all() and torch.isfinite(start[name]).all():
            raise ModelFileError(f"{name} holds NaN or infinity")
        if name.endswith("running_var") and (tensor < 0).any():
            raise ModelFileError(f"{name} holds negative variances")


def held_once(value: Any, seen: dict[tuple[Any, ...], Tensor] | None = None) -> Any:
    """Returns lists and dicts of tensors in which equal tensors are one, which torch saves and loads once."""
    seen = {} if seen is None else seen
    if isinstance(value, Tensor):
        content = hashlib.sha256(value.numpy().tobytes()).digest()
        return seen.setdefault((value.dtype, tuple(value.shape), content), value)
    if isinstance(value, Mapping):
        return {key: held_once(each, seen) for key, each in value.items()}
    return [held_once(each, seen) for each in value] if isinstance(value, list) else value


def _plain(held: Tensor | dict[str, str]) -> bytes | dict[str, str]:
    """Returns bytes as they were, which an older version saved as a tensor."""
    return held.numpy().tobytes() if isinstance(held, Tensor) else {str(key): str(name) for key, name in held.items()}
