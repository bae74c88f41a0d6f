"""Command lines of argparse: a mistake ends in one line, and one word means one thing in every command."""

import argparse
import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

from fl.core.errors import ConfigError, suggestion
from fl.core.output import Log, OutputSettings, complain, speak, speak_as_typed

SAME = (
    ("--clients", "--num-clients"),
    ("--rounds", "--num-rounds"),
    ("--formats", "--format"),
    ("--precisions", "--precision"),
    ("--batch-sizes", "--batch-size"),
    ("--link", "--links"),
)
"""Options that are one whatever command they are given to."""


class Parser(argparse.ArgumentParser):
    """argparse's, without its usage on stderr, with both names of an option, and with how a command speaks.

    Args:
        examples: command lines, shown below the options.
        note: a sentence above them.
        settings: of argparse.
    """

    def __init__(self, examples: Sequence[str] = (), note: str = "", **settings: Any) -> None:
        lines = [*textwrap.wrap(note, 100), *(["Examples:"] if examples else []), *(f"  {each}" for each in examples)]
        form = argparse.RawDescriptionHelpFormatter
        super().__init__(formatter_class=form, epilog="\n".join(lines), **settings)
        self.add_argument("--quiet", action="store_true", help="say errors, warnings and where results lie only")
        self.add_argument("--log", choices=get_args(Log), default="text", help="lines of text, or JSON objects (text)")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Reads a command line, and speaks as it says."""
        speak_as_typed(sys.argv[1:] if args is None else args)
        options = super().parse_args(args, namespace)
        speak(OutputSettings(options.quiet, options.log))
        return options

    def add_argument(self, *names: Any, **settings: Any) -> argparse.Action:
        """Adds an argument under the names given, and under those of `SAME`."""
        others = [each for pair in SAME for each in pair if set(pair) & set(names) and each not in names]
        return super().add_argument(*names, *others, **settings)

    def error(self, message: str) -> NoReturn:
        """Prints one line that names the argument, and ends."""
        if unknown := re.match("unrecognized arguments: ([^ ]+)", message):
            typed = unknown[1]
            known = self._option_string_actions if typed[0] == "-" else ()
            message = f"{typed}: there is no such option{suggestion(typed.partition('=')[0], known, '; ', '')}"
        if wrong := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message):
            message += suggestion(wrong[1], re.findall("[^', ]+", wrong[2]), "; ", "")
        text = message.removeprefix("argument ").replace("the following arguments are required: ", "missing: ")
        complain(f"{text}; see {self.prog} --help")
        sys.exit(ConfigError.exit_code)


def names(option: str, text: str) -> list[str]:
    """Returns the names of a comma list, none for an empty text.

    Raises:
        ConfigError: a text without any name.
    """
    found = [each.strip() for each in text.split(",") if each.strip()]
    if text and not found:
        raise ConfigError(f"{option} {text}: names nothing")
    return found


def counts(option: str, text: str) -> list[int]:
    """Reads a comma list of numbers of at least 1.

    Raises:
        ConfigError: it is none.
    """
    try:
        numbers = [int(each) for each in text.split(",") if each.strip()]
    except ValueError as error:
        raise ConfigError(f"{option} {text}: must be a comma list of whole numbers, as in 10,100") from error
    if any(number < 1 for number in numbers):
        raise ConfigError(f"{option} {text}: every number must be at least 1")
    return numbers


def renew_report(path: Path) -> None:
    """Writes the page of a run again and tells its tracker, now that there is more to say.

    Args:
        path: its folder, or a file in it.
    """
    from fl import report, tracking

    report.renew(path)
    tracking.renew(path)
