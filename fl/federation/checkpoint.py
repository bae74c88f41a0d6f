"""What a run needs to continue after it was killed."""

import hashlib
import io
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fl.core.console import say
from fl.core.errors import ConfigError, DataError, RunError
from fl.core.files import read_regular, write_bytes
from fl.core.lines import Lines
from fl.core.run_folder import CHECKPOINT, CLIENTS, PREVIOUS_CHECKPOINT
from fl.federation.client_states import read_state
from fl.quantization.model_file import to_bytes

MARK = b"quantfl checkpoint SHA-256:"
"""Stands at the end of a checkpoint, with the hash of all before it."""

HASH_BYTES = 32
MOST_BYTES = 1 << 34

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

    round: int
    state: dict[str, Tensor]
    strategy: dict[str, Any]
    clients: Mapping[int, dict[str, str] | bytes]
    link: dict[str, Any]
    records: tuple[int, str] | None = None
    inputs: Mapping[str, Any] | None = None
    contacts: Mapping[str, Any] | None = None
    timeline: tuple[int, str] | None = None


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


def newest_checkpoint(run_dir: Path, records: Lines, timeline: Lines | None = None) -> Checkpoint | None:
    """Returns the newest checkpoint that is whole and agrees with the run's lines; None: the run begins again.

    It begins again where no round's checkpoint was ever written. What is wrong with a newer one is said in a line.

    Raises:
        RunError: rounds were recorded, but no checkpoint can be used.
    """
    problems = []
    for name in (CHECKPOINT, PREVIOUS_CHECKPOINT):
        if (run_dir / name).exists():
            try:
                found = _read(run_dir / name)
                if found.records is not None and not records.agrees(found.records):
                    raise RunError(f"{records.path}: is not what the checkpoint of round {found.round} was saved with")
                if timeline is not None and found.timeline is not None and not timeline.agrees(found.timeline):
                    raise RunError(f"{timeline.path}: is not what the checkpoint of round {found.round} was saved with")
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
                f"{run_dir}: {key} was {before.get(key)} when round {checkpoint.round} was saved, "
                f"and is {now.get(key)} now; a run goes on with the settings it began with"
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
        RunError: it is damaged.
        OSError: see `read_regular`.
    """
    content = read_regular(path, MOST_BYTES)
    body, mark, digest = content[: -HASH_BYTES - len(MARK)], content[-HASH_BYTES - len(MARK) :], content[-HASH_BYTES:]
    marked = mark.startswith(MARK)
    if marked and hashlib.sha256(body).digest() != digest:
        raise RunError(f"{path}: is damaged (its content does not have its SHA-256)")
    try:
        loaded = torch.load(io.BytesIO(body if marked else content), map_location="cpu", weights_only=True)
        found = Checkpoint(**loaded | {"clients": {node: _plain(held) for node, held in loaded["clients"].items()}})
    except Exception as error:  # whatever torch makes of bytes it did not write
        raise RunError(f"{path}: is damaged ({type(error).__name__})") from error
    for held in found.clients.values():
        for name in held.values() if isinstance(held, dict) else ():
            read_state(path.parent / CLIENTS, name)
    if not marked:
        if found.records is not None:
            raise RunError(f"{path}: is damaged (its SHA-256 is missing)")
        say(f"note: {path}: is of an older version, without a checksum; it is taken as it is")
    return found


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
