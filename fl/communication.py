"""Bytes to money: what moving a model of a given size costs, by arithmetic that a calculator can follow."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fl.results import MIB


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


def communication_report(
    file_bytes: Mapping[str, int], assumptions: CostAssumptions, scales: list[tuple[int, int]]
) -> dict[str, Any]:
    """Returns the `communication` part of `quantization_comparison.json`.

    Args:
        file_bytes: size of each precision's model file.
        assumptions: of the main figures.
        scales: (rounds, clients) to compute beside them.
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
    }
