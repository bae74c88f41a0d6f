"""The ledger adds up what was measured, keeps it apart from what is modelled, and every figure follows by hand."""

import json

import pytest
from test_link import TWO_PASSES, by_minute, preset

from fl.errors import ConfigError
from fl.ledger import communication
from fl.results import MIB

MODEL = 4 * MIB
"""FP32 bytes of one message."""


def record(number, accuracy, *clients, evaluation=None):
    """One line of rounds.jsonl; clients as (partition id, broadcast bytes, update bytes, seconds)."""

    def traffic(place):
        sent = [client[place] for client in clients if client[place]]
        return {
            "payload_bytes": sum(sent),
            "message_bytes": sum(sent) + 100 * len(sent),
            "fp32_payload_bytes": MODEL * len(sent),
        }

    names = ("partition_id", "broadcast_payload_bytes", "update_payload_bytes", "train_s")
    messages = [
        {"broadcast_message_bytes": b + 100, "update_message_bytes": u + 100 if u else 0} for _, b, u, _ in clients
    ]
    line = {
        "round": number,
        "test_accuracy": accuracy,
        "broadcast": traffic(1),
        "update": traffic(2),
        "control_message_bytes": 50,
        "train_s": 9.0,
        "clients": [dict(zip(names, c, strict=True)) | m for c, m in zip(clients, messages, strict=True)],
    }
    if evaluation:
        partition, received = evaluation
        client = {
            "partition_id": partition,
            "broadcast_payload_bytes": received,
            "update_payload_bytes": 0,
            "train_s": 0.0,
        }
        line["evaluated"] = [client | {"broadcast_message_bytes": received + 100, "update_message_bytes": 30}]
        line["evaluation_traffic"] = {
            "payload_bytes": received, "message_bytes": received + 130, "fp32_payload_bytes": MODEL,
        }  # fmt: skip
    return line


RUN = [
    record(1, 0.60, (0, MIB, MIB, 5.0), (1, MIB, 2 * MIB, 8.0)),
    record(2, 0.80, (1, MIB, MIB, 8.0), (2, 3 * MIB, 0, 0.0)),
    record(3, 0.84, (0, MIB, MIB, 5.0)),
]


def test_measured_totals_by_hand():
    """Broadcast 2 + 4 + 1 MiB in five messages, update 3 + 1 + 1 in four, of 4 MiB each as FP32."""
    told = communication(RUN, [])["measured"]
    assert told["num_rounds"] == 3
    assert told["broadcast"]["payload_bytes"] == 7 * MIB
    assert told["broadcast"]["message_bytes"] == 7 * MIB + 500
    assert told["broadcast"]["compression_ratio"] == 20 / 7
    assert told["update"]["payload_bytes"] == 5 * MIB
    assert told["update"]["compression_ratio"] == 16 / 5
    assert told["total"]["payload_bytes"] == 12 * MIB
    assert told["total"]["compression_ratio"] == 36 / 12


def test_control_traffic_stands_apart():
    told = communication(RUN, [preset("flat_rate")])
    assert told["measured"]["control"] == {"message_bytes": 150}
    assert told["modelled"]["links"]["flat_rate"]["cost_usd"]["total"] == 60


def test_what_clients_are_sent_to_evaluate_is_broadcast_and_paid_for():
    """One more message of 1 MiB to client 2: 7 + 1 MiB in six messages, $5 more, and nobody waits for it."""
    told = communication([*RUN[:2], record(3, 0.84, (0, MIB, MIB, 5.0), evaluation=(2, MIB))], [preset("flat_rate")])
    before = communication(RUN, [preset("flat_rate")])
    assert told["measured"]["evaluation"] == {"payload_bytes": MIB, "message_bytes": MIB + 130}
    assert told["measured"]["broadcast"]["payload_bytes"] == 8 * MIB
    assert told["measured"]["broadcast"]["compression_ratio"] == 24 / 8
    assert told["measured"]["update"]["message_bytes"] == before["measured"]["update"]["message_bytes"] + 30
    assert told["measured"]["clients"][2]["broadcast_payload_bytes"] == 4 * MIB
    assert told["measured"]["clients"][2]["rounds_asked"] == 1
    link, without = (each["modelled"]["links"]["flat_rate"] for each in (told, before))
    assert link["cost_usd"]["ground_to_sat"] == without["cost_usd"]["ground_to_sat"] + 5
    assert link["if_fp32"]["cost_usd"] == without["if_fp32"]["cost_usd"] + 20
    assert link["round_s"] == without["round_s"]


@pytest.mark.parametrize(
    ("key", "value"), [("train_s", -1.0), ("train_s", float("nan")), ("train_s", 1e25), ("broadcast_payload_bytes", -5)]
)
def test_figures_that_nobody_measured_are_refused(key, value):
    damaged = record(1, 0.6, (0, MIB, MIB, 5.0))
    damaged["clients"][0][key] = value
    with pytest.raises(ConfigError, match="damaged"):
        communication([damaged], [preset("cubesat_sband")])


def test_every_client_has_its_own_sums():
    clients = communication(RUN, [])["measured"]["clients"]
    assert [client["partition_id"] for client in clients] == [0, 1, 2]
    assert [(c["rounds_asked"], c["rounds_answered"]) for c in clients] == [(2, 2), (2, 2), (1, 0)]
    assert [c["broadcast_payload_bytes"] for c in clients] == [2 * MIB, 2 * MIB, 3 * MIB]
    assert [c["update_payload_bytes"] for c in clients] == [2 * MIB, 3 * MIB, 0]
    assert [c["compression_ratio"] for c in clients] == [16 / 4, 16 / 5, 4 / 3]
    assert [c["train_s"] for c in clients] == [10.0, 16.0, 0.0]


def test_clients_and_directions_give_the_same_sums():
    told = communication(RUN, [])["measured"]
    for key in ("payload_bytes", "message_bytes"):
        for name in ("broadcast", "update"):
            assert sum(client[f"{name}_{key}"] for client in told["clients"]) == told[name][key]
    assert sum(client["fp32_payload_bytes"] for client in told["clients"]) == told["total"]["fp32_payload_bytes"]


def test_bytes_and_dollars_to_an_accuracy_that_was_reached_or_not():
    """70 and 80 % in round 2, after 5 + 5 MiB; 85 and 90 % never."""
    told = communication(RUN, [preset("flat_rate")])
    reached = told["measured"]["reached"]
    assert reached["70"] == reached["80"]
    assert reached["80"] == {
        "rounds": 2,
        "broadcast_payload_bytes": 6 * MIB,
        "update_payload_bytes": 4 * MIB,
        "payload_bytes": 10 * MIB,
    }
    assert reached["85"] is reached["90"] is None
    paid = told["modelled"]["links"]["flat_rate"]["reached"]
    assert paid["80"] == {"cost_usd": 50.0, "elapsed_s": 16.0}
    assert paid["85"] is None


def test_a_link_is_compared_with_fp32_and_with_one_byte_messages():
    """$5/MB: 12 MiB cost $60, as FP32 nine messages of 4 MiB cost $180, nine bytes next to nothing."""
    entry = communication(RUN, [preset("flat_rate")])["modelled"]["links"]["flat_rate"]
    assert entry["cost_usd"] == {"ground_to_sat": 35.0, "sat_to_ground": 25.0, "total": 60.0}
    assert entry["if_fp32"] == {"cost_usd": 180.0, "total_s": 21.0}
    assert entry["saved_percent"]["cost_usd"] == pytest.approx(100 * 120 / 180)
    assert entry["if_one_byte"]["cost_usd"] == pytest.approx(9 * 5 / MIB)
    assert entry["round_s"] == {"median": 8.0, "p95": pytest.approx(8.0), "total": 21.0}
    assert entry["straggler"] == {"partition_id": 1, "rounds": 2}
    assert entry["energy_j"] is None
    assert entry["billed_minutes"] is None


def test_passes_and_minutes_are_what_one_byte_cannot_go_below():
    """One client: up 10 s and down 10 s, in two passes that cost a minute each, however small the message."""
    link = by_minute(ground_to_sat_bps=8.0, sat_to_ground_bps=8.0, windows=TWO_PASSES, acquisition_s=0.0, train_s=150.0)
    small = record(1, 0.9, (0, 10, 10, 1.0))
    entry = communication([small], [link])["modelled"]["links"]["cubesat_sband"]
    assert entry["train_s_from"] == "given"
    assert entry["contacts"] == {"ground_to_sat": 1, "sat_to_ground": 1, "total": 2}
    assert entry["billed_minutes"]["total"] == 2
    assert entry["cost_usd"]["total"] == entry["if_one_byte"]["cost_usd"] == 20.0
    assert entry["round_s"]["total"] == 510.0
    assert entry["if_one_byte"]["total_s"] == 501.0


def test_each_links_source_of_price_is_in_the_ledger():
    links = [preset(name) for name in ("flat_rate", "cubesat_sband", "ttc_uhf")]
    told = communication(RUN, links)
    assert list(told) == ["measured", "modelled"]
    assert list(told["modelled"]["links"]) == ["flat_rate", "cubesat_sband", "ttc_uhf"]
    assert any("lower bound" in line for line in told["modelled"]["not_modelled"])
    for link in links:
        entry = told["modelled"]["links"][link.name]
        assert (entry["price_source"], entry["price_as_of"]) == (link.price_source, link.price_as_of)
        assert len(entry["rounds"]) == 3
        assert sum(each["cost_usd"] for each in entry["rounds"]) == pytest.approx(entry["cost_usd"]["total"])
    json.dumps(told, allow_nan=False)


def test_two_links_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="two links of one name"):
        communication(RUN, [preset("flat_rate"), preset("flat_rate")])


@pytest.mark.parametrize("missing", ["clients", "control_message_bytes", "test_accuracy"])
def test_a_run_without_bytes_per_client_is_refused_plainly(missing):
    old = [{key: value for key, value in each.items() if key != missing} for each in RUN]
    with pytest.raises(ConfigError, match=f"round 1 has no {missing}: the run was made before"):
        communication(old, [])


def test_a_run_without_fp32_sizes_is_refused_plainly():
    old = [{**RUN[0], "broadcast": {"payload_bytes": 1, "message_bytes": 2}}]
    with pytest.raises(ConfigError, match="has no fp32_payload_bytes"):
        communication(old, [])


def test_a_run_without_rounds_is_refused():
    with pytest.raises(ConfigError, match="no finished round"):
        communication([], [])
