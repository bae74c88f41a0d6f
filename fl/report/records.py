"""What a run's folder holds, as far as it is there; nothing is computed that a file does not say."""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fl.core.errors import ConfigError
from fl.core.files import read_json, read_jsonl, regular
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
"""Of predictions, unpacked."""


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
        """Every round that was completed, the whole ones at the beginning of a file that was cut."""
        try:
            return [each for each in read_jsonl(self.folder / ROUNDS) if isinstance(each, Mapping)]
        except (OSError, ConfigError, ValueError) as error:
            return self._without(ROUNDS, error, list[Mapping[str, Any]]())

    @cached_property
    def timeline(self) -> list[Mapping[str, Any]]:
        """Every event of a run that contacts drove."""
        try:
            return [each for each in read_jsonl(self.folder / TIMELINE) if isinstance(each, Mapping)]
        except (OSError, ConfigError, ValueError) as error:
            return self._without(TIMELINE, error, list[Mapping[str, Any]]())

    @cached_property
    def predictions(self) -> Mapping[str, np.ndarray]:
        """Labels of the test images, each precision's answers, and some images that change."""
        path = self.folder / PREDICTIONS
        try:
            with open(path, "rb", opener=regular) as file:
                with zipfile.ZipFile(file) as archive:
                    if sum(entry.file_size for entry in archive.infolist()) > MOST_BYTES:
                        raise ValueError(f"unpacks to more than {MOST_BYTES:,} bytes")
                file.seek(0)
                with np.load(file, allow_pickle=False) as stored:
                    return {name: stored[name] for name in stored.files}
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            return self._without(PREDICTIONS, error, dict[str, np.ndarray]())

    def _read(self, name: str) -> Mapping[str, Any]:
        try:
            found = read_json(self.folder / name)
            if not isinstance(found, Mapping):
                raise ValueError("is no object")
        except (OSError, ConfigError, ValueError) as error:
            return self._without(name, error, dict[str, Any]())
        return found

    def _without(self, name: str, error: Exception, nothing: T) -> T:
        if (self.folder / name).exists():
            self.unread[name] = str(error)
        return nothing
