"""The pictures of an export and of a benchmark."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fl.core.figures import look, name_lines, picture, whole_numbers


def plot_selection(path: Path, records: Sequence[Mapping[str, Any]], chosen: int, metric: str) -> None:
    """Draws a metric over rounds, of the validation images it was chosen by if there are any, and marks the choice."""
    unit, factor = (" (%)", 100) if metric == "accuracy" else (" (nats)", 1)
    with picture(path, 8, 4) as (_, (axes,)):
        for number, (name, label) in enumerate(
            (("validation", "validation"), ("test", "test (nothing is\nchosen by it)"))
        ):
            scored = [record for record in records if f"{name}_{metric}" in record]
            values = [factor * record[f"{name}_{metric}"] for record in scored]
            axes.plot([record["round"] for record in scored], values, **look(number), label=label)
        axes.axvline(chosen, color="black", alpha=0.6)
        axes.set(
            xlabel="round", ylabel=metric + unit, title=f"round {chosen}, the one that stands upright, is exported"
        )
        whole_numbers(axes.xaxis)
        name_lines(axes)


def plot_bench(path: Path, report: Mapping[str, Any]) -> None:
    """Draws images per second over the batch size, a line for each model of a benchmark's report."""
    with picture(path, 9, 5) as (_, (axes,)):
        for number, model in enumerate(report["models"]):
            sizes = [entry["batch_size"] for entry in model["results"]]
            speeds = [entry["images_per_s"] for entry in model["results"]]
            axes.plot(sizes, speeds, **look(number), label=Path(model["model_path"]).name)
        axes.set(xscale="log", yscale="log", xlabel="images in a batch", ylabel="images per second")
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set_xticks([], minor=True)
        for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            which("{x:,.0f}")
        axes.grid(which="both")
        environment = report["environment"]
        axes.set_title(f"{environment['cpu']}, {environment['threads']} threads, {environment['device']}")
        name_lines(axes)
