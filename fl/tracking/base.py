"""A tracker: where people look at the figures of many runs side by side."""

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass as plain
from pathlib import Path
from typing import Any, ClassVar

from pydantic.dataclasses import dataclass

from fl.core.errors import ConfigError
from fl.core.groups import STRICT, Positive

Value = str | int | float | bool | None


@plain(frozen=True)
class Tracked:
    """What a tracker is told of a run, or of the sweep that runs are jobs of.

    Attributes:
        folder: with its files.
        key: a name that nobody else has.
        name: for people.
        parameters: the settings, flat; none of a sweep.
        commit: of the code; None where it is not known.
        sweep: name of the sweep that this is, or is a job of.
        parent: what the tracker calls the sweep that this is a job of.
    """

    folder: Path
    key: str
    name: str
    parameters: Mapping[str, Value]
    commit: str | None
    sweep: str | None = None
    parent: str | None = None

    @property
    def kind(self) -> str:
        """Tells a sweep from a run."""
        return "sweep" if self.name == self.sweep else "run"


@dataclass(config=STRICT, kw_only=True)
class Tracker(ABC):
    """Settings of one kind of tracker, and, in the process that sends, the tracked run that was opened with them.

    Every method may raise whatever its library does.

    Args:
        wait_s: how long a run that has ended waits at most for its tracker.
    """

    package: ClassVar[str]
    """Which is imported; the extra that installs it has the same name."""

    wait_s: Positive = 60.0

    def refuse_missing(self) -> None:
        """Raises `ConfigError` where the library is not installed."""
        if importlib.util.find_spec(self.package) is None:
            raise ConfigError(
                f"tracking={self.package}: {self.package} is not installed; install it with: "
                f"pip install -c constraints.txt -e '.[{self.package}]'"
            )

    def create(self, run: Tracked) -> str:
        """Returns what the tracker calls a run that it has not had yet."""
        return run.key

    @abstractmethod
    def open(self, run: Tracked, name: str, rounds: int) -> int:
        """Goes on with a tracked run, or begins it.

        Args:
            run: see `Tracked`.
            name: what `create` has returned.
            rounds: how many it has, as far as is known here.

        Returns:
            How many it has.
        """

    @abstractmethod
    def round(self, number: int, figures: Mapping[str, float]) -> None:
        """Adds the figures of a round."""

    @abstractmethod
    def result(self, figures: Mapping[str, float]) -> None:
        """Sets figures of the whole run."""

    @abstractmethod
    def artifact(self, path: Path) -> None:
        """Adds a file, in place of one with the same name."""

    @abstractmethod
    def close(self, state: str | None) -> None:
        """Ends what was opened.

        Args:
            state: of the run, as its summary has it; None: it was killed.
        """


def figures(values: Any, prefix: str = "") -> dict[str, float]:
    """Returns the numbers in nested mappings, flat, named `outer/inner`."""
    if isinstance(values, Mapping):
        parts = [figures(each, f"{prefix}/{key}" if prefix else str(key)) for key, each in values.items()]
        return {key: each for part in parts for key, each in part.items()}
    return {prefix: values} if isinstance(values, int | float) and not isinstance(values, bool) else {}


def parameters(values: Any, prefix: str = "") -> dict[str, Value]:
    """Returns settings flat, named `group.setting` as on the command line; lists are text."""
    if isinstance(values, Mapping):
        parts = [parameters(each, f"{prefix}.{key}" if prefix else str(key)) for key, each in values.items()]
        return {key: each for part in parts for key, each in part.items()}
    return {prefix: values if values is None or isinstance(values, str | int | float | bool) else str(values)}
