"""Which round's model is taken."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl.core.errors import ConfigError, counted
from fl.core.records import Metric, best_round, scored, worse
from fl.core.run_folder import model_of_round


@dataclass(frozen=True)
class Choice:
    """The round whose model is taken.

    Attributes:
        round: its number.
        path: of its model, a plain FP32 state dict.
        reason: why this one, in a sentence.
        candidates: every round with its validation scores, if there are any, and whether its model was kept.
    """

    round: int
    path: Path
    reason: str
    candidates: tuple[dict[str, Any], ...]


def _ties(records: Sequence[Mapping[str, Any]], metric: Metric, chosen: int) -> str:
    """Returns what decided among rounds as good as the chosen one by the metric, nothing if there is no other."""
    scores = {int(record["round"]): worse(record, metric) for record in scored(records)}
    equal = [number for number, score in scores.items() if score[0] == scores[chosen][0]]
    if len(equal) < 2:
        return ""
    decided = "the lower loss" if metric == "accuracy" else "the higher accuracy"
    if sum(scores[number] == scores[chosen] for number in equal) > 1:
        decided = f"{decided}, then the earlier round"
    return f"; rounds {', '.join(map(str, equal))} are equal in it, {decided} decided"


def choose_round(
    run_dir: Path, final_model: Path, records: Sequence[Mapping[str, Any]], metric: Metric, wanted: int | None
) -> Choice:
    """Returns the round asked for, or the best one by validation images among those whose model was kept.

    Args:
        run_dir: of a finished run.
        final_model: of the last round.
        records: all rounds.
        metric: to choose by.
        wanted: a round to take whatever its scores.

    Raises:
        ConfigError: the round asked for is not there, or its model was not kept.
    """
    last = int(records[-1]["round"])
    paths = {int(r["round"]): model_of_round(run_dir, int(r["round"])) for r in records}
    paths = {number: path for number, path in paths.items() if path.is_file()} | {last: final_model}
    names = ("round", "validation_accuracy", "validation_loss")
    candidates = tuple(
        {**{name: record[name] for name in names if name in record}, "kept": record["round"] in paths}
        for record in records
    )
    best = best_round(records, metric)
    best_kept = best_round([record for record in records if record["round"] in paths], metric)
    if wanted is not None:
        if wanted not in paths:
            there = ", ".join(map(str, sorted(paths)))
            what = "its model was not kept" if 1 <= wanted <= last else f"the run has {counted(last, 'round')}"
            raise ConfigError(f"--round {wanted}: {what}; there are {there} (checkpoint.keep=all keeps every one)")
        number, reason = wanted, "asked for with --round"
    elif best_kept is None:
        number, reason = last, "last round: the run had no validation images to choose by (data.validation_fraction)"
    else:
        number, told = best_kept, counted(len(records), "round")
        judged = records
        if best != best_kept:
            judged = [record for record in records if record["round"] in paths]
            told = f"the {counted(len(paths), 'round')} whose model was kept"
        reason = f"best validation {metric} of {told}{_ties(judged, metric, best_kept)}"
        if best != best_kept:
            reason += f"; round {best} was better, but checkpoint.keep did not keep it"
    return Choice(number, paths[number], reason, candidates)
