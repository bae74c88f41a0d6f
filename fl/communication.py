"""`python -m fl.communication`: what traffic takes over satellite links, in money, time and energy, side by side.

Takes finished runs (their measured bytes), or given sizes. Shows where smaller messages pay, and where passes and
started minutes, not bytes, set the price. docs/measured-and-modelled.md has every formula.
"""

if __name__ == "__main__":
    from fl.stop import listen

    listen()

import argparse
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl.arguments import Parser
from fl.errors import ConfigError, one_line_errors, writable_folder

if TYPE_CHECKING:
    from fl.link import Exchange, Link

LINKS = Path(__file__).resolve().parents[1] / "conf" / "link"
ROUNDS, COMPARISON = "rounds.jsonl", "quantization_comparison.json"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = Parser(
        prog="python -m fl.communication",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Examples:\n"
        "  python -m fl.communication outputs/DATE/TIME --link cubesat_sband --json what_if.json\n"
        "  python -m fl.communication --broadcast-bytes 440000 --update-bytes 440000 --fp32-bytes 1750000 "
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


def load_link(choice: str, train_s: float | None = None) -> "Link":
    """Returns a link of `conf/link/` by its name, or of a YAML file by its path.

    Args:
        choice: name or path.
        train_s: instead of the link's own, where given.

    Raises:
        ConfigError: there is none, or a value in it cannot be used.
    """
    from omegaconf import OmegaConf

    from fl.link import Link
    from fl.results import yaml_text
    from fl.targets import Target

    path = Path(choice) if choice.endswith((".yaml", ".yml")) else LINKS / f"{choice}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(each.stem for each in LINKS.glob("*.yaml")))
        raise ConfigError(f"--link {choice}: there is no such link; valid choices: {known}, or the path of a YAML file")
    try:
        config = OmegaConf.to_container(OmegaConf.load(io.StringIO(yaml_text(path))), resolve=True)
    except Exception as error:  # whatever the parser makes of it
        raise ConfigError(f"--link {choice}: is no valid YAML ({str(error).splitlines()[0]})") from error
    if isinstance(config, dict) and train_s is not None:
        config["train_s"] = train_s
    wanted = f"{Link.__module__}.{Link.__qualname__}"
    if isinstance(config, dict) and config.get("_target_", wanted) != wanted:
        raise ConfigError(f"--link {choice}: _target_={config['_target_']}: must be {wanted}")
    target = Target.from_config(f"--link {choice}", config)
    target.check(f"--link {choice}")
    link: Link = target.build(f"--link {choice}")
    return link


def traffic_of_run(folder: Path, links: "Sequence[Link]", precisions: bool) -> dict[str, Any]:
    """Returns the ledger of a run, and for each precision what its file would take instead, by label.

    Raises:
        ConfigError: there is no finished round, or what is asked for was not recorded.
    """
    from fl.ledger import communication, exchanges, fp32_exchanges, modelled
    from fl.results import read_json, read_rounds

    if not (folder / ROUNDS).is_file():
        raise ConfigError(f"{folder}: is no folder of a run, it has no {ROUNDS}")
    records = read_rounds(folder / ROUNDS)
    try:
        documents: dict[str, Any] = {str(folder): communication(records, links)}
        rounds, as_fp32 = exchanges(records), fp32_exchanges(records)
        with_first = fp32_exchanges(records, shared_start=False)
    except ConfigError as error:
        raise ConfigError(f"{folder}/{error}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{folder}/{ROUNDS}: is damaged ({error!r})") from error
    if precisions:
        if not (folder / COMPARISON).is_file():
            raise ConfigError(f"--precisions: {folder} has no {COMPARISON}; run compare_quantizations.py first")
        try:
            sizes = {n: int(e["file_size_bytes"]) for n, e in read_json(folder / COMPARISON)["precisions"].items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"--precisions: {folder / COMPARISON} is damaged ({error!r})") from error
        for name, size in sizes.items():
            supposed = [[_sized(each, size, size) for each in exchanges_] for exchanges_ in rounds]
            documents[f"{folder} if {name} files"] = {"modelled": modelled(links, supposed, as_fp32, with_first)}
    return documents


def _sized(exchange: "Exchange", broadcast_bytes: int, update_bytes: int) -> "Exchange":
    """Returns the exchange with other payloads; who was sent nothing or did not answer still is not and does not."""
    return exchange._replace(
        broadcast_bytes=broadcast_bytes if exchange.broadcast_bytes else 0,
        update_bytes=update_bytes if exchange.update_bytes else 0,
    )


def traffic_of_sizes(options: argparse.Namespace, links: "Sequence[Link]") -> dict[str, Any]:
    """Returns what given sizes take over links, by label."""
    from fl.ledger import modelled
    from fl.link import Exchange

    def rounds(broadcast_bytes: int, update_bytes: int) -> list[list[Exchange]]:
        seconds = options.train_s or 0.0
        clients = [Exchange(number, broadcast_bytes, update_bytes, seconds) for number in range(options.clients or 10)]
        return [clients] * (options.rounds or 10)

    fp32 = options.fp32_bytes and rounds(options.fp32_bytes, options.fp32_bytes)
    given = rounds(options.broadcast_bytes, options.update_bytes)
    return {"given sizes": {"modelled": modelled(links, given, fp32)}}


def check(options: argparse.Namespace) -> None:
    """Refuses options that are out of range or do not go together.

    Raises:
        ConfigError: names the option.
    """
    from fl.link import LONGEST_S

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
        check(options)
        chosen = options.link or sorted(path.stem for path in LINKS.glob("*.yaml"))
        links = [load_link(each, options.train_s) for each in chosen]
        for name, times in Counter(link.name for link in links).items():
            if times > 1:
                raise ConfigError(f"--link: {times} links have the name {name}; give each once, or another name")
        if options.json:
            writable_folder(options.json.parent, "--json FILE")

        from fl.console import say
        from fl.link_report import show_traffic
        from fl.results import write_json

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


if __name__ == "__main__":
    main()
