"""`python -m fl communication`: what traffic takes over satellite links, in money, time and energy, side by side.

Takes finished runs (their measured bytes), or given sizes. Shows where smaller messages pay, and where passes and
started minutes, not bytes, set the price. docs/measured-and-modelled.md has every formula.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fl.commands.arguments import Parser
from fl.core.console import say
from fl.core.errors import ConfigError, one_line_errors, writable_folder
from fl.core.files import write_json
from fl.core.presets import choices
from fl.core.run_folder import COMPARISON


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = Parser(
        prog="python -m fl communication",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Examples:\n"
        "  python -m fl communication outputs/DATE/TIME --link cubesat_sband --json what_if.json\n"
        "  python -m fl communication --broadcast-bytes 440000 --update-bytes 440000 --fp32-bytes 1750000 "
        "--train-s 1000",
    )
    add = parser.add_argument
    add("runs", type=Path, nargs="*", metavar="RUN_DIR", help="folders of runs, shown side by side")
    add("--link", action="append", metavar="NAME|FILE", help="of conf/link/, or a YAML file; may be repeated (all)")
    add("--precisions", action="store_true", help=f"also suppose the file sizes of each run's {COMPARISON}, both ways")
    add(
        "--train-s", type=float, metavar="S", help="seconds a client trains on board; as measured in a run, 0 for sizes"
    )
    add("--broadcast-bytes", type=int, metavar="N", help="instead of a run: payload to each client in each round")
    add("--update-bytes", type=int, metavar="N", help="payload from each client in each round")
    add("--fp32-bytes", type=int, metavar="N", help="what both would be as FP32, to compare with")
    add("--clients", type=int, metavar="K", help="in each round, with --broadcast-bytes (10)")
    add("--rounds", type=int, metavar="R", help="with --broadcast-bytes (10)")
    add("--json", type=Path, metavar="FILE", help="also write all figures there")
    return parser.parse_args(arguments)


def check(options: argparse.Namespace) -> None:
    """Refuses options that are out of range or do not go together.

    Raises:
        ConfigError: names the option.
    """
    from fl.communication.link import LONGEST_S

    for name in ("broadcast_bytes", "update_bytes", "fp32_bytes", "clients", "rounds"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: must be at least 1")
    if options.train_s is not None and not 0 <= options.train_s <= LONGEST_S:
        raise ConfigError(f"--train-s {options.train_s:g}: must be a number of seconds from 0 to {LONGEST_S:g}")
    sizes = [options.broadcast_bytes, options.update_bytes]
    if options.runs and any(each is not None for each in (*sizes, options.fp32_bytes, options.clients, options.rounds)):
        raise ConfigError(
            f"{options.runs[0]}: a run has its own sizes, clients and rounds; give runs, or --broadcast-bytes and "
            "--update-bytes with --fp32-bytes, --clients and --rounds, not both"
        )
    if not options.runs and None in sizes:
        raise ConfigError("RUN_DIR: give the folder of a run, or both --broadcast-bytes and --update-bytes")
    if options.precisions and not options.runs:
        raise ConfigError("--precisions: needs the folder of a run")


def main() -> None:
    """Prints the tables, and writes the JSON that was asked for."""
    options = parse()
    with one_line_errors():
        from fl.communication.pricing import load_link, traffic_of_run, traffic_of_sizes
        from fl.communication.tables import show_traffic

        check(options)
        chosen = options.link or choices("link")
        links = [load_link(each, options.train_s) for each in chosen]
        for name, times in Counter(link.name for link in links).items():
            if times > 1:
                raise ConfigError(f"--link: {times} links have the name {name}; give each once, or another name")
        if options.json:
            writable_folder(options.json.parent, "--json FILE")

        documents: dict[str, Any] = {}
        for folder in options.runs:
            documents |= traffic_of_run(folder, links, options.precisions)
        if not options.runs:
            documents |= traffic_of_sizes(options, links)
        if options.json:
            write_json(options.json, documents)
        show_traffic(documents)
        if options.json:
            say(f"\nJSON: {options.json}")
