"""Stored runs replayed over contacts: hours and money until an accuracy, and under other policies than theirs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from traffic_table import KEPT

from fl.communication.policies import FedAsync, FedBuff, IntraPlane, Synchronous
from fl.communication.pricing import load_link
from fl.communication.replay import Lengths, break_even_mb, images_down, replay
from fl.core.units import HOUR_S, MIB

ROWS = {"fp32": "FP32", "int8": "int8 both ways", "ecq-1": "ecq, 0.94 bit", "half": "tcq, 0.51 bit"}
"""Of docs/codecs.json, with what the table calls them."""
LINKS = ("ttc_uhf", "cubesat_sband")
CLIENTS, UPDATES, TRAIN_S, GOALS = 10, 100, 1000.0, (0.85, 0.90)
POLICIES = {
    "synchronous": Synchronous(),
    "FedBuff, K = 5": FedBuff(buffer_size=5),
    "FedAsync": FedAsync(),
    "along the ring": IntraPlane(),
}
IMAGES_BYTES = round(7.0 * MIB)
"""The training images of a satellite as they lie in EuroSAT.zip, JPEG, about."""
BITS, RATES_BPS, TRAINING_S = (0.5, 1, 2, 4, 32), (1200.0, 2400.0, 9600.0), (100.0, TRAIN_S, 5000.0)
VALUES = 434_602
"""Parameters of the network: what a supposed payload has its bits for."""
COLUMNS = (
    *("traffic", "link", *(f"{100 * goal:.0f} %, synchronous" for goal in GOALS), "100 updates, synchronous"),
    *(*list(POLICIES)[1:], "images that take as long as 90 %"),
)
Table = tuple[Sequence[str], list[list[str]]]


def table(folder: Path) -> Table:
    """Returns columns and rows of the stored runs, replayed."""
    rows = []
    for (name, link), each in replayed(folder).items():
        reached = ["never" if goal is None else _told(goal) for goal in each["reached"]]
        size = "" if each["images_mb"] is None else f"{each['images_mb']:,.1f} MB"
        rows.append([f"{ROWS[name]}, n = {each['n']}", link, *reached, *map(_told, each["policies"].values()), size])
    for link, each in images().items():
        rows.append(["all training images as JPEG, 7.0 MB each", link, "", "", _told(each), *[""] * len(POLICIES)])
    return COLUMNS, rows


def bits_table(folder: Path) -> Table:
    """Returns columns and rows of supposed payloads over links of three rates."""
    rows = [[f"{bits:g}", f"{_bytes(bits):,}", *(_told(slow(bits, rate)) for rate in RATES_BPS)] for bits in BITS]
    return ["bits of a value", "bytes each way", *(f"{rate:,.0f} bps" for rate in RATES_BPS)], rows


def training_table(folder: Path) -> Table:
    """Returns columns and rows of one stored run, replayed with quicker and slower computers on board."""
    content, rows = (folder / KEPT).read_bytes(), []
    for link in LINKS:
        for seconds in TRAINING_S:
            each = _replays(content, ("ecq-1",), seconds)["ecq-1", link]
            rows.append([link, f"{seconds:,.0f} s", *map(_told, each["policies"].values())])
    return ["link", "training on board", *POLICIES], rows


def break_even(folder: Path) -> str:
    """Returns README's half sentence on images that are sent down instead of training."""
    sizes = {link: f"{each['images_mb']:,.1f} MB" for (name, link), each in replayed(folder).items() if name == "ecq-1"}
    told = " and ".join(f"{size} over `{link}`" for link, size in sizes.items())
    return f"Below {told}, a satellite's images are down before training has reached 90 % (ecq, 0.94 bit; modelled)"


def sentences(folder: Path) -> list[str]:
    """Returns what the replays say of bits, and of images."""
    found, told = replayed(folder), []
    for link in LINKS:
        of = {name: found[name, link]["policies"]["synchronous"] for name in ROWS}
        hours, usd = ({name: each[key] for name, each in of.items()} for key in ("elapsed_s", "cost_usd"))
        fewest = [name for name in ROWS if abs(hours[name] - hours["half"]) < 0.05 * HOUR_S]
        same = f"beyond {ROWS[fewest[0]]}, fewer bits change no hour" if len(fewest) > 1 else "every bit counts"
        dear = ", ".join(
            f"{hours[name] / HOUR_S:.1f} h and ${usd[name]:,.0f} with {title}" for name, title in ROWS.items()
        )
        told.append(f"Over `{link}` {UPDATES} synchronous updates take {dear}: {same}.")
    few, many = (slow(bits, RATES_BPS[0])["elapsed_s"] / HOUR_S for bits in (0.5, 4))
    told.append(
        f"Over a link of {RATES_BPS[0]:,.0f} bps half a bit for each value takes {few:.1f} h and 4 bits {many:.1f} h: "
        "the slower the link, the longer bits count."
    )
    sizes = {link: found["ecq-1", link]["images_mb"] for link in LINKS}
    wins = ", ".join(f"below {size:,.1f} MB over `{link}`" for link, size in sizes.items())
    own = " and ".join(f"{each['elapsed_s'] / HOUR_S:.1f} h" for each in images().values())
    told.append(
        f"Images win {wins}: then all of a satellite's are down before training has reached 90 % with {ROWS['ecq-1']}. "
        f"EuroSAT's 7.0 MB are down in {own}."
    )
    return told


def replayed(folder: Path) -> Mapping[tuple[str, str], dict[str, Any]]:
    """Returns what each stored run takes over each link."""
    return _replays((folder / KEPT).read_bytes(), tuple(ROWS), TRAIN_S)


@cache
def images() -> dict[str, dict[str, float]]:
    """Returns what sending the images takes over each link."""
    return {link: images_down(load_link(link), IMAGES_BYTES, CLIENTS) for link in LINKS}


def slow(bits: float, rate_bps: float) -> dict[str, Any]:
    """Returns what synchronous updates of supposed bits take over a link like `ttc_uhf` with another rate."""
    return _taken("ttc_uhf", TRAIN_S, "synchronous", ((_bytes(bits), _bytes(bits)),), bits < 32, rate_bps)


def _replays(content: bytes, names: Sequence[str], train_s: float) -> dict[tuple[str, str], dict[str, Any]]:
    """Returns what runs of docs/codecs.json's content take, by row and link."""
    runs = {(each["row"], each["seed"]): each for each in json.loads(content)["runs"]}
    found = {}
    for name in names:
        seeds = [each for (row, _), each in sorted(runs.items()) if row == name]
        rounds = range(seeds[0]["rounds"])
        payloads = tuple(_payloads(seeds, number) for number in rounds)
        accuracy = [fmean(each["accuracy_by_round"][number] for each in seeds) for number in rounds]
        reached = [next((n for n, each in enumerate(accuracy) if each >= goal), None) for goal in GOALS]
        for link in LINKS:
            policies = {policy: _taken(link, train_s, policy, payloads, name != "fp32") for policy in POLICIES}
            ends = [None if number is None else policies["synchronous"]["rounds"][number] for number in reached]
            size = ends[-1] and _images_mb(link, train_s, ends[-1]["elapsed_s"])
            found[name, link] = {"n": len(seeds), "reached": ends, "policies": policies, "images_mb": size}
    return found


def _payloads(seeds: Sequence[Any], number: int) -> tuple[int, int]:
    """Returns the payloads of one client in a round, up and down: the mean of the clients and seeds."""
    ways = (f"{way}_payload_bytes_by_round" for way in ("broadcast", "update"))
    up, down = (round(fmean(each[way][number] for each in seeds) / CLIENTS) for way in ways)
    return up, down


@cache
def _taken(  # six: what a replay depends on
    link: str,
    train_s: float,
    policy: str,
    payloads: Sequence[tuple[int, int]],
    shares_start: bool,
    rate_bps: float | None = None,
) -> dict[str, Any]:
    """Returns what `UPDATES` updates take whose payloads, up and down, are those of each round."""
    over = load_link(link, train_s)
    if rate_bps is not None:
        over = replace(over, ground_to_sat_bps=rate_bps, sat_to_ground_bps=rate_bps)
    lengths = Lengths([dict.fromkeys(range(CLIENTS), (*each, 0.0)) for each in payloads], shares_start)
    return replay(over, POLICIES[policy], lengths, per_round=CLIENTS, updates=UPDATES, rings=[range(CLIENTS)])


@cache
def _images_mb(link: str, train_s: float, elapsed_s: float) -> float | None:
    return break_even_mb(load_link(link, train_s), elapsed_s, CLIENTS)


def _bytes(bits: float) -> int:
    return round(VALUES * bits / 8)


def _told(each: Any) -> str:
    return f"{each['elapsed_s'] / HOUR_S:.1f} h, ${each['cost_usd']:,.0f}"
