"""The picture of a comparison."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fl.core.figures import COLOURS, MARKERS, label_points, picture


def plot_comparison(path: Path, report: Mapping[str, Any], titles: Mapping[str, str]) -> None:
    """Draws accuracy against file size, and the total cost of each precision, from the comparison's report."""
    costs, entries = report["communication"]["precisions"], report["precisions"]
    places = [(entry["file_size_mb"], entry["accuracy_percent"]) for entry in entries.values()]
    colours = (COLOURS * len(entries))[: len(entries)]
    with picture(path, 11, 4.2, columns=2) as (figure, (accuracy, cost)):
        for name, place, colour, marker in zip(entries, places, colours, MARKERS * len(entries), strict=False):
            accuracy.scatter(*place, s=50, color=colour, marker=marker)
            bar = cost.bar(titles[name], costs[name]["total_cost_usd"], color=colour)
            cost.bar_label(bar, [f"${costs[name]['total_cost_usd']:,.0f}"])
        accuracy.set(xlabel="file size (MB of 1024² bytes)", ylabel="test accuracy (%)")
        accuracy.set_xlim(left=0)
        accuracy.margins(x=0.2, y=0.3)
        supposed = report["communication"]["assumptions"]
        clients, rounds = supposed["num_clients"], supposed["num_rounds"]
        cost.set(
            ylabel="total cost (US$)", title=f"if every message of {rounds} rounds, {clients} clients had this size"
        )
        cost.tick_params(axis="x", rotation=30 if len(entries) > 4 else 0)
        cost.margins(y=0.15)
        cost.grid(visible=False, axis="x")
        figure.suptitle(f"One model in several precisions, {report['test_set']['title']}")
        figure.draw_without_rendering()
        label_points(accuracy, places, [titles[name] for name in entries], colours)
