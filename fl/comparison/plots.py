"""The picture of a comparison."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fl.core.figures import COLOURS, new_figure, save_figure


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
