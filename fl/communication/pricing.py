"""What given traffic takes over satellite links: that of a finished run, or messages of a given size."""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fl.communication.ledger import communication, exchanges, fp32_exchanges, modelled
from fl.communication.link import LONGEST_S, Link
from fl.communication.trip import Exchange
from fl.core.errors import ConfigError
from fl.core.files import read_json
from fl.core.presets import choices, chosen
from fl.core.records import read_rounds
from fl.core.run_folder import COMPARISON, ROUNDS
from fl.core.targets import Target, renamed


def check(options: argparse.Namespace) -> None:
    """Refuses options that are out of range or do not go together.

    Raises:
        ConfigError: names the option.
    """
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


def load_links(names: Sequence[str] | None, train_s: float | None) -> list[Link]:
    """Returns the links of these names, see `load_link`, or all of `conf/link/`.

    Raises:
        ConfigError: there is none, or two have one name.
    """
    links = [load_link(each, train_s) for each in names or choices("link")]
    for name, times in Counter(link.name for link in links).items():
        if times > 1:
            raise ConfigError(f"--link: {times} links have the name {name}; give each once, or another name")
    return links


def load_link(choice: str, train_s: float | None = None) -> Link:
    """Returns a link of `conf/link/` by its name, or of a YAML file by its path.

    Args:
        choice: name or path.
        train_s: instead of the link's own, where given.

    Raises:
        ConfigError: there is none, or a value in it cannot be used.
    """
    config = chosen("link", choice)
    if isinstance(config, dict) and train_s is not None:
        config["train_s"] = train_s
    wanted = f"{Link.__module__}.{Link.__qualname__}"
    if isinstance(config, dict) and renamed(config.get("_target_", wanted)) != wanted:
        raise ConfigError(f"--link {choice}: _target_={config['_target_']}: must be {wanted}")
    target = Target.from_config(f"--link {choice}", config)
    target.check()
    link: Link = target.build()
    return link


def traffic_of_run(folder: Path, links: Sequence[Link], precisions: bool) -> dict[str, Any]:
    """Returns the ledger of a run, and for each precision what its file would take instead, by label.

    Raises:
        ConfigError: there is no finished round, or what is asked for was not recorded.
    """
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


def _sized(exchange: Exchange, broadcast_bytes: int, update_bytes: int) -> Exchange:
    """Returns the exchange with other payloads; who was sent nothing or did not answer still is not and does not."""
    return exchange._replace(
        broadcast_bytes=broadcast_bytes if exchange.broadcast_bytes else 0,
        update_bytes=update_bytes if exchange.update_bytes else 0,
    )


def traffic_of_sizes(options: argparse.Namespace, links: Sequence[Link]) -> dict[str, Any]:
    """Returns what given sizes take over links, by label."""

    def rounds(broadcast_bytes: int, update_bytes: int) -> list[list[Exchange]]:
        seconds = options.train_s or 0.0
        clients = [Exchange(number, broadcast_bytes, update_bytes, seconds) for number in range(options.clients or 10)]
        return [clients] * (options.rounds or 10)

    fp32 = options.fp32_bytes and rounds(options.fp32_bytes, options.fp32_bytes)
    given = rounds(options.broadcast_bytes, options.update_bytes)
    return {"given sizes": {"modelled": modelled(links, given, fp32)}}
