"""What is recorded of a round, `rounds.jsonl`, and all sums over rounds: each is computed here alone."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from fl.core.errors import ConfigError
from fl.core.files import read_jsonl

MILESTONES_PERCENT = (70, 80, 85, 90)

Metric = Literal["accuracy", "loss"]

METRICS: tuple[Metric, ...] = ("accuracy", "loss")

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
class Planes:
    """What went over each link since the line before, where the satellites of a plane pass on what they receive.

    Attributes:
        ground_to_sat_bytes: payloads that went up, one for each plane.
        inter_satellite_bytes: models and updates, at every hop.
        sat_to_ground_bytes: sums of updates that came down.
        coding_errors: of each sum: how much its second coding changed it, as a part of its length.
    """

    ground_to_sat_bytes: int
    inter_satellite_bytes: int
    sat_to_ground_bytes: int
    coding_errors: tuple[float, ...]


@dataclass(frozen=True)
class RoundRecord:
    """One line of `rounds.jsonl`.

    `fp32_model_bytes` is the length of one model as plain serialized tensors, `shared_start_bytes` that of the first
    model for every client that had it from the seed, which no payload and no `fp32_payload_bytes` holds.
    `federated` is the clients' own evaluation, where it was asked for; `evaluated` and `evaluation_traffic` are what
    that took, `late` are answers that came when nobody waited for them any more; `broadcast`, `update` and `clients`
    leave them out. `exact` and `reference` are the test scores of the server's model and of what clients hold of it,
    where they differ; `test` is the one that was chosen.

    Of a run that contacts drive a line is what has happened since the one before: `clients` and sums are of transfers
    that began since, a model's and its update's apart where a line lies between them; `clients_asked` counts who
    answered or failed. `simulated_s` is the time of the line, staleness that of the updates that were used. Where
    satellites pass models on, `clients` and sums are of what each needed and answered, and `planes` of what travelled.
    """

    round: int
    lr: float
    test: Score
    validation: Score | None
    exact: Score | None
    reference: Score | None
    federated: Score | None
    train_loss: float | None
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
    simulated_s: float | None = None
    staleness_mean: float | None = None
    staleness_max: int | None = None
    planes: Planes | None = None

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
        for name in ("simulated_s", "staleness_mean", "staleness_max", "planes"):
            if record[name] is None:
                del record[name]
        return record


def beside_training(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns clients' bytes of a round that its sums leave out: of their evaluation, and of answers that came late."""
    return [*record.get("evaluated", ()), *record.get("late", ())]


def read_rounds(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a `rounds.jsonl`, older ones as `upgraded` makes them.

    Raises:
        ConfigError: a line is damaged, contradicts itself or those before it, or is of a version that is not known.
    """
    rounds: list[dict[str, Any]] = []
    for number, line in enumerate(read_jsonl(path), start=1):
        try:
            rounds.append(upgraded(line))
            _check_figures(line)
            _check_place(line, number, rounds[-2] if number > 1 else None)
            _check_sums(line)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{path}: is damaged (line {number}: {error!r:.200})") from error
        except ConfigError as error:
            raise ConfigError(f"{path.parent}/{error}") from error
    return rounds


def _check_figures(value: Any) -> None:
    """Refuses what no round can have measured, wherever it stands (`ValueError`)."""
    if isinstance(value, dict):
        for key, each in value.items():
            kind = next((end for end in MEASURED if key.endswith(end)), None)
            number = type(each) in (int, float)
            absent = key == "train_loss" and each is None  # nobody's update was used
            whole = kind != "_bytes" or type(each) is int
            if kind and not absent and not (number and 0 <= each <= MEASURED[kind] and whole):
                raise ValueError(f"{key} is {each!r:.20}")
            _check_figures(each)
    elif isinstance(value, list):
        for each in value:
            _check_figures(each)


def _check_place(line: Mapping[str, Any], number: int, before: Mapping[str, Any] | None) -> None:
    """Refuses a line that does not follow the one before, or counts more than it asked (`ValueError`)."""
    if type(line["round"]) is not int or line["round"] != number:
        raise ValueError(f"round {line['round']!r:.20} where {number} belongs")
    asked, completed = line.get("clients_asked", 0), line.get("clients_completed", 0)
    if not (type(asked) is type(completed) is int and 0 <= completed <= asked):
        raise ValueError(f"{completed!r:.20} of {asked!r:.20} clients completed")
    if before is not None and ("simulated_s" in line) != ("simulated_s" in before):
        raise ValueError("simulated_s is in some lines alone")
    if before is not None and line.get("simulated_s", 0) < before.get("simulated_s", 0):
        raise ValueError("simulated_s falls")


def _check_sums(line: Mapping[str, Any]) -> None:
    """Refuses sums that are not those over the line's clients (`ValueError`); lines of before codecs list none."""
    current, trained = line.get("version", 1) == VERSION, line.get("clients")
    parts: list[tuple[str, tuple[str, ...], Any]] = [(way, (way,), trained) for way in ("broadcast", "update")]
    if "evaluation_traffic" in line:
        parts.append(("evaluation_traffic", ("broadcast", "update"), line.get("evaluated")))
    for name, ways, clients in parts:
        told = line.get(name)
        if told is None or clients is None or not (clients or current):
            continue
        for key in ("payload_bytes", "message_bytes"):
            each = [client.get(f"{way}_{key}") for client in clients for way in ways]
            if None not in each and told[key] != sum(each):
                raise ValueError(f"{name} has {told[key]} {key}, its clients {sum(each)}")
            whole = line["fp32_model_bytes"] * sum(map(bool, each)) if current and key == "payload_bytes" else None
            if whole not in (None, told["fp32_payload_bytes"]):
                raise ValueError(f"{name} has {told['fp32_payload_bytes']} fp32_payload_bytes, its clients {whole}")


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


def scores_of(record: Mapping[str, Any]) -> dict[str, float]:
    """Returns all losses and accuracies of a line of `rounds.jsonl`."""
    return {key: value for key, value in record.items() if key.endswith(("_loss", "_accuracy"))}


def check_summary(summary: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> None:
    """Refuses a `summary.json` that does not sum up these rounds.

    Raises:
        ValueError: names the figure.
    """
    _same(summary, {"rounds_completed": len(records), "final": scores_of(records[-1]) if records else None})
    check_sums(summary["totals"], records)


def check_sums(told: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> None:
    """Refuses sums over rounds that are not those of these rounds.

    Args:
        told: with bytes of both directions, as `totals` returns them, and `measured` of a `communication.json`.
        records: lines of `rounds.jsonl`, as `upgraded` returns them.

    Raises:
        ValueError: names the figure.
    """
    sums = totals(records)
    for direction in ("broadcast", "update"):
        _same(told[direction], {key: sums[direction][key] for key in ("payload_bytes", "message_bytes")}, direction)


def _same(told: Mapping[str, Any], own: Mapping[str, Any], of: str = "") -> None:
    for key, value in own.items():
        if key in told and told[key] != value:
            raise ValueError(f"{of} {key} is {told[key]!r:.50} where the rounds have {value!r:.50}".lstrip())


def reached(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int] | None]:
    """Returns for each milestone the first round whose test accuracy is there, and the payload bytes until then."""
    found: dict[str, dict[str, int] | None] = {}
    for percent in MILESTONES_PERCENT:
        number = next((r["round"] for r in records if 100 * r["test_accuracy"] >= percent), None)
        found[str(percent)] = None
        if number is not None:
            sums = totals([record for record in records if record["round"] <= number])
            found[str(percent)] = {
                "rounds": number,
                "broadcast_payload_bytes": sums["broadcast"]["payload_bytes"],
                "update_payload_bytes": sums["update"]["payload_bytes"],
            }
    return found


def over_planes(records: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Returns sums over rounds of what `Planes` records, errors as mean and maximum; None where there is none."""
    told = [record["planes"] for record in records if "planes" in record]
    errors = [error for each in told for error in each["coding_errors"]]
    if not errors:
        return None
    sums = {key: sum(each[key] for each in told) for key in told[0] if key.endswith("_bytes")}
    return {**sums, "coding_error": {"mean": sum(errors) / len(errors), "max": max(errors)}}


def best_round(records: Sequence[Mapping[str, Any]], metric: Metric) -> int | None:
    """Returns the round with the best validation score; None without such scores.

    Of rounds with equal accuracy the one with the lowest loss is best (of equal loss, with the highest accuracy), of
    rounds equal in both the earliest.
    """
    best = min(scored(records), key=lambda record: (*worse(record, metric), record["round"]), default=None)
    return None if best is None else int(best["round"])


def scored(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Returns the rounds that were scored on validation images."""
    return [record for record in records if "validation_loss" in record]


def worse(record: Mapping[str, Any], metric: Metric) -> tuple[float, float]:
    """Returns both scores, the metric's first, so that the lower is the better."""
    accuracy, loss = -record["validation_accuracy"], record["validation_loss"]
    return (accuracy, loss) if metric == "accuracy" else (loss, accuracy)
