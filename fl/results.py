"""Records that are written and read: JSON and JSONL that appear whole."""

import errno
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fl.errors import ConfigError

MIB = 1024**2
LONGEST_NUMBER = 300
"""Digits of a whole number in JSON; a longer one is beyond every float."""
DEEPEST = 50
"""Levels of a YAML file; reading deeper ones takes time without end."""
PARTIAL = ".partial"
"""End of the names of files that are being written."""
SIZES = ("payload_bytes", "message_bytes", "fp32_payload_bytes")
"""What is recorded of each direction."""
MEASURED = {"_bytes": 2**63 - 1, "_accuracy": 1, "_loss": 1e30, "_s": 1e12}
"""Ends of the names of figures in a line of `rounds.jsonl`, and the largest that each can be."""
VERSION = 2
"""Of the lines of `rounds.jsonl`. Version 1 charged FP32 for every message, even where the client held the model."""


@dataclass(frozen=True)
class Traffic:
    """Bytes of one direction in one round, summed over clients.

    Attributes:
        payload_bytes: length of the payloads, or of the serialized tensors where there is no codec.
        message_bytes: protobuf length of the messages' content.
        fp32_payload_bytes: what FP32 would have sent from the same start: one model as plain serialized tensors with
            every message that carried anything, nothing with one to a client that held the model already.
    """

    payload_bytes: int
    message_bytes: int
    fp32_payload_bytes: int

    @property
    def compression_ratio(self) -> float | None:
        """FP32 payload bytes / payload bytes, None where nothing had to travel."""
        return self.fp32_payload_bytes / self.payload_bytes if self.payload_bytes else None


@dataclass(frozen=True)
class Score:
    """Mean cross-entropy per image and fraction of correct predictions on one set of images."""

    loss: float
    accuracy: float


@dataclass(frozen=True)
class Scores:
    """What is known of a round's model; `exact` and `reference` where the server's model and the clients' differ."""

    test: Score
    validation: Score | None = None
    exact: Score | None = None
    reference: Score | None = None


@dataclass(frozen=True)
class ClientFailure:
    """Why one client's answer was left out."""

    partition_id: int
    reason: str


@dataclass(frozen=True)
class ClientRecord:
    """One client's part of a round; `train_s` is its own clock's, 0 if it only evaluated or gave no usable answer."""

    partition_id: int
    broadcast_payload_bytes: int
    broadcast_message_bytes: int
    update_payload_bytes: int
    update_message_bytes: int
    train_s: float


@dataclass(frozen=True)
class RoundRecord:
    """One line of `rounds.jsonl`.

    `fp32_model_bytes` is the length of one model as plain serialized tensors, `shared_start_bytes` that of the first
    model for every client that had it from the seed, which no payload and no `fp32_payload_bytes` holds.
    `federated` is the clients' own evaluation, where it was asked for; `evaluated` and `evaluation_traffic` are what
    that took, `late` are answers that came when nobody waited for them any more; `broadcast`, `update` and `clients`
    leave them out. `exact` and `reference` are the test scores of the server's model and of what clients hold of it,
    where they differ; `test` is the one that was chosen.
    """

    round: int
    lr: float
    test: Score
    validation: Score | None
    exact: Score | None
    reference: Score | None
    federated: Score | None
    train_loss: float
    fp32_model_bytes: int
    shared_start_bytes: int
    clients_asked: int
    clients_completed: int
    clients_failed: tuple[ClientFailure, ...]
    broadcast: Traffic
    update: Traffic
    control_message_bytes: int
    late: tuple[ClientRecord, ...]
    clients: tuple[ClientRecord, ...]
    evaluated: tuple[ClientRecord, ...]
    evaluation_traffic: Traffic | None
    evaluation_failed: tuple[ClientFailure, ...]
    train_s: float
    evaluate_s: float
    aggregate_s: float

    def to_json(self) -> dict[str, Any]:
        """Returns the record as written: scores flat (`test_loss`, `test_accuracy`, ...), absent ones left out."""
        record = {"version": VERSION, **asdict(self)}
        for name in ("test", "validation", "exact", "reference", "federated"):
            score = record.pop(name)
            if score is not None:
                record |= {f"{name}_loss": score["loss"], f"{name}_accuracy": score["accuracy"]}
        for name, traffic in (("broadcast", self.broadcast), ("update", self.update)):
            record[name]["compression_ratio"] = traffic.compression_ratio
        if record["evaluation_traffic"] is None:
            del record["evaluated"], record["evaluation_traffic"], record["evaluation_failed"]
        if not record["late"]:
            del record["late"]
        return record


def beside_training(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns clients' bytes of a round that its sums leave out: of their evaluation, and of answers that came late."""
    return [*record.get("evaluated", ()), *record.get("late", ())]


def read_rounds(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a `rounds.jsonl`, older ones as `upgraded` makes them.

    Raises:
        ConfigError: a line is damaged, or of a version that is not known.
    """
    lines = read_jsonl(path)
    try:
        for line in lines:
            if type(line["round"]) is not int or line["round"] < 1:
                raise ValueError(f"there is no round {line['round']!r:.20}")
            _check_figures(line)
        return [upgraded(line) for line in lines]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: is damaged ({error!r})") from error
    except ConfigError as error:
        raise ConfigError(f"{path.parent}/{error}") from error


def _check_figures(value: Any) -> None:
    """Refuses what no round can have measured, wherever it stands (`ValueError`)."""
    if isinstance(value, dict):
        for key, each in value.items():
            kind = next((end for end in MEASURED if key.endswith(end)), None)
            number = type(each) in (int, float)
            if kind and not (number and 0 <= each <= MEASURED[kind] and (kind != "_bytes" or type(each) is int)):
                raise ValueError(f"{key} is {each!r:.20}")
            _check_figures(each)
    elif isinstance(value, list):
        for each in value:
            _check_figures(each)


def upgraded(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a line of `rounds.jsonl` as this version writes it.

    Version 1 counted a model as FP32 for every message; which of them were empty stands in its bytes per client. A line
    without those (from before there were codecs) stays as it is.

    Raises:
        ConfigError: its version is not known.
    """
    version, number = record.get("version", 1), record.get("round")
    if version == VERSION:
        return dict(record)
    if version != 1:
        raise ConfigError(f"rounds.jsonl: round {number} is of version {version!r}; this program knows 1 to {VERSION}")
    clients = record.get("clients")
    if not clients or "fp32_payload_bytes" not in record.get("broadcast", {}):
        return dict(record)
    model = record["broadcast"]["fp32_payload_bytes"] // len(clients)
    parts = {"broadcast": [c["broadcast_payload_bytes"] for c in clients]}
    if "evaluated" in record:
        parts["evaluation_traffic"] = [c["broadcast_payload_bytes"] for c in record["evaluated"]]
    new = {"version": VERSION, **record, "fp32_model_bytes": model, "shared_start_bytes": 0}
    for name, payloads in parts.items():
        new[name] = {**record[name], "fp32_payload_bytes": model * sum(payload > 0 for payload in payloads)}
    if number == 1:
        new["shared_start_bytes"] = model * parts["broadcast"].count(0)
    counted = Traffic(*(new["broadcast"][key] for key in SIZES))
    new["broadcast"]["compression_ratio"] = counted.compression_ratio
    return new


def traffic(record: Mapping[str, Any], direction: str) -> dict[str, int]:
    """Returns all bytes of a direction in a round, those of clients' evaluation and of late answers included.

    Args:
        record: a line of `rounds.jsonl`, as `upgraded` returns it.
        direction: "broadcast" or "update".
    """
    sums = {key: int(record[direction].get(key, record[direction]["payload_bytes"])) for key in SIZES}
    for client in beside_training(record):
        for key in ("payload_bytes", "message_bytes"):
            sums[key] += client[f"{direction}_{key}"]
        sums["fp32_payload_bytes"] += record["fp32_model_bytes"] * (client[f"{direction}_payload_bytes"] > 0)
    return sums


def totals(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns sums over rounds of bytes, seconds and clients; `evaluation_traffic` is part of both directions.

    Args:
        records: lines of `rounds.jsonl`, as `upgraded` returns them.
    """
    sums: dict[str, Any] = {}
    for direction in ("broadcast", "update"):
        each = [traffic(record, direction) for record in records]
        sums[direction] = {key: sum(counts[key] for counts in each) for key in SIZES}
    evaluations = [record["evaluation_traffic"] for record in records if "evaluation_traffic" in record]
    if evaluations:
        sums["evaluation_traffic"] = {key: sum(counts[key] for counts in evaluations) for key in SIZES}
    sums["shared_start_bytes"] = sum(record.get("shared_start_bytes", 0) for record in records)
    for key in ("train_s", "evaluate_s", "aggregate_s", "clients_asked", "clients_completed"):
        sums[key] = sum(record[key] for record in records)
    return sums | {"clients_failed": sums["clients_asked"] - sums["clients_completed"]}


def plain(value: Any) -> Any:
    """Returns `value` as what JSON knows: dataclasses become dicts, arrays lists, paths strings."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file that appears whole or not at all.

    Raises:
        OSError: names this file, whatever the system refused.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder, not a file", str(path))
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):  # which names the temporary file, or none
            raise type(error)(error.errno, error.strerror or str(error), str(path)) from error
        raise


def remove_partial_files(*folders: Path) -> None:
    """Removes what `write_bytes` left in processes that were killed; only for who alone writes there."""
    for folder in folders:
        for path in folder.glob(f".*{PARTIAL}"):
            path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON, whole. NaN and infinity are refused (`ValueError`): JSON has no such numbers."""
    write_bytes(path, (json.dumps(plain(value), indent=2, allow_nan=False) + "\n").encode())


def write_jsonl(path: Path, records: Iterable[Any]) -> None:
    """Writes one JSON document per line, whole."""
    write_bytes(path, "".join(json.dumps(plain(record), allow_nan=False) + "\n" for record in records).encode())


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes named arrays in NumPy's `.npz` format, whole."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    write_bytes(path, buffer.getvalue())


def read_json(path: Path) -> Any:
    """Returns the parsed file.

    Raises:
        ConfigError: it is no JSON.
    """
    try:
        return parsed(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is not valid JSON ({error})") from error


def yaml_text(path: Path) -> str:
    """Returns a YAML file that does not grow when it is read: of bounded size, without aliases.

    Raises:
        ValueError: it is none.
    """
    import yaml

    if path.stat().st_size > MIB:
        raise ValueError(f"has {path.stat().st_size:,} bytes; no settings take more than {MIB:,}")
    text, depth = path.read_text(), 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("has an alias, which may stand for as much as one likes; write out what it stands for")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"has more than {DEEPEST} levels")
    return text


def read_jsonl(path: Path) -> list[Any]:
    """Returns one parsed document per line.

    Raises:
        ConfigError: a line is no JSON.
    """
    try:
        return [parsed(line) for line in path.read_text().splitlines()]
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is damaged ({error})") from error


def parsed(text: str) -> Any:
    """Returns what a JSON document says.

    Raises:
        ValueError: it is none: NaN, Infinity and numbers beyond every float are not, whatever Python's parser says.
    """

    def whole(digits: str) -> int:
        if len(digits) > LONGEST_NUMBER:
            raise ValueError(f"a number of {len(digits)} digits")
        return int(digits)

    def refuse(word: str) -> Any:
        raise ValueError(f"{word} is no number of JSON")

    return json.loads(text, parse_constant=refuse, parse_int=whole)


def sha256(*parts: bytes | np.ndarray) -> str:
    """Returns the hex SHA-256 of the parts one after another."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(np.ascontiguousarray(part).data if isinstance(part, np.ndarray) else part)
    return digest.hexdigest()
