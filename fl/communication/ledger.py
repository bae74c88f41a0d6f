"""The ledger of a run: measured bytes of every direction and client, and what they would take over modelled links."""

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fl.communication.link import LONGEST_S, Link
from fl.communication.simulation import LinkRound, simulate
from fl.communication.trip import Both, Exchange
from fl.core.errors import ConfigError
from fl.core.records import MILESTONES_PERCENT, SIZES, beside_training, over_planes, traffic, upgraded

DIRECTIONS = {"broadcast": "ground_to_sat", "update": "sat_to_ground"}

EXCHANGE_KEYS = ("partition_id", "broadcast_payload_bytes", "update_payload_bytes", "train_s")

NOT_MODELLED = (
    "antenna contention: each satellite has the station to itself, so time and money are a lower bound",
    "message overhead and control traffic: payload bytes are sent",
    "waiting for clients' evaluation, but by those that train next on the model it brought them",
    "the server's own seconds between rounds",
)

Record = Mapping[str, Any]

Rounds = Sequence[Sequence[Exchange]]


def communication(records: Sequence[Record], links: Sequence[Link]) -> dict[str, Any]:
    """Returns the content of `communication.json`.

    Args:
        records: the lines of a run's `rounds.jsonl`, of any version.
        links: to send it over, of different names.

    Raises:
        ConfigError: the records do not say what each client received and sent.
    """
    records = _checked(records)
    ledger = modelled(links, exchanges(records), fp32_exchanges(records), fp32_exchanges(records, shared_start=False))
    for link in links:
        entry = ledger["links"][link.name]
        spent, passed = np.cumsum([each["cost_usd"] for each in entry["rounds"]]), _ends_s(entry["rounds"])
        entry["reached"] = {
            str(percent): number and {"cost_usd": float(spent[number - 1]), "elapsed_s": passed[number - 1]}
            for percent, number in _milestones(records).items()
        }
    return {"measured": measured(records), "modelled": ledger}


def measured(records: Sequence[Record]) -> dict[str, Any]:
    """Returns the bytes that travelled: per direction, per client, control traffic apart, and to milestones.

    Directions and clients include what evaluation on clients took; `evaluation` says how much that is.

    `compression_ratio` is FP32 payload bytes / payload bytes, as in `quantization_comparison.json`; None for no bytes.
    Both start from the same first model; what that saves where clients make it from the seed is `shared_start_bytes`.

    Raises:
        ConfigError: see `communication`.
    """
    records = _checked(records)
    sums = {name: {key: sum(traffic(r, name)[key] for r in records) for key in SIZES} for name in DIRECTIONS}
    sums["total"] = {key: sum(sums[name][key] for name in DIRECTIONS) for key in SIZES}
    evaluations = [r["evaluation_traffic"] for r in records if r.get("evaluation_traffic")]
    return {
        "num_rounds": len(records),
        **{name: {**each, "compression_ratio": _ratio(each)} for name, each in sums.items()},
        "evaluation": {key: sum(each[key] for each in evaluations) for key in ("payload_bytes", "message_bytes")},
        "control": {"message_bytes": sum(r["control_message_bytes"] for r in records)},
        "shared_start_bytes": sum(r["shared_start_bytes"] for r in records),
        **({"planes": told} if (told := over_planes(records)) else {}),
        "clients": _clients(records),
        "reached": {
            str(percent): number and _bytes_until(records[:number]) for percent, number in _milestones(records).items()
        },
    }


def modelled(
    links: Sequence[Link], rounds: Rounds, as_fp32: Rounds | None = None, with_first: Rounds | None = None
) -> dict[str, Any]:
    """Returns for each link what the rounds take, beside the same rounds with FP32 payloads and with one-byte messages.

    One-byte messages are what no codec can go below: what passes and started minutes alone cost.

    Args:
        links: to send over, of different names.
        rounds: payload bytes of every client.
        as_fp32: the same clients with FP32 payloads from the same start, None where that is not known.
        with_first: the same as FP32 that has to send the first model too; None where it does so anyway.

    Raises:
        ConfigError: two links of one name.
    """
    names = [link.name for link in links]
    if len(set(names)) != len(names):
        raise ConfigError(f"link: {', '.join(names)}: two links of one name; give one another name")
    return {
        "not_modelled": list(NOT_MODELLED),
        "links": {link.name: _on_link(link, rounds, as_fp32, with_first) for link in links},
    }


def _on_link(link: Link, rounds: Rounds, as_fp32: Rounds | None, with_first: Rounds | None) -> dict[str, Any]:
    results = simulate(link, rounds)
    sums = _sums(results)
    smallest = [
        [e._replace(broadcast_bytes=min(1, e.broadcast_bytes), update_bytes=min(1, e.update_bytes)) for e in exchanges]
        for exchanges in rounds
    ]
    entry = {
        "price_source": link.price_source,
        "price_as_of": link.price_as_of,
        "train_s_from": "measured" if link.train_s is None else "given",
        **sums,
        "if_one_byte": _brief(_sums(simulate(link, smallest))),
        "if_fp32": None,
        "saved_percent": None,
        "shared_start": None,
        "rounds": [_round(number, each) for number, each in enumerate(results, start=1)],
    }
    if as_fp32 is not None:
        entry["if_fp32"] = _brief(_sums(simulate(link, as_fp32)))
        whole = entry["if_fp32"] if with_first is None else _brief(_sums(simulate(link, with_first)))
        entry["shared_start"] = {key: whole[key] - same for key, same in entry["if_fp32"].items()}
        entry["saved_percent"] = {
            key: 100 * (1 - _brief(sums)[key] / before) if before else 0.0 for key, before in entry["if_fp32"].items()
        }
    return entry


def _sums(results: Sequence[LinkRound]) -> dict[str, Any]:
    """Returns totals over rounds, by direction where that has a meaning."""
    times = [each.round_s for each in results]
    stragglers = Counter(each.straggler_partition_id for each in results if each.straggler_partition_id is not None)
    contacts = _total([each.contacts for each in results])
    return {
        "wire_bytes": _total([each.wire_bytes for each in results]),
        "round_s": {"median": statistics.median(times), "p95": float(np.percentile(times, 95)), "total": sum(times)},
        "straggler": None
        if not stragglers
        else dict(zip(("partition_id", "rounds"), stragglers.most_common(1)[0], strict=True)),
        "idle_share": sum(each.idle_share * each.round_s for each in results) / sum(times) if sum(times) else 0.0,
        "contacts": {**contacts, "total": sum(each.distinct_contacts for each in results)},
        "billed_minutes": _total([each.billed_minutes for each in results]),
        "cost_usd": _total([each.cost_usd for each in results]),
        "energy_j": _total([each.energy_j for each in results]),
    }


def _total(figures: Sequence[Both | None]) -> Any:
    known = [each for each in figures if each is not None]
    return None if len(known) < len(figures) else Both(*(sum(column) for column in zip(*known, strict=True))).to_json()


def _brief(sums: Mapping[str, Any]) -> dict[str, float]:
    return {"cost_usd": sums["cost_usd"]["total"], "total_s": sums["round_s"]["total"]}


def _round(number: int, result: LinkRound) -> dict[str, Any]:
    return {
        "round": number,
        "round_s": result.round_s,
        "straggler_partition_id": result.straggler_partition_id,
        "idle_share": result.idle_share,
        "contacts": result.distinct_contacts,
        "cost_usd": sum(result.cost_usd),
        "energy_j": result.energy_j and sum(result.energy_j),
    }


def exchanges(records: Sequence[Record]) -> list[list[Exchange]]:
    """Returns the measured payloads of each round.

    Raises:
        ConfigError: see `communication`.
    """
    return [
        [
            *map(_exchange, r["clients"]),
            *(_exchange(client)._replace(evaluates=True) for client in beside_training(r)),
        ]
        for r in _checked(records)
    ]


def _exchange(client: Mapping[str, Any]) -> Exchange:
    """Returns a client's part of a round.

    Raises:
        ConfigError: a figure is none that was ever measured.
    """
    found = Exchange(*(client[key] for key in EXCHANGE_KEYS))
    whole = all(type(each) is int and each >= 0 for each in found[:3])
    if not whole or not 0 <= found.train_s <= LONGEST_S:
        raise ConfigError(f"rounds.jsonl: is damaged: a client has {dict(zip(EXCHANGE_KEYS, found[:4], strict=True))}")
    return found


def fp32_exchanges(records: Sequence[Record], *, shared_start: bool = True) -> list[list[Exchange]]:
    """Returns the same rounds with plain FP32 arrays wherever anything was sent.

    Args:
        records: see `communication`.
        shared_start: as in the run, clients make the first model from the seed; else FP32 has to send it to them.

    Raises:
        ConfigError: see `communication`.
    """
    records = _checked(records)
    result = []
    for record, clients in zip(records, exchanges(records), strict=True):
        model, asked = record["fp32_model_bytes"], len(record["clients"])
        first = not shared_start and record["shared_start_bytes"] > 0
        sent = [each.broadcast_bytes > 0 or (first and place < asked) for place, each in enumerate(clients)]
        result.append(
            [
                each._replace(broadcast_bytes=model * received, update_bytes=model * (each.update_bytes > 0))
                for each, received in zip(clients, sent, strict=True)
            ]
        )
    return result


def _clients(records: Sequence[Record]) -> list[dict[str, Any]]:
    totals: dict[int, dict[str, Any]] = {}
    keys = [f"{name}_{size}" for size in ("payload_bytes", "message_bytes") for name in DIRECTIONS]
    for record in records:
        asked = [(client, 1) for client in record["clients"]]
        for client, trains in asked + [(client, 0) for client in beside_training(record)]:
            number, answered = client["partition_id"], client["update_payload_bytes"] > 0
            fresh = {"partition_id": number, "rounds_asked": 0, "rounds_answered": 0, "fp32_payload_bytes": 0}
            sums = totals.setdefault(number, {**fresh, **dict.fromkeys(keys, 0), "train_s": 0.0})
            sums["rounds_asked"] += trains and client["broadcast_message_bytes"] > 0
            sums["rounds_answered"] += answered
            sent = answered + (client["broadcast_payload_bytes"] > 0)
            sums["fp32_payload_bytes"] += record["fp32_model_bytes"] * sent
            for key in (*keys, "train_s"):
                sums[key] += client[key]
    for sums in totals.values():
        payload = sums["broadcast_payload_bytes"] + sums["update_payload_bytes"]
        sums["compression_ratio"] = _ratio({**sums, "payload_bytes": payload})
    return [totals[number] for number in sorted(totals)]


def _ratio(sums: Mapping[str, Any]) -> float | None:
    return sums["fp32_payload_bytes"] / sums["payload_bytes"] if sums["payload_bytes"] else None


def _milestones(records: Sequence[Record]) -> dict[int, int | None]:
    """Returns how many rounds it took to each percentage of test accuracy, None where it was not reached."""
    accuracies = [100 * record["test_accuracy"] for record in records]
    return {
        percent: next((n for n, accuracy in enumerate(accuracies, start=1) if accuracy >= percent), None)
        for percent in MILESTONES_PERCENT
    }


def _bytes_until(records: Sequence[Record]) -> dict[str, int]:
    sums = {f"{name}_payload_bytes": sum(traffic(r, name)["payload_bytes"] for r in records) for name in DIRECTIONS}
    return {"rounds": len(records), **sums, "payload_bytes": sum(sums.values())}


def _ends_s(rounds: Sequence[Mapping[str, Any]]) -> list[float]:
    return [float(end) for end in np.cumsum([each["round_s"] for each in rounds])]


def _checked(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Returns the records in this version, and refuses those without bytes per client."""
    if not records:
        raise ConfigError("rounds.jsonl: holds no finished round")
    for record, key in _needed(records):
        if key not in record:
            raise ConfigError(
                f"rounds.jsonl: round {record.get('round')} has no {key}: the run was made before bytes were recorded "
                "per client; train again, or give sizes (python -m fl communication --broadcast-bytes ...)"
            )
    return [upgraded(record) for record in records]


def _needed(records: Sequence[Record]) -> Iterator[tuple[Record, str]]:
    for record in records:
        for key in ("round", "test_accuracy", "clients", "control_message_bytes"):
            yield record, key
        for name in DIRECTIONS:
            yield {"round": record["round"], **record.get(name, {})}, "fp32_payload_bytes"
