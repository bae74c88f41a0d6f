"""`python -m fl recommend RUN_DIR`: which precision to train, ship and transmit with, from what was measured.

It chooses by the validation images that the run held out, and keeps a precision only where they show that it loses no
more than asked: the whole 95 % interval of its change against FP32, on the same images, must be within the limit.
"""

import argparse
from pathlib import Path

from fl.commands.arguments import Parser, renew_report
from fl.core.console import say
from fl.core.errors import ConfigError, one_line_errors, shell_path
from fl.core.files import read_json, write_json
from fl.core.run_folder import COMPARISON, RECOMMENDATION, SUMMARY


def parser() -> Parser:
    """Returns what reads the command line."""
    made = Parser(
        prog="python -m fl recommend",
        description=__doc__,
        examples=[
            "python -m fl recommend outputs/DATE/TIME",
            "python -m fl recommend outputs/DATE/TIME --max-drop 1 --max-size-kb 500",
        ],
    )
    add = made.add_argument
    add("run_dir", type=Path, help="folder of a run that compare_quantizations.py was run on, or its JSON file")
    add("--max-drop", type=float, default=0.5, metavar="POINTS", help="of accuracy that may be lost against FP32 (0.5)")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where the model will answer (cpu)")
    add("--max-size-kb", type=float, metavar="N", help="largest file, in units of 1024 bytes")
    return made


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    return parser().parse_args(arguments)


def main() -> None:
    """Prints the three lines."""
    options = parse()
    with one_line_errors():
        from fl.comparison.recommend import recommendation

        place: Path = options.run_dir
        path = place if place.suffix == ".json" else place / COMPARISON
        if not place.exists():
            raise ConfigError(f"{place}: no such folder")
        if not place.is_dir() and place.suffix != ".json":
            raise ConfigError(f"{place}: is a file; give the folder of its run, as in {shell_path(place.parent)}")
        if not path.is_file():
            command = f"python compare_quantizations.py {shell_path(place)}"
            raise ConfigError(f"{place}: nothing was measured there yet; run {command} first")
        for name in ("max_drop", "max_size_kb"):
            value = getattr(options, name)
            if value is not None and not (0 <= value < float("inf")):
                raise ConfigError(f"--{name.replace('_', '-')} {value}: must be a number of at least 0")
        report = read_json(path)
        try:
            device = report["evaluation"]["device"]
            if device != options.device:
                raise ConfigError(
                    f"--device {options.device}: {path} was measured on {device}; run compare_quantizations.py "
                    f"--device {options.device} first"
                )
            summary = path.with_name(SUMMARY)
            trained = read_json(summary).get("training_precision", "fp32") if summary.is_file() else "fp32"
            if not isinstance(trained, str):
                raise TypeError(f"training_precision is {trained!r:.30}")
            found = recommendation(report, trained, options.max_drop, options.max_size_kb)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ConfigError(f"{path}: is no whole report ({error!r})") from error
        limits = f"at most {options.max_drop:g} points lost by the whole 95 % interval, on {device}"
        if options.max_size_kb is not None:
            limits += f", at most {options.max_size_kb:g} kB"
        say(f"{path}: {found['images']}; {limits}")
        for what in ("train", "ship", "transmit"):
            choice, why = found[what]["choice"], found[what]["why"]
            say(f"{what.title() + ':':<10}{choice or 'nothing'}", event="result", choice=choice, why=why)
            say(f"          {why}")
        try:
            write_json(path.with_name(RECOMMENDATION), found)
        except OSError as error:  # a folder of somebody else
            say(f"note: {path.with_name(RECOMMENDATION)} could not be written ({error.strerror})")
        renew_report(path)
