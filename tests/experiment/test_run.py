"""A run from its configuration to its folder: what it holds, same seed same bytes, strategies, clients that fail."""

import os
import re

import numpy as np
import pytest
import torch
from conftest import SMALL, numbers_only, run_small, train
from flwr.app import Array

from fl.core.errors import RunError
from fl.core.files import read_json, read_jsonl
from fl.federation.messages import ARRAYS, config_of
from fl.models.net import initial_model


def test_a_run_folder_holds_what_is_promised(small_run):
    expected = {
        ".hydra",
        "settings.json",
        "indices.npz",
        "shares.npz",
        "partition.json",
        "partition.png",
        "rounds.jsonl",
        "rounds.png",
        "events.jsonl",
        "summary.json",
        "checkpoint.pt",
        "final_model.pt",
        "communication.json",
    }
    assert expected <= {path.name for path in small_run.iterdir()}
    said = (small_run.parent / "stdout.txt").read_text()
    assert "SYNTHETIC" in said
    assert re.search(r"^Next: +\S*python\S* \S*compare_quantizations\.py run/final_model\.pt$", said, re.MULTILINE)
    assert [line.split()[1] for line in said.splitlines() if line.startswith("round ")] == ["1/2", "2/2"]


def test_every_round_is_recorded_with_bytes_that_travelled(small_run):
    records = read_jsonl(small_run / "rounds.jsonl")
    state = torch.load(small_run / "final_model.pt", weights_only=True)
    tensors = sum(tensor.nbytes for tensor in state.values())
    for number, record in enumerate(records, start=1):
        assert record["round"] == number
        assert {"test_loss", "test_accuracy", "train_loss", "lr", "train_s", "evaluate_s", "aggregate_s"} <= set(record)
        assert (record["clients_asked"], record["clients_completed"], record["clients_failed"]) == (4, 4, [])
        for direction in ("broadcast", "update"):
            payload, message = record[direction]["payload_bytes"], record[direction]["message_bytes"]
            assert 4 * tensors < payload < 4 * tensors + 4 * 200 * len(state)  # NumPy's header of each array
            assert payload < message < 1.01 * payload
    summary = read_json(small_run / "summary.json")
    assert summary["totals"]["broadcast"]["payload_bytes"] == sum(r["broadcast"]["payload_bytes"] for r in records)
    assert summary["state"] == "completed"
    assert summary["data"]["synthetic"] is True
    assert set(summary["reached"]) == {"70", "80", "85", "90"}
    assert summary["num_parameters"] == 434_602
    assert summary["config"]["num_clients"] == 4
    assert summary["environment"]["packages"]["torch"].startswith("2.13.0")


def test_the_label_distribution_is_stored(small_run):
    partition = read_json(small_run / "partition.json")
    assert np.array(partition["label_distribution"]).shape == (4, 10)
    assert np.sum(partition["label_distribution"]) == 320
    indices = np.load(small_run / "indices.npz")
    assert (len(indices["train"]), len(indices["test"])) == (320, 80)


def test_the_first_broadcast_is_the_model_derived_from_the_seed(tmp_path):
    seen = {}

    def spy(message, context, call_next):
        seen.setdefault("first", message.content[ARRAYS].to_torch_state_dict())
        return call_next(message, context)

    run_small(tmp_path / "run", "num_rounds=1", mods=[spy])
    expected = initial_model(10, seed=42).state_dict()
    assert all(torch.equal(seen["first"][name], tensor) for name, tensor in expected.items())


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(small_run, command, tmp_path):
    again = train(command, *SMALL, cwd=tmp_path / "again" if (tmp_path / "again").mkdir() is None else tmp_path)
    assert (again / "final_model.pt").read_bytes() == (small_run / "final_model.pt").read_bytes()
    assert numbers_only(again) == numbers_only(small_run)
    run_small(tmp_path / "other", "seed=43")
    assert (tmp_path / "other" / "final_model.pt").read_bytes() != (small_run / "final_model.pt").read_bytes()


STRATEGIES = {
    "fedavg": [],
    "fedprox": ["strategy.proximal_mu=0.1"],
    "fedadam": [],
    "fedavgm": [],
    "nesterov": ["strategy.momentum=0.3"],
}


@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param(name, marks=pytest.mark.long if name == "fedadam" else pytest.mark.exhaustive)
        for name in STRATEGIES
    ],
)
def test_every_strategy_learns_and_keeps_statistics_sane(strategy, tmp_path):
    overrides = ["num_rounds=3", "data.num_images=600", "local_epochs=2", f"strategy={strategy}"]
    model = run_small(tmp_path / "run", *overrides, *STRATEGIES[strategy])
    records = read_jsonl(tmp_path / "run" / "rounds.jsonl")
    state = torch.load(model, weights_only=True)
    assert records[-1]["test_accuracy"] > records[0]["test_accuracy"]
    for name, tensor in state.items():
        assert torch.isfinite(tensor).all(), name
        if name.endswith("running_var"):
            assert (tensor > 0).all(), name
        if name.endswith("num_batches_tracked"):
            assert tensor.dtype == torch.int64
            assert tensor == 3 * 2 * 8  # rounds, epochs, batches of 16 in 120 images


@pytest.mark.exhaustive
def test_strategies_differ_where_they_should(tmp_path, small_run):
    plain = (small_run / "final_model.pt").read_bytes()
    for strategy in ("fedprox", "fedadam", "fedavgm"):
        assert run_small(tmp_path / strategy, f"strategy={strategy}").read_bytes() != plain
    without = run_small(tmp_path / "momentum0", "strategy=fedavgm", "strategy.server_momentum=0.0")
    assert without.read_bytes() == plain


def broken(kind, partition=1, rounds=(1, 2)):
    """Returns a mod that makes one client misbehave in the given rounds."""

    def mod(message, context, call_next):
        number = config_of(message)["server-round"]
        if context.node_config["partition-id"] != partition or number not in rounds:
            return call_next(message, context)
        if kind == "raises":
            raise OSError("solar panel\nis stuck")
        reply = call_next(message, context)
        values = reply.content[ARRAYS]["fc1.weight"].numpy().copy()
        values[0, 0] = np.nan
        reply.content[ARRAYS]["fc1.weight"] = Array(values)
        return reply

    return mod


FAULTS = {"raises": "raised: OSError: solar panel", "nan": "NaN or infinity in fc1.weight"}
"""Those of a run; all kinds of answers that cannot be used are in federation/test_rounds.py."""


@pytest.mark.parametrize("kind", FAULTS)
def test_a_failing_client_is_left_out_and_counted(kind, tmp_path):
    run_small(tmp_path / "run", "data.num_images=100", mods=[broken(kind, rounds=(1,))])
    first, second = read_jsonl(tmp_path / "run" / "rounds.jsonl")
    assert (first["clients_asked"], first["clients_completed"]) == (4, 3)
    assert [failure["partition_id"] for failure in first["clients_failed"]] == [1]
    assert first["clients_failed"][0]["reason"].startswith(FAULTS[kind])
    assert second["clients_failed"] == []
    events = read_jsonl(tmp_path / "run" / "events.jsonl")
    assert [event["event"] for event in events] == ["started", "client_failed", "completed"]
    assert read_json(tmp_path / "run" / "summary.json")["totals"]["clients_failed"] == 1
    assert all(torch.isfinite(t).all() for t in torch.load(tmp_path / "run" / "final_model.pt").values())


def test_too_few_clients_stop_the_run_without_a_model(tmp_path):
    mods = [broken("raises", partition=client, rounds=(2,)) for client in (0, 1, 2)]
    with pytest.raises(RunError, match=r"round 2: 1 of 4 clients completed, min_completed=2 are needed"):
        run_small(tmp_path / "run", "num_rounds=3", "data.num_images=100", mods=mods)
    assert not (tmp_path / "run" / "final_model.pt").exists()
    summary = read_json(tmp_path / "run" / "summary.json")
    assert (summary["state"], summary["rounds_completed"]) == ("failed", 1)
    assert "solar panel" in summary["error"]


def test_min_completed_is_the_users(tmp_path):
    with pytest.raises(RunError, match="min_completed=4 are needed"):
        run_small(tmp_path / "run", "min_completed=4", "data.num_images=100", mods=[broken("nan")])


def test_a_client_cannot_change_what_its_neighbour_receives(tmp_path, small_run):
    def vandal(message, context, call_next):
        reply = call_next(message, context)
        for name in list(message.content[ARRAYS]):
            message.content[ARRAYS][name] = Array(np.zeros(1, dtype=np.float32))
        return reply

    assert run_small(tmp_path / "run", mods=[vandal]).read_bytes() == (small_run / "final_model.pt").read_bytes()


def test_a_fraction_of_clients_is_asked_and_evaluation_is_counted(tmp_path):
    overrides = ["fraction_train=0.5", "fraction_evaluate=0.25", "data.num_images=100", "data.validation_fraction=0.2"]
    run_small(tmp_path / "run", *overrides)
    for record in read_jsonl(tmp_path / "run" / "rounds.jsonl"):
        assert record["clients_asked"] == 2
        assert {"validation_accuracy", "federated_accuracy", "federated_loss"} <= set(record)
        one_model = record["broadcast"]["payload_bytes"] / 2
        assert record["evaluation_traffic"]["payload_bytes"] == one_model
        assert record["evaluation_traffic"]["message_bytes"] > one_model


def test_a_client_that_fails_to_evaluate_is_counted(tmp_path, monkeypatch):
    from fl.federation import client_app

    def blind(*args, **kwargs):
        raise OSError("no light")

    monkeypatch.setattr(client_app, "evaluate_as_told", blind)
    run_small(tmp_path / "run", "fraction_evaluate=0.5", "data.num_images=100", "num_rounds=1")
    (record,) = read_jsonl(tmp_path / "run" / "rounds.jsonl")
    assert "federated_accuracy" not in record
    assert [failure["reason"] for failure in record["evaluation_failed"]] == [
        "evaluation: raised: OSError: no light"
    ] * 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_training_runs_on_cuda(tmp_path):
    model = run_small(tmp_path / "run", "device=cuda")
    assert all(torch.isfinite(tensor).all() for tensor in torch.load(model, weights_only=True).values())


@pytest.mark.eurosat
@pytest.mark.long
def test_two_rounds_on_the_real_images_learn(command, tmp_path, eurosat_zip):
    overrides = ["num_rounds=2", "fraction_train=0.2", "local_epochs=1", "threads_per_client=1"]
    folder = train(command, *overrides, cwd=tmp_path)
    first, second = read_jsonl(folder / "rounds.jsonl")
    assert second["test_accuracy"] > max(0.4, first["test_accuracy"])
    summary = read_json(folder / "summary.json")
    assert (summary["data"]["num_train"], summary["data"]["num_test"]) == (21_600, 5_400)
    assert summary["data"]["synthetic"] is False
    assert read_json(folder / "settings.json")["data"]["path"] == os.environ["EUROSAT_ZIP"]
