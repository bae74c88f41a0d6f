"""Pictures of the report: SVG whose lines and letters take the page's colours, with the text that stands for them."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from fl.core.figures import (
    COLOURS,
    MARKERS,
    drawing_library,
    log_axis,
    look,
    name_lines,
    picture,
    rendered,
    whole_numbers,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LIGHT_AND_DARK = ("#0072b2", "#e69f00")
INK = "#0a0b0c"
"""Becomes the colour of the page's text."""
INKED: Any = {
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


@dataclass(frozen=True)
class Picture:
    """One picture.

    Attributes:
        svg: as it stands in the page.
        alternative: what it shows, in words.
        source: the file and key that it is drawn from.
        caption: below it.
    """

    svg: str
    alternative: str
    source: str
    caption: str = ""


@dataclass(frozen=True)
class Line:
    """A curve with a name, and an interval around it where it is a mean."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    interval: tuple[Sequence[float], Sequence[float]] | None = None


def lines(curves: Sequence[Line], x_label: str, y_label: str, *, whole_x: bool = False, log_x: bool = False) -> str:
    """Returns curves over each other, each named where it ends."""
    return svg(lambda axes: draw_lines(axes, curves, x_label, y_label, whole_x=whole_x, log_x=log_x))


def draw_lines(
    axes: "Axes", curves: Sequence[Line], x_label: str, y_label: str, *, whole_x: bool = False, log_x: bool = False
) -> None:
    """Draws curves over each other; several are named where they end."""
    for number, curve in enumerate(curves):
        drawn = look(number)
        axes.plot(curve.x, curve.y, label=curve.name, **drawn)
        if curve.interval is not None:
            axes.fill_between(curve.x, *curve.interval, color=drawn["color"], alpha=0.15, linewidth=0)
    axes.set(xlabel=x_label, ylabel=y_label)
    if whole_x:
        whole_numbers(axes.xaxis)
    if log_x:
        log_axis(axes, "x")
    if len(curves) > 1:
        name_lines(axes)


def points(
    named: Sequence[tuple[str, float, float]],
    x_label: str,
    y_label: str,
    front: Sequence[str] = (),
    intervals: Mapping[str, tuple[float, float]] = MappingProxyType({}),
) -> str:
    """Returns points with their names beside them and their intervals as bars; those of the front are joined."""

    def draw(axes: "Axes") -> None:
        for number, (name, x, y) in enumerate(named):
            axes.scatter(x, y, s=50, color=COLOURS[number % 6], marker=MARKERS[number % 6])
            low, high = intervals.get(name, (y, y))
            axes.errorbar(x, y, [[y - low], [high - y]], color=COLOURS[number % 6], capsize=3 if low < high else 0)
            axes.annotate(name, (x, y), xytext=(6, 6 if number % 2 else -12), textcoords="offset points")
        joined = sorted((x, y) for name, x, y in named if name in front)
        axes.plot(*zip(*joined, strict=True), color=INK, linewidth=0.8, alpha=0.6, zorder=0) if joined else None
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.margins(x=0.2, y=0.25)

    return svg(draw)


def bars(names: Sequence[str], parts: Sequence[tuple[str, Sequence[float]]], x_label: str) -> str:
    """Returns bars that lie, each of several parts."""

    def draw(axes: "Axes") -> None:
        left = np.zeros(len(names))
        for number, (part, values) in enumerate(parts):
            axes.barh(names, values, left=left, label=part, color=LIGHT_AND_DARK[number % 2])
            left = left + np.asarray(values)
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.set(xlabel=x_label)
        if len(parts) > 1:
            axes.legend(ncols=len(parts), loc="lower left", bbox_to_anchor=(0, 1))

    return svg(draw, height=1.2 + 0.28 * len(names))


def grid(values: np.ndarray, rows: Sequence[str], columns: Sequence[str], x_label: str, y_label: str) -> str:
    """Returns a matrix of whole numbers, darker where they are larger, each number written into its field."""

    def draw(axes: "Axes") -> None:
        top = max(float(values.max(initial=0)), 1.0)
        axes.grid(visible=False)
        axes.imshow(values, cmap="Blues", vmax=1.4 * top, aspect="auto")
        axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right")
        axes.set_yticks(range(len(rows)), rows)
        axes.set(xlabel=x_label, ylabel=y_label)
        if values.size <= 225:
            for row, column in np.ndindex(values.shape):
                text = f"{values[row, column]:,}"
                axes.text(column, row, text, ha="center", va="center", fontsize=8, color="#101010")

    return svg(draw, height=1.6 + 0.27 * len(rows))


def svg(draw: Callable[["Axes"], None], height: float = 3.4) -> str:
    """Returns what is drawn as SVG without a size of its own."""
    with drawing_library().rc_context(INKED), picture(None, 6.6, height) as (figure, (axes,)):
        draw(axes)
        content, _ = rendered(figure, "svg")
    svg = content.decode()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    for side in ("width", "height"):  # the page gives it one
        svg = re.sub(rf'(<svg[^>]*?) {side}="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return _own_ids(svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1))


_DRAWN = iter(range(10**9))
REFERENCE = re.compile(r'(?:url\(|href=")#([\w.-]+)[")]')
"""To something in a picture; a colour looks nearly the same."""


def _own_ids(svg: str) -> str:
    """Keeps only the ids that something refers to, under names that no other picture has."""
    used, prefix = {*REFERENCE.findall(svg)}, f"p{next(_DRAWN)}-"
    svg = re.sub(r' id="([\w.-]+)"', lambda found: f' id="{prefix}{found[1]}"' if found[1] in used else "", svg)
    return REFERENCE.sub(lambda found: found[0].replace(f"#{found[1]}", f"#{prefix}{found[1]}"), svg)
