"""Costs are those of the users' guide, to the cent."""

import pytest
from communication.test_ledger import RUN, SEEDED
from communication.test_link import preset

from fl.communication.ledger import communication
from fl.comparison.costs import CostAssumptions, communication_costs, communication_report, measured_traffic
from fl.core.errors import ConfigError
from fl.core.units import MIB

GUIDE = {"fp32": int(1.66 * MIB), "fp16": int(0.83 * MIB), "int8": int(0.52 * MIB)}


def test_the_guides_figures():
    """1.66, 0.83 and 0.52 MB, 10 clients, 10 rounds, $5/MB: $1660, $830 and $520, savings 50.0% and 68.7%."""
    costs = communication_costs(GUIDE, CostAssumptions(10, 10, 10, 5.0, "default"))
    assert [round(costs[name]["per_round_mb"], 2) for name in GUIDE] == [33.20, 16.60, 10.40]
    assert [round(costs[name]["total_cost_usd"]) for name in GUIDE] == [1660, 830, 520]
    assert [round(costs[name]["savings_usd"]) for name in GUIDE] == [0, 830, 1140]
    assert [round(costs[name]["savings_percent"], 1) for name in GUIDE] == [0.0, 50.0, 68.7]
    assert costs["fp32"]["deploy_once_cost_usd"] == pytest.approx(83.0, abs=1e-4)


def test_every_satellite_gets_the_model_once_even_if_few_train_in_a_round():
    costs = communication_costs({"fp32": MIB}, CostAssumptions(2, 3, 10, 5.0, "run"))["fp32"]
    assert costs["per_round_mb"] == 4
    assert costs["total_cost_usd"] == 60
    assert costs["deploy_once_cost_usd"] == 50


def test_scales_and_a_price_of_zero():
    report = communication_report(
        {"fp32": MIB}, CostAssumptions(1, 1, 1, 0.0, "default"), [(20, 100)], {"reason": "none"}
    )
    [scale] = report["scales"]
    assert (scale["num_rounds"], scale["num_clients"]) == (20, 100)
    assert scale["precisions"]["fp32"]["per_round_mb"] == 200
    assert scale["precisions"]["fp32"]["total_mb"] == 4000
    assert report["precisions"]["fp32"]["savings_percent"] == 0.0


def test_scales_are_rounds_times_clients():
    report = communication_report({"fp32": MIB}, CostAssumptions(1, 1, 1, 3.0, "default"), [(20, 100)], {})
    (scale,) = report["scales"]
    assert (scale["num_rounds"], scale["num_clients"]) == (20, 100)
    costs = scale["precisions"]["fp32"]
    assert (costs["per_round_mb"], costs["total_mb"], costs["total_cost_usd"]) == (200, 4000, 12_000)
    assert costs["deploy_once_cost_usd"] == 300


SUMMARY = {
    "rounds_completed": 3,
    "totals": {"broadcast": {"payload_bytes": 7 * MIB}, "update": {"payload_bytes": 5 * MIB}},
}


def test_the_traffic_of_a_run_is_what_its_ledger_says():
    told = measured_traffic(SUMMARY, communication(RUN, [preset("flat_rate"), preset("cubesat_sband")]), 2.0)
    assert told["total_mb"] == 12
    assert told["total_cost_usd"] == 24
    assert told["compression_ratio"] == 3
    assert told["links"]["flat_rate"]["cost_usd"] == 60
    assert told["links"]["flat_rate"]["if_fp32"]["cost_usd"] == 180
    assert "reason" not in told


def test_what_a_shared_start_saves_is_told_apart_from_what_the_codec_saves():
    """Nine messages of 4 MiB as FP32 against 13 MiB; two more of them would carry the first model."""
    told = measured_traffic(SUMMARY, communication(SEEDED, [preset("flat_rate")]), 5.0)
    assert told["compression_ratio"] == 36 / 13
    assert told["shared_start_bytes"] == 8 * MIB
    assert told["links"]["flat_rate"]["if_fp32"]["cost_usd"] == 180.0
    assert told["links"]["flat_rate"]["shared_start"] == {"cost_usd": 40.0, "total_s": 0.0}


def test_what_is_not_known_of_a_run_is_said():
    assert measured_traffic(None, None, 5.0) == {
        "reason": "no run lies beside this model, so what travelled while it was trained is not known"
    }
    told = measured_traffic(SUMMARY, None, 5.0)
    assert told["total_cost_usd"] == 60
    assert told["compression_ratio"] is None
    assert "no communication.json" in told["reason"]
    with pytest.raises(ConfigError, match=r"communication\.json: is damaged"):
        measured_traffic(SUMMARY, {"measured": {}}, 5.0)
