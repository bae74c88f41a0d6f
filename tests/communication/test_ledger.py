"""The ledger adds up what was measured, keeps it apart from what is modelled, and every figure follows by hand."""

import io
import json
import re

import pytest
import torch
from communication.test_link import TWO_PASSES, by_minute, preset
from conftest import REPOSITORY, SMALL, composed

from fl.communication.ledger import communication
from fl.communication.simulation import simulate
from fl.communication.trip import Exchange
from fl.comparison.costs import CostAssumptions, communication_report, is_older, ledger_of, measured_traffic
from fl.core.errors import ConfigError
from fl.core.files import read_json, read_jsonl, write_json, write_jsonl
from fl.core.records import read_rounds, totals, upgraded
from fl.core.run_folder import COMMUNICATION
from fl.core.units import MIB
from fl.data.provenance import find_run
from fl.experiment.run import run
from fl.federation.checkpoint import MARK

MODEL = 4 * MIB
"""FP32 bytes of one message."""


def record(number, accuracy, *clients, evaluation=None):
    """One line of rounds.jsonl; clients as (partition id, broadcast bytes, update bytes, seconds)."""
    shared = MODEL * sum(client[1] == 0 for client in clients)

    def traffic(place):
        sent = [client[place] for client in clients if client[place]]
        return {
            "payload_bytes": sum(sent),
            "message_bytes": sum(sent) + 100 * len(sent),
            "fp32_payload_bytes": MODEL * len(sent),
        }

    names = ("partition_id", "broadcast_payload_bytes", "update_payload_bytes", "train_s")
    messages = [
        {"broadcast_message_bytes": b + 100 if b else 0, "update_message_bytes": u + 100 if u else 0}
        for _, b, u, _ in clients
    ]
    line = {
        "version": 2,
        "round": number,
        "test_accuracy": accuracy,
        **{"test_loss": 1.0, "train_loss": 1.0},
        "fp32_model_bytes": MODEL,
        "shared_start_bytes": shared if number == 1 else 0,
        "broadcast": traffic(1),
        "update": traffic(2),
        "control_message_bytes": 50,
        **{"train_s": 9.0, "evaluate_s": 1.0, "aggregate_s": 0.0},
        **{"clients_asked": len(clients), "clients_completed": sum(client[2] > 0 for client in clients)},
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
            "payload_bytes": received, "message_bytes": received + 130,
            "fp32_payload_bytes": MODEL * (received > 0),
        }  # fmt: skip
    return line


RUN = [
    record(1, 0.60, (0, MIB, MIB, 5.0), (1, MIB, 2 * MIB, 8.0)),
    record(2, 0.80, (1, MIB, MIB, 8.0), (2, 3 * MIB, 0, 0.0)),
    record(3, 0.84, (0, MIB, MIB, 5.0)),
]


def version_1(line):
    """The same line as the first version wrote it: FP32 was charged for every message."""
    old = {
        key: value for key, value in line.items() if key not in ("version", "fp32_model_bytes", "shared_start_bytes")
    }
    charged = {"broadcast": line["clients"], "evaluation_traffic": line.get("evaluated")}
    for name, messages in charged.items():
        if messages:
            old[name] = {**line[name], "fp32_payload_bytes": line["fp32_model_bytes"] * len(messages)}
    if old["broadcast"].get("compression_ratio", 0) != 0:  # null for no bytes, then as now
        whole, sent = (old["broadcast"][key] for key in ("fp32_payload_bytes", "payload_bytes"))
        old["broadcast"]["compression_ratio"] = whole / sent if sent else None
    return old


SEEDED = [
    record(1, 0.60, (0, 0, MIB, 5.0), (1, 0, 2 * MIB, 8.0)),
    record(2, 0.80, (1, MIB, MIB, 8.0), (2, 3 * MIB, 0, 0.0), evaluation=(0, MIB)),
    record(3, 0.84, (0, 0, MIB, 5.0), (2, 2 * MIB, MIB, 1.0)),
]
"""The first model from the seed; client 0 evaluates in round 2 the model that it trains in round 3."""


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


def test_fp32_is_charged_for_no_model_that_clients_hold_already():
    """Broadcast 1 + 3 + 1 + 2 MiB in four messages, update 3 + 1 + 2 in five; round 1's two messages were empty."""
    told = communication(SEEDED, [])["measured"]
    assert told["broadcast"]["fp32_payload_bytes"] == 4 * MODEL
    assert told["broadcast"]["compression_ratio"] == 16 / 7
    assert told["update"]["fp32_payload_bytes"] == 5 * MODEL
    assert told["total"]["compression_ratio"] == 36 / 13
    assert told["shared_start_bytes"] == totals(SEEDED)["shared_start_bytes"] == 2 * MODEL
    assert [client["fp32_payload_bytes"] for client in told["clients"]] == [3 * MODEL, 3 * MODEL, 3 * MODEL]
    assert totals(SEEDED)["broadcast"]["fp32_payload_bytes"] == 4 * MODEL
    assert totals(SEEDED)["update"]["fp32_payload_bytes"] == 5 * MODEL


def test_a_link_says_what_the_codec_saves_and_what_the_shared_start_saves_apart():
    """$5/MB: 13 MiB cost $65, nine FP32 models $180; with the first model sent to two clients it would be $220."""
    entry = communication(SEEDED, [preset("flat_rate")])["modelled"]["links"]["flat_rate"]
    assert entry["cost_usd"]["total"] == 65.0
    assert entry["if_fp32"]["cost_usd"] == 180.0
    assert entry["shared_start"] == {"cost_usd": 40.0, "total_s": 0.0}
    assert entry["saved_percent"]["cost_usd"] == pytest.approx(100 * 115 / 180)


def test_the_shared_start_saves_the_wait_for_the_first_pass():
    """8 bps, 10 bytes: from the seed training starts at 0 s and is over at 60 s, so the update goes at 100-110 s; sent,
    the model arrives at 110 s, and after 60 s of training the update goes at 170-180 s, with another started minute."""
    line = record(1, 0.9, (0, 0, 5, 60.0))
    line = {**line, "fp32_model_bytes": 10, "shared_start_bytes": 10}
    link = by_minute(ground_to_sat_bps=8.0, sat_to_ground_bps=8.0, windows=TWO_PASSES, acquisition_s=0.0)
    entry = communication([line], [link])["modelled"]["links"]["cubesat_sband"]
    assert entry["round_s"]["total"] == 105.0
    assert entry["if_fp32"] == {"cost_usd": 10.0, "total_s": 110.0}
    assert entry["shared_start"] == {"cost_usd": 10.0, "total_s": 70.0}
    assert entry["saved_percent"]["total_s"] == pytest.approx(100 * 5 / 110)


def test_a_model_that_training_left_as_it_was_is_not_sent_to_evaluate_either():
    """Client 1 evaluates in round 1 the model of the seed: nothing is sent, and only client 0 would have needed it."""
    line = record(1, 0.1, (0, 0, MIB, 5.0), evaluation=(1, 0))
    told = communication([line], [preset("flat_rate")])
    assert told["measured"]["shared_start_bytes"] == MODEL
    assert told["measured"]["broadcast"]["fp32_payload_bytes"] == 0
    assert told["modelled"]["links"]["flat_rate"]["shared_start"]["cost_usd"] == 20.0
    assert communication([version_1(line)], [preset("flat_rate")]) == told


def test_a_plain_run_shares_no_start():
    told = communication(RUN, [preset("flat_rate"), preset("cubesat_sband")])
    assert told["measured"]["shared_start_bytes"] == 0
    for entry in told["modelled"]["links"].values():
        assert entry["shared_start"] == {"cost_usd": 0.0, "total_s": 0.0}


@pytest.mark.parametrize("lines", [RUN, SEEDED])
def test_lines_of_the_first_version_give_the_same_ledger(lines):
    """An empty broadcast of version 1 is one that FP32 from the same start would not have sent either."""
    old = [version_1(line) for line in lines]
    assert all("version" not in line for line in old)
    links = [preset("flat_rate"), preset("cubesat_sband")]
    assert communication(old, links) == communication(lines, links)


def test_a_version_that_is_not_known_is_refused(tmp_path):
    write_jsonl(tmp_path / "rounds.jsonl", [{**RUN[0], "version": 3}])
    with pytest.raises(ConfigError, match="round 1 is of version 3; this program knows 1 to 2") as caught:
        read_rounds(tmp_path / "rounds.jsonl")
    assert str(tmp_path / "rounds.jsonl") in str(caught.value)
    with pytest.raises(ConfigError, match="version 3"):
        communication([{**RUN[0], "version": 3}], [])


FAILS = {("train", 2, 1), ("evaluate", 1, 3)}
"""Kind of message, round and client of those that raise."""


@pytest.fixture
def failing(monkeypatch):
    from fl.federation.engine import in_process

    carry = in_process._Grid.answer

    def failing(self, message, context):
        config = message.content.config_records.get("config", {})
        partition = context.node_config["partition-id"]
        if (message.metadata.message_type, config.get("server-round"), partition) in FAILS:
            raise OSError("solar panel is stuck")
        return carry(self, message, context)

    monkeypatch.setattr(in_process._Grid, "answer", failing)


PARTIAL = ["data.num_images=60", "num_rounds=3", "fraction_train=0.5", "fraction_evaluate=0.5", "min_completed=1"]


@pytest.mark.parametrize(
    "codecs",
    [
        "codec@broadcast=int8 codec@update=int4",
        "codec@broadcast=raw codec@update=raw",
        "codec@broadcast=ecq",
        "codec@update=int8",
        "",
    ],
)
def test_fp32_is_charged_by_who_holds_which_model(codecs, tmp_path, failing):
    """Half of the clients each round, two that raise: FP32 is sent to whoever does not hold the model of the moment.

    A plain broadcast knows nothing of what clients hold, from the seed or from evaluating: it sends it to all.
    """
    run(composed(*SMALL, *PARTIAL, *codecs.split()), tmp_path)
    lines, model = read_jsonl(tmp_path / "rounds.jsonl"), 0
    knows = "broadcast" in codecs
    holds = dict.fromkeys(range(4), 0)
    for line in lines:
        assert line["version"] == 2
        model = line["fp32_model_bytes"]
        for current, asked, told, failed in (
            (line["round"] - 1, line["clients"], line["broadcast"], line["clients_failed"]),
            (line["round"], line["evaluated"], line["evaluation_traffic"], line["evaluation_failed"]),
        ):
            lacking = [client for client in asked if not knows or holds[client["partition_id"]] != current]
            assert told["fp32_payload_bytes"] == model * len(lacking)
            silent = {failure["partition_id"] for failure in failed}
            holds |= {c["partition_id"]: current for c in asked if c["partition_id"] not in silent}
        assert line["update"]["fp32_payload_bytes"] == model * line["clients_completed"]
        assert line["shared_start_bytes"] == (2 * model if knows and line["round"] == 1 else 0)
        assert upgraded(version_1(line)) == line
    assert [len(line["clients_failed"]) for line in lines] == [0, 1, 0]
    assert [len(line["evaluation_failed"]) for line in lines] == [1, 0, 0]
    told = read_json(tmp_path / COMMUNICATION)["measured"]
    assert told["total"]["fp32_payload_bytes"] == sum(client["fp32_payload_bytes"] for client in told["clients"])
    assert told["shared_start_bytes"] == 2 * model * knows
    if not codecs:
        assert told["total"]["compression_ratio"] == 1.0


CODED = ["data.num_images=60", "codec@broadcast=int8", "codec@update=int8", "link=cubesat_sband", "link.train_s=100"]


def with_old_checkpoint(folder):
    """Makes the checkpoint of a run what the first version wrote: without a checksum, and nothing of the records."""
    content = (folder / "checkpoint.pt").read_bytes()
    loaded = torch.load(io.BytesIO(content[: content.rindex(MARK)]), weights_only=True)
    torch.save(
        {key: value for key, value in loaded.items() if key not in ("records", "inputs")}, folder / "checkpoint.pt"
    )
    (folder / "checkpoint_previous.pt").unlink(missing_ok=True)


def as_old(folder):
    """Makes the records of a run what the first version wrote: no versions, FP32 charged for the first model."""
    lines = [version_1(line) for line in read_jsonl(folder / "rounds.jsonl")]
    write_jsonl(folder / "rounds.jsonl", lines)
    ledger = read_json(folder / COMMUNICATION)
    del ledger["measured"]["shared_start_bytes"]
    ledger["measured"]["total"]["compression_ratio"] = 1000.0
    for entry in ledger["modelled"]["links"].values():
        del entry["shared_start"]
    write_json(folder / COMMUNICATION, ledger)


def test_a_run_of_the_first_version_goes_on_in_lines_of_this_one_and_is_compared_by_them(tmp_path):
    folder = tmp_path / "stopped"
    for made in (folder, tmp_path / "whole"):
        made.mkdir()
    run(composed(*SMALL, *CODED), tmp_path / "whole")
    run(composed(*SMALL, *CODED, "time_limit_min=1e-9"), folder)
    (folder / "final_model.pt").unlink()
    as_old(folder)
    with_old_checkpoint(folder)
    assert "version" not in read_jsonl(folder / "rounds.jsonl")[0]
    run(read_json(folder / "settings.json"), folder, resume=True)
    assert (
        read_json(folder / "summary.json")["model_sha256"] == read_json(tmp_path / "whole/summary.json")["model_sha256"]
    )

    def figures(folder):
        lines = read_jsonl(folder / "rounds.jsonl")
        seconds = ("train_s", "evaluate_s", "aggregate_s", "clients")
        return [{key: value for key, value in line.items() if key not in seconds} for line in lines]

    assert figures(folder) == figures(tmp_path / "whole")
    assert [line["version"] for line in read_jsonl(folder / "rounds.jsonl")] == [2, 2]

    now = read_json(folder / COMMUNICATION)
    as_old(folder)
    summary = read_json(folder / "summary.json")
    found = find_run(folder / "final_model.pt", summary["model_sha256"])
    again = ledger_of(found)
    assert again["measured"] == now["measured"]
    assert again["modelled"]["links"] == {"cubesat_sband": now["modelled"]["links"]["cubesat_sband"]}, "the run's"
    (folder / "rounds.jsonl").unlink()
    found = find_run(folder / "final_model.pt", summary["model_sha256"])
    assert is_older(ledger_of(found))
    told = measured_traffic(found.summary, ledger_of(found), 5.0)
    assert "charges FP32 for a first model" in told["reason"]
    assert (told["compression_ratio"], told["links"]) == (None, {})


def test_lines_without_bytes_per_client_are_not_continued(tmp_path):
    run(composed(*SMALL, *CODED, "time_limit_min=1e-9"), tmp_path)
    (tmp_path / "final_model.pt").unlink()
    ancient = [
        {key: value for key, value in version_1(line).items() if key != "clients"}
        for line in read_jsonl(tmp_path / "rounds.jsonl")
    ]
    write_jsonl(tmp_path / "rounds.jsonl", ancient)
    with_old_checkpoint(tmp_path)
    with pytest.raises(ConfigError, match="without bytes per client"):
        run(read_json(tmp_path / "settings.json"), tmp_path, resume=True)


DOCUMENT = (REPOSITORY / "docs" / "measured-and-modelled.md").read_text()
BY_CALCULATOR = [
    {**record(1, 0.60, (0, 0, 10, 0.0), (1, 0, 60, 0.0)), "fp32_model_bytes": 80, "shared_start_bytes": 160},
    {**record(2, 0.80, (0, 10, 10, 0.0), (1, 10, 60, 0.0)), "fp32_model_bytes": 80},
]
for _line in BY_CALCULATOR:
    for _name in ("broadcast", "update"):
        sent = sum(client[f"{_name}_payload_bytes"] > 0 for client in _line["clients"])
        _line[_name] = {**_line[_name], "fp32_payload_bytes": 80 * sent}
CALCULATED_LINK = {
    "ground_to_sat_bps": 8.0,
    "sat_to_ground_bps": 8.0,
    "windows": TWO_PASSES,
    "acquisition_s": 10.0,
    "train_s": 10.0,
    "tx_w": 2.0,
    "rx_w": 1.0,
}


def test_the_documents_figures_are_those_of_the_ledger():
    """Every row of "By calculator": the figure's place in the JSON, the arithmetic, the value."""
    told = communication(BY_CALCULATOR, [by_minute(**CALCULATED_LINK)])
    section = DOCUMENT.split("## By calculator")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:3] == "| `"]
    assert len(rows) > 25
    for place, _, value in rows:
        keys = place.strip("`").split(".")
        found = told if keys[0] == "measured" else told["modelled"]["links"]["cubesat_sband"]
        for key in keys:
            found = found[key]
        assert found == pytest.approx(float(value), rel=2e-4), place


def keys_of(value):
    """Yields every key of a JSON document."""
    for item in value if isinstance(value, list) else value.values() if isinstance(value, dict) else ():
        yield from keys_of(item)
    yield from value if isinstance(value, dict) else ()


def test_the_document_explains_every_key():
    links = [preset("flat_rate"), preset("cubesat_sband")]
    told = communication(SEEDED, links)
    traffic = measured_traffic({"rounds_completed": 3, "totals": totals(SEEDED)}, told, 5.0)
    told["comparison"] = communication_report({"fp32": MIB}, CostAssumptions(1, 1, 1, 5.0, "run"), [(20, 100)], traffic)
    ancient = measured_traffic({"rounds_completed": 3, "totals": totals(SEEDED)}, None, 5.0)
    names = {"flat_rate", "cubesat_sband", "70", "80", "85", "90", "comparison", "fp32"}
    explained = set(re.findall(r"`([a-z0-9_]+)`", DOCUMENT))
    missing = {*keys_of(told), *keys_of(ancient), *keys_of(SEEDED[0]["clients"])} - names - explained
    assert not missing, f"docs/measured-and-modelled.md does not explain {sorted(missing)}"


def test_250_kbps_of_symbols_would_cost_a_fifth_of_the_rate_and_no_money_here():
    """Frames of 1,024 bytes in BCH (63, 56): 147 blocks of 8 and 10 bytes of start and tail."""
    assert -(-1024 // 7) * 8 + 10 == 1186
    frames = preset("cubesat_sband")
    coded = {"frame_bytes": 1186, "frame_data_bytes": 1016, "pdu_bytes": 1024, "pdu_header_bytes": 22}
    symbols = preset("cubesat_sband", ground_to_sat_framing=coded)
    assert symbols.ground_to_sat_framing.wire_bytes(10**8) / 10**8 == pytest.approx(1.19, abs=0.003)
    for size, seconds in ((1_750_000, (57.67, 66.8)), (440_000, (14.52, 16.8))):
        costs = set()
        for link, expected in zip((frames, symbols), seconds, strict=True):
            up = 8 * link.ground_to_sat_framing.wire_bytes(size) / 250e3
            assert up == pytest.approx(expected, abs=0.05)
            costs.add(sum(sum(each.cost_usd) for each in simulate(link, [[Exchange(0, size, size, 1000.0)]])))
        assert len(costs) == 1
