"""Weights & Biases: a run of a project, online or as files for `wandb sync`; a sweep's jobs are a group."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic.dataclasses import dataclass

from fl.core.groups import STRICT
from fl.tracking.base import Tracked, Tracker

EXIT = {"completed": 0, "time_limit": 0, "failed": 1}
KILLED = 255


@dataclass(config=STRICT, kw_only=True)
class Wandb(Tracker):
    """History by round, the settings as its configuration, files.

    Args:
        project: of the run.
        entity: whose project it is; None: the user's.
        mode: online, or offline, in the run folder; None: as W&B finds it.
    """

    package: ClassVar[str] = "wandb"
    project: str = "quantfl"
    entity: str | None = None
    mode: Literal["online", "offline"] | None = None

    def open(self, run: Tracked, name: str, rounds: int) -> int:
        import wandb

        self._run: Any = wandb.init(
            project=self.project,
            entity=self.entity,
            mode=self.mode,
            id=name,
            name=run.name,
            dir=str(run.folder),
            config={**run.parameters, "commit": run.commit},
            group=run.sweep,
            job_type=run.kind,
            resume="allow",
            settings=wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True),
        )
        return max(rounds, int(self._run.step) - 1)

    def round(self, number: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=number)

    def result(self, figures: Mapping[str, float]) -> None:
        self._run.summary.update(dict(figures))

    def artifact(self, path: Path) -> None:
        self._run.save(str(path), base_path=str(path.parent), policy="now")

    def close(self, state: str | None) -> None:
        self._run.finish(exit_code=EXIT.get(state or "", KILLED))
