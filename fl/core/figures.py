"""Figures, and labels that do not hide each other."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fl.core.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure


COLOURS = ("#4c72b0", "#55a868", "#dd8452", "#c44e52", "#8172b3", "#937860")

LABEL_PLACES = [
    (6 * side, far * above, ("right", "center", "left")[side + 1], ("top", "center", "bottom")[above + 1])
    for far in (4, 14, 26, 40, 56)
    for side, above in ((1, 1), (-1, 1), (1, -1), (-1, -1), (0, 1), (0, -1), (1, 0), (-1, 0))
]
"""Offsets from a point in points of print, with alignments: the nearest first."""

SHARES = {"left": 0.0, "bottom": 0.0, "center": 0.5, "right": 1.0, "top": 1.0}
"""Of a label that an alignment puts to the left of its place, or below it."""


def drawing_library() -> Any:
    """Returns matplotlib, when it is needed: a sweep's table is drawn by the door, whose --help needs none of it."""
    import matplotlib.figure

    return matplotlib


def new_figure(width: float, height: float, columns: int = 1) -> tuple["Figure", list["Axes"]]:
    """Returns a figure of this size in inches and its axes side by side."""
    figure = drawing_library().figure.Figure(figsize=(width, height), layout="constrained")
    return figure, list(np.ravel(figure.subplots(1, columns)))


def whole_numbers(axis: "Axis") -> None:
    """Puts an axis' ticks at whole numbers alone."""
    locator: Any = axis.get_major_locator()
    locator.set_params(integer=True, nbins=10, steps=None)


def save_figure(figure: "Figure", path: Path) -> None:
    """Writes a figure as PNG, whole."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_bytes(path, buffer.getvalue())


def label_points(
    axes: "Axes",
    points: Sequence[tuple[float, float]],
    texts: Sequence[str],
    colours: Sequence[str],
    covered: Sequence[tuple[float, float]] = (),
) -> None:
    """Writes a label beside each point, at the first place where it hides nothing, else where it hides least.

    Args:
        axes: of a figure that was drawn once, so that places are known.
        points: in data coordinates.
        texts: one for each point.
        colours: one for each point.
        covered: further points that no label should hide.
    """
    if not points:
        return
    placed = axes.transData.transform(points)
    taken = np.array([*placed, *(axes.transData.transform(covered) if len(covered) else ())])
    inside, dots = axes.get_window_extent(), axes.figure.dpi / 72
    boxes: list[np.ndarray] = []  # left, bottom, right, top
    for (x, y), point, text, colour in zip(placed, points, texts, colours, strict=False):
        note = axes.annotate(text, point, xytext=(0, 0), textcoords="offset points", fontsize=8, color=colour)
        size = note.get_window_extent()
        best: tuple[int, np.ndarray, tuple[int, int, str, str]] | None = None
        for place in LABEL_PLACES:
            left = x + dots * place[0] - size.width * SHARES[place[2]]
            bottom = y + dots * place[1] - size.height * SHARES[place[3]]
            box = np.array([left, bottom, left + size.width, bottom + size.height])
            outside = (box[:2] < inside.min).any() or (box[2:] > inside.max).any()
            hidden = ((taken > box[:2]) & (taken < box[2:])).all(axis=1).sum()
            crossed = sum((box[:2] < other[2:]).all() and (other[:2] < box[2:]).all() for other in boxes)
            faults = int(10 * outside + hidden + crossed)
            if best is None or faults < best[0]:
                best = faults, box, place
        assert best is not None
        boxes.append(best[1])
        right, up, across, along = best[2]
        note.set(position=(right, up), ha=across, va=along)
