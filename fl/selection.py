"""Models of single rounds: which are kept while training, and which one is chosen afterwards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from fl.errors import ConfigError, counted
from fl.model_file import save_state

FOLDER = "models"
Metric = Literal["accuracy", "loss"]
METRICS: tuple[Metric, ...] = ("accuracy", "loss")
Keep = Literal["last", "best", "all"] | int


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


def path_of(run_dir: Path, round_number: int) -> Path:
    """Returns where the model of a round is kept."""
    return run_dir / FOLDER / f"round_{round_number:04d}.pt"


def best_round(records: Sequence[Mapping[str, Any]], metric: Metric) -> int | None:
    """Returns the round with the best validation score; None without such scores.

    Of rounds with equal accuracy the one with the lowest loss is best (of equal loss, with the highest accuracy), of
    rounds equal in both the earliest.
    """
    best = min(_scored(records), key=lambda record: (*_worse(record, metric), record["round"]), default=None)
    return None if best is None else int(best["round"])


def _scored(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [record for record in records if "validation_loss" in record]


def _worse(record: Mapping[str, Any], metric: Metric) -> tuple[float, float]:
    """Returns both scores, the metric's first, so that the lower is the better."""
    accuracy, loss = -record["validation_accuracy"], record["validation_loss"]
    return (accuracy, loss) if metric == "accuracy" else (loss, accuracy)


def _ties(records: Sequence[Mapping[str, Any]], metric: Metric, chosen: int) -> str:
    """Returns what decided among rounds as good as the chosen one by the metric, nothing if there is no other."""
    scores = {int(record["round"]): _worse(record, metric) for record in _scored(records)}
    equal = [number for number, score in scores.items() if score[0] == scores[chosen][0]]
    if len(equal) < 2:
        return ""
    decided = "the lower loss" if metric == "accuracy" else "the higher accuracy"
    if sum(scores[number] == scores[chosen] for number in equal) > 1:
        decided = f"{decided}, then the earlier round"
    return f"; rounds {', '.join(map(str, equal))} are equal in it, {decided} decided"


def keep_model(run_dir: Path, state: Mapping[str, Tensor], records: Sequence[Mapping[str, Any]], keep: Keep) -> None:
    """Keeps the model of the last of `records` if `keep` says so, and removes those that it no longer wants.

    Args:
        run_dir: of the run.
        state: the model after the last round.
        records: all rounds so far, as in `rounds.jsonl`.
        keep: "last" keeps none but `final_model.pt`, "best" the best by either metric, a number that many last ones.
    """
    done = [int(record["round"]) for record in records]
    wanted: set[int | None] = set(done[-keep:] if isinstance(keep, int) else ())
    if keep == "best":
        wanted = {best_round(records, metric) for metric in METRICS}
    elif keep == "all":
        wanted = set(done)
    if done[-1] in wanted:
        (run_dir / FOLDER).mkdir(exist_ok=True)
        save_state(path_of(run_dir, done[-1]), state)
    for path in (run_dir / FOLDER).glob("round_*.pt") if keep != "all" else ():
        if int(path.stem.removeprefix("round_")) not in wanted:
            path.unlink()


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
    paths = {int(r["round"]): path_of(run_dir, int(r["round"])) for r in records}
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
