"""What a run continues from: it comes back as it was, and the one before stays."""

import dataclasses

import torch
from flwr.app import ConfigRecord, RecordDict

from fl.core.lines import Lines
from fl.core.run_folder import CHECKPOINT, CLIENTS, PREVIOUS_CHECKPOINT
from fl.federation.checkpoint import Checkpoint, newest_checkpoint, save_checkpoint
from fl.federation.client_states import ClientStates

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
