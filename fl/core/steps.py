"""What this process is at: open steps, one within another, and a line about them when it was silent for long."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, TypeVar

from fl.core import output

Part = TypeVar("Part")

SILENCE_S = 4.0
"""After which a line of progress is written."""

VARIABLE = "QUANTFL_PROGRESS_S"
"""Environment variable with other seconds; 0 for no progress at all."""


class Step:
    """Work that takes a while; calling it says how much more of it is done.

    Args:
        label: what it is.
        total: how much there is to do; None where nobody knows.
        unit: of `total`, in the singular.
        done: what was done before it began.
        count: returns how much is done, for work that other processes do.
    """

    def __init__(
        self,
        label: str,
        total: float | None = None,
        unit: str = "",
        done: float = 0,
        count: Callable[[], float] | None = None,
    ) -> None:
        self.label, self.total, self.unit, self.count = label, total, unit, count
        self.done = self._before = done
        self._began = time.monotonic()

    def __call__(self, amount: float = 1) -> None:
        self.done += amount

    def over(self, parts: Iterable[Part]) -> Iterator[Part]:
        """Yields what there is to do; one is done when the next is asked for."""
        for part in parts:
            yield part
            self()

    @property
    def elapsed_s(self) -> float:
        """Since it began."""
        return time.monotonic() - self._began

    @property
    def left_s(self) -> float | None:
        """What it will take yet, at the pace so far; None where nobody knows."""
        here = self.done - self._before
        return None if self.total is None or here <= 0 else self.elapsed_s * max(0, self.total - self.done) / here

    def look(self) -> "Step":
        """Returns itself, counted again if others do the work."""
        if self.count is not None:
            with suppress(OSError):
                self.done = self.count()
        return self

    def told(self) -> str:
        """Returns how far it is, as in "4 of 10 clients, 31 s, about 45 s left"."""
        unit = f" {self.unit}" + ("" if self.total == 1 else "es" if self.unit.endswith("ch") else "s")
        parts = [] if self.total is None else [f"{int(self.done):,} of {int(self.total):,}{unit if self.unit else ''}"]
        parts.append(_seconds(self.elapsed_s))
        parts += [] if not self.left_s else [f"about {_seconds(self.left_s)} left"]
        return ", ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Returns the same as fields."""
        seconds = {"elapsed_s": round(self.elapsed_s, 3), "left_s": self.left_s and round(self.left_s, 3)}
        return {"step": self.label, "done": self.done, "total": self.total, "unit": self.unit, **seconds}


OPEN: list[Step] = []
"""The steps that this process is at, the outermost first."""


class _State:
    """When something was last heard of this process, and who tells."""

    heard = 0.0
    beating = False
    drawn = False  # bars are on the screen


def heard() -> None:
    """Notes that a line was written."""
    _State.heard = time.monotonic()


def followed() -> bool:
    """Tells whether somebody follows what this process does: it is a command, not a client's process or a library."""
    return _State.beating


@contextmanager
def on_screen() -> Iterator[None]:
    """Writes no lines while bars are drawn."""
    _State.drawn = True
    try:
        yield
    finally:
        _State.drawn = False


@contextmanager
def stderr_copy() -> Iterator[TextIO]:
    """Yields stderr as it is now: what is written there is seen while others silence stderr."""
    try:
        number = os.dup(sys.stderr.fileno())
    except (AttributeError, OSError, ValueError):  # none, or a test's
        yield sys.stderr
        return
    with os.fdopen(number, "w", errors="replace") as file:
        yield file


@contextmanager
def heartbeat(silence_s: float) -> Iterator[None]:
    """Lets this process say what it is at whenever it was silent for so long: on stderr, as JSON on stdout; 0: never.

    A thread does so, for no step can be trusted to be short: one call of a library may take minutes. It only writes.
    """
    if _State.beating or not silence_s > 0:
        yield
        return
    ended = threading.Event()
    with stderr_copy() as place:
        arguments = ended, silence_s, place, sys.stdout
        thread = threading.Thread(target=_beat, args=arguments, name="progress", daemon=True)
        _State.beating = True
        heard()
        thread.start()
        try:
            yield
        finally:
            _State.beating = False
            ended.set()
            thread.join(timeout=1)


def _beat(ended: threading.Event, silence_s: float, errors: TextIO, out: TextIO) -> None:
    began = _State.heard
    while not ended.wait(max(0.01, _State.heard + silence_s - time.monotonic())):
        if time.monotonic() < _State.heard + silence_s:
            continue
        heard()
        if _State.drawn or output.form.quiet:
            continue
        steps = [step.look() for step in OPEN]
        line = " > ".join(f"{step.label}: {step.told()}" for step in steps)
        line = line or f"still at work, {_seconds(time.monotonic() - began)}"
        with suppress(OSError, ValueError):  # nobody reads any more
            if output.form.log == "json":
                output.write(output.record("info", "progress", line, steps=[each.to_json() for each in steps]), out)
            else:
                output.write(f"{'' if output.job is None else f'[{output.job}] '}{line}\n", errors)


def _seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
