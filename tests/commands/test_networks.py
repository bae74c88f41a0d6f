"""Networks of users go the whole way: trained with coded traffic, converted, exported, read again by their name."""

import shutil
from pathlib import Path

import networks
import numpy as np
import pytest
import torch
from conftest import SMALL

import fl
from fl.core.errors import ConfigError
from fl.core.files import read_json, read_jsonl

TINY = [*SMALL, "data.num_images=120", "num_clients=2", "batch_size=32"]
CODED = ["codec@update=ecq", "codec@broadcast=ecq", "update.bits=2", "broadcast.bits=2"]


@pytest.fixture
def beside(tmp_path):
    """A folder with the user's own module, as they have one."""
    for name in ("my_networks.py", "networks.py"):
        shutil.copy(Path(networks.__file__), tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "formats"),
    [
        pytest.param("Residual", {"onnx", "torchscript"}, marks=pytest.mark.long),
        pytest.param("Grouped", {"torchexport"}, marks=pytest.mark.exhaustive),
        pytest.param("Attention", {"onnx", "litert", "torchexport", "torchscript"}, marks=pytest.mark.exhaustive),
    ],
    ids=["Residual", "Grouped", "Attention"],
)
def test_a_users_network_goes_the_whole_way(name, formats, beside, command, refused):
    own, run = f"my_networks.{name}", beside / "run"
    told = command("fl.train", *TINY, *CODED, f"model._target_={own}", f"hydra.run.dir={run}", cwd=beside, check=0)
    assert "as FP32" in told.stdout
    records = read_jsonl(run / "rounds.jsonl")
    assert [each["clients_failed"] for each in records] == [[], []]
    assert 0 < records[1]["broadcast"]["payload_bytes"] < records[1]["broadcast"]["fp32_payload_bytes"]

    line = refused("compare_quantizations.py", run, cwd=beside)
    assert f"its network is {own}" in line
    assert f"--model {own}" in line
    asked = ["--precisions", "all", "--formats", ",".join(sorted(formats)), "--model", own]
    told = command("compare_quantizations.py", run, *asked, cwd=beside, check=0)
    report = read_json(run / "quantization_comparison.json")
    assert set(report["precisions"]) == {"fp32", "fp16", "int8", "int8_static", "int4", "int2"}
    assert set(report.get("formats", {})) == formats
    if name == "Attention":  # LiteRT's runtime dies of an infinite constant that it rounded
        assert set(report["formats"]["litert"]) == {"fp32", "fp16", "int8"}
        assert "litert left out (int8_static): its converter or runtime crashes" in told.stdout
    for entry in (
        *report["precisions"].values(),
        *(e for each in report.get("formats", {}).values() for e in each.values()),
    ):
        assert np.isfinite(entry["loss"])
    assert report["network"] == {"_target_": own, "num_classes": 10, "bands": 3}
    if kept := report["precisions"]["int8"].get("float_tensors"):
        assert f"{len(kept)} tensors of {sum(kept.values()):,} bytes stay FP32: " in told.stdout
    assert bool(kept) == (name != "Residual")
    verified = command("compare_quantizations.py", run, "--verify", "--model", own, cwd=beside, check=0)
    assert "Verified: " in verified.stdout
    command("fl", "export", run, "--model", own, cwd=beside, check=0)
    if name != "Residual":
        return
    benched = ["--batch-sizes", "1", "--images", "2", "--model", own, "--output", beside / "b.json"]
    files = [run / file for file in ("model_fp32.pt", "model_int8.pt", "model_int8.ts")]
    command("fl", "bench", *files, *benched, cwd=beside, check=0)
    line = refused("fl", "bench", *files, "--output", beside / "c.json", cwd=beside)
    assert f"--model {own}" in line


def test_a_killed_run_of_a_users_network_goes_on_if_it_is_named(beside, command, refused):
    own, settings = "my_networks.Residual", [*TINY, *CODED, "model._target_=my_networks.Residual"]
    whole, stopped = beside / "whole", beside / "stopped"
    command("fl.train", *settings, f"hydra.run.dir={whole}", cwd=beside, check=0)
    command("fl.train", *settings, "time_limit_min=1e-9", f"hydra.run.dir={stopped}", cwd=beside, check=0)
    for name in ("final_model.pt", "summary.json", "communication.json"):
        (stopped / name).unlink()
    events = [line for line in (stopped / "events.jsonl").read_text().splitlines() if "time_limit" not in line]
    (stopped / "events.jsonl").write_text("\n".join(events) + "\n")
    settings_of = read_json(stopped / "settings.json")
    assert settings_of["model"]["_target_"] == own
    refused("fl", "resume", stopped, cwd=beside, words=["only the classes in conf/model", own, "--trust"])
    command("fl", "resume", stopped, "--trust", own, cwd=beside, check=0)
    assert read_json(stopped / "summary.json")["rounds_completed"] >= 1


def test_files_tell_their_network_and_readers_name_it_if_it_is_theirs(beside, command):
    run = beside / "run"
    command(
        "fl.train",
        *TINY,
        "num_rounds=1",
        "model._target_=networks.Residual",
        f"hydra.run.dir={run}",
        cwd=beside,
        check=0,
    )
    with pytest.raises(ConfigError, match=r"its network is networks.Residual.*fl.load_model\(path, model="):
        fl.load_model(run / "final_model.pt")
    model = fl.load_model(run / "final_model.pt", device="cpu", model=networks.Residual)
    assert type(model) is networks.Residual
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 10)


@pytest.mark.parametrize("choice", ["resnet18", "linear"])
@pytest.mark.exhaustive
def test_the_projects_networks_need_no_name(choice, beside, command):
    run, stem = beside / "run", ["model.stem=published"] if choice != "linear" else []
    wanted = [*TINY, "num_rounds=1", "data.num_images=60", f"model={choice}", *stem]
    command("fl.train", *wanted, f"hydra.run.dir={run}", cwd=beside, check=0)
    told = command("compare_quantizations.py", run, "--precisions", "fp32,int8", cwd=beside, check=0)
    assert "INT8" in told.stdout
    for file in (run / "final_model.pt", run / "model_int8.pt"):
        assert fl.load_model(file, device="cpu")(torch.zeros(2, 3, 64, 64)).shape == (2, 10)
    if choice == "resnet18":
        sizes = [(run / name).stat().st_size for name in ("final_model.pt", "model_int8.pt")]
        assert sizes[1] <= 0.27 * sizes[0]


def test_what_does_not_go_with_the_images_is_refused_before_training(beside, refused):
    run = f"hydra.run.dir={beside / 'run'}"
    line = refused("fl.train", *TINY, "model._target_=my_networks.SevenClasses", run, cwd=beside)
    assert "answers two images with [2, 7] instead of [2, 10]" in line
    assert not (beside / "run" / "settings.json").exists()
    refused("fl.train", *TINY, "model=resnet19", run, cwd=beside, words=["model", "resnet19"])
    refused("fl.train", *TINY, "model.width=3", run, cwd=beside, words=["model.width"])


def test_a_run_starts_from_given_weights_that_never_travel(beside, command):
    first, second = beside / "first", beside / "second"
    command("fl.train", *TINY, "num_rounds=1", f"hydra.run.dir={first}", cwd=beside, check=0)
    given = [f"model.weights={first / 'final_model.pt'}", *CODED]
    told = command("fl.train", *TINY, *given, "num_rounds=1", f"hydra.run.dir={second}", cwd=beside, check=0)
    assert f"Start: {first / 'final_model.pt'}" in told.stdout.replace("\n", "")
    summary = read_json(second / "summary.json")
    assert summary["weights_sha256"] == read_json(first / "summary.json")["model_sha256"]
    (record,) = read_jsonl(second / "rounds.jsonl")
    assert record["broadcast"]["payload_bytes"] == 0
    assert record["shared_start_bytes"] > 0
