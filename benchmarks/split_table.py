"""What neighbouring tiles on both sides of a split are worth: the runs, and the table of them."""

import statistics
from collections.abc import Sequence

from grid import Row, Runs
from pairs import half_width
from table import markdown

KEPT = "splits.json"
SEEDS = (101, 102, 103)
ROWS = (
    Row("random", "random", ("data.validation_fraction=0.25",), SEEDS),
    Row("spatial", "by longitude", ("data.split=spatial",), SEEDS),
)
"""Of equally many training images."""


def table(runs: Runs) -> str:
    """Returns one line for each split: images, runs, and the mean accuracy on its own test images."""
    columns = ["split", "train / validation / test", "seeds", "test accuracy [95 %]", "each"]
    rows = []
    for row in ROWS:
        found = [runs[row.name, seed] for seed in row.seeds if (row.name, seed) in runs]
        sizes = " / ".join(f"{found[0]['split'][part]:,}" for part in ("train", "validation", "test")) if found else ""
        accuracies = [100 * each["test_accuracy"] for each in found]
        cells = [row.title, sizes, f"{len(found)} of {len(row.seeds)}", interval(accuracies)]
        rows.append([*cells, ", ".join(f"{each:.2f}" for each in accuracies)])
    return markdown(columns, rows)


def interval(values: Sequence[float]) -> str:
    """Returns the mean of percents with its 95 % interval, where there are two or more."""
    if not values:
        return ""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.2f} %"
    half = half_width(statistics.stdev(values) / len(values) ** 0.5, len(values))
    return f"{mean:.2f} % [{mean - half:.2f}, {mean + half:.2f}]"
