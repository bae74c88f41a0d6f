"""Bytes to money: what moving a model of a given size costs, by arithmetic that a calculator can follow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fl.communication.ledger import communication
from fl.communication.link import Link
from fl.core.errors import QuantflError, reading
from fl.core.files import read_json
from fl.core.records import read_rounds
from fl.core.run_folder import COMMUNICATION, ROUNDS, SUMMARY
from fl.core.targets import Target
from fl.core.units import MIB
from fl.data.provenance import Run

NO_RUN = "no run lies beside this model, so what travelled while it was trained is not known"

NO_LEDGER = "the run has no communication.json: only its sums are known, not what FP32 or a link would have taken"

OLD_LEDGER = (
    "the run's communication.json charges FP32 for a first model that its own traffic had for nothing, and its "
    "rounds.jsonl cannot be counted again: only its sums are shown"
)


@dataclass(frozen=True)
class CostAssumptions:
    """What a cost supposes.

    Attributes:
        num_clients: that download and upload the model in every round.
        num_rounds: of federated learning.
        num_satellites: that receive the final model once.
        cost_per_mb_usd: price of 1024 ** 2 bytes, either way.
        source: where the numbers of clients and rounds come from.
    """

    num_clients: int
    num_rounds: int
    num_satellites: int
    cost_per_mb_usd: float
    source: str


def communication_costs(
    file_bytes: Mapping[str, int], assumptions: CostAssumptions, baseline: str = "fp32"
) -> dict[str, dict[str, float]]:
    """Returns for each precision what its traffic costs, if every message in every round had its file's size.

    Args:
        file_bytes: size of each precision's model file.
        assumptions: see `CostAssumptions`.
        baseline: the precision that savings are counted from.
    """
    totals = {}
    for name, size in file_bytes.items():
        size_mb = size / MIB
        per_round_mb = size_mb * 2 * assumptions.num_clients
        total_mb = per_round_mb * assumptions.num_rounds
        totals[name] = {
            "per_round_mb": per_round_mb,
            "per_round_cost_usd": per_round_mb * assumptions.cost_per_mb_usd,
            "total_mb": total_mb,
            "total_cost_usd": total_mb * assumptions.cost_per_mb_usd,
            "deploy_once_cost_usd": size_mb * assumptions.num_satellites * assumptions.cost_per_mb_usd,
        }
    reference = totals[baseline]["total_cost_usd"]
    for costs in totals.values():
        costs["savings_usd"] = reference - costs["total_cost_usd"]
        costs["savings_percent"] = 100 * costs["savings_usd"] / reference if reference else 0.0
    return totals


def is_older(ledger: Any) -> bool:
    """Tells whether a `communication.json` still charges FP32 for a first model that the run itself did not send."""
    told = ledger.get("measured") if isinstance(ledger, Mapping) else None
    return isinstance(told, Mapping) and "total" in told and "shared_start_bytes" not in told


def measured_traffic(
    run: Mapping[str, Any] | None, ledger: Mapping[str, Any] | None, cost_per_mb_usd: float
) -> dict[str, Any]:
    """Returns what really travelled while the model was trained, or why that is not known.

    Args:
        run: the content of its `summary.json`, None for a model without a run.
        ledger: the content of its `communication.json`, None where there is none.
        cost_per_mb_usd: price of 1024 ** 2 bytes, either way.

    Raises:
        ConfigError: one of them is damaged.
    """
    if run is None:
        return {"reason": NO_RUN}
    with reading(SUMMARY):
        totals = run["totals"]
        broadcast, update = totals["broadcast"]["payload_bytes"], totals["update"]["payload_bytes"]
        total_mb = (broadcast + update) / MIB
        report = {
            "num_rounds": run["rounds_completed"],
            "broadcast_payload_bytes": broadcast,
            "update_payload_bytes": update,
            "total_mb": total_mb,
            "total_cost_usd": total_mb * cost_per_mb_usd,
            "compression_ratio": None,
            "shared_start_bytes": None,
            "links": {},
        }
    if ledger is None:
        return {**report, "reason": NO_LEDGER}
    with reading(COMMUNICATION):
        if is_older(ledger):
            return {**report, "reason": OLD_LEDGER}
        links = {
            name: {
                "cost_usd": entry["cost_usd"]["total"],
                "total_s": entry["round_s"]["total"],
                "if_fp32": entry["if_fp32"],
                "shared_start": entry["shared_start"],
                "price_source": entry["price_source"],
                "price_as_of": entry["price_as_of"],
            }
            for name, entry in ledger["modelled"]["links"].items()
        }
        told = ledger["measured"]
        known = {
            "compression_ratio": told["total"]["compression_ratio"],
            "shared_start_bytes": told["shared_start_bytes"],
            "links": links,
        }
        return {**report, **known}


def communication_report(
    file_bytes: Mapping[str, int],
    assumptions: CostAssumptions,
    scales: Sequence[tuple[int, int]],
    measured: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns the `communication` part of `quantization_comparison.json`.

    Args:
        file_bytes: size of each precision's model file.
        assumptions: of the main figures.
        scales: (rounds, clients) to compute beside them.
        measured: see `measured_traffic`.
    """
    what_if = []
    for num_rounds, num_clients in scales:
        scaled = CostAssumptions(num_clients, num_rounds, num_clients, assumptions.cost_per_mb_usd, "options")
        costs = communication_costs(file_bytes, scaled)
        what_if.append({"num_rounds": num_rounds, "num_clients": num_clients, "precisions": costs})
    return {
        "assumptions": {
            "num_clients": assumptions.num_clients,
            "num_rounds": assumptions.num_rounds,
            "num_satellites": assumptions.num_satellites,
            "cost_per_mb_usd": assumptions.cost_per_mb_usd,
            "clients_and_rounds_from": assumptions.source,
            "each_client": "downloads and uploads the model once per round",
            "supposes": "quantized traffic in every round, which quantizing a final model does not give by itself",
        },
        "precisions": communication_costs(file_bytes, assumptions),
        "scales": what_if,
        "measured": dict(measured),
    }


def ledger_of(run: Run | None) -> Mapping[str, Any] | None:
    """Returns the run's `communication.json` if any, counted again from its rounds if it is of an older version."""
    if run is None:
        return None
    folder, path = run.folder, run.folder / COMMUNICATION
    ledger = read_json(path) if path.is_file() else None
    if not is_older(ledger) or not (folder / ROUNDS).is_file():
        return ledger
    try:
        target = Target.from_config("link", run.link)
        if target.resolve() is Link:
            return communication(read_rounds(folder / ROUNDS), [target.build()])
    except (QuantflError, KeyError, TypeError):  # lines without bytes per client, contact windows that are gone
        pass
    return ledger
