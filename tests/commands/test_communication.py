"""`python -m fl communication` on real files: runs, precisions and sizes over links, side by side."""

import json
import sys
from pathlib import Path

import pytest
from communication.test_ledger import RUN, SEEDED
from conftest import REPOSITORY

from fl.commands.communication import main
from fl.core.files import read_json, read_jsonl, write_json, write_jsonl
from fl.core.units import MIB

SIZES = ["--broadcast-bytes", "440000", "--update-bytes", "440000"]


def numbered(records):
    """Returns the same lines as rounds 1, 2, ..."""
    return [each and {**each, "round": number} for number, each in enumerate(records, start=1)]


@pytest.fixture
def run_folder(tmp_path):
    def make(name="run", records=RUN):
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "rounds.jsonl", numbered(records))
        return tmp_path / name

    return make


@pytest.mark.exhaustive
def test_a_run_is_shown_over_every_shipped_link(command, run_folder):
    folder = run_folder()
    said = command("fl", "communication", folder, "--json", "out.json", check=0).stdout
    for words in (
        "Measured: payload bytes that travelled",
        "3.00x fewer",
        "lower bound",
        "bytes set the price",
        "Price of cubesat_sband: AWS Ground Station",
        "To reach a test accuracy",
    ):
        assert words in said
    [document] = read_json(folder.parent / "out.json").values()
    assert document["measured"]["total"]["payload_bytes"] == 12 * MIB
    shipped = {path.stem for path in (REPOSITORY / "conf" / "link").glob("*.yaml")}
    assert set(document["modelled"]["links"]) == shipped == {"flat_rate", "cubesat_sband", "ttc_uhf"}


def test_runs_stand_side_by_side(command, run_folder):
    small, large = run_folder("small"), run_folder("large", RUN * 2)
    said = command("fl", "communication", small, large, "--link", "flat_rate", "--json", "out.json", check=0).stdout
    assert "$60.00" in said
    assert "$120.00" in said
    assert set(read_json(small.parent / "out.json")) == {str(small), str(large)}


def test_a_link_of_ones_own_and_seconds_on_board(command, run_folder, tmp_path):
    text = (REPOSITORY / "conf" / "link" / "flat_rate.yaml").read_text()
    (tmp_path / "own.yaml").write_text(text.replace("flat_rate", "own").replace("usd_per_mb: 5.0", "usd_per_mb: 2.0"))
    options = ["--link", "own.yaml", "--train-s", "1000", "--json", "out.json"]
    command("fl", "communication", run_folder(), *options, check=0)
    [document] = read_json(tmp_path / "out.json").values()
    assert document["modelled"]["links"]["own"]["cost_usd"]["total"] == 24.0
    assert document["modelled"]["links"]["own"]["round_s"]["total"] == 3000.0


def test_file_sizes_of_precisions_stand_beside_the_run(command, run_folder, tmp_path):
    """Nine messages of 2 MiB at $5/MB."""
    folder = run_folder()
    write_json(folder / "quantization_comparison.json", {"precisions": {"fp16": {"file_size_bytes": 2 * MIB}}})
    command("fl", "communication", folder, "--precisions", "--link", "flat_rate", "--json", "out.json", check=0)
    documents = read_json(tmp_path / "out.json")
    assert list(documents) == [str(folder), f"{folder} if fp16 files"]
    assert documents[f"{folder} if fp16 files"]["modelled"]["links"]["flat_rate"]["cost_usd"]["total"] == 90.0
    assert "measured" not in documents[f"{folder} if fp16 files"]


def test_the_documents_worked_example(command, tmp_path):
    """docs/measured-and-modelled.md: FP32 against INT8 files, ten clients, ten rounds, 1,000 s on board."""
    options = ["--fp32-bytes", "1750000", "--train-s", "1000", "--json", "out.json"]
    said = command("fl", "communication", *SIZES, *options, check=0).stdout
    links = read_json(tmp_path / "out.json")["given sizes"]["modelled"]["links"]
    assert links["cubesat_sband"]["if_fp32"]["cost_usd"] == 3010.0
    assert links["cubesat_sband"]["cost_usd"]["total"] == 2010.0
    assert links["cubesat_sband"]["if_one_byte"]["cost_usd"] == 2000.0
    assert links["cubesat_sband"]["saved_percent"]["total_s"] < 0.01
    assert "over cubesat_sband: passes set the price, 99.5 % of it is minimum contact minutes" in said
    assert "over ttc_uhf: bytes set the price" in said
    assert links["ttc_uhf"]["saved_percent"]["cost_usd"] > 70
    assert links["ttc_uhf"]["saved_percent"]["total_s"] > 50
    assert links["flat_rate"]["cost_usd"]["total"] == pytest.approx(200 * 440_000 / MIB * 5)
    text = (REPOSITORY / "docs" / "measured-and-modelled.md").read_text()
    rows = [line for line in said.splitlines() if line.startswith("│ given sizes")]
    for row in rows[3:]:
        cells = [cell.strip() for cell in row.strip("│").split("│")][1:]
        assert "| " + " | ".join(cells) + " |" in text, "the document's table is not what the command prints"


def test_a_real_run_has_a_ledger_that_adds_up(command, small_run, tmp_path):
    command("fl", "communication", small_run, "--link", "flat_rate", "--json", tmp_path / "out.json", check=0)
    [document] = read_json(tmp_path / "out.json").values()
    records = read_jsonl(small_run / "rounds.jsonl")
    sent = sum(record[name]["payload_bytes"] for record in records for name in ("broadcast", "update"))
    assert document["measured"]["total"]["payload_bytes"] == sent
    clients = document["measured"]["clients"]
    assert sum(c["broadcast_payload_bytes"] + c["update_payload_bytes"] for c in clients) == sent
    assert document["modelled"]["links"]["flat_rate"]["cost_usd"]["total"] == pytest.approx(sent / MIB * 5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["RUN_DIR", "--broadcast-bytes"]),
        (["nowhere"], ["nowhere", "no folder of a run"]),
        (["nowhere", *SIZES], ["not both"]),
        (["nowhere", "--rounds", "3"], ["nowhere", "its own", "not both"]),
        ([*SIZES, "--json", "."], [".", "is a folder"]),
        (["--broadcast-bytes", "5"], ["--update-bytes"]),
        ([*SIZES, "--clients", "0"], ["--clients 0", "at least 1"]),
        ([*SIZES, "--train-s", "-1"], ["--train-s -1"]),
        ([*SIZES, "--train-s", "nan"], ["--train-s nan"]),
        ([*SIZES, "--train-s", "1e25"], ["--train-s 1e+25"]),
        ([*SIZES, "--precisions"], ["--precisions", "folder of a run"]),
        ([*SIZES, "--link", "laser"], ["--link laser", "cubesat_sband, flat_rate, ttc_uhf"]),
        ([*SIZES, "--link", "none.yaml"], ["none.yaml"]),
        ([*SIZES, "--link", "flat_rate", "--link", "flat_rate"], ["--link: 2 links have the name flat_rate"]),
        ([*SIZES, "--json", "/dev/null/x.json"], ["/dev/null: this folder", "--json FILE"]),
    ],
)
def test_bad_options_are_refused_in_one_line(arguments, words, refused):
    refused("fl", "communication", *arguments, words=words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", ["no valid YAML"]),
        ("name: x", ["_target_"]),
        ("_target_: os.system", ["os.system"]),
        ("_target_: fl.core.errors.ConfigError", ["must be fl.communication.link.Link"]),
        ("_target_: os.system", ["_target_=os.system: must be fl.communication.link.Link"]),
        ("_target_: fl.communication.link.Link\nspeed: 5", ["speed", "no such setting"]),
        ("_target_: fl.communication.link.Link\nname: x", ["missing"]),
    ],
)
def test_a_bad_link_file_is_refused_in_one_line(text, words, refused, tmp_path):
    (tmp_path / "own.yaml").write_text(text)
    refused("fl", "communication", *SIZES, "--link", "own.yaml", words=["--link own.yaml", *words])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("_target_: os.system", ["_target_=os.system: must be", "policies.FedAsync", " or fl.communication.policies."]),
        ("_target_: fl.communication.link.Link", ["must be fl.communication.policies."]),
        ("_target_: fl.communication.policies.FedBuff\nK: 0", ["K", "no such setting"]),
        ("K: 5", ["_target_=None: must be fl.communication.policies."]),
    ],
)
def test_a_bad_policy_file_is_refused_in_one_line(text, words, refused, tmp_path):
    (tmp_path / "own.yaml").write_text(text)
    words = ["--policy own.yaml", *words]
    refused("fl", "communication", *SIZES, "--clock", "contacts", "--policy", "own.yaml", words=words)


def test_bad_runs_are_refused_in_one_line(refused, run_folder):
    old = [{key: value for key, value in each.items() if key not in ("version", "clients")} for each in RUN]
    refused("fl", "communication", run_folder("old", old), words=["old/rounds.jsonl", "before bytes were recorded"])
    refused("fl", "communication", run_folder("empty", []), words=["empty/rounds.jsonl", "no finished round"])
    damaged = json.loads(json.dumps(RUN))
    del damaged[0]["clients"][0]["train_s"]
    refused("fl", "communication", run_folder("odd", damaged), words=["odd/rounds.jsonl", "damaged", "train_s"])
    refused("fl", "communication", run_folder("list", [[]]), words=["list/rounds.jsonl", "damaged"])
    refused("fl", "communication", run_folder(), "--precisions", words=["compare_quantizations.py first"])
    compared = run_folder("compared")
    (compared / "quantization_comparison.json").write_text("{}")
    refused("fl", "communication", compared, "--precisions", words=["quantization_comparison.json is damaged"])


@pytest.mark.parametrize("width", [80, 100, 140, None])
@pytest.mark.parametrize("count", [1, 3])
def test_no_number_is_cut_at_any_width(count, width, run_folder, tmp_path, monkeypatch, capsys):
    """Long folders, three links, sums of five digits: every figure of the JSON, rounded, is a whole cell."""
    long = tmp_path / "a folder whose name is longer than anybody would type" / "2026-11-25"
    long.mkdir(parents=True)
    folders = [run_folder(long / f"10-00-0{number}", RUN * 20 * (number + 1)) for number in range(count)]
    monkeypatch.delenv("COLUMNS", raising=False)
    if width:
        monkeypatch.setenv("COLUMNS", str(width))
    arguments = ["fl communication", *map(str, folders), "--json", str(tmp_path / "out.json"), "--train-s", "1000"]
    monkeypatch.setattr(sys, "argv", arguments)
    main()
    said = capsys.readouterr().out
    assert "…" not in said
    table_lines = [line for line in said.splitlines() if line and line[0] in "┏┃┡│└"]
    assert width is None or max(map(len, table_lines)) <= width
    cells = {cell.strip() for line in table_lines for cell in line.strip("│").split("│")}
    documents = read_json(tmp_path / "out.json")
    for folder, document in documents.items():
        assert folder in said
        assert Path(folder).name in cells
        for name in ("broadcast", "update", "total"):
            assert f"{document['measured'][name]['payload_bytes'] / MIB:.2f} MB" in cells
        assert f"{document['measured']['control']['message_bytes']:,} B" in cells
        assert "3.00x fewer" in cells
        for link, entry in document["modelled"]["links"].items():
            assert link in cells
            for value in (entry["cost_usd"]["total"], entry["if_fp32"]["cost_usd"], entry["if_one_byte"]["cost_usd"]):
                assert f"${value:,.2f}" in cells
            assert {f"{value:.1f} %" for value in entry["saved_percent"].values()} <= cells
            assert f"{100 * entry['idle_share']:.0f} %" in cells
            assert str(entry["contacts"]["total"]) in cells
            assert f"client {entry['straggler']['partition_id']}" in cells
            assert f"{entry['round_s']['total'] / 3600:.2f} h" in cells
            assert not entry["energy_j"] or f"{entry['energy_j']['total']:,.0f} J" in cells
            assert f"${entry['reached']['80']['cost_usd']:,.2f}" in cells


def test_what_the_shared_start_saves_is_said_apart(run_folder, capsys, monkeypatch):
    folder = run_folder("seeded", SEEDED)
    monkeypatch.setattr(sys, "argv", ["fl communication", str(folder), "--link", "flat_rate"])
    main()
    said = capsys.readouterr().out
    assert "2.77x fewer" in said
    assert "8.00 MB" in said
    assert (
        "over flat_rate: the first model comes from the seed; FP32 that sends it too takes $40.00 and 0.0 s more"
        in said
    )
    monkeypatch.setattr(sys, "argv", ["fl communication", str(run_folder()), "--link", "flat_rate"])
    main()
    assert "comes from the seed" not in capsys.readouterr().out


def test_file_sizes_stand_only_where_the_run_sent_anything(run_folder, tmp_path, capsys, monkeypatch):
    """SEEDED has four broadcasts and five updates: nine messages of 2 MiB at $5/MB, and nine of 4 MiB as FP32."""
    folder = run_folder("seeded", SEEDED)
    write_json(folder / "quantization_comparison.json", {"precisions": {"fp16": {"file_size_bytes": 2 * MIB}}})
    arguments = [
        "fl communication",
        str(folder),
        "--precisions",
        "--link",
        "flat_rate",
        "--json",
        str(tmp_path / "o.json"),
    ]
    monkeypatch.setattr(sys, "argv", arguments)
    main()
    entry = read_json(tmp_path / "o.json")[f"{folder} if fp16 files"]["modelled"]["links"]["flat_rate"]
    assert entry["cost_usd"]["total"] == 90.0
    assert entry["if_fp32"]["cost_usd"] == 180.0
    assert entry["shared_start"]["cost_usd"] == 40.0
