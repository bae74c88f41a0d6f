"""Codec and settings at about half a bit: what is tried, which one validation images choose, and the table of both."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from grid import Row, Runs
from pairs import paired
from table import markdown
from traffic_table import both

from fl.core.units import MIB

KEPT = "screening.json"
FIRST, ALL = (1,), (1, 2, 3)
"""Seeds of the first stage and of the second; none of them is reported."""
ROUNDS, HELD_OUT, FINALISTS = 5, 0.1, 2
BUDGET = 1.02
"""Most bytes of a candidate that may be chosen, as a part of what the base sends: all are meant to send the same."""
COMMON = (f"num_rounds={ROUNDS}", f"data.validation_fraction={HELD_OUT}")


def candidate(
    name: str, title: str, broadcast_bits: float, update_bits: float, codec: str = "ecq", **settings: object
) -> Row:
    """Returns one candidate, as a row of a grid."""
    bits = f"broadcast.bits={broadcast_bits}", f"update.bits={update_bits}"
    return Row(name, title, (*both(codec), *bits, *settings_of(settings), *COMMON), FIRST, "base")


def settings_of(settings: Mapping[str, object]) -> list[str]:
    """Returns overrides for both directions, or for the one that a name begins with."""
    found = []
    for name, value in settings.items():
        direction, _, own = name.partition("__")
        found += [f"{direction}.{own}={value}"] if own else [f"{way}.{name}={value}" for way in ("broadcast", "update")]
    return found


BASE = (0.51, 0.51)
CANDIDATES = (
    candidate("base", "ecq, 0.51 / 0.51 bit, step by size ** 0.25, no feedback", *BASE),
    candidate("bits-41-60", "0.41 / 0.6 bit", 0.41, 0.6),
    candidate("bits-61-42", "0.61 / 0.42 bit", 0.61, 0.42),
    candidate("size-0", "the same step for all tensors", *BASE, size_power=0),
    candidate("size-50", "step by size ** 0.5", *BASE, size_power=0.5),
    candidate("no-gain", "levels not raised", *BASE, error_feedback="true", decay=0.0),
    candidate("feedback-update", "feedback of the update", *BASE, update__error_feedback="true"),
    candidate("tcq", "tcq", *BASE, codec="tcq"),
)
"""The base, what differs from it in one thing, and the other codec of as many bytes; bits: of broadcast / of update."""


def score(runs: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Returns mean validation accuracy and, for ties, the negative mean loss."""
    return tuple(
        statistics.fmean(sign * each[f"validation_{name}"] for each in runs)
        for name, sign in (("accuracy", 1), ("loss", -1))
    )  # type: ignore[return-value]


def finalists(runs: Runs) -> list[Row]:
    """Returns the best two of the first stage that keep to the bytes; none before all candidates were run."""
    if any((row.name, 1) not in runs for row in CANDIDATES):
        return []
    most = BUDGET * runs["base", 1]["payload_bytes"]
    within = [row for row in CANDIDATES if runs[row.name, 1]["payload_bytes"] <= most]
    best = sorted(within, key=lambda row: score([runs[row.name, 1]]), reverse=True)[:FINALISTS]
    return [Row(row.name, row.title, row.overrides, ALL, row.baseline) for row in best]


def chosen(runs: Runs) -> Row | None:
    """Returns the finalist of the better mean over all seeds; None before both have all of them."""
    rows = finalists(runs)
    if not rows or any((row.name, seed) not in runs for row in rows for seed in ALL):
        return None
    return max(rows, key=lambda row: score([runs[row.name, seed] for seed in ALL]))


def table(runs: Runs) -> str:
    """Returns all candidates with their validation accuracy, and which one was chosen."""
    columns = "candidate", "MB sent", "of the base", "validation, seed 1", "seeds 1 to 3", ""
    rows = []
    final, winner = [row.name for row in finalists(runs)], chosen(runs)
    base = runs.get(("base", 1))
    for row in CANDIDATES:
        own = [runs[row.name, seed] for seed in ALL if (row.name, seed) in runs]
        cells = [row.title, "", "", "", "", ""]
        if own and own[0]["seed"] == 1:
            cells[1] = f"{own[0]['payload_bytes'] / MIB:.2f}"
            cells[2] = f"{own[0]['payload_bytes'] / base['payload_bytes']:.3f}" if base else ""
            cells[3] = f"{100 * own[0]['validation_accuracy']:.2f} %"
        if row.name in final and len(own) == len(ALL):
            cells[4] = f"{100 * score(own)[0]:.2f} %"
        cells[5] = "chosen" if winner and row.name == winner.name else "second stage" if row.name in final else ""
        rows.append(cells)
    return f"{markdown(columns, rows)}\n{apart(runs)}\n"


def apart(runs: Runs) -> str:
    """Returns how far the finalists are from each other, one line."""
    rows, winner = finalists(runs), chosen(runs)
    if not rows:
        done = sum((row.name, 1) in runs for row in CANDIDATES)
        return f"Not finished: {done} of {len(CANDIDATES)} candidates were run; nothing is chosen."
    if winner is None or len(rows) < FINALISTS:
        return f"Not finished: the second stage, {' and '.join(row.title for row in rows)}; nothing is chosen."
    other = next(row for row in rows if row.name != winner.name)
    scores = [tuple(runs[row.name, seed]["validation_accuracy"] for row in (winner, other)) for seed in ALL]
    return (
        f"Chosen: {winner.title}; against {other.title} {paired(scores)} points of validation accuracy, n = {len(ALL)}."
    )
