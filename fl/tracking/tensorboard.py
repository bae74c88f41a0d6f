"""TensorBoard: event files in the run folder; those of a sweep's jobs lie in its sub-folders."""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic.dataclasses import dataclass

from fl.core.groups import STRICT
from fl.core.run_folder import TENSORBOARD
from fl.tracking.base import Tracked, Tracker

PNG = ".png"


@dataclass(config=STRICT, kw_only=True)
class TensorBoard(Tracker):
    """Scalars by round, pictures, and settings with the run's state among the hyper-parameters."""

    package: ClassVar[str] = "tensorboard"

    def open(self, run: Tracked, name: str, rounds: int) -> int:
        from fl.tracking import events

        folder = run.folder / TENSORBOARD
        begun = any(folder.glob("*")) or run.kind == "sweep"
        self._events: Any = events.Events(folder, rounds)
        if not begun:
            self._events.parameters({**run.parameters, "commit": run.commit})
        return rounds

    def round(self, number: int, figures: Mapping[str, float]) -> None:
        self._events.scalars(figures, number)

    def result(self, figures: Mapping[str, float]) -> None:
        self._events.scalars(figures, 0)

    def artifact(self, path: Path) -> None:
        if path.suffix == PNG:  # what else there is lies beside
            content = path.read_bytes()
            self._events.picture(path.stem, content, *struct.unpack(">II", content[16:24]))

    def close(self, state: str | None) -> None:
        self._events.close(state)
