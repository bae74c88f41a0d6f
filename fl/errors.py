"""The errors a user can meet, each shown as one line, and the guard that shows them."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


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


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns the user's mistakes, and what the system refuses, into one line on stderr and an exit code.

    Every other exception is a bug and passes.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except QuantflError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        print(f"error: {error.filename or 'system'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted; a run with a finished round continues with: python -m fl.resume RUN_DIR", file=sys.stderr)
        sys.exit(130)
