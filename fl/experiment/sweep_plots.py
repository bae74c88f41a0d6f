"""Pictures of a sweep."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fl.core.figures import COLOURS, label_points, look, name_lines, picture, whole_numbers
from fl.core.run_folder import ENDED
from fl.core.units import MIB

Records = Mapping[int, Sequence[Mapping[str, Any]]]


def plot_sweep(folder: Path, document: Mapping[str, Any], records: Records) -> list[str]:
    """Draws what the sweep's shape allows and returns the names of the files.

    One swept setting (beside the seed) gives curves, two give a heat map; the Pareto front is always drawn.

    Args:
        folder: to write into.
        document: as `fl.experiment.sweep.summarize` builds it.
        records: the lines of `rounds.jsonl` of each job.
    """
    settings = [key for key in document["swept"] if key != "seed"]
    drawn = {}
    if len(settings) <= 1:
        drawn["sweep_curves.png"] = _curves(folder / "sweep_curves.png", document, settings, records)
    if len(settings) == 2:
        drawn["sweep_heatmap.png"] = _heat_map(folder / "sweep_heatmap.png", document, settings)
    drawn["sweep_pareto.png"] = _pareto(folder / "sweep_pareto.png", document, settings)
    return [name for name, done in drawn.items() if done]


def in_order(values: Sequence[Any]) -> list[Any]:
    """Returns distinct values, numbers by size and before texts."""

    def key(value: Any) -> tuple[int, float, str]:
        try:
            return 0, float(value), ""
        except (TypeError, ValueError):
            return 1, 0.0, str(value)

    return sorted(set(values), key=key)


def _title(document: Mapping[str, Any]) -> str:
    return ", ".join(document["data"]) or "no data opened"


def _spread_note(document: Mapping[str, Any], before: str) -> str:
    """Returns what ± and bars are, where there are any."""
    return f"{before}mean ± standard deviation over n seeds" if document["over_seeds"] else ""


def _name(row: Mapping[str, Any], settings: Sequence[str]) -> str:
    return ", ".join(f"{key}={row[key]}" for key in settings) or "all jobs"


def _curves(path: Path, document: Mapping[str, Any], settings: list[str], records: Records) -> bool:
    """Accuracy over rounds for each value, and the last accuracy over values; seeds as mean and standard deviation."""
    done = [row for row in document["jobs"] if row["state"] in ENDED]
    rows = done or [row for row in document["jobs"] if records[row["job"]]]
    if not rows:
        return False
    names = list(dict.fromkeys(_name(row, settings) for row in rows))
    if settings:
        names = [f"{settings[0]}={value}" for value in in_order([row[settings[0]] for row in rows])]
    with picture(path, 12, 4.5, columns=2) as (figure, (over_rounds, over_values)):
        for position, name in enumerate(names):
            group = [records[row["job"]] for row in rows if _name(row, settings) == name]
            length = min(len(each) for each in group)
            scores = 100 * np.array([[record["test_accuracy"] for record in each[:length]] for each in group])
            mean, spread = scores.mean(axis=0), scores.std(axis=0, ddof=1) if len(group) > 1 else None
            rounds, label = np.arange(1, length + 1), f"{name} (n = {len(group)})" if len(group) > 1 else name
            drawn, error = look(position), None if spread is None else spread[-1]
            over_rounds.plot(rounds, mean, **drawn, label=label)
            if done:
                over_values.errorbar(position, mean[-1], error, fmt=drawn["marker"], color=drawn["color"], capsize=4)
            if spread is not None:
                over_rounds.fill_between(rounds, mean - spread, mean + spread, color=drawn["color"], alpha=0.2)
        over_rounds.set(xlabel="round", ylabel="test accuracy (%)")
        whole_numbers(over_rounds.xaxis)
        over_values.set_xticks(range(len(names)), [name.rpartition("=")[2] for name in names])
        over_values.set(xlabel=settings[0] if settings else "", ylabel="test accuracy after the last round (%)")
        figure.suptitle(f"{_title(document)}{_spread_note(document, '; ')}")
        name_lines(over_rounds)
    return True


def _heat_map(path: Path, document: Mapping[str, Any], settings: list[str]) -> bool:
    """Accuracy for each pair of values; seeds as mean ± standard deviation, and how many they are."""
    rows = document["jobs"]
    down, across = (in_order([row[key] for row in rows]) for key in settings)
    scores = np.full((len(down), len(across)), np.nan)
    texts = [["not started"] * len(across) for _ in down]
    for row in rows:
        place = down.index(row[settings[0]]), across.index(row[settings[1]])
        texts[place[0]][place[1]] = row["state"]
        if row["test_accuracy"] is not None:
            scores[place] = 100 * row["test_accuracy"]
            mark = "" if row["state"] == "completed" else f"\n{row['state']}"
            texts[place[0]][place[1]] = f"{scores[place]:.2f} %{mark}"
    for group in document["over_seeds"] or ():
        place = down.index(group[settings[0]]), across.index(group[settings[1]])
        scores[place] = 100 * group["mean_test_accuracy"]
        spread = group["std_test_accuracy"]
        texts[place[0]][place[1]] = f"{scores[place]:.2f} %" + (
            "" if spread is None else f"\n± {100 * spread:.2f}, n = {group['seeds']}"
        )
    with picture(path, 2.5 + 1.3 * len(across), 1.8 + 0.8 * len(down)) as (figure, (axes,)):
        image = axes.imshow(np.ma.masked_invalid(scores), aspect="auto", cmap="viridis")
        axes.set_facecolor("#dddddd")
        axes.grid(visible=False)
        low, high = (np.nanmin(scores), np.nanmax(scores)) if np.isfinite(scores).any() else (0, 0)
        for (i, j), score in np.ndenumerate(scores):
            dark = np.isfinite(score) and score < (low + high) / 2
            axes.text(j, i, texts[i][j], ha="center", va="center", color="white" if dark else "black", fontsize="small")
        axes.set_xticks(range(len(across)), across)
        axes.set_yticks(range(len(down)), down)
        axes.set(xlabel=settings[1], ylabel=settings[0], title=f"{_title(document)}{_spread_note(document, chr(10))}")
        if np.isfinite(scores).any():
            figure.colorbar(image, label="test accuracy (%)")
    return True


def _pareto(path: Path, document: Mapping[str, Any], settings: list[str]) -> bool:
    """Accuracy against the payload bytes of both directions; the front is joined by a line."""
    rows = [row for row in document["jobs"] if row["state"] in ENDED]
    if not rows:
        return False

    def place(row: Mapping[str, Any]) -> tuple[float, float]:
        size = row["broadcast_payload_bytes"] + row["update_payload_bytes"]
        return size / MIB, 100 * row["test_accuracy"]

    with picture(path, 8, 5) as (figure, (axes,)):
        front = sorted(place(row) for row in rows if row["job"] in document["pareto_front"])
        axes.plot(*zip(*front, strict=True), "-", color=COLOURS[0], label="Pareto front of single jobs", zorder=1)
        for row in rows:
            on_front = row["job"] in document["pareto_front"]
            axes.scatter(*place(row), s=30, marker="o" if on_front else "x", color=COLOURS[0], zorder=2)
        groups = [
            (_name(group, settings), group["mean_payload_bytes"] / MIB, group) for group in document["over_seeds"] or ()
        ]
        for _, size, group in groups:
            mean, spread = 100 * group["mean_test_accuracy"], group["std_test_accuracy"]
            axes.errorbar(
                size, mean, spread and 100 * spread, fmt="D", mfc="white", color=COLOURS[1], capsize=4, zorder=3
            )
        axes.set(
            xlabel="payload, broadcast + update (MB of 1024² bytes)",
            ylabel="test accuracy (%)",
            title=f"{_title(document)}{_spread_note(document, '; diamonds: ')}",
        )
        axes.margins(x=0.15, y=0.15)
        axes.legend(loc="lower right")
        figure.draw_without_rendering()
        named = [(name, (size, 100 * group["mean_test_accuracy"])) for name, size, group in groups]
        named = named or [(_name(row, document["swept"]), place(row)) for row in rows]
        texts = [name.replace(", ", "\n") for name, _ in named]
        hidden = [place(row) for row in rows]
        for (x0, y0), (x1, y1) in itertools.pairwise(front):
            hidden += zip(np.linspace(x0, x1, 20), np.linspace(y0, y1, 20), strict=True)
        label_points(axes, [point for _, point in named], texts, ["black"] * len(named), hidden)
    return True
