"""Stored runs replayed over contacts: hours and money until an accuracy, and under other policies than theirs."""

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any

from traffic_table import KEPT

from fl.communication.link import Link
from fl.communication.policies import FedAsync, FedBuff, Synchronous
from fl.communication.pricing import load_link
from fl.communication.replay import HOUR_S, Lengths, break_even_mb, images_down, replay
from fl.core.files import MIB

ROWS = {"fp32": "FP32", "int8": "int8 both ways", "ecq-1": "ecq, 0.94 bit", "half": "tcq, 0.51 bit"}
"""Of docs/codecs.json, with what the table calls them."""
LINKS = ("ttc_uhf", "cubesat_sband")
CLIENTS, TRAIN_S, GOALS = 10, 1000.0, (0.85, 0.90)
IMAGES_BYTES = round(7.0 * MIB)
"""The training images of a satellite as they lie in EuroSAT.zip, JPEG, about."""
COLUMNS = (
    *("traffic", "link", *(f"{100 * goal:.0f} %, synchronous" for goal in GOALS), "100 updates, synchronous"),
    *("FedBuff, K = 5", "FedAsync", "images that take as long as 90 %"),
)


def table(folder: Path) -> tuple[Sequence[str], list[list[str]]]:
    """Returns columns and rows."""
    return COLUMNS, [list(row) for row in _rows((folder / KEPT).read_bytes())]


def break_even(folder: Path) -> str:
    """Returns README's half sentence on images that are sent down instead of training."""
    sizes = {row[1]: row[-1] for row in table(folder)[1] if row[0].startswith(ROWS["ecq-1"])}
    told = " and ".join(f"{size} over `{link}`" for link, size in sizes.items())
    return f"Below {told}, a satellite's images are down before training has reached 90 % (ecq, 0.94 bit; modelled)"


@lru_cache
def _rows(content: bytes) -> tuple[tuple[str, ...], ...]:
    """Returns the rows that the content of docs/codecs.json gives."""
    runs = {(each["row"], each["seed"]): each for each in json.loads(content)["runs"]}
    rows: list[list[str]] = []
    for name, title in ROWS.items():
        seeds = [each for (row, _), each in sorted(runs.items()) if row == name]
        lengths = Lengths([_lengths(seeds, number) for number in range(seeds[0]["rounds"])], name != "fp32")
        accuracy = [fmean(each["accuracy_by_round"][number] for each in seeds) for number in range(seeds[0]["rounds"])]
        for link in LINKS:
            rows.append([f"{title}, n = {len(seeds)}", link, *_cells(load_link(link, TRAIN_S), lengths, accuracy)])
    images = [images_down(load_link(link), IMAGES_BYTES, CLIENTS) for link in LINKS]
    for link, each in zip(LINKS, images, strict=True):
        rows.append(["all training images as JPEG, 7.0 MB each", link, "", "", _told(each), "", "", ""])
    return tuple(map(tuple, rows))


def _lengths(seeds: Sequence[Any], number: int) -> dict[int, tuple[int, int, float]]:
    """Returns the payloads of one client in a round: the mean of the clients and seeds."""
    up, down = (
        round(fmean(each[f"{way}_payload_bytes_by_round"][number] for each in seeds) / CLIENTS)
        for way in ("broadcast", "update")
    )
    return dict.fromkeys(range(CLIENTS), (up, down, 0.0))


def _cells(link: Link, lengths: Lengths, accuracy: Sequence[float]) -> list[str]:
    updates = CLIENTS * len(accuracy)
    found = [
        replay(link, policy, lengths, per_round=CLIENTS, updates=updates)
        for policy in (Synchronous(), FedBuff(buffer_size=5), FedAsync())
    ]
    reached = [next((n for n, each in enumerate(accuracy) if each >= goal), None) for goal in GOALS]
    rounds = found[0]["rounds"]
    cells = ["never" if number is None else _told(rounds[number]) for number in reached]
    size = None if reached[-1] is None else break_even_mb(link, rounds[reached[-1]]["elapsed_s"], CLIENTS)
    return [*cells, *map(_told, found), "" if size is None else f"{size:,.1f} MB"]


def _told(each: Any) -> str:
    return f"{each['elapsed_s'] / HOUR_S:.1f} h, ${each['cost_usd']:,.0f}"
