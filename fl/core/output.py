"""In which form this process speaks: text or JSON lines, all of it or what matters, alone or as a job beside others."""

import json
import sys
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, Literal, TextIO

from fl.core import stop

Log = Literal["text", "json"]

WRITING = threading.Lock()


@dataclass(frozen=True)
class OutputSettings:
    """How a process speaks; it makes no difference to what it does.

    Attributes:
        quiet: only errors, warnings, and where results lie.
        log: lines for people, or an object of JSON in each.
    """

    quiet: bool = False
    log: Log = "text"


OF_THE_PROCESS = tuple(field.name for field in fields(OutputSettings))
"""Settings that are not a run's: they are not written down, and another process may go on with others."""

form = OutputSettings()
"""Of this process."""

job: int | None = None
"""Of a sweep, where others of it write to the same place."""


def speak(settings: OutputSettings) -> None:
    """Speaks in this form from now on."""
    global form
    form = settings
    stop.last_line = _last_object if form.log == "json" else stop.plain_line
    if form.log == "json":
        sys.excepthook = lambda kind, error, trace: tell_bug(error)


def speak_as_typed(words: Sequence[str]) -> None:
    """Speaks as a command line says, before it is read: a mistake in it is told in this form already."""
    asked = {each.removeprefix("--") for each in (*words, *map("=".join, pairwise(words)))}
    quiet = bool(asked & {"quiet", "quiet=true", "quiet=True"})
    speak(OutputSettings(quiet, "json" if "log=json" in asked else "text"))


def _last_object(text: str) -> bytes:
    kind = "interrupted" if text.startswith("interrupted") else "error"
    return record("error", kind, text.removeprefix("error: ")).encode()


def record(level: str, event: str, message: str, **fields: Any) -> str:
    """Returns one line of JSON, with the time in UTC."""
    told: dict[str, Any] = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "level": level}
    told |= {"event": event, **({} if job is None else {"job": job}), "message": message, **fields}
    return json.dumps(told) + "\n"


def write(line: str, place: TextIO | None = None) -> None:
    """Writes a line to `place`, stdout by default, never in the middle of another thread's."""
    place = place or sys.stdout
    with WRITING:
        place.write(line)
        place.flush()


def complain(text: str, event: str = "error") -> None:
    """Tells on stderr what went wrong."""
    if form.log == "json":
        write(record("error", event, text), sys.stderr)
    else:
        print(f"error: {text}" if event == "error" else text, file=sys.stderr)


def tell_bug(error: BaseException) -> None:
    """Writes the traceback of an exception that nobody foresaw to stderr."""
    told = "".join(traceback.format_exception(error))
    if form.log == "json":
        told = record("error", "bug", "".join(traceback.format_exception_only(error)).strip(), traceback=told)
    write(told, sys.stderr)
