"""What given traffic takes over satellite links: that of a finished run, or messages of a given size."""

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fl.communication.constellation import load_constellation
from fl.communication.ledger import communication, exchanges, fp32_exchanges, modelled
from fl.communication.link import LONGEST_S, Link
from fl.communication.planes import Rings
from fl.communication.policies import IntraPlane, Policy
from fl.communication.replay import Lengths, break_even_mb, images_down, lengths_of, replay
from fl.communication.trip import Exchange
from fl.core.console import say
from fl.core.errors import ConfigError, counted
from fl.core.files import read_json
from fl.core.presets import choices, chosen, preset
from fl.core.records import read_rounds
from fl.core.run_folder import COMPARISON, PARTITION, ROUNDS, SETTINGS
from fl.core.targets import Target, known_classes, renamed
from fl.core.units import DAY_S

MOST_CLIENTS = 100_000
"""Of a replay, each of which takes memory."""


def check(options: argparse.Namespace) -> None:
    """Refuses options that are out of range or do not go together.

    Raises:
        ConfigError: names the option.
    """
    for name in ("broadcast_bytes", "update_bytes", "fp32_bytes", "clients", "rounds", "image_bytes"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: must be at least 1")
    if options.train_s is not None and not 0 <= options.train_s <= LONGEST_S:
        raise ConfigError(f"--train-s {options.train_s:g}: must be a number of seconds from 0 to {LONGEST_S:g}")
    for name in ("policy", "constellation", "max_days", "image_bytes"):
        if getattr(options, name) is not None and options.clock != "contacts":
            raise ConfigError(f"--{name.replace('_', '-')}: is for --clock contacts")
    if options.max_days is not None and not 0 < options.max_days <= LONGEST_S / DAY_S:
        raise ConfigError(f"--max-days {options.max_days:g}: must be a number above 0 of at most {LONGEST_S / DAY_S:g}")
    if options.clock == "contacts" and options.precisions:
        raise ConfigError(
            "--precisions: is for --clock rounds; give their sizes as --broadcast-bytes and --update-bytes"
        )
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
    link: Link = _built("link", choice, **({} if train_s is None else {"train_s": train_s}))
    return link


def load_policy(choice: str) -> tuple[str, Policy]:
    """Returns the name and the policy of `conf/policy/` by its name, or of a YAML file by its path.

    Raises:
        ConfigError: there is none, or a value in it cannot be used.
    """
    return Path(choice).stem, _built("policy", choice)


def _built(group: str, choice: str, **given: Any) -> Any:
    """Returns what a preset or a file describes, with some values given instead of its own."""
    config, place = chosen(group, choice), f"--{group} {choice}"
    if isinstance(config, dict):
        config |= given
        if (told := renamed(str(config.get("_target_")))) not in (known := known_classes(group)):
            raise ConfigError(f"{place}: _target_={told}: must be {' or '.join(sorted(known))}")
    target = Target.from_config(place, config)
    target.check()
    return target.build()


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


def over_contacts(options: argparse.Namespace, links: Sequence[Link]) -> dict[str, Any]:
    """Returns what runs, or given sizes, take when contacts drive them: by label, link and policy.

    Raises:
        ConfigError: see `traffic_of_run` and `replay`.
    """
    policies = dict(map(load_policy, options.policy or choices("policy")))
    constellation = load_constellation(options.constellation) if options.constellation else None
    if constellation is not None:
        cache_dir = Path(preset("data", "eurosat")["cache_dir"])
        plans = {link.name: constellation.plan(cache_dir, link.acquisition_s) for link in links}
        links = [replace(link, windows=plans[link.name].contacts) for link in links]
    told: dict[str, tuple[Lengths, int, int]] = {}
    for folder in options.runs:
        (document,) = traffic_of_run(folder, (), precisions=False).values()
        lines = read_rounds(folder / ROUNDS)
        if any(line.get("staleness_max") for line in lines):
            raise ConfigError(
                f"{folder}: contacts drove this run and updates came late, so its lines are no rounds to replay; give "
                "a run in rounds, or --broadcast-bytes and --update-bytes"
            )
        recorded = exchanges(lines)
        answered = sum(each.update_bytes > 0 for exchanges_ in recorded for each in exchanges_ if not each.evaluates)
        per_round = sum(not each.evaluates for each in recorded[0])
        shares_start = document["measured"]["shared_start_bytes"] > 0
        lengths = lengths_of(recorded, shares_start, _clients_of(folder))
        if lengths.num_clients > (most := _most_clients(folder)):
            raise ConfigError(f"{folder}: tells of {lengths.num_clients:,} clients and holds the data of {most:,}")
        told[str(folder)] = lengths, per_round, answered
    if not options.runs:
        clients, rounds = options.clients or (constellation.satellites if constellation else 10), options.rounds or 10
        sizes = options.broadcast_bytes, options.update_bytes, options.train_s or 0.0
        told["given sizes"] = Lengths([dict.fromkeys(range(clients), sizes)], False), clients, clients * rounds
    for label, (lengths, *_) in told.items():
        if constellation is not None and lengths.num_clients != constellation.satellites:
            raise ConfigError(
                f"--constellation {options.constellation}: has {counted(constellation.satellites, 'satellite')}, "
                f"{label} {counted(lengths.num_clients, 'client')}; satellites are clients, one to one"
            )
    return {
        label: {
            "constellation": options.constellation,
            "links": {link.name: _by_policy(link, policies, *each, options) for link in links},
            "num_clients": each[0].num_clients,
        }
        for label, each in told.items()
    }


def _clients_of(folder: Path) -> int:
    """Returns how many clients a run has, asked or not; 0 where its settings do not say."""
    settings = read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    told = settings.get("num_clients") if isinstance(settings, dict) else None
    return told if isinstance(told, int) and not isinstance(told, bool) else 0


def _most_clients(folder: Path) -> int:
    """Returns how many clients a run can have: those that its data was shared among, `MOST_CLIENTS` without these."""
    told = read_json(folder / PARTITION) if (folder / PARTITION).is_file() else {}
    shares = told.get("images_per_client") if isinstance(told, dict) else None
    return len(shares) if isinstance(shares, list) else MOST_CLIENTS


def _by_policy(
    link: Link, policies: Mapping[str, Policy], lengths: Lengths, per_round: int, updates: int, options: Any
) -> dict[str, Any]:
    found = {}
    for name, policy in policies.items():
        try:
            rings = _rings(options.constellation) if isinstance(policy, IntraPlane) else ()
            told = replay(
                link, policy, lengths, per_round=per_round, updates=updates, max_days=options.max_days, rings=rings
            )
        except ConfigError as error:
            if options.policy:
                raise
            say(f"note: {name} is left out: {error}")
            continue
        found[name] = told
    images = None
    if options.image_bytes:
        images = {"image_bytes": options.image_bytes, **images_down(link, options.image_bytes, lengths.num_clients)}
        images["break_even_mb"] = {
            name: break_even_mb(link, each["elapsed_s"], lengths.num_clients) for name, each in found.items()
        }
    return {"policies": found, "images": images}


def _rings(constellation: str | None) -> Rings:
    return load_constellation(constellation).rings() if constellation else ()


def traffic_of_sizes(options: argparse.Namespace, links: Sequence[Link]) -> dict[str, Any]:
    """Returns what given sizes take over links, by label."""

    def rounds(broadcast_bytes: int, update_bytes: int) -> list[list[Exchange]]:
        seconds = options.train_s or 0.0
        clients = [Exchange(number, broadcast_bytes, update_bytes, seconds) for number in range(options.clients or 10)]
        return [clients] * (options.rounds or 10)

    fp32 = options.fp32_bytes and rounds(options.fp32_bytes, options.fp32_bytes)
    given = rounds(options.broadcast_bytes, options.update_bytes)
    return {"given sizes": {"modelled": modelled(links, given, fp32)}}
