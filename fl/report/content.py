"""What the report of one run says: sentences, figures, pictures and tables, each with the file and key it is from."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from fl.core.errors import printable
from fl.core.run_folder import COMMUNICATION, COMPARISON, PARTITION, ROUNDS, SETTINGS, SUMMARY
from fl.core.targets import renamed
from fl.core.units import DAY_S, HOUR_S, MIB
from fl.report.charts import Line, Picture, bars, grid, lines
from fl.report.contacts import contacts
from fl.report.models import classes, precisions, recommended, speed
from fl.report.parts import Content, Figure, Section, Table, at
from fl.report.records import RunRecords

T = TypeVar("T")
MOST_CLIENTS = 40
"""Shown one by one."""


def of_run(run: RunRecords) -> Content:
    """Returns what there is to say of a run; of files that are not as expected, that they are not."""
    figures = [figure for each in (_accuracy, _int8, _sent, _price) for figure in taken(run, each)]
    parts = (_training, contacts, _traffic, _links, _clients, precisions, recommended, classes, speed, _facts)
    sections = [section for part in parts for section in taken(run, part)]
    told = "".join(taken(run, sentences))
    synthetic = bool(at(run.summary, "data", "synthetic") or run.partition.get("synthetic"))
    notes = [f"{name} cannot be read: {reason}" for name, reason in run.unread.items()]
    return Content(printable(run.folder.name), told, synthetic, figures, sections, notes)


def taken(run: RunRecords, part: Callable[[RunRecords], Iterable[T]]) -> list[T]:
    """Returns what a part says, nothing where its file holds something else, which is noted."""
    try:
        return list(part(run))
    except Exception as error:  # whatever files hold
        name = getattr(part, "__name__", "").strip("_<>")
        run.unread[f"what is told of {name}"] = f"its figures are not as expected ({printable(repr(error)):.100})"
        return []


def sentences(run: RunRecords) -> Iterator[str]:
    """Yields what was run on which data."""
    summary, data = run.summary, at(run.summary, "data") or {}
    name = str(data.get("name") or run.partition.get("data") or "unknown images")
    network = str(at(run.settings, "model", "_target_") or "Net").rpartition(".")[2]
    parts = [f"{network} on {name}{' (SYNTHETIC images)' if data.get('synthetic') else ''}"]
    if "num_train" in data:
        parts.append(f"{data['num_train']:,} training and {data['num_test']:,} test images")
    if summary:
        parts.append(f"{summary.get('num_clients')} clients, {summary.get('clients_per_round')} in a round")
        parts.append(f"{summary.get('rounds_completed')} of {summary.get('num_rounds')} rounds")
        parts.append(f"seed {summary.get('seed')}")
    if summary.get("state") not in ("completed", None):
        why = f": {summary['error']}" if summary.get("error") else ""
        parts.append(f"ended as {summary['state']}{why}")
    yield ", ".join(parts)


def _accuracy(run: RunRecords) -> Iterator[Figure]:
    final = at(run.summary, "final", "test_accuracy")
    if final is not None:
        told = f"of {at(run.summary, 'data', 'num_test'):,} test images after the last round"
        yield Figure("accuracy", f"{100 * final:.2f} %", told, f"{SUMMARY}: final")


def _int8(run: RunRecords) -> Iterator[Figure]:
    if int8 := at(run.comparison, "precisions", "int8"):
        change = int8["accuracy_drop_percent"]
        told = f"{int8['compression_ratio']:.2f} times smaller than FP32; accuracy changes by {change:+.2f} points"
        yield Figure("model in INT8", _bytes(int8["file_size_bytes"]), told, f"{COMPARISON}: precisions.int8")


def _sent(run: RunRecords) -> Iterator[Figure]:
    if total := at(run.communication, "measured", "total"):
        sent, ratio, place = (
            _bytes(total["payload_bytes"]),
            total["compression_ratio"],
            f"{COMMUNICATION}: measured.total",
        )
        if ratio and total["payload_bytes"] < total["fp32_payload_bytes"]:
            told = f"{sent} of payload both ways, from the same start as FP32"
            yield Figure("traffic", f"{ratio:.2f}x fewer bytes", told, place)
        else:
            yield Figure("traffic", sent, "of payload both ways, no fewer than FP32 from the same start", place)


def _price(run: RunRecords) -> Iterator[Figure]:
    for name, link in list((at(run.communication, "modelled", "links") or {}).items())[:1]:
        saved, place = link["saved_percent"]["cost_usd"], f"{COMMUNICATION}: modelled.links.{name}"
        told = f"over {name}, modelled; {saved:.1f} % less than FP32 from the same start"
        yield Figure("price", f"${link['cost_usd']['total']:,.2f}", told, f"{place}.cost_usd")
        told = f"for {run.summary.get('rounds_completed')} rounds over {name}, modelled"
        yield Figure("time", _time(link["round_s"]["total"]), told, f"{place}.round_s")


def _training(run: RunRecords) -> Iterator[Section]:
    if not run.rounds:
        return
    rounds = [int(each["round"]) for each in run.rounds]
    kinds = {"test": "test_{}", "validation": "validation_{}", "clients' own": "federated_{}"}
    pictures = []
    for measure, label, factor in (("accuracy", "accuracy (%)", 100), ("loss", "cross-entropy", 1)):
        curves = [
            Line(name, rounds, [factor * each[key.format(measure)] for each in run.rounds])
            for name, key in kinds.items()
            if all(_is_number(each.get(key.format(measure))) for each in run.rounds)
        ]
        if measure == "loss":
            trained = {int(each["round"]): each["train_loss"] for each in run.rounds if each["train_loss"] is not None}
            curves.append(Line("training", list(trained), list(trained.values())))
        first, last = curves[0].y[0], curves[0].y[-1]
        told = f"{measure} over rounds: {curves[0].name} from {first:.2f} to {last:.2f}"
        pictures.append(Picture(lines(curves, "round", label, whole_x=True), told, f"{ROUNDS}: test_{measure}"))
    accuracy = [100 * each["test_accuracy"] for each in run.rounds]
    sent = np.cumsum([_payload(each) for each in run.rounds]) / MIB
    told = f"test accuracy over payload sent so far: {accuracy[-1]:.2f} % after {sent[-1]:,.2f} MB"
    drawn = lines(
        [Line("test", sent.tolist(), accuracy)], "payload sent so far, both ways (MB of 1024² bytes)", "accuracy (%)"
    )
    pictures.append(Picture(drawn, told, f"{ROUNDS}: broadcast, update payload_bytes"))
    rows = [
        [
            f"{each['round']}",
            f"{100 * each['test_accuracy']:.2f}",
            f"{each['test_loss']:.4f}",
            "–" if each["train_loss"] is None else f"{each['train_loss']:.4f}",
            f"{each['broadcast']['payload_bytes']:,}",
            f"{each['update']['payload_bytes']:,}",
            f"{each['clients_completed']} of {each['clients_asked']}",
        ]
        for each in run.rounds
    ]
    columns = ["round", "test %", "test loss", "train loss", "broadcast bytes", "update bytes", "clients"]
    yield Section("Training", pictures=pictures, tables=[Table("Rounds", columns, rows, ROUNDS)])


def _traffic(run: RunRecords) -> Iterator[Section]:
    measured = run.communication.get("measured")
    if not measured or not run.rounds:
        return
    rounds = [int(each["round"]) for each in run.rounds]
    ways = {"broadcast (up)": "broadcast", "update (down)": "update"}
    curves = [
        Line(name, rounds, [each[way]["payload_bytes"] / MIB for each in run.rounds]) for name, way in ways.items()
    ]
    told = f"payload of each round: {curves[0].y[-1]:.3f} MB up and {curves[1].y[-1]:.3f} MB down in the last"
    pictures = [Picture(lines(curves, "round", "MB of 1024² bytes", whole_x=True), told, f"{ROUNDS}: payload_bytes")]
    so_far = [Line(each.name, rounds, np.cumsum(each.y).tolist()) for each in curves]
    told = f"payload until the end of each round: {so_far[0].y[-1]:.3f} MB up and {so_far[1].y[-1]:.3f} MB down in all"
    drawn = lines(so_far, "round", "MB of 1024² bytes so far", whole_x=True)
    pictures.append(Picture(drawn, told, f"{ROUNDS}: payload_bytes"))
    rows = []
    for way in ("broadcast", "update", "total"):
        each = measured[way]
        ratio = f"{each['compression_ratio']:.2f}" if each.get("compression_ratio") else "–"
        rows.append(
            [way, f"{each['payload_bytes']:,}", f"{each['message_bytes']:,}", f"{each['fp32_payload_bytes']:,}", ratio]
        )
    columns = ["way", "payload bytes", "message bytes", "FP32 payload bytes", "times fewer"]
    table = Table("All rounds", columns, rows, f"{COMMUNICATION}: measured")
    reached = [
        [f"{goal} %", f"{each['rounds']}", f"{each['payload_bytes']:,}"]
        for goal, each in measured.get("reached", {}).items()
        if each
    ]
    tables = [table]
    if reached:
        columns = ["test accuracy", "rounds", "payload bytes until then"]
        tables.append(Table("What a goal took", columns, reached, f"{COMMUNICATION}: measured.reached"))
    text = (
        "Measured: lengths of what really travelled. FP32 is charged from the same start; the first model came from "
        f"the seed at both ends, which spared {measured['shared_start_bytes']:,} bytes either way."
        if measured.get("shared_start_bytes")
        else "Measured: lengths of what really travelled. FP32 is charged from the same start."
    )
    yield Section("Traffic", [text], pictures, tables)


def _links(run: RunRecords) -> Iterator[Section]:
    links = at(run.communication, "modelled", "links")
    if not links:
        return
    rows = []
    for name, link in links.items():
        energy = link.get("energy_j")
        joules = energy.get("total") if isinstance(energy, Mapping) else energy
        rows.append(
            [
                name,
                f"{link['cost_usd']['total']:,.2f}",
                f"{link['if_fp32']['cost_usd']:,.2f}",
                f"{link['saved_percent']['cost_usd']:.1f}",
                f"{link['round_s']['total'] / HOUR_S:,.2f}",
                f"{link['if_fp32']['total_s'] / HOUR_S:,.2f}",
                f"{link['contacts']['total']:,}",
                f"{joules:,.1f}" if _is_number(joules) else "–",
            ]
        )
    columns = ["link", "US$", "US$ as FP32", "saved %", "hours", "hours as FP32", "contacts", "joules"]
    texts = ["Modelled from the bytes above, not measured: docs/measured-and-modelled.md has every formula."]
    texts += [f"Not modelled: {each}" for each in at(run.communication, "modelled", "not_modelled") or ()]
    table = Table("Over each link", columns, rows, f"{COMMUNICATION}: modelled.links")
    yield Section("Links", texts, _over_links(run, links), [table])


def _over_links(run: RunRecords, links: Mapping[str, Any]) -> list[Picture]:
    """Returns money by round and accuracy by day, a curve for each link."""
    rounds, source = [int(each["round"]) for each in run.rounds], f"{COMMUNICATION}: modelled.links"
    accuracy = [100 * each["test_accuracy"] for each in run.rounds]
    spent, learned = [], []
    for name, link in links.items():
        cost, days = (np.cumsum([each[key] for each in link["rounds"]]) for key in ("cost_usd", "round_s"))
        spent.append(Line(name, rounds, cost.tolist()))
        learned.append(Line(name, (days / DAY_S).tolist(), accuracy))
    dollars = ", ".join(f"{line.name} ${line.y[-1]:,.2f}" for line in spent)
    ends = ", ".join(f"{line.name} {_time(DAY_S * line.x[-1])}" for line in learned)
    apart = all(line.x[0] > 0 for line in learned)
    return [
        Picture(
            lines(spent, "round", "US$ so far", whole_x=True),
            f"cost until the end of each round: {dollars}",
            f"{source}.*.rounds.cost_usd",
        ),
        Picture(
            lines(learned, "days of simulated time", "test accuracy (%)", log_x=apart),
            f"test accuracy of {accuracy[-1]:.2f} % after: {ends}",
            f"{source}.*.rounds.round_s",
        ),
    ]


def _clients(run: RunRecords) -> Iterator[Section]:
    counts, names = run.partition.get("label_distribution"), run.partition.get("class_names")
    pictures, tables = [], []
    if counts and names:
        array = np.array(counts)
        if len(array) <= MOST_CLIENTS:
            drawn = grid(
                array, [f"client {number}" for number in range(len(array))], list(map(str, names)), "class", ""
            )
            least, most = array.sum(axis=1).min(), array.sum(axis=1).max()
            told = f"training images of each class at each client: {least:,} to {most:,} a client"
            pictures.append(
                Picture(drawn, told, f"{PARTITION}: label_distribution", "Training images by client and class")
            )
        else:
            sizes = np.sort(array.sum(axis=1))[::-1]
            drawn = lines(
                [Line("images", range(1, len(sizes) + 1), sizes.tolist())], "clients, largest first", "images"
            )
            told = f"training images of {len(sizes):,} clients, from {sizes[0]:,} to {sizes[-1]:,}"
            pictures.append(Picture(drawn, told, f"{PARTITION}: images_per_client"))
    measured = at(run.communication, "measured", "clients") or []
    if measured and len(measured) <= MOST_CLIENTS:
        labels = [f"client {each['partition_id']}" for each in measured]
        parts = [
            (name, [each[key] / MIB for each in measured])
            for name, key in (("broadcast", "broadcast_payload_bytes"), ("update", "update_payload_bytes"))
        ]
        told = "payload of each client in both directions, in MB"
        drawn = bars(labels, parts, "payload (MB of 1024² bytes)")
        pictures.append(Picture(drawn, told, f"{COMMUNICATION}: measured.clients", "Payload by client"))
    failed = [
        [f"{each['round']}", f"{failure['partition_id']}", str(failure["reason"])]
        for each in run.rounds
        for failure in each.get("clients_failed") or ()
    ]
    if failed:
        tables.append(Table("Who failed, and why", ["round", "client", "reason"], failed, f"{ROUNDS}: clients_failed"))
    seconds = [
        [f"{each['partition_id']}", f"{each['rounds_answered']} of {each['rounds_asked']}", f"{each['train_s']:,.1f}"]
        for each in measured[:MOST_CLIENTS]
    ]
    if seconds:
        title = "Seconds of training" + (f" (the first {MOST_CLIENTS})" if len(measured) > MOST_CLIENTS else "")
        tables.append(Table(title, ["client", "rounds", "s"], seconds, f"{COMMUNICATION}: measured.clients"))
    if pictures or tables:
        yield Section("Clients", pictures=pictures, tables=tables)


def _facts(run: RunRecords) -> Iterator[Section]:
    environment = run.summary.get("environment") or {}
    rows = [[key, _plain(value)] for key, value in environment.items()]
    tables = [Table("Where it ran", ["", "value"], rows, f"{SUMMARY}: environment")] if rows else []
    settings = [[key, value] for key, value in sorted(flat(run.settings).items())]
    if settings:
        tables.append(Table("Settings", ["setting", "value"], settings, SETTINGS))
    if tables:
        yield Section("Environment and settings", tables=tables)


def flat(settings: Mapping[str, Any], before: str = "") -> dict[str, str]:
    """Returns nested settings as text by their dotted names."""
    found: dict[str, str] = {}
    for key, value in settings.items():
        name = f"{before}{key}"
        shown = renamed(value) if key == "_target_" and isinstance(value, str) else value
        found |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: _plain(shown)}
    return found


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(each)}" for key, each in value.items())
    return ", ".join(map(_plain, value)) if isinstance(value, list) else "null" if value is None else str(value)


def _payload(record: Mapping[str, Any]) -> float:
    return float(record["broadcast"]["payload_bytes"] + record["update"]["payload_bytes"])


def _time(seconds: float) -> str:
    for unit, size in (("days", DAY_S), ("hours", HOUR_S), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _bytes(number: float) -> str:
    return f"{number / MIB:,.2f} MB" if number >= MIB / 10 else f"{number:,.0f} bytes"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
