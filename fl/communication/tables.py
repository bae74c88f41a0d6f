"""Tables of measured traffic and of what it takes over modelled links; several runs side by side."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fl.communication.ledger import DIRECTIONS
from fl.core.console import duration, say, show_table
from fl.core.records import MILESTONES_PERCENT
from fl.core.units import MIB

Documents = Mapping[str, Mapping[str, Any]]
"""By label: what `ledger.communication` returns, or, for traffic that is supposed, its `modelled` part alone."""

ABSENT = "–"

MOSTLY_PERCENT = 50.0

LONGEST_NAME = 24
"""In a table; longer ones are said once, above it."""


def show_traffic(documents: Documents) -> None:
    """Prints all tables.

    Args:
        documents: see `Documents`.
    """
    names = short_names(list(documents))
    for label, name in names.items():
        if name != label:
            say(f"{name}: {label}")
    documents = {names[label]: document for label, document in documents.items()}
    measured = {label: document for label, document in documents.items() if "measured" in document}
    if measured:
        say("\nMeasured: payload bytes that travelled")
        show_table(
            ["traffic", "broadcast", "update", "total", "against FP32", "shared start", "of it evaluation", "control"],
            _sizes(measured),
        )
    say("\nModelled: the same traffic over each link (a lower bound: no satellite waits for another's antenna)")
    columns = ["traffic", "link", "wire up", "wire down", "round median", "p95", "straggler", "idle", "contacts"]
    show_table([*columns, "cost", "energy"], _links(documents), keys=2)
    say("\nModelled: what fewer bytes save, and what no codec can (the same rounds with one-byte messages)")
    columns = [
        "traffic",
        "link",
        "cost as FP32",
        "cost",
        "cost saved",
        "cost of one byte",
        "time as FP32",
        "time",
        "time saved",
        "time of one byte",
    ]
    show_table(columns, _savings(documents), keys=2)
    for line in (*verdicts(documents), *_shared_starts(documents), *_prices(documents)):
        say(line)
    if measured:
        say("\nTo reach a test accuracy: measured payload, modelled cost")
        columns = ["traffic", "by", *(f"{percent} %" for percent in MILESTONES_PERCENT)]
        show_table(columns, _reached(measured), keys=2)


def show_policies(documents: Mapping[str, Mapping[str, Any]]) -> None:
    """Prints what `pricing.over_contacts` returns."""
    names = short_names(list(documents))
    for label, name in names.items():
        if name != label:
            say(f"{name}: {label}")
    say(
        "\nModelled: the same payloads when contacts drive the run, by when a version is made (nothing is trained, so "
        "there is no accuracy)"
    )
    columns = ["traffic", "link", "policy", "time", "cost", "payload up", "payload down", "energy"]
    columns += ["versions", "staleness mean", "max", "idle", "of contacts used", "updates of a satellite"]
    show_table(columns, _policies(documents, names), keys=3)
    for label, link, entry in _entries_of(documents, names):
        for policy, each in entry["policies"].items():
            if "inter_satellite_bytes" in each:
                say(f"{label} over {link}, {policy}: {_megabytes(each['inter_satellite_bytes'])} between satellites")
            if each["state"] != "completed":
                why = f"stopped after {each['used_updates']} updates: {each['state']}"
                gone = (
                    f"; never returned: {', '.join(map(str, each['never_returned']))}" if each["never_returned"] else ""
                )
                say(f"{label} over {link}, {policy}: {why}{gone}")
        if images := entry["images"]:
            told = ", ".join(
                f"{policy} {f'{size:,.1f} MB' if size is not None else 'at no size'}"
                for policy, size in images["break_even_mb"].items()
            )
            say(
                f"{label} over {link}: {_megabytes(images['image_bytes'])} of images from each satellite instead take "
                f"{duration(images['elapsed_s'])} and {_dollars(images['cost_usd'])}; as long as training with {told}"
            )


def _entries_of(
    documents: Mapping[str, Mapping[str, Any]], names: Mapping[str, str]
) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for label, document in documents.items():
        for link, entry in document["links"].items():
            yield names[label], link, entry


def _policies(documents: Mapping[str, Mapping[str, Any]], names: Mapping[str, str]) -> Iterator[list[str]]:
    for label, link, entry in _entries_of(documents, names):
        for policy, each in entry["policies"].items():
            times, share = each["updates_of_satellites"], each["contact_share"]
            yield [
                label,
                link,
                policy,
                duration(each["elapsed_s"]),
                _dollars(each["cost_usd"]),
                _megabytes(each["payload_bytes"]["ground_to_sat"]),
                _megabytes(each["payload_bytes"]["sat_to_ground"]),
                f"{each['energy_j']['total']:,.0f} J" if each["energy_j"] else ABSENT,
                str(each["versions"]),
                f"{each['staleness']['mean']:.2f}",
                str(each["staleness"]["max"]),
                _percent(100 * each["idle_share"]),
                _percent(100 * share) if share is not None else ABSENT,
                f"{min(times)} to {max(times)}",
            ]


def short_names(labels: Sequence[str]) -> dict[str, str]:
    """Returns for each label what tables call it: itself, or, where one is long, as few last parts of its path as tell
    all of them apart.
    """
    if max(map(len, labels), default=0) <= LONGEST_NAME:
        return {label: label for label in labels}
    parts = {label: label.rstrip("/").split("/") for label in labels}
    for count in range(1, max(map(len, parts.values())) + 1):
        names = {label: "/".join(each[-count:]) for label, each in parts.items()}
        if len(set(names.values())) == len(labels):
            return names
    return {label: label for label in labels}


def verdicts(documents: Documents) -> Iterator[str]:
    """Yields for each traffic and link what sets the price and the time: bytes, or passes and started minutes."""
    for label, link, entry in _entries(documents):
        cost, time_s = entry["cost_usd"]["total"], entry["round_s"]["total"]
        floor = entry["if_one_byte"]
        money, time = _share(floor["cost_usd"], cost), _share(floor["total_s"], time_s)
        price = (
            "it is free"
            if not cost
            else f"passes set the price, {money:.1f} % of it is minimum contact minutes"
            if money > MOSTLY_PERCENT
            else f"bytes set the price, {100 - money:.1f} % of it goes with them"
        )
        pace = (
            f"{time:.1f} % of the time is training and waiting, whatever the bytes"
            if time > MOSTLY_PERCENT
            else f"{100 - time:.1f} % of the time goes with the bytes"
        )
        yield f"{label} over {link}: {price}; {pace}"


def _shared_starts(documents: Documents) -> Iterator[str]:
    """Yields for each traffic and link what FP32 is spared by a first model that nobody has to send."""
    for label, link, entry in _entries(documents):
        spared = entry["shared_start"]
        if spared and any(spared.values()):
            told = f"{_dollars(spared['cost_usd'])} and {duration(spared['total_s'])} more"
            yield f"{label} over {link}: the first model comes from the seed; FP32 that sends it too takes {told}"


def _entries(documents: Documents) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for label, document in documents.items():
        for link, entry in document["modelled"]["links"].items():
            yield label, link, entry


def _prices(documents: Documents) -> list[str]:
    sources = {link: f"{entry['price_source']} ({entry['price_as_of']})" for _, link, entry in _entries(documents)}
    return [f"Price of {link}: {source}" for link, source in sources.items()]


def _sizes(documents: Documents) -> Iterator[list[str]]:
    for label, document in documents.items():
        told = document["measured"]
        sizes = [_megabytes(told[name]["payload_bytes"]) for name in (*DIRECTIONS, "total")]
        ratio = told["total"]["compression_ratio"]
        fewer = ABSENT if ratio is None else "as many" if f"{ratio:.2f}" == "1.00" else f"{ratio:.2f}x fewer"
        apart = [_megabytes(told[name]["message_bytes"]) for name in ("evaluation", "control")]
        yield [label, *sizes, fewer, _megabytes(told["shared_start_bytes"]), *apart]


def _links(documents: Documents) -> Iterator[list[str]]:
    for label, link, entry in _entries(documents):
        wire, round_s, straggler = entry["wire_bytes"], entry["round_s"], entry["straggler"]
        yield [
            label,
            link,
            _megabytes(wire["ground_to_sat"]),
            _megabytes(wire["sat_to_ground"]),
            duration(round_s["median"]),
            duration(round_s["p95"]),
            f"client {straggler['partition_id']}" if straggler else ABSENT,
            f"{100 * entry['idle_share']:.0f} %",
            str(round(entry["contacts"]["total"])),
            _dollars(entry["cost_usd"]["total"]),
            f"{entry['energy_j']['total']:,.0f} J" if entry["energy_j"] else ABSENT,
        ]


def _savings(documents: Documents) -> Iterator[list[str]]:
    for label, link, entry in _entries(documents):
        fp32, floor, saved = entry["if_fp32"], entry["if_one_byte"], entry["saved_percent"]
        yield [
            label,
            link,
            _dollars(fp32["cost_usd"]) if fp32 else ABSENT,
            _dollars(entry["cost_usd"]["total"]),
            _percent(saved["cost_usd"]) if saved else ABSENT,
            _dollars(floor["cost_usd"]),
            duration(fp32["total_s"]) if fp32 else ABSENT,
            duration(entry["round_s"]["total"]),
            _percent(saved["total_s"]) if saved else ABSENT,
            duration(floor["total_s"]),
        ]


def _reached(documents: Documents) -> Iterator[list[str]]:
    for label, document in documents.items():
        keys = [str(percent) for percent in MILESTONES_PERCENT]
        reached = document["measured"]["reached"]
        yield [label, "payload", *(_megabytes(reached[k]["payload_bytes"]) if reached[k] else ABSENT for k in keys)]
        for link, entry in document["modelled"]["links"].items():
            costs = [_dollars(entry["reached"][k]["cost_usd"]) if entry["reached"][k] else ABSENT for k in keys]
            yield [label, link, *costs]


def _share(part: float, whole: float) -> float:
    return 100 * part / whole if whole else 100.0


def _megabytes(size: float) -> str:
    return f"{size / MIB:.2f} MB" if not size or size >= MIB / 100 else f"{size:,.0f} B"


def _dollars(value: float) -> str:
    return f"${value:,.2f}"


def _percent(value: float) -> str:
    return f"{value:.1f} %"
