"""The process that sends, as who trains sees it: started, listened to, waited for, but never long."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import IO, Any

import fl
from fl.core.console import say
from fl.core.run_folder import TRACKING
from fl.tracking.base import Tracker
from fl.tracking.notes import begin, noted, tracker_of

GRACE_S = 5
"""How much longer than it was given a process may take to end."""
HURRY_S = 10.0
"""At most, where the run was interrupted."""
LONGEST_REASON = 300


@contextmanager
def tracked(run_dir: Path, tracker: Tracker | None, tracking: Mapping[str, Any], resume: bool) -> Iterator[None]:
    """Has a run sent to its tracker while it goes on; whatever fails in that is said and ends nothing.

    Args:
        run_dir: of the run, its settings written.
        tracker: None for none.
        tracking: the group of the configuration that it was built of.
        resume: it goes on in the tracked run that was begun, if one was by this user.
    """
    sender = None
    if tracker is not None:
        try:
            if not resume:
                begin(run_dir, tracking, os.getcwd())
            sender = _sender(run_dir)
        except Exception as error:  # whatever the system makes of it
            failed(tracker.package, error)
    try:
        yield
    finally:
        if tracker is not None and sender is not None:
            hurry = isinstance(sys.exc_info()[1], KeyboardInterrupt)  # SLURM soon ends what it has signalled
            _wait(*sender, replace(tracker, wait_s=min(tracker.wait_s, HURRY_S)) if hurry else tracker)


def renew(path: Path) -> None:
    """Sends what has come to the folder of a tracked run or sweep since; `path` is the folder, or a file in it."""
    folder = (path if path.is_dir() else path.parent).absolute()
    if (folder / TRACKING).is_file():
        try:
            tracker = tracker_of(noted(folder)[0])
            sender = _sender(folder)
        except Exception as error:  # what a run's folder holds may come from anywhere
            failed("", error)
        else:
            _wait(*sender, tracker)


def failed(tracker: str, error: Exception) -> None:
    """Says that something was not sent, and why."""
    reason = (str(error).splitlines() or [""])[0] or type(error).__name__
    say(f"note: tracking{'=' if tracker else ''}{tracker}: {reason[:LONGEST_REASON]}; nothing is sent")


def _sender(folder: Path) -> tuple[subprocess.Popen[str], Thread]:
    """Starts the process, which ends when its standard input does, as it does when this one is killed.

    Returns it with who shows what it says.
    """
    places = [str(Path(fl.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.Popen(  # noqa: S603  the program is this one
        [sys.executable, "-P", "-m", "fl.tracking.send", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
        start_new_session=True,  # Ctrl-C is for who trains
    )
    listener = Thread(target=_listen, args=[process.stdout], daemon=True)
    listener.start()
    return process, listener


def _listen(lines: IO[str]) -> None:
    with lines:
        for line in lines:
            say(line.rstrip("\n"))


def _wait(process: subprocess.Popen[str], listener: Thread, tracker: Tracker) -> None:
    """Tells the process that nothing more comes, and waits for it as long as `wait_s` says."""
    assert process.stdin is not None
    with suppress(OSError), process.stdin as end:
        end.write("end\n")  # for a process that was forked may hold it open
    try:
        process.wait(tracker.wait_s + GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    listener.join(GRACE_S)
    late = process.returncode in (-signal.SIGKILL, -signal.SIGALRM)
    if late or process.returncode:
        how = f"has not ended within wait_s={tracker.wait_s:g}" if late else f"ended with {process.returncode}"
        say(f"note: tracking={tracker.package}: the process that sends {how}; what is missing comes with a comparison")
