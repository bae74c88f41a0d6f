"""Models of single rounds: which are kept while training, and which one is chosen afterwards."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from fl.core.errors import suggestion
from fl.core.groups import STRICT
from fl.core.records import METRICS, best_round
from fl.core.run_folder import MODELS, model_of_round
from fl.models.architecture import Architecture
from fl.quantization.model_file import save_trained

DEFAULT = Architecture()
Keep = Literal["last", "best", "all"] | int


@dataclass(frozen=True, config=STRICT)
class CheckpointSettings:
    """Models of which rounds a run keeps beside its final one."""

    keep: Keep = "last"

    @field_validator("keep", mode="before")
    @classmethod
    def _known(cls, keep: Any) -> str | int:
        if keep in ("last", "best", "all") or (type(keep) is int and keep > 0):
            return keep
        near = suggestion(str(keep), ("last", "best", "all"), "; ", "")
        raise ValueError(f"must be last, best, all or a number of rounds{near}")


def keep_model(
    run_dir: Path,
    state: Mapping[str, Tensor],
    records: Sequence[Mapping[str, Any]],
    keep: Keep,
    architecture: Architecture = DEFAULT,
) -> None:
    """Keeps the model of the last of `records` if `keep` says so, and removes those that it no longer wants.

    Args:
        run_dir: of the run.
        state: the model after the last round.
        records: all rounds so far, as in `rounds.jsonl`.
        keep: "last" keeps none but `final_model.pt`, "best" the best by either metric, a number that many last ones.
        architecture: of the model.
    """
    done = [int(record["round"]) for record in records]
    wanted: set[int | None] = set(done[-keep:] if isinstance(keep, int) else ())
    if keep == "best":
        wanted = {best_round(records, metric) for metric in METRICS}
    elif keep == "all":
        wanted = set(done)
    if done[-1] in wanted:
        (run_dir / MODELS).mkdir(exist_ok=True)
        save_trained(model_of_round(run_dir, done[-1]), state, architecture)
    for path in (run_dir / MODELS).glob("round_*.pt") if keep != "all" else ():
        if int(path.stem.removeprefix("round_")) not in wanted:
            path.unlink()
