"""What a run's folder holds, as far as it is there; nothing is computed that a file does not say."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fl.core.errors import ConfigError, printable, printable_lines
from fl.core.files import read_json, read_jsonl, read_npz
from fl.core.records import check_summary, check_sums, read_rounds
from fl.core.run_folder import (
    BENCH,
    COMMUNICATION,
    COMPARISON,
    CONTACTS,
    PARTITION,
    PREDICTIONS,
    RECOMMENDATION,
    ROUNDS,
    SETTINGS,
    SUMMARY,
    TIMELINE,
)

T = TypeVar("T")
MOST_BYTES = 256 * 1024**2
"""Of predictions."""

SUMS: dict[str, Callable[[Any, list[Mapping[str, Any]]], None]] = {
    SUMMARY: check_summary,
    COMMUNICATION: lambda ledger, rounds: check_sums(ledger["measured"], rounds),
}
"""What refuses a file that does not sum up the run's rounds."""


def _object_in(name: str) -> "cached_property[Mapping[str, Any]]":
    """Returns an attribute that is the object in a JSON file of the run, empty where there is none."""
    return cached_property(lambda run: run._read(name))


@dataclass(frozen=True)
class RunRecords:
    """The files of one run.

    Attributes:
        folder: of the run.
        unread: files that are there and cannot be read, with the reason.
    """

    folder: Path
    unread: dict[str, str] = field(default_factory=dict)

    settings = _object_in(SETTINGS)
    summary = _object_in(SUMMARY)
    partition = _object_in(PARTITION)
    communication = _object_in(COMMUNICATION)
    comparison = _object_in(COMPARISON)
    recommendation = _object_in(RECOMMENDATION)
    bench = _object_in(BENCH)
    contacts = _object_in(CONTACTS)

    @cached_property
    def rounds(self) -> list[Mapping[str, Any]]:
        """Every round that was completed; none of a file that is damaged, or contradicts itself."""
        try:
            return [_shown(each) for each in read_rounds(self.folder / ROUNDS)]
        except (OSError, ConfigError, ValueError) as error:
            return self._without(ROUNDS, error, list[Mapping[str, Any]]())

    @cached_property
    def timeline(self) -> list[Mapping[str, Any]]:
        """Every event of a run that contacts drove."""
        try:
            return [_shown(each) for each in read_jsonl(self.folder / TIMELINE) if isinstance(each, Mapping)]
        except (OSError, ConfigError, ValueError) as error:
            return self._without(TIMELINE, error, list[Mapping[str, Any]]())

    @cached_property
    def predictions(self) -> Mapping[str, np.ndarray]:
        """Labels of the test images, each precision's answers, and some images that change."""
        path = self.folder / PREDICTIONS
        try:
            if path.stat().st_size > MOST_BYTES:
                raise ValueError(f"has more than {MOST_BYTES:,} bytes")
            return read_npz(path)
        except (OSError, ValueError) as error:
            return self._without(PREDICTIONS, error, dict[str, np.ndarray]())

    def _read(self, name: str) -> Mapping[str, Any]:
        try:
            found = read_json(self.folder / name)
            if not isinstance(found, Mapping):
                raise ValueError("is no object")
            if name in SUMS and self.rounds:
                SUMS[name](found, self.rounds)
        except (OSError, ConfigError, KeyError, TypeError, ValueError) as error:
            return self._without(name, error, dict[str, Any]())
        return {printable_lines(key): _shown(each) for key, each in found.items()}

    def _without(self, name: str, error: Exception, nothing: T) -> T:
        if (self.folder / name).exists():
            self.unread[name] = printable(str(error))
        return nothing


def _shown(value: Any) -> Any:
    """Returns a document whose texts can be shown: what is no visible character, blank or new line is escaped."""
    if isinstance(value, dict):
        return {printable_lines(key): _shown(each) for key, each in value.items()}
    if isinstance(value, list):
        return [each if type(each) in (int, float) else _shown(each) for each in value]
    return printable_lines(value) if isinstance(value, str) else value
