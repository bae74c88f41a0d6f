"""What the report of several runs says: where their settings differ, their curves over each other, their figures."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from fl.core.errors import printable
from fl.core.run_folder import COMMUNICATION, COMPARISON, ROUNDS, SETTINGS, SUMMARY
from fl.core.units import MIB
from fl.report.charts import Line, Picture, lines, points
from fl.report.content import flat, sentences, taken
from fl.report.parts import Content, Section, Table, at
from fl.report.records import RunRecords

OWN = ("hydra.", "data.cache_dir")
"""Settings that differ without meaning anything."""


def of_runs(runs: Sequence[RunRecords]) -> Content:
    """Returns what there is to say of several runs beside each other."""
    names = _names(runs)
    texts = [f"{name}: {told}" for name, run in zip(names, runs, strict=True) for told in taken(run, sentences)]
    settings = [flat(run.settings) for run in runs]
    keys = sorted({key for each in settings for key in each if not key.startswith(OWN)})
    differing = [
        [key, *(each.get(key, "–") for each in settings)]
        for key in keys
        if len({each.get(key) for each in settings}) > 1
    ]
    sections = [
        Section("Settings that differ", texts, tables=[Table("Settings", ["setting", *names], differing, SETTINGS)])
    ]
    told = [(name, run) for name, run in zip(names, runs, strict=True) if run.rounds]
    if told:
        sections += [section for part in (_curves, _figures) for section in _of_all(told, part)]
    notes = [f"{run.folder.name}: {name} cannot be read: {why}" for run in runs for name, why in run.unread.items()]
    synthetic = any(at(run.summary, "data", "synthetic") for run in runs)
    return Content(f"{len(runs)} runs", f"{len(runs)} runs side by side", synthetic, [], sections, notes)


def _of_all(
    told: Sequence[tuple[str, RunRecords]], part: Callable[[Sequence[tuple[str, RunRecords]]], Section]
) -> list[Section]:
    """Returns what a part says of all runs, nothing where a file holds something else, which is noted of the first."""

    def of_runs(run: RunRecords) -> Iterator[Section]:
        yield part(told)

    of_runs.__name__ = part.__name__
    return taken(told[0][1], of_runs)


def _names(runs: Sequence[RunRecords]) -> list[str]:
    """Returns the shortest ends of paths that tell the runs apart."""
    parts = [tuple(map(printable, run.folder.absolute().parts)) for run in runs]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-length:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({number})" for number, name in enumerate(names, 1)]


def _curves(told: Sequence[tuple[str, RunRecords]]) -> Section:
    over_rounds, over_bytes = [], []
    for name, run in told:
        accuracy = [100 * each["test_accuracy"] for each in run.rounds]
        sent = (
            np.cumsum([sum(each[way]["payload_bytes"] for way in ("broadcast", "update")) for each in run.rounds]) / MIB
        )
        over_rounds.append(Line(name, [int(each["round"]) for each in run.rounds], accuracy))
        over_bytes.append(Line(name, sent.tolist(), accuracy))
    ends = "; ".join(f"{line.name} {line.y[-1]:.2f} %" for line in over_rounds)
    sizes = "; ".join(f"{line.name} {line.x[-1]:,.1f} MB" for line in over_bytes)
    label = "payload sent so far, both ways (MB of 1024² bytes)"
    pictures = [
        Picture(
            lines(over_rounds, "round", "test accuracy (%)", whole_x=True), f"test accuracy over rounds: {ends}", ROUNDS
        ),
        Picture(lines(over_bytes, label, "test accuracy (%)"), f"test accuracy over payload: {sizes}", ROUNDS),
    ]
    ended = [(line.name, line.x[-1], line.y[-1]) for line in over_bytes]
    pictures.append(
        Picture(points(ended, label, "test accuracy (%)"), f"accuracy against payload: {ends}; {sizes}", ROUNDS)
    )
    return Section("Curves", pictures=pictures)


def _figures(told: Sequence[tuple[str, RunRecords]]) -> Section:
    first = told[0][1].rounds[-1]["test_accuracy"]
    rows = []
    for name, run in told:
        accuracy, total = run.rounds[-1]["test_accuracy"], at(run.communication, "measured", "total")
        int8 = at(run.comparison, "precisions", "int8")
        rows.append(
            [
                name,
                f"{100 * accuracy:.2f}",
                f"{100 * (accuracy - first):+.2f}",
                _told(at(total, "payload_bytes"), ",.0f"),
                _told(at(total, "compression_ratio"), ".2f"),
                _told(at(int8, "file_size_bytes"), ",.0f"),
                _told(at(int8, "accuracy_drop_percent"), "+.2f"),
            ]
        )
    columns = ["run", "test %", "points from the first", "payload bytes", "times fewer than FP32", "INT8 file bytes"]
    source = f"{SUMMARY}, {COMMUNICATION}, {COMPARISON}"
    return Section("Figures", tables=[Table("After the last round", [*columns, "INT8 change (points)"], rows, source)])


def _told(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) and not isinstance(value, bool) else "–"
