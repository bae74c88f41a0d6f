"""`quantfl --completion SHELL`: the script that completes verbs, options and settings, made once and then sourced."""

import argparse
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

import shtab

from fl.core.errors import ConfigError, suggestion
from fl.core.presets import CONF, choices, yaml_file

SHELLS = ("bash", "zsh", "fish")

NAMED = {"link": "link", "precisions": "precision", "network": "model"}
"""Options that take names of a group's choices, by what parsers call them."""

WHOLE_WORDS = "COMP_WORDBREAKS=${COMP_WORDBREAKS//[=@]}"
"""For bash, which would complete what comes after an = or @ alone; Hydra's own completion does the same for =."""

VALUE_NEXT = """
_quantfl() {
  _shtab_quantfl "$@"
  [[ ${COMPREPLY[*]-} != *= ]] || compopt -o nospace 2>/dev/null || :
}
complete -o bashdefault -F _quantfl quantfl
"""
"""For bash, too: a setting ends without a blank, its value comes next."""


def script(shell: str, verbs: dict[str, str]) -> str:
    """Returns the script for a shell.

    Args:
        shell: one of `SHELLS`.
        verbs: what each does.

    Raises:
        ConfigError: another shell.
    """
    if shell not in SHELLS:
        raise ConfigError(f"--completion {shell}: {suggestion(shell, SHELLS)}valid choices: {', '.join(SHELLS)}")
    program = argparse.ArgumentParser(prog="quantfl")
    program.add_argument("--completion", choices=SHELLS, help="print the script that completes command lines")
    added = program.add_subparsers()
    for verb, told in verbs.items():
        if verb == "train":
            overrides = added.add_parser(verb, help=told).add_argument("overrides", nargs="*")
            words = list(_overrides())
            overrides.complete = _words(words) | {"zsh": _zsh(words)}  # type: ignore[attr-defined]
        else:
            made = import_module(f"fl.commands.{verb}").parser()
            for action in made._actions:
                if action.type is Path:
                    action.complete = shtab.FILE
                elif action.dest in NAMED and action.nargs != 0:
                    action.complete = _words(choices(NAMED[action.dest]))
            added.add_parser(verb, parents=[made], add_help=False, help=told)
    if shell == "bash":
        return shtab.complete(program, shell, preamble=WHOLE_WORDS) + VALUE_NEXT
    return shtab.complete(program, shell)


def _words(words: Iterable[str]) -> "shtab.CompleteType":
    return shtab.cmd(f"printf '%s\\n' {' '.join(words)}")


def _zsh(words: Iterable[str]) -> str:
    """Returns what completes words in zsh, those that end in = without a blank after them."""
    values, whole = r"\${(M)found:#*=}", r"\${found:#*=}"  # the action stands between double quotes
    return f"{{local -a found=({' '.join(words)}); compadd -S '' -- {values}; compadd -- {whole}}}"


def _overrides() -> list[str]:
    """Returns what a run can be told: every choice of every group, every setting, and those of the choices."""
    config = yaml_file(CONF / "config.yaml", resolve=False)
    words = [f"{name}=" for name in config if name not in ("defaults", "hydra")]
    for name in (name for each in config["defaults"] if isinstance(each, dict) for name in each if " " not in name):
        group, _, place = name.partition("@")
        words += [f"{name}={choice}" for choice in choices(group)]
        if group != "experiment":
            files = (yaml_file(CONF / group / f"{choice}.yaml", resolve=False) or {} for choice in choices(group))
            words += [f"{place or group}.{key}=" for key in dict.fromkeys(key for each in files for key in each)]
    return words
