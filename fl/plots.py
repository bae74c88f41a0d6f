"""Pictures of a run and of a comparison."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fl.results import MIB, traffic, write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DIRECTIONS = ("broadcast", "update")
COLOURS = ("#4c72b0", "#55a868", "#dd8452", "#c44e52", "#8172b3", "#937860")

LABEL_PLACES = [
    (6 * side, far * above, ("right", "center", "left")[side + 1], ("top", "center", "bottom")[above + 1])
    for far in (4, 14, 26, 40, 56)
    for side, above in ((1, 1), (-1, 1), (1, -1), (-1, -1), (0, 1), (0, -1), (1, 0), (-1, 0))
]
"""Offsets from a point in points of print, with alignments: the nearest first."""
SHARES = {"left": 0.0, "bottom": 0.0, "center": 0.5, "right": 1.0, "top": 1.0}
"""Of a label that an alignment puts to the left of its place, or below it."""


def new_figure(width: float, height: float, columns: int = 1) -> tuple["Figure", list["Axes"]]:
    """Returns a figure of this size in inches and its axes side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(np.ravel(figure.subplots(1, columns)))


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
            faults = int(outside + hidden + crossed)
            if best is None or faults < best[0]:
                best = faults, box, place
        assert best is not None
        boxes.append(best[1])
        right, up, across, along = best[2]
        note.set(position=(right, up), ha=across, va=along)


def plot_rounds(path: Path, records: Sequence[Mapping[str, Any]], data_title: str) -> None:
    """Draws accuracy and loss over rounds, and accuracy over what was sent, from the lines of `rounds.jsonl`."""
    from matplotlib.ticker import MaxNLocator

    figure, (accuracy, loss, sent) = new_figure(15, 4, columns=3)
    each_round = [sum(traffic(record, way)["payload_bytes"] for way in DIRECTIONS) for record in records]
    so_far = {record["round"]: mb for record, mb in zip(records, np.cumsum(each_round) / MIB, strict=True)}
    for name, colour in (("test", COLOURS[0]), ("validation", COLOURS[1]), ("federated", COLOURS[2])):
        scored = [record for record in records if f"{name}_loss" in record]
        if scored:
            rounds = [record["round"] for record in scored]
            accuracy.plot(rounds, [100 * r[f"{name}_accuracy"] for r in scored], "o-", color=colour, label=name)
            loss.plot(rounds, [record[f"{name}_loss"] for record in scored], "o-", color=colour, label=name)
            percent = [100 * record[f"{name}_accuracy"] for record in scored]
            sent.plot([so_far[number] for number in rounds], percent, "o-", color=colour, label=name)
    rounds = [record["round"] for record in records]
    loss.plot(rounds, [record["train_loss"] for record in records], "o--", color=COLOURS[3], label="local training")
    accuracy.set(xlabel="round", ylabel="accuracy (%)")
    loss.set(xlabel="round", ylabel="cross-entropy")
    sent.set(xlabel="payload sent until then, both directions (MB)", ylabel="accuracy (%)")
    sent.set_xlim(left=0)
    for axes in (accuracy, loss):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (accuracy, loss, sent):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(f"Global model on {data_title}")
    save_figure(figure, path)


def plot_selection(path: Path, records: Sequence[Mapping[str, Any]], chosen: int, metric: str) -> None:
    """Draws a metric over rounds, of the validation images it was chosen by if there are any, and marks the choice."""
    from matplotlib.ticker import MaxNLocator

    figure, (axes,) = new_figure(7, 4)
    unit, factor = (" (%)", 100) if metric == "accuracy" else ("", 1)
    for name, label, style in (("validation", "validation", "o-"), ("test", "test (nothing is chosen by it)", "--")):
        scored = [record for record in records if f"{name}_{metric}" in record]
        if scored:
            axes.plot(
                [r["round"] for r in scored], [factor * r[f"{name}_{metric}"] for r in scored], style, label=label
            )
    axes.axvline(chosen, color=COLOURS[3], alpha=0.6, label=f"round {chosen}, exported")
    axes.set(xlabel="round", ylabel=metric + unit)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)


def plot_label_distribution(path: Path, counts: np.ndarray, class_names: Sequence[str], data_title: str) -> None:
    """Draws how many images of each class each client holds, from int [clients, classes]."""
    from matplotlib.ticker import MaxNLocator

    figure, (axes,) = new_figure(1.5 + 0.5 * len(class_names), 1.5 + 0.3 * min(len(counts), 60))
    image = axes.imshow(counts, aspect="auto", cmap="Blues", vmin=0)
    axes.set_xticks(range(len(class_names)), class_names, rotation=45, ha="right")
    axes.set(ylabel="client", title=f"Training images per client, {data_title}")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    if len(counts) <= 20:
        for (client, label), count in np.ndenumerate(counts):
            shade = "white" if count > 0.6 * counts.max() else "black"
            axes.text(label, client, str(count), ha="center", va="center", fontsize=7, color=shade)
    figure.colorbar(image)
    save_figure(figure, path)


def plot_comparison(path: Path, report: Mapping[str, Any], titles: Mapping[str, str]) -> None:
    """Draws accuracy against file size, and the total cost of each precision, from the comparison's report."""
    figure, (accuracy, cost) = new_figure(11, 4.2, columns=2)
    costs = report["communication"]["precisions"]
    entries = report["precisions"].items()
    for (name, entry), colour in zip(entries, COLOURS * len(report["precisions"]), strict=False):
        size, percent = entry["file_size_mb"], entry["accuracy_percent"]
        accuracy.scatter(size, percent, s=70, color=colour, label=titles[name])
        bar = cost.bar(titles[name], costs[name]["total_cost_usd"], color=colour)
        cost.bar_label(bar, [f"${costs[name]['total_cost_usd']:,.0f}"])
    accuracy.set(xlabel="file size (MB of 1024² bytes)", ylabel="test accuracy (%)")
    accuracy.set_xlim(left=0)
    accuracy.margins(y=0.3)
    accuracy.grid(alpha=0.3)
    accuracy.legend()
    supposed = report["communication"]["assumptions"]
    clients, rounds = supposed["num_clients"], supposed["num_rounds"]
    cost.set(ylabel="total cost (US$)", title=f"if every message of {rounds} rounds, {clients} clients had this size")
    cost.margins(y=0.15)
    figure.suptitle(f"One model in several precisions, {report['test_set']['title']}")
    save_figure(figure, path)


def plot_bench(path: Path, report: Mapping[str, Any]) -> None:
    """Draws images per second over the batch size, a line for each model of a benchmark's report."""
    from matplotlib.ticker import NullLocator, StrMethodFormatter

    figure, (axes,) = new_figure(8, 5)
    for model in report["models"]:
        sizes = [entry["batch_size"] for entry in model["results"]]
        axes.plot(sizes, [e["images_per_s"] for e in model["results"]], "o-", label=Path(model["model_path"]).name)
    axes.set(xscale="log", yscale="log", xlabel="images in a batch", ylabel="images per second")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        which(StrMethodFormatter("{x:,.0f}"))
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    environment = report["environment"]
    axes.set_title(f"{environment['cpu']}, {environment['threads']} threads, {environment['device']}", fontsize=10)
    save_figure(figure, path)
