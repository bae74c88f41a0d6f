"""What README.md says first: means over seeds, with their interval, number, partition and split."""

import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import precision_table
import traffic_table
from grid import Row, Runs, stored
from pairs import Paired
from precision_table import AFTER, TITLES, TRAINED, runs_of
from table import markdown

from fl.comparison.costs import CostAssumptions, communication_report
from fl.core.units import MIB

SHOWN = ("fp32", "fp16", "int8", "int8_static")
USERS = "The users' guide shows 85.20, 85.18 and 84.95 % in 1.66, 0.83 and 0.52 MB as its example."
TRAFFIC = ("ecq-1", "dirichlet-ecq-1", "half")


def said(change: Paired, note: str = "") -> str:
    """Returns a change for a sentence, with a note in its brackets."""
    spread = (
        "one seed" if change.low is None else f"95 % interval {change.low:+.2f} to {change.high:+.2f}, n = {change.n}"
    )
    return f"{change.mean:+.2f} points ({spread}{note})"


def wrapped(text: str) -> str:
    """Returns a paragraph in lines of a document."""
    return "\n".join(textwrap.wrap(text, 120, break_long_words=False, break_on_hyphens=False)) + "\n"


def split_of(runs: Runs) -> str:
    """Returns the split of runs in words."""
    sizes = {tuple(each["split"].values()) for each in runs.values() if "split" in each}
    if len(sizes) != 1:
        return "stratified random split of all 27,000 images"
    train, _, test = sizes.pop()
    return f"stratified random split, {train:,} training and {test:,} test images"


def precisions(folder: Path) -> str:
    """Returns README's table: an FP32 model in several precisions, mean over seeds, IID and Dirichlet."""
    runs = stored(folder / precision_table.KEPT)
    iid, dirichlet = AFTER
    own, uneven = runs_of(iid, runs), runs_of(dirichlet, runs)
    timed = all("inference_ms" in each for each in own)
    columns = ["precision", "test accuracy", "change, points [95 %]"]
    columns += ["Dirichlet 0.3: change"] * bool(uneven) + ["file", "compression"]
    columns += ["per image"] * timed + ["10 rounds × 10 clients at $5/MB"]
    rows = []
    sizes = {name: round(statistics.fmean(each["file_size_bytes"][name] for each in own)) for name in SHOWN}
    costs = communication_report(sizes, CostAssumptions(10, 10, 10, 5.0, "default"), [], {})["precisions"]
    for name in SHOWN:
        cells = [
            TITLES[name],
            f"**{precision_table.accuracy(own, name)}**",
            str(precision_table.change_of(iid, runs, name) or ""),
        ]
        if uneven:
            cells.append(str(precision_table.change_of(dirichlet, runs, name) or ""))
        cells += [f"{sizes[name] / MIB:.2f} MB", f"{sizes['fp32'] / sizes[name]:.2f}×"]
        if timed:
            cells.append(f"{statistics.median(each['inference_ms'][name] for each in own):.3f} ms")
        cells.append(f"${costs[name]['total_cost_usd']:,.2f}")
        rows.append(cells)
    return f"{markdown(columns, rows)}\n{wrapped(precision_note(iid, own, len(uneven), timed))}"


def precision_note(row: Row, own: Sequence[dict[str, Any]], uneven: int, timed: bool) -> str:
    """Returns what the table is of."""
    seeds = ", ".join(str(seed) for seed in row.seeds[: len(own)])
    split = split_of({(row.name, number): each for number, each in enumerate(own)})
    parts = [
        f"Mean over n = {len(own)} runs (seeds {seeds}, with which nothing was chosen) of FedAvg, "
        f"10 rounds × 10 IID clients × 2 local epochs, {split}.",
        "The change is the mean of the paired differences to the same run's FP32 model.",
        f"Dirichlet 0.3: the same with uneven clients, n = {uneven}." if uneven else "",
        "Per image: median over the runs, batch 32." if timed else "",
        "The cost supposes that every message of every round had the file's size.",
        USERS,
    ]
    return " ".join(filter(None, parts))


def traffic(folder: Path) -> str:
    """Returns README's sentence on traffic."""
    lines = {line["name"]: line for line in traffic_table.lines_of(folder)}
    one, uneven, half = (lines[name] for name in TRAFFIC)

    def change(line: dict[str, Any]) -> str:
        so_far = f" of {line['of']}" if line["pairs"] < line["of"] else ""
        return said(traffic_table.change_in(line), so_far)

    return wrapped(
        f"**{one['fewer_total']:.1f} times fewer bytes than FP32 from the same start** at {change(one)} with "
        f"IID clients and {change(uneven)} with Dirichlet 0.3 (`{one['settings']}`), and "
        f"**{half['fewer_total']:.1f} times fewer** at {change(half)} with IID clients "
        f"(`{half['settings']}`). Recipe and split are those above; [docs/results.md](docs/results.md) has every run."
    )


def qat(folder: Path) -> str:
    """Returns README's half sentence on models that were trained for INT4."""
    runs = stored(folder / precision_table.KEPT)
    told = []
    for name, words in (("qat4", "when trained for it"), ("fp32", "when not")):
        row = next(row for row in TRAINED if row.name == name)
        change = precision_table.change_of(row, runs, "int4")
        told.append(f"{said(change)} {words}" if change else f"not measured {words}")
    return f"INT4 against FP32: {told[0]}, {told[1]} (seeds 42, 43, 44)"
