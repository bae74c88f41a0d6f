"""`python -m fl communication`: what traffic takes over satellite links, in money, time and energy, side by side.

Takes finished runs (their measured bytes), or given sizes. Shows where smaller messages pay, and where passes and
started minutes, not bytes, set the price. docs/measured-and-modelled.md has every formula.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fl.commands.arguments import Parser
from fl.communication.pricing import check, load_links, over_contacts, traffic_of_run, traffic_of_sizes
from fl.communication.tables import show_policies, show_traffic
from fl.core.console import say
from fl.core.errors import ConfigError, one_line_errors, writable_folder
from fl.core.files import write_json
from fl.core.run_folder import COMPARISON


def parser() -> Parser:
    """Returns what reads the command line."""
    made = Parser(
        prog="python -m fl communication",
        description=__doc__,
        examples=[
            "python -m fl communication outputs/DATE/TIME --link cubesat_sband --json what_if.json",
            "python -m fl communication --broadcast-bytes 440000 --update-bytes 440000 --fp32-bytes 1750000",
            "python -m fl communication outputs/DATE/TIME --clock contacts --link ttc_uhf --train-s 1000 "
            "--image-bytes 7340032",
        ],
    )
    add = made.add_argument
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
    add(
        "--clock",
        choices=("rounds", "contacts"),
        default="rounds",
        help="rounds: one after another; contacts: satellites come when they are in contact, as a policy says (rounds)",
    )
    add("--policy", action="append", metavar="NAME|FILE", help="of conf/policy/, or a YAML file; may be repeated (all)")
    add(
        "--constellation",
        metavar="NAME|FILE",
        help="of conf/constellation/, or a YAML file: its satellites and stations instead of the link's own contacts",
    )
    add("--max-days", type=float, metavar="D", help="simulated days after which --clock contacts ends anyway")
    add("--image-bytes", type=int, metavar="N", help="also: what each satellite would send instead, its images")
    add("--json", type=Path, metavar="FILE", help="also write all figures there")
    return made


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    return parser().parse_args(arguments)


def main() -> None:
    """Prints the tables, and writes the JSON that was asked for."""
    options = parse()
    with one_line_errors():
        check(options)
        if options.quiet and not options.json:
            raise ConfigError("--quiet: leaves the tables out, which are all there is; give --json FILE too")
        links = load_links(options.link, options.train_s)
        if options.json:
            writable_folder(options.json.parent, "--json FILE")

        documents: dict[str, Any] = {}
        if options.clock == "contacts":
            documents = over_contacts(options, links)
        elif options.runs:
            for folder in options.runs:
                documents |= traffic_of_run(folder, links, options.precisions)
        else:
            documents = traffic_of_sizes(options, links)
        if options.json:
            write_json(options.json, documents)
        (show_policies if options.clock == "contacts" else show_traffic)(documents)
        if options.json:
            say(f"\nJSON: {options.json}", event="result")
