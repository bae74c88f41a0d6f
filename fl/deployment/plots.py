"""The pictures of an export and of a benchmark."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fl.core.figures import COLOURS, new_figure, save_figure, whole_numbers


def plot_selection(path: Path, records: Sequence[Mapping[str, Any]], chosen: int, metric: str) -> None:
    """Draws a metric over rounds, of the validation images it was chosen by if there are any, and marks the choice."""
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
    whole_numbers(axes.xaxis)
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)


def plot_bench(path: Path, report: Mapping[str, Any]) -> None:
    """Draws images per second over the batch size, a line for each model of a benchmark's report."""
    figure, (axes,) = new_figure(8, 5)
    for model in report["models"]:
        sizes = [entry["batch_size"] for entry in model["results"]]
        axes.plot(sizes, [e["images_per_s"] for e in model["results"]], "o-", label=Path(model["model_path"]).name)
    axes.set(xscale="log", yscale="log", xlabel="images in a batch", ylabel="images per second")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_xticks([], minor=True)
    for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        which("{x:,.0f}")
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    environment = report["environment"]
    axes.set_title(f"{environment['cpu']}, {environment['threads']} threads, {environment['device']}", fontsize=10)
    save_figure(figure, path)
