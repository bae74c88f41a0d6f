"""The pictures that papers show of several runs: accuracy over rounds, megabytes and bits, and days until it."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from fl.core.console import say
from fl.core.errors import ConfigError, QuantflError, counted, printable, shell_path
from fl.core.figures import COLOURS, MARKERS, label_points, log_axis, look, name_lines, picture
from fl.core.run_folder import COMMUNICATION, COMPARISON, HOURS_PLOT, ROUNDS
from fl.core.units import DAY_S, MIB
from fl.report.charts import Line, draw_lines
from fl.report.content import flat
from fl.report.orbit import ACCURACY, HOURS, draw_contacts, hours_of, tell_synthetic
from fl.report.parts import at
from fl.report.records import RunRecords
from fl.report.several import OWN as PLACES

OWN = (*PLACES, "data.path", "data.split_files")
"""Settings that differ without meaning anything."""
PAYLOAD = "payload sent, both directions (MB of 1024² bytes)"
ROUND, LONGEST_NAME = "round", 32


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seeds.

    Attributes:
        name: what tells them from the others.
        runs: one for each seed.
    """

    name: str
    runs: Sequence[RunRecords]

    def mean(self, of: Callable[[RunRecords], float | None]) -> tuple[float, float] | None:
        """Returns the mean of a figure and half of its 95 % interval (Student's t); 0 for one run, None without any."""
        found = [value for value in map(of, self.runs) if value is not None]
        if not found:
            return None
        half = 0.0
        if len(found) > 1:
            half = float(student.ppf(0.975, len(found) - 1) * np.std(found, ddof=1) / len(found) ** 0.5)
        return float(np.mean(found)), half


def groups_of(runs: Sequence[RunRecords]) -> list[Group]:
    """Returns runs by their settings, named by those in which they differ."""
    settings = [
        {key: value for key, value in flat(run.settings).items() if key != "seed" and not key.startswith(OWN)}
        for run in runs
    ]
    differ = [
        key
        for key in dict.fromkeys(key for each in settings for key in each)
        if len({each.get(key) for each in settings}) > 1
    ]
    found: dict[tuple[str | None, ...], list[int]] = {}
    for number, each in enumerate(settings):
        found.setdefault(tuple(each.get(key) for key in differ), []).append(number)
    names = {values: _name(dict(zip(differ, values, strict=True))) for values in found}
    if len(set(names.values())) < len(names) or max(map(len, names.values()), default=0) > LONGEST_NAME:
        names = {
            values: _shared_name([printable(runs[number].folder.name) for number in members])
            for values, members in found.items()
        }
    return [
        Group(names[values] + (f" (n = {len(members)})" if len(members) > 1 else ""), [runs[n] for n in members])
        for values, members in found.items()
    ]


def _name(values: Mapping[str, str | None]) -> str:
    """Returns the settings in few words: classes by their names, each direction's codec with its bits."""
    classes = {key.rpartition(".")[0] for key in values if key.endswith("_target_")}
    words = []
    for key, value in values.items():
        group, _, leaf = key.rpartition(".")
        if leaf == "_target_":
            words.append(f"{group} {str(value).rpartition('.')[2].lower()}" if value else f"no {group}")
        elif value is not None and (leaf == "bits" or group not in classes):
            words.append(f"{key} {value}")
    return ", ".join(words) or "run"


def _shared_name(folders: Sequence[str]) -> str:
    """Returns the name of folders that differ in the number at their end alone, without it; else that of the first."""
    stems = {re.sub(r"[-_.]?\d+$", "", folder) for folder in folders}
    return stems.pop() or folders[0] if len(folders) > 1 and len(stems) == 1 else folders[0]


def accuracy(run: RunRecords) -> float | None:
    """Returns the test accuracy after the last round, in percent."""
    return 100 * run.rounds[-1]["test_accuracy"] if run.rounds else None


def megabytes(run: RunRecords) -> float | None:
    """Returns what was sent in all rounds."""
    return float(sent(run)[-1]) if run.rounds else None


def sent(run: RunRecords) -> np.ndarray:
    """Returns the megabytes of payload sent until the end of each round, float64 [rounds]."""
    each_round = [sum(each[way]["payload_bytes"] for way in ("broadcast", "update")) for each in run.rounds]
    return np.cumsum(each_round) / MIB


def bits(run: RunRecords) -> float | None:
    """Returns the bits that stood for each 32-bit value of the messages, from the same start."""
    total = at(run.communication, "measured", "total") or {}
    return 32 * total["payload_bytes"] / total["fp32_payload_bytes"] if total.get("fp32_payload_bytes") else None


def draw(runs: Sequence[Path], folder: Path) -> Iterator[tuple[Path, str]]:
    """Draws what the files of runs allow; yields each PNG's path, with an SVG beside it, and the file it is from.

    Files that cannot be read are said in a line each.

    Raises:
        ConfigError: rounds that cannot be read, or figures that cannot be drawn.
    """
    read = [RunRecords(run) for run in runs]
    told = [run for run in read if run.rounds]
    for run in read:
        if ROUNDS in run.unread:
            raise ConfigError(run.unread[ROUNDS])
    if told:
        with _drawn(told):
            yield from _pictures(told, folder)
    for run in told:
        for name, why in run.unread.items():
            say(f"note: {run.folder / name} cannot be read: {why}", "warning")


@contextmanager
def _drawn(told: Sequence[RunRecords]) -> Iterator[None]:
    """Says in a line that what files hold cannot be drawn (`ConfigError`)."""
    try:
        yield
    except (OSError, QuantflError):
        raise
    except Exception as error:  # whatever files hold
        places = shell_path(told[0].folder) + (f" and {counted(len(told) - 1, 'other')}" if len(told) > 1 else "")
        raise ConfigError(f"{places}: figures are not as expected ({error!r:.200})") from error


def _pictures(told: Sequence[RunRecords], folder: Path) -> Iterator[tuple[Path, str]]:
    groups = groups_of(told)
    yield _curves(folder / "accuracy_over_rounds.png", groups, _rounds, ROUND), ROUNDS
    far = _far_apart([max(sent(run)[-1] for run in group.runs) for group in groups])
    yield _curves(folder / "accuracy_over_megabytes.png", groups, sent, PAYLOAD, log_x=far), ROUNDS
    if timed := [group for group in groups if all(map(hours_of, group.runs))]:
        yield _curves(folder / HOURS_PLOT, timed, hours_of, HOURS), ROUNDS
    if len(told) == 1:
        yield from draw_contacts(told[0], folder)
    for name, x, label in (
        ("accuracy_and_megabytes", megabytes, PAYLOAD),
        ("accuracy_and_bits", bits, "bits sent for each 32-bit value"),
    ):
        places = [(group, group.mean(x), group.mean(accuracy)) for group in groups]
        known = [(group, across, up) for group, across, up in places if across and up]
        if len(known) > 1:
            yield _against(folder / f"{name}.png", known, label), ROUNDS if x is megabytes else COMMUNICATION
    if days := _days(groups):
        yield _until(folder / "days_to_accuracy.png", groups, days), COMMUNICATION
    if any(run.comparison.get("precisions") for run in told):
        yield _precisions(folder / "accuracy_and_file_size.png", groups), COMPARISON


def _curves(
    path: Path, groups: Sequence[Group], of: Callable[[RunRecords], Any], label: str, *, log_x: bool = False
) -> Path:
    """Means over seeds; the area is the 95 % interval."""
    curves = []
    for group in groups:
        length = min(len(run.rounds) for run in group.runs)
        scores = 100 * np.array([[each["test_accuracy"] for each in run.rounds[:length]] for run in group.runs])
        x, mean, interval = np.mean([of(run)[:length] for run in group.runs], axis=0), scores.mean(axis=0), None
        if len(scores) > 1:
            half = student.ppf(0.975, len(scores) - 1) * scores.std(axis=0, ddof=1) / len(scores) ** 0.5
            low, high = np.clip((mean - half, mean + half), 0, 100)
            interval = low, high
        curves.append(Line(group.name, x, mean, interval))
    with picture(path, 8, 5) as (_, (axes,)):
        draw_lines(axes, curves, label, ACCURACY, whole_x=label == ROUND, log_x=log_x)
        if len(curves) == 1 and len(groups[0].runs) > 1:
            name_lines(axes)
        tell_synthetic(axes, [run for group in groups for run in group.runs])
    return path


def _against(path: Path, known: Sequence[tuple[Group, tuple[float, float], tuple[float, float]]], label: str) -> Path:
    """A point for each group, with the 95 % interval of its accuracy where it has several seeds."""
    colours = [COLOURS[number % 6] for number in range(len(known))]
    with picture(path, 8, 5) as (figure, (axes,)):
        for number, (_, (x, _), (y, half)) in enumerate(known):
            low, high = np.clip((y - half, y + half), 0, 100)
            axes.errorbar(
                x,
                y,
                [[y - low], [high - y]] if half else None,
                fmt=MARKERS[number % 6],
                color=colours[number],
                capsize=3,
            )
        axes.set(xlabel=label, ylabel="test accuracy (%)")
        if _far_apart([x for _, (x, _), _ in known]):
            log_axis(axes, "x")
        axes.margins(x=0.2, y=0.15)
        figure.draw_without_rendering()
        bars = [(x, y + part * half) for _, (x, _), (y, half) in known for part in np.linspace(-1, 1, 9)]
        label_points(axes, [(x, y) for _, (x, _), (y, _) in known], [each.name for each, *_ in known], colours, bars)
    return path


def _rounds(run: RunRecords) -> list[int]:
    return [each["round"] for each in run.rounds]


def _far_apart(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) > 8 * min(values)


def _days(groups: Sequence[Group]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Returns by link and goal in percent the number of each group that reached it, and after how many days."""
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for number, group in enumerate(groups):
        links = dict.fromkeys(name for run in group.runs for name in at(run.communication, "modelled", "links") or {})
        for link in links:
            goals = at(group.runs[0].communication, "modelled", "links", link, "reached") or {}
            for goal in goals:
                seconds = [at(run.communication, "modelled", "links", link, "reached", goal) for run in group.runs]
                if all(seconds):
                    days = float(np.mean([each["elapsed_s"] for each in seconds])) / DAY_S
                    found.setdefault(link, {}).setdefault(goal, []).append((number, days))
    return found


def _until(path: Path, groups: Sequence[Group], days: Mapping[str, Mapping[str, Any]]) -> Path:
    """A panel for each link, a row for each group, a point for each goal."""
    with picture(path, 4 + 4 * len(days), 1.6 + 0.45 * len(groups), columns=len(days)) as (_, panels):
        for axes, (link, goals) in zip(panels, days.items(), strict=True):
            for number, (goal, reached) in enumerate(goals.items()):
                rows, times = zip(*reached, strict=True)
                drawn = look(number)
                axes.scatter(times, rows, s=25, color=drawn["color"], marker=drawn["marker"])
                for row, time in reached:
                    axes.annotate(
                        f"{goal} %",
                        (time, row),
                        xytext=(0, 5),
                        textcoords="offset points",
                        ha="center",
                        fontsize="x-small",
                        color=drawn["color"],
                    )
            axes.set_yticks(range(len(groups)), [group.name for group in groups])
            axes.set_ylim(len(groups) - 0.5, -0.7)
            axes.set(xlabel="days of simulated time until the test accuracy", title=link)
            log_axis(axes, "x")
            axes.margins(x=0.15)
    return path


def _precisions(path: Path, groups: Sequence[Group]) -> Path:
    """Accuracy against file size, a curve through the precisions of each group."""
    named: list[Any] = []
    with picture(path, 8, 5) as (figure, (axes,)):
        for number, group in enumerate(groups):
            entries = [run.comparison.get("precisions") or {} for run in group.runs]
            shared = [name for name in entries[0] if all(name in each for each in entries)]
            places = sorted(
                (
                    np.mean([each[name]["file_size_mb"] for each in entries]),
                    np.mean([each[name]["accuracy_percent"] for each in entries]),
                    name,
                )
                for name in shared
            )
            if places:
                axes.plot([x for x, *_ in places], [y for _, y, _ in places], **look(number), label=group.name)
                named += [((x, y), name, look(number)["color"]) for x, y, name in places]
        axes.set(xlabel="file size (MB of 1024² bytes)", ylabel="test accuracy (%)")
        axes.margins(x=0.15, y=0.15)
        if len(groups) > 1:
            name_lines(axes)
        figure.draw_without_rendering()
        label_points(axes, *zip(*named, strict=True))
    return path
