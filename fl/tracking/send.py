"""`python -m fl.tracking.send RUN_DIR`: sends what a run's files say, until standard input ends and then once more.

It is a process of its own: whatever a tracker's library does, who trains computes the same bytes and goes on. It says
at most one line of failure, and one in the end.
"""

import os
import re
import signal
import sys
from pathlib import Path
from threading import Event, Thread
from typing import TextIO

from filelock import FileLock

from fl.core.commit import code_commit
from fl.core.errors import printable
from fl.core.files import parsed, read_json, sha256
from fl.core.run_folder import (
    BENCH,
    COMMUNICATION,
    COMPARISON,
    MODEL,
    REPORT,
    ROUNDS,
    SETTINGS,
    SUMMARY,
    SWEEP,
    SWEEP_TABLE,
    TRACKING,
    TRACKING_LOCK,
)
from fl.core.stop import SIGNALS
from fl.tracking.base import Tracked, Tracker, figures, parameters
from fl.tracking.notes import Progress, begin, noted, sweep_of, tracker_of

PAUSE_S, RETRY_S = 0.5, 15.0
"""Between looks at a run's rounds, and after a failure."""
FILES = (MODEL, ROUNDS, SUMMARY, SETTINGS, COMMUNICATION, REPORT, COMPARISON, BENCH, SWEEP, SWEEP_TABLE)
RESULTS = {SUMMARY: ("totals",), COMPARISON: ("precisions", "formats", "communication")}
"""Which parts of a file are figures of the whole run."""
ABOUT_LINES = ("version", "round")
"""Numbers in a line of `rounds.jsonl` that are no figures."""
LONGEST_REASON = 120
LATER = "the run goes on; what is missing is sent when it answers, or later by a comparison or resume"


class Sender:
    """A tracked run, as far as it is sent.

    Args:
        folder: of a run or a sweep.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tracking, here = noted(folder)
        os.chdir(here)
        self._lock = FileLock(folder / TRACKING_LOCK)
        self.tracker: Tracker = tracker_of(self._tracking)
        self._open: Progress | None = None
        self._seen = -1

    def rounds(self) -> None:
        """Sends the rounds that are new."""
        progress = self._opened()
        path = self._folder / ROUNDS
        size = path.stat().st_size if path.is_file() else 0
        if size == self._seen:
            return
        text = path.read_text() if size else ""
        for line in text[: text.rfind("\n") + 1].splitlines():
            record = parsed(line)
            if record["round"] > progress.rounds:
                told = {key: value for key, value in record.items() if key not in ABOUT_LINES}
                self.tracker.round(record["round"], figures(told))
                progress.rounds = record["round"]
                progress.save(self._folder)
        self._seen = size

    def finish(self) -> None:
        """Sends the files that are new, with the figures in them, and how the run ended."""
        progress, folder = self._opened(), self._folder
        paths = [*(folder / name for name in FILES), *sorted(folder.glob("*.png"))]
        for path in paths:
            if path.is_file() and progress.sent.get(path.name) != (sha := sha256(path.read_bytes())):
                for part in RESULTS.get(path.name, ()):
                    self.tracker.result(figures(read_json(path).get(part), part))
                self.tracker.artifact(path)
                progress.sent[path.name] = sha
                progress.save(folder)
        summary = read_json(folder / SUMMARY) if (folder / SUMMARY).is_file() else {}
        self.tracker.close("completed" if (folder / SWEEP).is_file() else summary.get("state"))

    def again(self) -> None:
        """Begins anew after a failure."""
        self._open, self._seen = None, -1
        self.tracker = tracker_of(self._tracking)

    def _opened(self) -> Progress:
        if self._open is None:
            self._lock.acquire(timeout=RETRY_S)  # another such process may still be about to end
            progress, run = self._known(self._folder)
            progress.rounds = self.tracker.open(run, str(progress.name), progress.rounds)
            self._open = progress
        return self._open

    def _known(self, folder: Path) -> tuple[Progress, Tracked]:
        """Returns how far a folder is, created at the tracker where it had not been."""
        sweep, parent = sweep_of(folder), None
        if sweep is not None and sweep != folder:
            with FileLock(sweep / TRACKING_LOCK):
                if not (sweep / TRACKING).exists():
                    begin(sweep, self._tracking, os.getcwd())
                if noted(sweep) == noted(folder):
                    parent = self._known(sweep)[0].name
        progress = Progress.of(folder)
        settings = read_json(folder / SETTINGS) if folder != sweep else {}
        told = parameters(settings)
        run = Tracked(folder, progress.key, _name(folder), told, code_commit(), _name(sweep) if sweep else None, parent)
        if progress.name is None:
            progress.name = self.tracker.create(run)
            progress.save(folder)
        return progress, run


def _name(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"


def _reason(error: BaseException) -> str:
    """Returns what an error says, without passwords, and what the system had said before."""
    text = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
    text = printable(re.sub(r"//[^/@\s]*@", "//", text))[:LONGEST_REASON]
    while error.__context__ is not None:
        error = error.__context__
    cause = error.strerror if isinstance(error, OSError) else None
    return text if not cause or cause in text else f"{text} ... ({cause})"


def _listen(ended: Event, most_s: float) -> None:
    """Waits for who trains to say that it is done, or to be gone; then this process ends, whatever it waits for."""
    os.read(0, 1)
    signal.setitimer(signal.ITIMER_REAL, most_s)
    ended.set()


def send(folder: Path, tell: TextIO) -> None:
    """Follows a run to its end.

    Args:
        folder: of it.
        tell: where lines for the user go.
    """
    sender = Sender(folder)
    name = f"tracking={sender.tracker.package}"
    ended, last = Event(), False
    Thread(target=_listen, args=[ended, sender.tracker.wait_s], daemon=True).start()
    told, wait_s = False, 0.0
    while not last:
        last = ended.wait(wait_s)
        try:
            sender.rounds()
            if last:
                sender.finish()
                print(f"Tracked: {sender.tracker.package} run {Progress.of(folder).name}", file=tell)
            wait_s = PAUSE_S
        except Exception as error:  # of any library and any server
            if not told:
                print(f"note: {name}: {_reason(error)}; {LATER}", file=tell)
            told, wait_s = True, RETRY_S
            sender.again()


def main() -> None:
    """Reads the command line, and lets nobody but this module write to the terminal."""
    tell = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the end of standard input says when
    try:
        send(Path(sys.argv[1]), tell)
    except Exception as error:  # whatever the folder holds
        print(f"note: tracking: {_reason(error)}; nothing is sent", file=tell)


if __name__ == "__main__":
    main()
