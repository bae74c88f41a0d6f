"""What a run's folder holds, as far as it is there; nothing is computed that a file does not say."""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fl.core.errors import ConfigError
from fl.core.files import read_json, read_jsonl
from fl.core.run_folder import BENCH, COMMUNICATION, COMPARISON, PARTITION, PREDICTIONS, ROUNDS, SETTINGS, SUMMARY

T = TypeVar("T")
MOST_BYTES = 256 * 1024**2
"""Of predictions, unpacked."""


@dataclass(frozen=True)
class RunRecords:
    """The files of one run.

    Attributes:
        folder: of the run.
        unread: files that are there and cannot be read, with the reason.
    """

    folder: Path
    unread: dict[str, str] = field(default_factory=dict)

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """What was asked for."""
        return self._read(SETTINGS)

    @cached_property
    def summary(self) -> Mapping[str, Any]:
        """How it ended."""
        return self._read(SUMMARY)

    @cached_property
    def partition(self) -> Mapping[str, Any]:
        """Who had which images."""
        return self._read(PARTITION)

    @cached_property
    def communication(self) -> Mapping[str, Any]:
        """What travelled, and what links take for it."""
        return self._read(COMMUNICATION)

    @cached_property
    def comparison(self) -> Mapping[str, Any]:
        """The final model in several precisions."""
        return self._read(COMPARISON)

    @cached_property
    def bench(self) -> Mapping[str, Any]:
        """How fast models are."""
        return self._read(BENCH)

    @cached_property
    def rounds(self) -> list[Mapping[str, Any]]:
        """Every round that was completed, the whole ones at the beginning of a file that was cut."""
        try:
            return [each for each in read_jsonl(self.folder / ROUNDS) if isinstance(each, Mapping)]
        except (OSError, ConfigError, ValueError) as error:
            return self._without(ROUNDS, error, list[Mapping[str, Any]]())

    @cached_property
    def predictions(self) -> Mapping[str, np.ndarray]:
        """Labels of the test images, each precision's answers, and some images that change."""
        path = self.folder / PREDICTIONS
        try:
            with zipfile.ZipFile(path) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > MOST_BYTES:
                    raise ValueError(f"unpacks to more than {MOST_BYTES:,} bytes")
            with np.load(path, allow_pickle=False) as stored:
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
