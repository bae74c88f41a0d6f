"""The picture of the grid of codecs: what each kind of traffic loses against the megabytes it sends."""

import itertools
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fl.core.figures import COLOURS, label_points, log_axis, picture

FAR_POINTS = -5.0
"""What lost more is drawn below a break of the axis, or it would press all others together."""
PALETTE = (*COLOURS, "#332288", "#661100", "#7f7f7f", "#117733")
STEPS = 20
"""Places along a bar or a line that labels should not hide."""
Place = tuple[float, float, Mapping[str, Any]]


def plot_traffic(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Draws the change of accuracy over megabytes sent, with 95 % intervals, one point for each kind of traffic.

    Args:
        path: of the picture.
        lines: of the table (benchmarks/traffic_table.py); those without runs, those that send what FP32 does, and
            baselines but the first, which are all at 0, are left out. The front is of lines compared with the first.
    """
    sent = [each for each in lines if each["total_mb"] is not None]
    baselines = [each for each in sent if each["change_points"] is None]
    coded = [each for each in sent if each["change_points"] is not None and each["total_mb"] < baselines[0]["total_mb"]]
    shown = baselines[:1] + coded
    places = [(each["total_mb"], each["change_points"] or 0.0, each) for each in shown]
    far = [place for place in places if place[1] < FAR_POINTS]
    near = [place for place in places if place[1] >= FAR_POINTS]
    with picture(path, 8, 5.4) as (figure, _):
        figure.clear()
        heights = (5, 1) if far else (1,)
        axes = list(np.ravel(figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)))
        best = front([place for place in near if place[2]["baseline"] == shown[0]["baseline"]])
        axes[0].plot([x for x, *_ in best], [y for _, y, _ in best], color="#bbbbbb", zorder=1)
        axes[0].axhline(0, color="black", linewidth=0.8, zorder=1)
        for axis, drawn in zip(axes, (near, far), strict=False):
            draw_points(axis, drawn)
        name_axes(axes)
        if far:
            axes[1].set_ylim(min(y for _, y, _ in far) - 3, max(y for _, y, _ in far) + 3)
            axes[1].set_yticks([round(min(y for _, y, _ in far))])
            break_between(*axes)
        figure.draw_without_rendering()  # where things are is known from here on
        for axis, drawn, joined, zeros in zip(axes, (near, far), (best, []), (zero_line(axes[0]), []), strict=False):
            texts = ["\n".join(textwrap.wrap(line["traffic"].replace("`", ""), 22)) for *_, line in drawn]
            hidden = [*bars(drawn), *line_between(joined), *zeros]
            label_points(axis, [(x, y) for x, y, _ in drawn], texts, PALETTE * len(drawn), hidden)


def front(places: Sequence[Place]) -> list[Place]:
    """Returns the places that no other beats in one and equals in the other, by megabytes."""
    found: list[Place] = []
    for place in sorted(places, key=lambda each: (each[0], -each[1])):
        if not found or place[1] > found[-1][1]:
            found.append(place)
    return found


def draw_points(axis: Any, places: Sequence[Place]) -> None:
    """Draws means with their intervals; a single seed is hollow."""
    for (x, y, line), colour in zip(places, PALETTE * len(places), strict=False):
        low, high = line["low_points"], line["high_points"]
        several = low is not None
        inside = colour if several or line["change_points"] is None else "white"
        axis.errorbar(
            x, y, [[y - low], [high - y]] if several else None, fmt="o", color=colour, mfc=inside, capsize=3, zorder=2
        )
    axis.grid(which="both")
    axis.margins(x=0.3, y=0.15)


def name_axes(axes: Sequence[Any]) -> None:
    """Writes what is drawn."""
    axes[-1].set(xlabel="MB sent in all rounds, both directions (MB of 1024² bytes)")
    log_axis(axes[-1], "x")
    axes[0].set_ylabel("change of test accuracy (points)")
    axes[0].set_title("Against FP32 with the same seeds and clients: mean, 95 % interval; hollow: one seed")


def break_between(upper: Any, lower: Any) -> None:
    """Marks two axes, one above the other, as one that is broken."""
    upper.spines.bottom.set_visible(False)
    upper.tick_params(bottom=False, which="both")
    lower.spines.top.set_visible(False)
    stroke = {"marker": [(-1, -0.5), (1, 0.5)], "markersize": 10, "linestyle": "none", "color": "k", "clip_on": False}
    for axis, edge in ((upper, 0), (lower, 1)):
        axis.plot([0, 1], [edge, edge], transform=axis.transAxes, **stroke)


def bars(places: Sequence[Place]) -> Iterator[tuple[float, float]]:
    """Yields places along the intervals."""
    for x, _, line in places:
        if line["low_points"] is not None:
            yield from ((x, y) for y in np.linspace(line["low_points"], line["high_points"], STEPS))


def zero_line(axis: Any) -> list[tuple[float, float]]:
    """Returns places along the line of no change."""
    return [(x, 0.0) for x in np.geomspace(*axis.get_xlim(), 10 * STEPS)]


def line_between(places: Sequence[Place]) -> Iterator[tuple[float, float]]:
    """Yields places along the line that joins some, which is straight over a logarithmic axis."""
    for (x0, y0, _), (x1, y1, _) in itertools.pairwise(places):
        yield from zip(np.geomspace(x0, x1, STEPS), np.linspace(y0, y1, STEPS), strict=True)
