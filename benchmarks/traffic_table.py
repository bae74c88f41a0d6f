"""The grid of codecs: its rows, and its table from the figures that are kept of finished runs."""

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grid import REPORTED, TUNED_ON, Row, Runs, stored
from pairs import Paired, paired, verdict, within
from table import markdown

from fl.core.records import traffic
from fl.core.units import MIB

DIRECTIONS = ("broadcast", "update")
KEPT, KEPT_TUNED = "codecs.json", "codecs_tuned.json"
DIRICHLET = ("partition=dirichlet", "partition.alpha=0.3")
ONE, HALF = 0.94, ("tcq", 0.51, 0.51)
HALF_MORE: tuple[str, ...] = ()
"""Bits for each element that is coded: with what comes on top, a 33rd and a 60th of FP32. At about half a bit the
codec, its bits for broadcast and update, and further settings are chosen by benchmarks/screen.py."""
FIRST, RISE = 0.53, 1.13
"""Bits of the first round, and how they rise: to three times as many in the tenth, by a rule and not tuned. The 10
updates and 9 frames that travel have 0.94 bit on average."""
TO_BEAT = (80.0, 1.0)
"""Beyond the targets: so many times fewer bytes in total, within so many points."""


def both(codec: str, **settings: object) -> tuple[str, ...]:
    """Returns the overrides that use a codec in both directions."""
    chosen = [f"codec@{direction}={codec}" for direction in ("broadcast", "update")]
    return (*chosen, *(f"{direction}.{k}={v}" for k, v in settings.items() for direction in ("broadcast", "update")))


def at_one(name: str, codec: str, *more: str, where: str = "", **target: Any) -> Row:
    """Returns a row at about one bit; `more` are overrides beside the codec's, and `where` says them in the title."""
    return Row(name, f"{codec}, {ONE:g} bit both ways{where}", (*both(codec, bits=ONE), *more), REPORTED, **target)


def at_half(codec: str, bits: tuple[float, float], more: Sequence[str], seeds: tuple[int, ...], **target: Any) -> Row:
    """Returns the row at about half a bit; `bits` are of broadcast and update."""
    overrides = *both(codec), f"broadcast.bits={bits[0]:g}", f"update.bits={bits[1]:g}", *more
    title = f"{codec}, {bits[0]:g} bit broadcast, {bits[1]:g} bit update"
    return Row("half", title, overrides, seeds, **target)


RISING = f"{HALF[0]}, rising from {FIRST:g} bit both ways"
INT8 = both("int8", scales="tensor")
INT4 = "codec@broadcast=int8", "codec@update=int4"
ROWS = (
    Row("fp32", "FP32"),
    at_one("ecq-1", "ecq", fewer=(33, "total"), points=0.25),
    Row("rising", RISING, both(HALF[0], bits=FIRST, rise=RISE), REPORTED, fewer=(33, "total"), points=0.25),
    at_half(HALF[0], HALF[1:], HALF_MORE, REPORTED, fewer=(60, "total"), points=1.0),
    Row("int8", "int8 both ways, one scale per tensor", INT8, REPORTED[:3], fewer=(5, "each"), points=0.25),
    Row("int4", "int4 update, int8 broadcast", INT4, REPORTED[:3], fewer=(10, "update"), points=0.5),
    Row("eden-1", "eden, 1 bit both ways", both("eden"), REPORTED[:1]),
    Row("stc", "stc, 1 % both ways", both("stc"), REPORTED[:1]),
    Row("dirichlet-fp32", "FP32, Dirichlet 0.3", DIRICHLET, baseline="dirichlet-fp32"),
    at_one("dirichlet-ecq-1", "ecq", *DIRICHLET, where=", Dirichlet 0.3", baseline="dirichlet-fp32"),
    Row("best", "FP32, `experiment=best`", ("experiment=best",), REPORTED[:3]),
)
TUNED_ROWS = (
    Row("fp32", "FP32", seeds=TUNED_ON),
    Row("ecq-1", "ecq, 1 bit both ways", both("ecq"), TUNED_ON),
    at_half("ecq", (0.6, 0.51), (), TUNED_ON),
    Row("int8", "int8 both ways, one scale per tensor", INT8, TUNED_ON),
    Row("int4", "int4 update, int8 broadcast", INT4, TUNED_ON),
    Row("eden-1", "eden, 1 bit both ways", both("eden"), TUNED_ON[:1]),
    Row("stc", "stc, 1 % both ways", both("stc"), TUNED_ON[:1]),
    Row("dirichlet-fp32", "FP32, Dirichlet 0.3", DIRICHLET, TUNED_ON[:1], "dirichlet-fp32"),
    Row("dirichlet-int8", "int8 both ways, Dirichlet 0.3", (*INT8, *DIRICHLET), TUNED_ON[:1], "dirichlet-fp32"),
    Row(
        "dirichlet-ecq-1",
        "ecq, 1 bit both ways, Dirichlet 0.3",
        (*both("ecq"), *DIRICHLET),
        TUNED_ON[:1],
        "dirichlet-fp32",
    ),
)
"""Runs that settings were chosen by, with bits that counted tables and small tensors, too: for the record, never filled
again, judged by nothing."""


def traffic_of(record: Mapping[str, Any]) -> dict[str, int]:
    """Returns the payload bytes of a round, and what FP32 would have sent from the same start.

    Args:
        record: a line of `rounds.jsonl`, as `fl.core.records.read_rounds` returns it.
    """
    sums = {way: traffic(record, way) for way in DIRECTIONS}
    return {
        **{f"{way}_payload_bytes": each["payload_bytes"] for way, each in sums.items()},
        **{f"{way}_fp32_bytes": each["fp32_payload_bytes"] for way, each in sums.items()},
        "shared_start_bytes": record["shared_start_bytes"],
    }


def fewer(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns how many times fewer bytes travelled than FP32 would have sent from the same start, over all runs."""
    sums = {
        f"{way}_{kind}": sum(each[f"{way}_{kind}_bytes"] for each in runs)
        for way in ("broadcast", "update")
        for kind in ("payload", "fp32")
    }
    ways = {way: sums[f"{way}_fp32"] / sums[f"{way}_payload"] for way in ("broadcast", "update")}
    coded = sums["broadcast_payload"] + sums["update_payload"]
    return ways | {"total": (sums["broadcast_fp32"] + sums["update_fp32"]) / coded, "each": min(ways.values())}


def summarize(row: Row, runs: Runs) -> dict[str, Any]:
    """Returns one line of the table; what is not known yet is None."""
    own = [runs[row.name, seed] for seed in row.seeds if (row.name, seed) in runs]
    change = change_of(row, runs)
    complete = len(own) == len(row.seeds)
    ratios = fewer(own) if own else {}
    references = [each["reference_accuracy"] for each in own if each["reference_accuracy"] is not None]
    sent = [each["broadcast_payload_bytes"] + each["update_payload_bytes"] for each in own]
    line = {
        "name": row.name,
        "traffic": row.title,
        "baseline": row.baseline,
        "settings": " ".join(each for each in row.overrides if each not in DIRICHLET),
        "runs": len(own),
        "of": len(row.seeds),
        "accuracy_percent": 100 * statistics.fmean(each["test_accuracy"] for each in own) if own else None,
        "accuracy_half_width": paired_accuracy(own),
        "reference_accuracy_percent": 100 * statistics.fmean(references) if references else None,
        "pairs": change.n if change else 0,
        "change_points": change and change.mean,
        "standard_error_points": change and change.standard_error,
        "low_points": change and change.low,
        "high_points": change and change.high,
        **{f"fewer_{way}": ratios.get(way) for way in ("broadcast", "update", "total")},
        "total_mb": statistics.fmean(sent) / MIB if sent else None,
        "shared_start_mb": statistics.fmean(each["shared_start_bytes"] for each in own) / MIB if own else None,
    }
    return line | judged(row, ratios, change, complete)


def change_of(row: Row, runs: Runs) -> Paired | None:
    """Returns the change against the row's baseline over the seeds that both have; None for a baseline."""
    if row.name == row.baseline:
        return None
    seeds = [seed for seed in row.seeds if {(row.name, seed), (row.baseline, seed)} <= set(runs)]
    return paired([(runs[row.name, s]["test_accuracy"], runs[row.baseline, s]["test_accuracy"]) for s in seeds])


def paired_accuracy(runs: Sequence[Mapping[str, Any]]) -> float | None:
    """Returns half of the 95 % interval of the mean accuracy in percent, None for fewer than two runs."""
    spread = paired([(each["test_accuracy"], 0.0) for each in runs])
    return None if spread is None or spread.high is None else spread.high - spread.mean


def judged(row: Row, ratios: Mapping[str, float], change: Paired | None, complete: bool) -> dict[str, Any]:
    """Returns a row's target, whether the means meet it, and the interval's verdict; none before it is complete."""
    if row.fewer is None or row.points is None:
        return {"target": None, "mean_within": None, "verdict": None}
    wanted, of = row.fewer
    told = {"target": f">= {wanted:g}x {of}, within {row.points:g}", "mean_within": None, "verdict": None}
    if not complete or change is None:
        return told
    if ratios[of] < wanted:
        return told | {"mean_within": False, "verdict": f"missed: {ratios[of]:.2f}x"}
    return told | {"mean_within": within(change, row.points), "verdict": verdict(change, row.points)}


def lines_of(folder: Path, rows: Sequence[Row] = ROWS, kept: str = KEPT) -> list[dict[str, Any]]:
    """Returns the lines of the table from the figures that a folder keeps."""
    runs = stored(folder / kept)
    return [summarize(row, runs) for row in rows]


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Returns the table in Markdown."""
    judging = any(line["target"] for line in lines)
    columns = [
        "traffic",
        "seeds",
        "accuracy",
        "clients' model",
        "change, points [95 %]",
        *DIRECTIONS,
        "total",
        "MB sent",
    ]
    columns += ["target", "mean within", "interval"] * judging
    return markdown(columns, [cells_of(line, judging) for line in lines])


def cells_of(line: Mapping[str, Any], judging: bool) -> list[str]:
    """Returns one line of the table."""

    def told(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form.partition("|")[0]) + form.partition("|")[2]

    cells = [
        line["traffic"],
        f"{line['runs']} of {line['of']}",
        told(line["accuracy_percent"], ".2f| %"),
        told(line["reference_accuracy_percent"], ".2f| %"),
        change_text(line),
        *(told(line[f"fewer_{way}"], ".2f|×") for way in ("broadcast", "update", "total")),
        told(line["total_mb"], ".1f"),
    ]
    if judging:
        mean = {None: "", True: "yes", False: "no"}[line["mean_within"]]
        waiting = "incomplete" if line["target"] and line["verdict"] is None else ""
        cells += [line["target"] or "", mean, line["verdict"] or waiting]
    return cells


def change_text(line: Mapping[str, Any]) -> str:
    """Returns the change with its interval, and the number of pairs where it is not that of the runs."""
    if not line["pairs"]:
        return ""
    text = str(change_in(line))
    return text if line["pairs"] == line["runs"] else f"{text}, n = {line['pairs']}"


def change_in(line: Mapping[str, Any]) -> Paired:
    """Returns the change of a line of the table."""
    names = "pairs", "change_points", "standard_error_points", "low_points", "high_points"
    return Paired(*(line[name] for name in names))


def behind(runs: Runs) -> str:
    """Returns after how many rounds each row's baseline was as accurate as the row is in the end, in Markdown.

    By the means over all seeds, with straight lines between rounds; of rows with every seed that are less accurate.
    """
    rows = []
    for row in (each for each in ROWS if each.name != each.baseline and len(each.seeds) == len(REPORTED)):
        if any((name, seed) not in runs for name in (row.name, row.baseline) for seed in row.seeds):
            continue
        coded, plain = (curve([runs[name, seed] for seed in row.seeds]) for name in (row.name, row.baseline))
        if (last := coded[-1]) < plain[-1]:
            reached = next(number for number, each in enumerate(plain) if each > last)
            earlier = plain[reached - 1] if reached else 0.0
            rounds = reached + (last - earlier) / (plain[reached] - earlier)
            rows.append([row.title, f"{100 * last:.2f} % after {len(coded)}", f"after {rounds:.1f}"])
    return markdown(["traffic", "accuracy, rounds", "FP32 as accurate"], rows)


def curve(runs: Sequence[Mapping[str, Any]]) -> list[float]:
    """Returns the mean test accuracy of runs after each round."""
    return [statistics.fmean(each) for each in zip(*(run["accuracy_by_round"] for run in runs), strict=True)]


def to_csv(lines: Sequence[Mapping[str, Any]]) -> str:
    """Returns the table as CSV, with six places: the last digits of an interval depend on SciPy."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: round(v, 6) if isinstance(v, float) else v for k, v in line.items()} for line in lines)
    return buffer.getvalue()


def made_with(runs: Runs) -> str:
    """Returns on what the runs were made, one line."""
    if not runs:
        return "No run yet."
    kinds = {
        f"{machine(each['versions'])}, threads: {each['threads']}, commit {(each['commit'] or 'unknown')[:7]}"
        for each in runs.values()
    }
    return f"{len(runs)} runs, on {'; '.join(sorted(kinds))}."


def machine(environment: Mapping[str, Any]) -> str:
    """Returns the processor and torch's version, from `fl.core.machine`."""
    return f"{environment['cpu']} ({environment['cpu_capability']}), torch {environment['packages']['torch']}"


def to_beat(lines: Sequence[Mapping[str, Any]]) -> str:
    """Returns how far the fewest bytes within the points of the number to beat are from it, one line."""
    wanted, points = TO_BEAT
    kept = [each for each in lines if each["verdict"] is not None and each["change_points"] >= -points]
    best = max(kept, key=lambda each: each["fewer_total"], default=None)
    told = "no complete row yet" if best is None else f"{best['fewer_total']:.2f}x ({best['traffic']})"
    return f"To beat: {wanted:g}x in total within {points:g} point by the mean; here: {told}."
