"""What ends a command from outside: Ctrl-C, SIGTERM and SIGUSR1, which SLURM sends before a job's time is over.

A command calls `listen` in its first line. Until it works, a signal ends it at once; then the first one becomes a
`KeyboardInterrupt`, so that what was begun is noted and put in order, and a second one ends it at once. Exit code: 128
and the signal's number. `import fl` alone changes nothing.

Images are mapped from their cache: the system sends SIGBUS to who reads what is no longer there.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

AGAIN_S = 0.02


def plain_line(text: str) -> bytes:
    """Returns a line as text."""
    return f"{text}\n".encode()


last_line: Callable[[str], bytes] = plain_line
"""The form of what is written when a process ends at once."""

_received: list[int] = []

_kept: list[object] = []


def listen() -> None:
    """Ends this process in one line when a signal comes."""
    for number in SIGNALS:
        signal.signal(number, _end)
    import ctypes  # now that signals are heard

    with suppress(Exception):  # where the system lets no code be made
        libc = ctypes.CDLL(None)  # Python runs a handler after the read, which is tried for ever
        libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
        _kept.append(ctypes.CFUNCTYPE(None, ctypes.c_int)(_cut_short))
        libc.signal(signal.SIGBUS, _kept[-1])


def _cut_short(_number: int) -> None:
    os.write(2, last_line("error: a file was cut short while it was read, most likely of the image cache; run again"))
    os._exit(1)


@contextmanager
def interrupts() -> Iterator[None]:
    """Lets the first signal within raise `KeyboardInterrupt`; a second one ends the process."""
    before = {number: signal.signal(number, _interrupt) for number in SIGNALS}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_code() -> int:
    """Returns what a command that was interrupted exits with."""
    return 128 + (_received[0] if _received else signal.SIGINT)


def _end(number: int, _frame: FrameType | None) -> None:
    os.write(2, last_line("interrupted"))
    os._exit(128 + number)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raises now, or as soon as no module is being imported: in the middle of it libraries may crash."""
    if number != signal.SIGALRM:
        _received.append(number)
        listen()
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            signal.signal(signal.SIGALRM, _interrupt)
            signal.setitimer(signal.ITIMER_REAL, AGAIN_S)
            return
        frame = frame.f_back
    raise KeyboardInterrupt
