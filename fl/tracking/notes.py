"""What is noted of a tracked run: how far it is, in its folder, and where it goes, in the user's own cache.

A folder that came from somebody else therefore sends nothing anywhere: no file in it says where to.
"""

import dataclasses
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fl.core.errors import ConfigError, reading
from fl.core.files import read_json, write_json
from fl.core.run_folder import MULTIRUN, TRACKING
from fl.core.targets import Target
from fl.tracking.base import Tracker


@dataclasses.dataclass
class Progress:
    """How far a tracked run is: `tracking.json`.

    Attributes:
        key: of the run, and of the note in the user's cache.
        name: that the tracker has given it.
        rounds: how many were sent.
        sent: SHA-256 of the files that were, by name.
    """

    key: str
    name: str | None = None
    rounds: int = 0
    sent: dict[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path) -> "Progress":
        """Reads it."""
        with reading(folder / TRACKING):
            found = cls(**read_json(folder / TRACKING))
            if uuid.UUID(hex=found.key).hex != found.key:
                raise ValueError(f"key is {found.key!r:.50}")
        return found

    def save(self, folder: Path) -> None:
        """Writes it."""
        write_json(folder / TRACKING, self)


def begin(folder: Path, tracking: Mapping[str, Any], here: str) -> Progress:
    """Notes that a run or a sweep is tracked from now on.

    Args:
        folder: of it.
        tracking: the group of the configuration.
        here: the working folder that relative places in it are meant from.
    """
    progress = Progress(uuid.uuid4().hex)
    note = _note(progress.key)
    note.parent.mkdir(parents=True, exist_ok=True)
    write_json(note, {"tracking": tracking, "here": here})
    progress.save(folder)
    return progress


def noted(folder: Path) -> tuple[dict[str, Any], str]:
    """Returns how a folder is tracked, and the working folder that this is meant from.

    Raises:
        ConfigError: it was not begun by this user.
    """
    if not (folder / TRACKING).is_file():
        raise ConfigError(f"{folder}: was not tracked from its beginning")
    note = _note(Progress.of(folder).key)
    if not note.is_file():
        raise ConfigError(f"{folder}: was tracked from another account or machine, {note} is not here")
    found = read_json(note)
    return found["tracking"], found["here"]


def tracker_of(tracking: Mapping[str, Any]) -> Tracker:
    """Returns what a note names, built."""
    config = dict(tracking)
    tracker: Tracker = Target(config.pop("_target_"), config, "tracking").build()
    return tracker


def sweep_of(folder: Path) -> Path | None:
    """Returns the folder of the sweep that a run is a job of, or that this is."""
    return next((each for each in (folder, *folder.parents) if (each / MULTIRUN).is_file()), None)


def _note(key: str) -> Path:
    cache = os.environ.get("QUANTFL_CACHE") or "~/.cache/quantfl"
    return Path(cache).expanduser() / "tracked" / f"{key}.json"
