"""One writer at a time in a run folder, by a lock that the operating system gives back when its process dies."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from fl.core.console import say
from fl.core.errors import RunError, printable
from fl.core.files import regular
from fl.core.run_folder import CLIENTS, EVENTS, HYDRA_FOLDER, MODELS, ROUNDS, TIMELINE

LOCK = ".run.lock"
"""Stays in the folder, with its last writer's name; what counts is whether it is locked."""

NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)

LONGEST_NAME = 200

GROWING = (EVENTS, ROUNDS, TIMELINE, MODELS, CLIENTS, HYDRA_FOLDER)
"""What a run appends to, or adds to and deletes from; all else is replaced whole."""


@contextmanager
def sole_writer(run_dir: Path) -> Iterator[None]:
    """Holds the folder's lock; one that cannot be had is not waited for.

    Raises:
        RunError: another process holds it, or a part of the folder is a link out of it.
    """
    if links := [name for name in GROWING if (run_dir / name).is_symlink()]:
        raise RunError(f"{run_dir / links[0]}: is a link; a run writes in its own folder alone, so put the file there")
    path = run_dir / LOCK
    lock = FileLock(path, blocking=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout as error:
        with suppress(OSError):
            raise RunError(
                f"{run_dir}: {_holder(path)} is writing into this folder; wait for it, or stop it"
            ) from error
        raise RunError(f"{run_dir}: another process is writing into this folder") from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        say(f"note: {run_dir}: this file system has no locks; a second run in this folder would not be noticed")
        yield
        return
    try:
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
        yield
    finally:
        if [each.name for each in run_dir.iterdir()] == [LOCK]:  # nothing began
            path.unlink()
        lock.release()


def _holder(path: Path) -> str:
    """Returns what the last writer wrote about itself."""
    with open(path, "rb", opener=regular) as file:
        return printable(file.read(LONGEST_NAME).decode(errors="replace").strip()) or "another process"
