"""The pictures of a run that contacts drove, the same on its page, in its folder and by `fl plot`."""

import itertools
import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fl.core.console import say
from fl.core.figures import COLOURS, DASHES, MARKERS, picture
from fl.core.run_folder import ACTIVITY_PLOT, CONTACTS, HOURS_PLOT, TIMELINE, TRACKS_PLOT
from fl.core.units import HOUR_S
from fl.report.charts import INK, Line, draw_lines
from fl.report.parts import at
from fl.report.records import RunRecords

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_CYCLES = 10_000
"""Repetitions of the contacts' file in a run: of three days, 80 years."""
MOST_SATELLITES = 60
"""That have a row in the picture of what they did: the first."""
NEXT = {"sends": "receiving", "received": "training", "trained": "sending", "relayed": "sending"}
"""What a satellite does from an event of its own on; transfers also wait for contacts, and for its plane."""
LOST = ("late", "failed")
LOOK = {
    "contact": ((INK, 0.18), -0.45, 0.9),
    "receiving": (COLOURS[0], -0.45, 0.45),
    "training": (COLOURS[4], -0.15, 0.3),
    "sending": (COLOURS[1], 0.0, 0.45),
}
"""Of bars: colour, and from where to where in a row, so that they differ in grey too."""
SEEN, OF_PLANES = COLOURS[2], (COLOURS[0], COLOURS[1], COLOURS[3], COLOURS[4])
HOURS, ACCURACY = "simulated hours", "test accuracy (%)"
NARROW_IN = 5.0
"""A figure has room for fewer words beside each other."""

Span = tuple[float, float]


@dataclass(frozen=True)
class Activity:
    """What a satellite did, in hours.

    Attributes:
        contacts: from when to when it could transfer, or acquired.
        done: the same by "receiving", "training" and "sending"; at all other times it waited.
        lost: when an update of it turned out to be of no use.
    """

    contacts: Sequence[Span]
    done: Mapping[str, Sequence[Span]]
    lost: Sequence[float]


def hours_of(run: RunRecords) -> list[float]:
    """Returns when each round was over, in simulated hours; nothing for a run that contacts did not drive."""
    return [each["simulated_s"] / HOUR_S for each in run.rounds if "simulated_s" in each]


def tell_synthetic(axes: "Axes", runs: Sequence[RunRecords]) -> None:
    """Writes above a picture of accuracy that it is of no real images, where it is of none."""
    if any(at(run.summary, "data", "synthetic") for run in runs):
        axes.set_title("SYNTHETIC images")


def activities(run: RunRecords) -> dict[int, Activity]:
    """Returns what the first satellites did until the run was over."""
    ends_s = max((each["time_s"] for each in run.timeline), default=0.0)
    acquisition_s = float(at(run.settings, "link", "acquisition_s") or 0.0)
    events: dict[int, list[Mapping[str, Any]]] = {}
    for each in run.timeline:
        if each["satellite"] is not None and each["satellite"] < MOST_SATELLITES:
            events.setdefault(each["satellite"], []).append(each)
    planes = any(each["event"] == "relayed" for each in run.timeline)
    after = {"time_s": ends_s, "event": "", "payload_bytes": int(not planes)}
    return {
        number: _activity([*events[number], after], windows_of(run.contacts, number, ends_s), acquisition_s)
        for number in sorted(events)
    }


def windows_of(contacts: Mapping[str, Any], satellite: int, ends_s: float) -> list[Span] | None:
    """Returns a satellite's contacts in seconds until a moment; None where it always is in contact."""
    if not contacts:
        return None
    of_all, period_s = contacts["windows"], contacts["period_s"]
    if ends_s / period_s > MOST_CYCLES:
        raise ValueError(f"{ends_s:g} s are more than {MOST_CYCLES:,} repetitions of {period_s:g} s of contacts")
    found = []
    for cycle in range(math.floor(ends_s / period_s) + 1):
        for opens_s, closes_s, *_ in of_all[satellite % len(of_all)]:
            if cycle * period_s + opens_s < ends_s:
                found.append((cycle * period_s + opens_s, min(cycle * period_s + closes_s, ends_s)))
    return found


def _activity(events: Sequence[Mapping[str, Any]], windows: Sequence[Span] | None, acquisition_s: float) -> Activity:
    done: dict[str, list[Span]] = {}
    for each, after in itertools.pairwise(events):
        kind, span = NEXT.get(each["event"]), (each["time_s"], after["time_s"])
        if kind == "sending" and (after["event"] == "relayed" or not after["payload_bytes"]):
            continue  # its update comes down with its plane's
        if kind:
            parts = [span] if kind == "training" or windows is None else _inside(span, windows, acquisition_s)
            done.setdefault(kind, []).extend(_hours(part) for part in parts if part[0] < part[1])
    lost = [each["time_s"] / HOUR_S for each in events if each["event"] in LOST]
    return Activity([_hours(window) for window in windows or ()], done, lost)


def _inside(span: Span, windows: Sequence[Span], acquisition_s: float) -> Iterator[Span]:
    """Yields the parts of a transfer, which uses every contact from its acquisition on until it is over."""
    for opens_s, closes_s in windows[bisect_right(windows, span[0], key=lambda each: each[1]) :]:
        if opens_s >= span[1]:
            break
        yield max(span[0], opens_s + acquisition_s), min(span[1], closes_s)


def _hours(span: Span) -> Span:
    return span[0] / HOUR_S, span[1] / HOUR_S


def draw_activity(axes: "Axes", rows: Mapping[int, Activity]) -> None:
    """Draws a row for each satellite."""
    ends = max(
        (span[1] for row in rows.values() for spans in (row.contacts, *row.done.values()) for span in spans), default=0
    )
    axes.hlines(range(len(rows)), 0, ends, color=INK, alpha=0.5, linewidth=0.6, label="waiting", zorder=1)
    for kind, (colour, bottom, height) in LOOK.items():
        for number, row in enumerate(rows.values()):
            spans = row.contacts if kind == "contact" else row.done.get(kind, ())
            bars = [(start, end - start) for start, end in spans]
            axes.broken_barh(
                bars, (number + bottom, height), color=colour, label=f"{'_' * bool(number)}{kind}", zorder=2
            )
    if lost := [(time, number) for number, row in enumerate(rows.values()) for time in row.lost]:
        axes.plot(*zip(*lost, strict=True), "x", color=INK, label="update lost", zorder=3)
    axes.grid(visible=False)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, ends or 1)
    step = math.ceil(len(rows) / 20) or 1
    axes.set_yticks(range(0, len(rows), step), [str(number) for number in rows][::step])
    axes.set(xlabel=HOURS, ylabel="satellite")
    _legend_above(axes, 6)


def draw_tracks(axes: "Axes", ground: Mapping[str, Any]) -> None:
    """Draws satellites over one orbit and what stations see, on a map whose sides are longitude and latitude."""
    longitude, latitude = np.meshgrid(np.linspace(-180, 180, 361), np.linspace(-90, 90, 181))
    for number, station in enumerate(ground["stations"]):
        place = station["longitude_deg"], station["latitude_deg"]
        away, seen = apart_deg(longitude, latitude, *place), station["horizon_deg"]
        axes.contourf(longitude, latitude, away, [0, seen], colors=[SEEN], alpha=0.2)
        axes.contour(longitude, latitude, away, [seen], colors=[SEEN], linewidths=1)
        axes.plot(*place, color=SEEN, marker="^", label=f"{'_' * bool(number)}station, and what it sees")
        _name(axes, station["name"], place, 0)
    planes = list(ground["planes"])
    for number, (plane, track) in enumerate(zip(planes, ground["tracks"], strict=True)):
        north, east = np.array(track, float).T
        first = planes.index(plane) == number
        label = f"plane {plane}" if len(set(planes)) > 1 else "satellite, and its next orbit"
        drawn: dict[str, Any] = {
            "color": OF_PLANES[plane % 4],
            "linestyle": DASHES[plane % 4],
            "linewidth": 0.7,
            "alpha": 0.7,
        }
        east = np.unwrap(east, period=360)
        for turn in (0, -360, 360):
            named = label if first and not turn else f"_{label}"
            axes.plot(east + turn, north, marker=MARKERS[plane % 4], markevery=[0], label=named, **drawn)
        if len(planes) <= 20:
            _name(axes, str(number), (east[0], north[0]), -4 if north[0] > 60 else 4, fontsize="small")
    axes.set(xlim=(-180, 180), ylim=(-90, 90), aspect="equal", xlabel="longitude (°)", ylabel="latitude (°)")
    axes.set_xticks(range(-180, 181, 60))
    axes.set_yticks(range(-90, 91, 30))
    _legend_above(axes, 5)


def _name(axes: "Axes", name: str, place: tuple[float, float], up: int, **look: Any) -> None:
    """Writes a name beside a place on the map, so that it stays on it."""
    right = -5 if place[0] > 150 else 5
    sides: dict[str, Any] = {"ha": "right" if right < 0 else "left", "va": ("center", "bottom", "top")[np.sign(up)]}
    axes.annotate(name, place, xytext=(right, up), textcoords="offset points", **sides, **look)


def _legend_above(axes: "Axes", most: int) -> None:
    figure: Any = axes.get_figure(root=True)
    figure.legend(loc="outside upper center", ncols=min(3, most) if figure.get_figwidth() < NARROW_IN else most)


def apart_deg(longitude: np.ndarray, latitude: np.ndarray, from_longitude: float, from_latitude: float) -> np.ndarray:
    """Returns how far places are from one, as an angle at the centre of a spherical Earth (haversine), in degrees."""
    here, there = np.radians(from_latitude), np.radians(latitude)
    chord = (
        np.sin((there - here) / 2) ** 2
        + np.cos(here) * np.cos(there) * np.sin(np.radians(longitude - from_longitude) / 2) ** 2
    )
    distance: np.ndarray = np.degrees(2 * np.arcsin(np.sqrt(np.clip(chord, 0, 1))))
    return distance


def height_of(rows: Mapping[int, Activity]) -> float:
    """Returns the height of the picture of what satellites did, in inches."""
    return 1.4 + 0.28 * min(max(3, len(rows)), 30)


def pictures_of(run: RunRecords) -> Iterator[tuple[str, str, float, Callable[["Axes"], None]]]:
    """Yields the name of each picture that there is to draw of one run, its source, its height, and what draws it."""
    if run.timeline:
        rows = activities(run)
        yield ACTIVITY_PLOT, TIMELINE, height_of(rows), partial(draw_activity, rows=rows)
    if ground := run.contacts.get("ground"):
        yield TRACKS_PLOT, CONTACTS, 4.4, partial(draw_tracks, ground=ground)


def draw_contacts(run: RunRecords, folder: Path) -> Iterator[tuple[Path, str]]:
    """Draws the pictures of one run; yields each PNG's path, with an SVG beside it, and the file it is from."""
    for name, source, height, draw in pictures_of(run):
        with picture(folder / name, 8, height) as (_, (axes,)):
            draw(axes)
        yield folder / name, source


def draw_contacts_or_say(folder: Path) -> None:
    """Draws the pictures of a run in its folder; what keeps it from that is said in a line and ends nothing."""
    try:
        run = RunRecords(folder)
        if hours := hours_of(run):
            accuracy = [100 * each["test_accuracy"] for each in run.rounds]
            with picture(folder / HOURS_PLOT, 8, 5) as (_, (axes,)):
                draw_lines(axes, [Line("test", hours, accuracy)], HOURS, ACCURACY)
                tell_synthetic(axes, [run])
            for _ in draw_contacts(run, folder):
                pass
    except Exception as error:  # whatever files hold; the run is what counts
        why = (str(error).splitlines() or [type(error).__name__])[0]
        say(f"note: {folder}: not all pictures of its contacts could be drawn ({why:.200})")
