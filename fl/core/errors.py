"""The errors a user can meet, each shown as one line, and the guard that shows them."""

import difflib
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from fl.core.output import complain
from fl.core.steps import SILENCE_S, VARIABLE, heartbeat
from fl.core.stop import exit_code, interrupts


class QuantflError(Exception):
    """A problem the user can act on: the message names the argument, its value and what to do."""

    exit_code = 2


class ConfigError(QuantflError):
    """A setting that cannot be honoured."""


class DataError(QuantflError):
    """Images that are missing, damaged or not what the setting asks for."""


class ModelFileError(QuantflError):
    """A model file that cannot be read, or is of the wrong kind."""


class RunError(QuantflError):
    """A run that had to stop."""

    exit_code = 1


class PayloadError(QuantflError):
    """Bytes that are no payload for this model, or tensors that a codec cannot hold."""

    exit_code = 1


class VerificationError(QuantflError):
    """Stored results that the files beside them do not reproduce."""

    exit_code = 1


def printable(text: str) -> str:
    """Returns text from elsewhere as a terminal may show it: what is no visible character or blank is escaped."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def printable_lines(text: str) -> str:
    """Returns text of several lines, each of them `printable`."""
    return text if text.isprintable() else "\n".join(map(printable, text.split("\n")))


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns the user's mistakes, and what the system refuses, into one line on stderr and an exit code.

    Within it, this process says what it is at whenever it was silent for long, see `heartbeat`.

    A `KeyboardInterrupt`, which every signal of `fl.core.stop` is, may carry what to do next as its text. Every other
    exception is a bug and passes.
    """
    with interrupts():
        try:
            with heartbeat(silence_s()):
                yield
        except QuantflError as error:
            complain(printable(str(error)))
            sys.exit(error.exit_code)
        except OSError as error:
            complain(printable(f"{error.filename or 'system'}: {error.strerror or error}"))
            sys.exit(1)
        except KeyboardInterrupt as error:
            complain("; ".join(["interrupted", *filter(None, map(str, error.args))]), "interrupted")
            sys.exit(exit_code())


def silence_s() -> float:
    """Returns after how many seconds without a line one of progress is written, 0 for never.

    Raises:
        ConfigError: the environment variable is no number.
    """
    told = os.environ.get(VARIABLE) or str(SILENCE_S)
    if not re.fullmatch(r"\d+(\.\d+)?", told):
        raise ConfigError(f"{VARIABLE}={told}: must be seconds, as in 60; 0 for no progress")
    return float(told)


@contextmanager
def reading(place: object) -> Iterator[None]:
    """Calls a file damaged when what is read of it is missing, or of another kind: others may have written it.

    Args:
        place: of the file or folder.

    Raises:
        ConfigError: names it.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ConfigError(f"{place}: is damaged ({error!r:.200})") from error


def writable_folder(folder: Path, option: str) -> Path:
    """Returns the folder, made if it was missing.

    Args:
        folder: to write into.
        option: that chooses another one, as in "--output DIR".

    Raises:
        ConfigError: it cannot be made or written into.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        told = error.strerror or str(error)
        raise ConfigError(f"{folder}: this folder cannot be written ({told}); choose another with {option}") from error


def counted(number: int, word: str) -> str:
    """Returns a number with its noun, as in "1 round" and "1,200 images"."""
    return f"{number:,} {word}" + ("" if number == 1 else "s")


def did_you_mean(word: str, valid: Collection[str]) -> str | None:
    """Returns the valid word that is most like this one in whatever case, None where none is."""
    lower = {each.lower(): each for each in valid}
    near = difflib.get_close_matches(word.lower(), lower, n=1)
    return lower[near[0]] if near else None


def suggestion(word: str, valid: Collection[str], before: str = "", after: str = " ") -> str:
    """Returns "did you mean fedavg? " of the valid word that is most like this one, nothing where none is."""
    near = did_you_mean(word, valid)
    return f"{before}did you mean {near}?{after}" if near else ""


def shell_path(path: Path) -> str:
    """Returns a path, relative to the working folder where that is shorter, as it can be pasted into a shell."""
    text = min(os.path.relpath(path), str(path), key=len)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def python_command() -> str:
    """Returns how a shell starts this Python: `python` where that is this one."""
    this = shutil.which("python") == sys.executable or shutil.which("python") is None
    return "python" if this else shell_path(Path(sys.executable))
