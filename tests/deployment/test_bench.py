"""`python -m fl bench` on the files of a comparison: figures that can be checked against the answers themselves."""

import shutil

import conftest
import numpy as np
import pytest
import torch

from fl.commands.bench import checked, parse
from fl.core.errors import QuantflError
from fl.core.files import read_json
from fl.deployment.bench import Timing, bench, compared
from fl.models.net import initial_model
from fl.quantization.model_file import save_state


@pytest.fixture(scope="module")
def files(small_run, tmp_path_factory):
    """A run with its model files."""
    folder = shutil.copytree(small_run, tmp_path_factory.mktemp("bench") / "run")
    conftest.compared(folder / "final_model.pt", "fp16", "int8", "int8_static", formats=["torchscript"])
    return folder


CHOSEN = ("model_fp32.pt", "model_int8.ts", "model_int8_static.pt")


@pytest.mark.long
def test_every_model_of_a_folder_is_measured_at_every_batch_size(files, command, tmp_path):
    folder = tmp_path / "chosen"
    shutil.copytree(files, folder, ignore=lambda _, names: {n for n in names if n.startswith("model_")} - {*CHOSEN})
    models = [folder / name for name in CHOSEN]
    done = command("fl", "bench", folder, "--batch-sizes", "8,1", "--threads", 1, check=0)
    report = read_json(folder / "bench.json")
    assert (folder / "bench.png").is_file()
    assert "1 thread, cpu" in done.stdout
    assert report["baseline"] == str(models[0])
    assert report["test_set"]["synthetic"]
    for model, path in zip(report["models"], models, strict=True):
        assert model["file_size_bytes"] == path.stat().st_size
        assert [entry["batch_size"] for entry in model["results"]] == [1, 8]
        for entry in model["results"]:
            size = entry["batch_size"]
            assert entry["batches_timed"] == report["test_set"]["num_images"] // size
            assert 0 < entry["ms_p50"] <= entry["ms_p95"]
            assert entry["peak_memory_bytes"] > 0
            low, high = entry["accuracy_ci95"]
            assert low <= entry["accuracy"] <= high
            assert path.name in done.stdout
    whole, script, static = report["models"]
    assert whole["weight_bytes"] == 4 * 434_986 + 24
    assert static["weight_bytes"] < 0.27 * whole["weight_bytes"]
    ranges, image = 5 * 8, 8  # which five layers have of their own; a program keeps the image's too
    assert script["weight_bytes"] == static["weight_bytes"] - ranges + image
    for entry in whole["results"]:
        assert (entry["speed_up"], entry["largest_logit_difference"], entry["agreement_with_fp32"]) == (1.0, 0.0, 1.0)
        assert entry["mcnemar_p"] == 1.0
    accuracy = read_json(files / "quantization_comparison.json")["precisions"]["int8_static"]["accuracy"]
    assert static["results"][0]["accuracy"] == accuracy


def test_statistics_are_those_of_the_textbook():
    """McNemar with 3 against 12 discordant pairs, exact: p = 0.0352; Wilson of 85 out of 100: 0.7672-0.9069."""
    labels = np.zeros(100, np.int64)

    def timing(wrong):
        logits = np.zeros((100, 2), np.float32)
        logits[:, 0] = 1
        logits[list(wrong)] = [0, 1]
        return Timing([0.5, 0.25, 0.25], [logits])

    ours, theirs = timing([*range(12), 97, 98, 99]), timing([12, 13, 14, 97, 98, 99])
    found = compared(ours, theirs, labels, 4)
    assert (found["only_this_right"], found["only_fp32_right"]) == (3, 12)
    assert found["mcnemar_p"] == pytest.approx(0.03516, abs=1e-5)
    assert found["accuracy"] == 0.85
    assert found["accuracy_ci95"] == [pytest.approx(0.7672, abs=1e-4), pytest.approx(0.9069, abs=1e-4)]
    assert found["agreement_with_fp32"] == 0.85
    assert found["images_per_s"] == 12
    assert found["ms_p50"] == 250


@pytest.mark.exhaustive
def test_a_file_in_a_subfolder_is_tested_on_the_images_of_its_run(files, command):
    command("fl", "export", files, "--quantize", "none", "--format", "torchscript", check=0)
    fp32, script = files / "export" / "model_fp32.pt", files / "export" / "model_int8.ts"
    for models in ([fp32], [files / "export" / "model_fp32.ts", script]):
        done = command(
            "fl", "bench", *models, "--batch-sizes", "4,100000", "--threads", 1, "--output", "b.json", check=0
        )
        assert "SYNTHETIC" in done.stdout
        assert "100000 left out" in done.stdout
        assert "training images are not known" not in done.stdout


def test_bad_benchmarks_are_refused(files, refused, tmp_path):
    whole = files / "model_fp32.pt"
    (tmp_path / "models").mkdir()
    (tmp_path / "model_int8.ts").write_bytes(b"not a program")
    save_state(tmp_path / "five.pt", initial_model(5, 0).state_dict())
    refused("fl", "bench", whole, "--output", "plot.png", words=["--output plot.png", ".json"])
    cases = {
        (whole, tmp_path / "model_int8.ts"): r"model_int8\.ts: torchscript cannot run it",
        (whole, tmp_path / "five.pt"): r"different classes .*five\.pt has 5",
        (whole, "--batch-sizes", "100000"): "--batch-sizes 100000: there are only",
        (files / "model_int8.pt",): r"model_int8\.pt: none is an FP32 model",
        (whole, "--batch-sizes", "0,4"): "--batch-sizes 0,4",
        (whole, "--batch-sizes", "many"): "--batch-sizes many",
        (whole, "--threads", "0"): "--threads 0",
        (tmp_path / "none.pt",): r"none\.pt",
        (tmp_path / "models",): r"models: holds no model_\* files; run compare_quantizations\.py",
        (whole, tmp_path / "model_fp32.ts"): r"model_fp32\.ts: there is no such file",
    }
    if not torch.cuda.is_available():
        cases[whole, "--device", "cuda"] = "--device cuda"
    for arguments, message in cases.items():
        with pytest.raises(QuantflError, match=message):
            bench(checked(parse([str(each) for each in arguments])))
