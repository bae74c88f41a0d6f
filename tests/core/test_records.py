"""What is written down: records, sums over them, files that appear whole, and what a run continues from."""

import dataclasses
import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, RecordDict

from fl.core.errors import ConfigError, RunError
from fl.core.files import plain, read_json, read_jsonl, sha256, write_bytes, write_json, write_jsonl
from fl.core.lines import Lines
from fl.core.records import ClientRecord, RoundRecord, Score, Traffic, reached, totals
from fl.core.run_folder import CHECKPOINT, CLIENTS, PREVIOUS_CHECKPOINT
from fl.federation.checkpoint import Checkpoint, newest_checkpoint, save_checkpoint
from fl.federation.client_states import ClientStates
from fl.federation.journal import round_line

CLIENT = ClientRecord(0, 100, 110, 50, 60, 2.0)
RECORD = RoundRecord(
    round=1,
    lr=0.01,
    test=Score(1.5, 0.25),
    validation=None,
    exact=None,
    reference=None,
    federated=None,
    train_loss=1.0,
    fp32_model_bytes=400,
    shared_start_bytes=0,
    clients_asked=3,
    clients_completed=2,
    clients_failed=(),
    broadcast=Traffic(100, 110, 400),
    update=Traffic(50, 60, 400),
    control_message_bytes=7,
    late=(),
    clients=(CLIENT,),
    evaluated=(),
    evaluation_traffic=None,
    evaluation_failed=(),
    train_s=2.0,
    evaluate_s=1.0,
    aggregate_s=0.5,
)
EVALUATED = dataclasses.replace(
    RECORD,
    round=2,
    validation=Score(1.25, 0.5),
    federated=Score(1.0, 0.75),
    evaluated=(ClientRecord(1, 30, 35, 0, 5, 0.0), ClientRecord(2, 30, 35, 0, 5, 0.0)),
    evaluation_traffic=Traffic(60, 80, 800),
)


def written(*records):
    return [json.loads(json.dumps(plain(record.to_json()))) for record in records]


def test_scores_are_written_flat_and_absent_ones_left_out():
    line, evaluated = written(RECORD, EVALUATED)
    assert (line["test_loss"], line["test_accuracy"]) == (1.5, 0.25)
    for name in ("validation_loss", "exact_loss", "reference_accuracy", "federated_loss", "evaluated", "test"):
        assert name not in line
    assert "evaluation_traffic" not in line
    assert "evaluation_failed" not in line
    assert (evaluated["validation_accuracy"], evaluated["federated_loss"]) == (0.5, 1.0)
    assert len(evaluated["evaluated"]) == 2
    assert (line["broadcast"]["compression_ratio"], line["update"]["compression_ratio"]) == (4.0, 8.0)
    assert Traffic(0, 10, 400).compression_ratio is None


def test_sums_over_rounds_are_those_of_their_parts():
    sums = totals(written(RECORD, EVALUATED))
    assert sums["broadcast"]["payload_bytes"] == 100 + 100 + 60
    assert sums["broadcast"]["message_bytes"] == 110 + 110 + 70
    assert sums["broadcast"]["fp32_payload_bytes"] == 400 + 400 + 2 * 400
    assert sums["update"]["fp32_payload_bytes"] == 400 + 400
    assert sums["update"]["payload_bytes"] == 50 + 50
    assert sums["update"]["message_bytes"] == 60 + 60 + 10
    assert sums["evaluation_traffic"]["message_bytes"] == 80
    assert (sums["train_s"], sums["evaluate_s"], sums["aggregate_s"]) == (4.0, 2.0, 1.0)
    assert (sums["clients_asked"], sums["clients_completed"], sums["clients_failed"]) == (6, 4, 2)
    assert "evaluation_traffic" not in totals(written(RECORD))


def test_milestones_are_the_first_round_that_is_there_with_all_bytes_until_then():
    rounds = [
        dataclasses.replace(RECORD, round=number, test=Score(1.0, accuracy))
        for number, accuracy in enumerate((0.6, 0.7, 0.69, 0.85), start=1)
    ]
    found = reached(written(*rounds))
    assert found["70"] == {"rounds": 2, "broadcast_payload_bytes": 200, "update_payload_bytes": 100}
    assert found["80"] == found["85"] == {"rounds": 4, "broadcast_payload_bytes": 400, "update_payload_bytes": 200}
    assert found["90"] is None


def test_the_line_of_a_round_shows_what_is_known():
    line = round_line(dataclasses.replace(EVALUATED, broadcast=Traffic(3 * 2**20, 1, 1)), 10)
    assert line.startswith("round  2/10  test 25.00% loss 1.5000  validation 50.00%  clients 75.00%")
    assert "train loss 1.0000  clients 2/3" in line
    assert "broadcast 3.00 MB" in line
    assert line.endswith("3.5 s")
    assert "exact" not in line


def test_what_json_does_not_know_becomes_what_it_knows():
    value = {1: np.float32(0.5), "path": Path("a/b"), "score": Score(1.0, 0.5), "arrays": (np.arange(2), [np.int64(3)])}
    assert plain(value) == {
        "1": 0.5,
        "path": "a/b",
        "score": {"loss": 1.0, "accuracy": 0.5},
        "arrays": [[0, 1], [3]],
    }
    assert type(plain(value)["1"]) is float


def test_files_appear_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_json(path, {"a": [1.5, None]})
    assert path.read_text() == '{\n  "a": [\n    1.5,\n    null\n  ]\n}\n'
    for write, value in ((write_json, {"a": float("nan")}), (write_jsonl, [1.0, float("inf")])):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write(path, value)
    monkeypatch.setattr(os, "replace", lambda *args: (_ for _ in ()).throw(OSError("disk is gone")))
    with pytest.raises(OSError, match="disk is gone"):
        write_bytes(path, b"new")
    assert read_json(path) == {"a": [1.5, None]}
    assert [each.name for each in tmp_path.iterdir()] == ["x.json"], "nothing is left beside it"


def test_files_have_the_rights_that_the_user_gives_new_ones(tmp_path):
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "x", b"content")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640
    assert os.umask(before) == before
    with pytest.raises(IsADirectoryError):
        write_bytes(tmp_path, b"content")


def test_lines_come_back_and_damaged_ones_are_named(tmp_path):
    write_jsonl(tmp_path / "x.jsonl", [{"a": 1}, {"b": np.arange(2)}])
    assert read_jsonl(tmp_path / "x.jsonl") == [{"a": 1}, {"b": [0, 1]}]
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n{"b"')
    for read in (read_json, read_jsonl):
        with pytest.raises(ConfigError, match=r"x\.jsonl: is "):
            read(tmp_path / "x.jsonl")


def test_a_hash_is_of_all_parts_in_order():
    assert sha256(b"ab", b"c") == sha256(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256(np.arange(4, dtype=np.uint8)) == sha256(bytes(range(4)))
    turned = np.arange(6, dtype=np.uint8).reshape(2, 3).T
    assert sha256(turned) == sha256(np.ascontiguousarray(turned))
    assert sha256(b"a", b"b") != sha256(b"b", b"a")


SAVED = Checkpoint(
    round=3,
    state={"w": torch.arange(4.0)},
    strategy={"velocity": {"dict": {"w": torch.ones(2)}}, "eta": {"number": 0.1}},
    clients={},
    link={"chain": None, "holds": {2: "ab"}},
)


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    states = ClientStates(tmp_path / CLIENTS)
    states.put(2, RecordDict({"told": ConfigRecord({"a": 1})}))
    states.put(3, RecordDict())
    save_checkpoint(tmp_path, dataclasses.replace(SAVED, clients=states.listing()), states.settle)
    loaded = newest_checkpoint(tmp_path, Lines(tmp_path / "rounds.jsonl"))
    assert loaded.round == 3
    assert torch.equal(loaded.state["w"], torch.arange(4.0))
    assert loaded.strategy["eta"] == {"number": 0.1}
    assert loaded.clients == states.listing()
    assert list(loaded.clients) == [2], "of who remembers nothing, nothing is kept"
    assert loaded.link == SAVED.link


def test_a_checkpoint_of_an_older_version_is_taken_and_named(tmp_path, capsys):
    clients = {2: torch.frombuffer(bytearray(b"state"), dtype=torch.uint8)}
    old = {key: value for key, value in vars(SAVED).items() if key not in ("records", "inputs")}
    torch.save(old | {"clients": clients}, tmp_path / CHECKPOINT)
    loaded = newest_checkpoint(tmp_path, Lines(tmp_path / "rounds.jsonl"))
    assert (loaded.round, loaded.clients, loaded.records) == (3, {2: b"state"}, None)
    assert "is of an older version, without a checksum" in capsys.readouterr().out


def test_the_checkpoint_before_stays(tmp_path):
    for number in (1, 2, 3):
        save_checkpoint(tmp_path, dataclasses.replace(SAVED, round=number))
    assert sorted(path.name for path in tmp_path.iterdir()) == [CHECKPOINT, PREVIOUS_CHECKPOINT]
    (tmp_path / CHECKPOINT).unlink()
    assert newest_checkpoint(tmp_path, Lines(tmp_path / "rounds.jsonl")).round == 2


def test_a_journal_hashes_what_it_holds(tmp_path):
    path = tmp_path / "x.jsonl"
    journal = Lines(path)
    assert (journal.mark, journal.count(), journal.last()) == ((0, sha256(b"")), 0, None)
    marks = []
    for number in range(4):
        journal.append({"number": np.int64(number)})
        marks.append(journal.mark)
        assert journal.mark == (path.stat().st_size, sha256(path.read_bytes()))
        assert (journal.count(), journal.last()) == (number + 1, {"number": number})
    assert read_jsonl(path) == [{"number": number} for number in range(4)]
    again = Lines(path)
    assert again.mark == journal.mark
    assert all(again.agrees(mark) for mark in marks)
    again.cut(marks[1][0])
    assert (again.mark, again.last()) == (marks[1], {"number": 1})
    assert [again.agrees(mark) for mark in marks] == [True, True, False, False]
    again.append("more")
    assert read_jsonl(path) == [{"number": 0}, {"number": 1}, "more"]
    with pytest.raises(RunError, match="has become shorter"):
        journal.append("of another process")


@pytest.mark.parametrize("left", [b'{"a', b"x" * 3_000_000])
def test_a_journal_goes_on_after_its_last_whole_line(left, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n' + left)
    journal = Lines(path)
    assert journal.mark == (9, sha256(b'{"a": 1}\n'))
    journal.append({"b": 2})
    assert path.read_bytes() == b'{"a": 1}\n{"b": 2}\n'


@pytest.mark.parametrize("bad", [float("nan"), object()])
def test_what_is_no_json_leaves_a_journal_as_it_was(bad, tmp_path):
    journal = Lines(tmp_path / "x.jsonl")
    journal.append(1)
    with pytest.raises((TypeError, ValueError)):
        journal.append(bad)
    assert (tmp_path / "x.jsonl").read_bytes() == b"1\n"
