"""Local training, strategies, failing clients, determinism and resuming, all on real messages."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SMALL, composed, train
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict

from fl.core.errors import RunError
from fl.core.files import read_json, read_jsonl
from fl.core.targets import Target
from fl.experiment.run import run
from fl.federation.messages import ARRAYS, METRICS, config_of
from fl.models.net import initial_model, to_input
from fl.quantization.model_file import load_model
from fl.training.local import TrainingSettings, augment, learning_rate, train_locally

ADAM = Target("torch.optim.Adam")


def run_small(folder, *overrides, mods=(), resume=False):
    folder.mkdir(parents=True, exist_ok=True)
    return run(composed(*SMALL, *overrides), folder, mods=mods, resume=resume)


def numbers_only(folder):
    """Returns the records of a run without what may differ between two runs of the same seed."""

    def without_seconds(value):
        if isinstance(value, dict):
            return {key: without_seconds(each) for key, each in value.items() if not key.endswith("_s")}
        return [without_seconds(each) for each in value] if isinstance(value, list) else value

    return without_seconds(read_jsonl(folder / "rounds.jsonl"))


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


@pytest.mark.parametrize("strategy", STRATEGIES)
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


def test_strategies_differ_where_they_should(tmp_path, small_run):
    plain = (small_run / "final_model.pt").read_bytes()
    for strategy in ("fedprox", "fedadam", "fedavgm"):
        assert run_small(tmp_path / strategy, f"strategy={strategy}").read_bytes() != plain
    without = run_small(tmp_path / "momentum0", "strategy=fedavgm", "strategy.server_momentum=0.0")
    assert without.read_bytes() == plain


def test_nesterov_momentum_on_the_server_is_torchs(tmp_path):
    """The server's steps over three rounds equal torch.optim.SGD(nesterov=True) on the negative changes."""
    from fl.federation.nesterov import FedAvgNesterov

    strategy = FedAvgNesterov(server_learning_rate=0.7, momentum=0.6, min_train_nodes=1, min_available_nodes=1)
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = torch.optim.SGD([parameter], lr=0.7, momentum=0.6, nesterov=True)
    ours = ArrayRecord({"w": Array(parameter.detach().numpy())})
    for number, change in enumerate(([0.5, 0.1], [0.4, -0.2], [-0.3, 0.3]), start=1):
        strategy.received = {"w": ours["w"].numpy()}
        answered = ArrayRecord({"w": Array(ours["w"].numpy() + np.float32(change))})
        metrics = MetricRecord({"num-examples": 5, "train-loss": 1.0})
        reply = SimpleNamespace(content=RecordDict({ARRAYS: answered, METRICS: metrics}), has_error=lambda: False)
        ours, _ = strategy.aggregate_train(number, [reply])
        parameter.grad = -torch.tensor(change)
        optimizer.step()
        assert np.allclose(ours["w"].numpy(), parameter.detach().numpy(), atol=1e-6)


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


def test_a_time_limit_ends_after_the_round_in_progress(command, tmp_path):
    done = command(
        "fl.train", *SMALL, "num_rounds=50", "time_limit_min=0.0001", f"hydra.run.dir={tmp_path / 'run'}", check=0
    )
    assert "time_limit_min=0.0001 reached: stopped after round 1 of 50" in done.stdout
    summary = read_json(tmp_path / "run" / "summary.json")
    assert (summary["state"], summary["rounds_completed"]) == ("time_limit", 1)
    assert load_model(tmp_path / "run" / "final_model.pt").quantization_info["precision"] == "fp32"


def test_a_rate_below_the_floor_is_refused_before_anybody_trains(tmp_path, refused):
    for way in ("update", "broadcast"):
        overrides = *SMALL, f"codec@{way}=ecq", f"{way}.bits=0.001", "hydra.run.dir=run"
        refused("fl.train", *overrides, words=[f"{way}: ecq: bits=0.001", "choose at least 0.00"])
        assert not (tmp_path / "run" / "settings.json").exists()


def test_a_run_that_was_stopped_before_its_first_round_begins_again(tmp_path, refused):
    whole = run_small(tmp_path / "run").read_bytes()
    for name in ("final_model.pt", "summary.json", "checkpoint.pt", "checkpoint_previous.pt"):
        (tmp_path / "run" / name).unlink()
    refused("fl", "resume", tmp_path / "run", words=["holds no checkpoint.pt, though rounds were recorded"])
    lines = (tmp_path / "run" / "rounds.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "run" / "rounds.jsonl").write_text(lines[0])  # which comes just before the first checkpoint
    assert run(composed(*SMALL), tmp_path / "run", resume=True).read_bytes() == whole
    assert len(read_jsonl(tmp_path / "run" / "rounds.jsonl")) == 2


FEEDBACK = "codec@broadcast=ecq codec@update=int4 update.rounding=stochastic update.error_feedback=true"


LONG = [pytest.param(f"strategy={name}", marks=pytest.mark.long) for name in ("fedadam", "fedavgm")]


@pytest.mark.parametrize("kind", [*LONG, f"strategy=nesterov {FEEDBACK}"])
def test_a_killed_run_resumes_to_the_same_bytes(kind, tmp_path):
    overrides = [*SMALL, "num_rounds=4", "data.num_images=200", *kind.split()]
    whole = run_small(tmp_path / "whole", *overrides[len(SMALL) :])
    killed = tmp_path / "killed"
    arguments = [sys.executable, "-m", "fl.train", *overrides, f"hydra.run.dir={killed}"]
    process = subprocess.Popen(arguments, cwd=tmp_path, stdout=subprocess.DEVNULL, start_new_session=True)
    records = killed / "rounds.jsonl"
    while not (killed / "checkpoint.pt").exists() and process.poll() is None:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "final_model.pt").exists(), "killed too late to show anything"
    assert 1 <= len(read_jsonl(records)) < 4
    done = subprocess.run([sys.executable, "-m", "fl", "resume", killed], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (killed / "final_model.pt").read_bytes() == whole.read_bytes()
    assert numbers_only(killed) == numbers_only(tmp_path / "whole")


def test_a_run_is_not_continued_on_other_images(image_folder, tmp_path, command):
    images = image_folder(per_class=10)
    overrides = ["data=folder", f"data.path={images}", "num_clients=2", "num_rounds=2", "threads_per_client=1"]
    folder = train(command, *overrides, cwd=tmp_path)
    (folder / "final_model.pt").unlink()
    (images / "a" / "a_0.png").unlink()
    done = command("fl", "resume", folder)
    assert done.returncode == 2
    assert "the data has changed" in done.stderr


def test_a_finished_run_is_left_as_it_is(command, small_run):
    before = {path: path.read_bytes() for path in small_run.iterdir() if path.is_file()}
    done = command("fl", "resume", small_run, check=0)
    assert done.stdout == f"{small_run}: is finished, nothing is left to do\n"
    assert {path: path.read_bytes() for path in small_run.iterdir() if path.is_file()} == before


def test_what_cannot_be_resumed_says_so(refused, tmp_path):
    refused("fl", "resume", tmp_path, words=["settings.json"])


def test_a_run_is_never_written_over(refused, small_run):
    before = (small_run / "final_model.pt").read_bytes()
    refused("fl.train", *SMALL, f"hydra.run.dir={small_run}", words=["hydra.run.dir", "already holds a run"])
    assert (small_run / "final_model.pt").read_bytes() == before


def test_run_folders_are_made_exclusively(tmp_path, monkeypatch):
    from fl.experiment.composing import new_folder

    monkeypatch.chdir(tmp_path)
    assert new_folder("outputs/x") == new_folder("outputs/x") == "outputs/x"
    new_folder.cache_clear()  # as another process would
    assert new_folder("outputs/x") == "outputs/x-2"


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [1, 1, 1, 1]), ("linear", [1, 0.75, 0.5, 0.25]), ("cosine", [1, 0.8536, 0.5, 0.1464])],
)
def test_learning_rate_schedules(schedule, expected):
    assert [learning_rate(1.0, schedule, n, 4) for n in (1, 2, 3, 4)] == pytest.approx(expected, abs=1e-4)


def test_augmentation_permutes_pixels_and_reaches_every_symmetry():
    image = torch.arange(4 * 4 * 3, dtype=torch.uint8).reshape(1, 4, 4, 3)
    generator = torch.Generator().manual_seed(0)
    for kind, symmetries in (("none", 1), ("flips", 4), ("dihedral", 8)):
        outcomes = {tuple(augment(image, kind, generator).flatten().tolist()) for _ in range(200)}
        assert len(outcomes) == symmetries
        assert all(sorted(each) == sorted(image.flatten().tolist()) for each in outcomes)


def test_each_image_is_turned_on_its_own():
    images = torch.arange(4 * 4 * 3, dtype=torch.uint8).reshape(1, 4, 4, 3).repeat(200, 1, 1, 1)
    turned = augment(images, "dihedral", torch.Generator().manual_seed(0))
    assert len(torch.unique(turned, dim=0)) == 8


def settings(**changes):
    base = TrainingSettings(local_epochs=1, batch_size=8, augmentation="none", optimizer=ADAM, label_smoothing=0.0)
    return dataclasses.replace(base, **changes)


@pytest.mark.parametrize(
    ("smoothing", "mu", "optimizer"),
    [(0.0, 0.0, ADAM), (0.1, 0.0, ADAM), (0.0, 3.0, Target("torch.optim.SGD"))],
    ids=["plain", "label smoothing", "FedProx"],
)
def test_local_training_equals_a_plain_pytorch_loop(smoothing, mu, optimizer):
    """The last batch is a partial one. FedProx's gradient is mu times the distance to the received weights."""
    images = torch.randint(0, 256, (19, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(19) % 10
    ours, plain = initial_model(10, 0), initial_model(10, 0)
    generator, training = torch.Generator().manual_seed(5), settings(local_epochs=2, optimizer=optimizer)
    training = dataclasses.replace(training, label_smoothing=smoothing)
    loss = train_locally(ours, images, labels, training, lr=0.001, proximal_mu=mu, generator=generator)
    generator.manual_seed(5)
    start = [parameter.detach().clone() for parameter in plain.parameters()]
    stepper, losses = optimizer.build(plain.parameters(), lr=0.001), []
    plain.train()
    for _ in range(2):
        for batch in torch.randperm(19, generator=generator).split(8):
            stepper.zero_grad()
            logits = plain(to_input(images[batch]))
            torch.nn.functional.cross_entropy(logits, labels[batch], label_smoothing=smoothing).backward()
            for parameter, before in zip(plain.parameters(), start, strict=True):
                parameter.grad += mu * (parameter.detach() - before)
            stepper.step()
            logits, target = logits.detach(), labels[batch]
            losses += torch.nn.functional.cross_entropy(
                logits, target, label_smoothing=smoothing, reduction="none"
            ).tolist()
    assert len(losses) == 2 * 19
    assert loss == pytest.approx(np.mean(losses), rel=1e-6)
    for (name, a), b in zip(ours.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(a, b) if mu == 0 else torch.allclose(a, b, rtol=1e-4, atol=1e-7), name


def test_muon_moves_hidden_weights_as_torchs_muon_and_the_rest_as_adam(monkeypatch):
    from fl.training import optimizers

    monkeypatch.setattr(optimizers, "native_bfloat16", lambda: True)
    ours, plain = initial_model(10, 0), initial_model(10, 0)
    hidden = [plain.conv1.weight, plain.conv2.weight, plain.conv3.weight, plain.fc1.weight, plain.fc2.weight]
    matrices = [torch.nn.Parameter(weight.detach().flatten(1).clone()) for weight in hidden]
    rest = [p for p in plain.parameters() if not any(p is weight for weight in hidden)]
    optimizer = optimizers.Muon(ours.parameters(), lr=0.002, momentum=0.9)
    muon = torch.optim.Muon(matrices, lr=0.002, momentum=0.9, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.Adam(rest, lr=0.002)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for weight, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
            weight.grad = torch.randn(weight.shape, generator=generator)
            theirs.grad = weight.grad.clone()
        optimizer.step()
        for weight, matrix in zip(hidden, matrices, strict=True):
            matrix.grad = weight.grad.flatten(1)
        muon.step()
        adam.step()
        for weight, matrix in zip(hidden, matrices, strict=True):
            weight.data.copy_(matrix.detach().view_as(weight))
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize("shape", [(32, 75), (128, 128), (300, 40)])
def test_products_rounded_to_bfloat16_are_those_of_bfloat16_instructions(monkeypatch, shape):
    from fl.training import optimizers

    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    both = []
    for native in True, False:
        monkeypatch.setattr(optimizers, "native_bfloat16", lambda native=native: native)
        both.append(optimizers.orthogonalized(matrix).float())
    assert torch.equal(both[1], both[1].bfloat16().float())
    assert (both[0] - both[1]).norm() < 0.02 * both[0].norm()
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    assert ((left.T @ both[1] @ right.T).diagonal() > 0).all(), "not the same singular vectors"
    assert torch.linalg.svdvals(both[1]).max() < 1.3


def test_an_interrupt_keeps_the_checkpoint(tmp_path):
    folder = tmp_path / "run"
    arguments = [sys.executable, "-m", "fl.train", *SMALL, "num_rounds=100", f"hydra.run.dir={folder}"]
    process = subprocess.Popen(arguments, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (folder / "checkpoint.pt").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "interrupted" in errors
    assert "fl resume" in errors
    assert not (folder / "final_model.pt").exists()
    assert json.loads((folder / "rounds.jsonl").read_text().splitlines()[0])["round"] == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_training_runs_on_cuda(tmp_path):
    model = run_small(tmp_path / "run", "device=cuda")
    assert all(torch.isfinite(tensor).all() for tensor in torch.load(model, weights_only=True).values())


@pytest.mark.eurosat
def test_two_rounds_on_the_real_images_learn(command, tmp_path, eurosat_zip):
    overrides = ["num_rounds=2", "fraction_train=0.2", "local_epochs=1", "threads_per_client=1"]
    folder = train(command, *overrides, cwd=tmp_path)
    first, second = read_jsonl(folder / "rounds.jsonl")
    assert second["test_accuracy"] > max(0.4, first["test_accuracy"])
    summary = read_json(folder / "summary.json")
    assert (summary["data"]["num_train"], summary["data"]["num_test"]) == (21_600, 5_400)
    assert summary["data"]["synthetic"] is False
    assert read_json(folder / "settings.json")["data"]["path"] == os.environ["EUROSAT_ZIP"]
