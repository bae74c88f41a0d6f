"""The comparison measures what it says, stores it in the promised form, and refuses what it cannot measure."""

import json
import os
import pickle
import re
import shutil

import conftest
import jsonschema
import numpy as np
import pytest
import torch
from conftest import REPOSITORY, train, zipped

import fl
from fl.comparison.verify import verify
from fl.core.errors import VerificationError
from fl.core.files import read_json, read_jsonl, sha256
from fl.core.units import MIB
from fl.data.sources import EUROSAT_CLASSES
from fl.deployment.beside import DeploymentFiles
from fl.models.net import Net

NAMES = ["fp32", "fp16", "int8", "int8_static"]
SCHEMA = json.loads((REPOSITORY / "docs" / "quantization_comparison.schema.json").read_text())


@pytest.fixture(scope="module")
def compared(small_run, tmp_path_factory, preloaded):
    """A copy of the small run with its comparison done; returns (folder, standard output)."""
    folder = tmp_path_factory.mktemp("compared") / "run"
    shutil.copytree(small_run, folder)
    script = REPOSITORY / "compare_quantizations.py"
    arguments = [script, folder / "final_model.pt", "--rounds", "10,20,50", "--clients", "10,100"]
    done = preloaded.run(arguments, folder.parent)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return folder, done.stdout


def test_the_json_is_what_the_schema_says(compared):
    jsonschema.validate(read_json(compared[0] / "quantization_comparison.json"), SCHEMA)


def test_the_schema_refuses_a_report_without_the_promised_names(compared):
    report = read_json(compared[0] / "quantization_comparison.json")
    del report["precisions"]["int8"]["accuracy_drop_percent"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(report, SCHEMA)


def test_every_size_is_that_of_the_file_on_disk(compared):
    folder, _ = compared
    report = read_json(folder / "quantization_comparison.json")
    assert list(report["precisions"]) == NAMES
    assert report["num_parameters"] == 434_602
    for name, entry in report["precisions"].items():
        path = folder / f"model_{name}.pt"
        assert entry["file_size_bytes"] == path.stat().st_size
        assert entry["file_size_mb"] == path.stat().st_size / MIB
        assert entry["file_sha256"] == sha256(path.read_bytes())
        assert entry["made_from_sha256"] == report["model_sha256"] == sha256((folder / "final_model.pt").read_bytes())
        assert entry["compression_ratio"] == report["precisions"]["fp32"]["file_size_bytes"] / path.stat().st_size
    for name in ("int8", "int8_static"):
        assert report["precisions"][name]["compression_ratio"] > 1 / 0.27


def test_every_cost_follows_by_calculator(compared):
    report = read_json(compared[0] / "quantization_comparison.json")["communication"]
    sizes = {
        n: e["file_size_mb"] for n, e in read_json(compared[0] / "quantization_comparison.json")["precisions"].items()
    }
    assert report["assumptions"]["num_clients"] == 4
    assert report["assumptions"]["num_rounds"] == 2
    assert report["assumptions"]["clients_and_rounds_from"] == "run"
    for name, cost in report["precisions"].items():
        assert cost["per_round_mb"] == pytest.approx(sizes[name] * 2 * 4)
        assert cost["total_cost_usd"] == pytest.approx(sizes[name] * 2 * 4 * 2 * 5)
        assert cost["savings_usd"] == pytest.approx((sizes["fp32"] - sizes[name]) * 2 * 4 * 2 * 5)
        assert cost["deploy_once_cost_usd"] == pytest.approx(sizes[name] * 4 * 5)
    assert [(s["num_rounds"], s["num_clients"]) for s in report["scales"]] == [
        (rounds, clients) for rounds in (10, 20, 50) for clients in (10, 100)
    ]
    assert report["scales"][1]["precisions"]["int8"]["total_mb"] == pytest.approx(sizes["int8"] * 2 * 100 * 10)


def test_the_runs_real_traffic_stands_beside_the_hypothetical_one(compared):
    folder, said = compared
    communication = read_json(folder / "quantization_comparison.json")["communication"]
    records = read_jsonl(folder / "rounds.jsonl")
    sent = sum(record[name]["payload_bytes"] for record in records for name in ("broadcast", "update"))
    assert communication["measured"]["total_mb"] == sent / MIB
    assert communication["measured"]["total_cost_usd"] == sent / MIB * 5
    assert communication["measured"]["num_rounds"] == 2
    assert "MEASURED TRAFFIC OF THE RUN" in said
    assert f"Sent in 2 rounds: {sent / MIB:.2f} MB" in said
    assert (
        f"Hypothetical, each file in every round: FP32 ${communication['precisions']['fp32']['total_cost_usd']:.2f}"
        in said
    )


def test_an_older_report_without_measured_traffic_is_still_verified(compared, tmp_path, capsys):
    shutil.copytree(compared[0], tmp_path / "run")
    report = read_json(tmp_path / "run" / "quantization_comparison.json")
    del report["communication"]["measured"]
    jsonschema.validate(report, SCHEMA)
    (tmp_path / "run" / "quantization_comparison.json").write_text(json.dumps(report))
    verify(tmp_path / "run" / "final_model.pt", None, None, DeploymentFiles([]))
    assert "communication.measured: not in this older report" in capsys.readouterr().out


def test_an_older_report_that_charged_fp32_for_the_first_model_is_verified_but_for_that(compared, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(compared[0], folder)
    report = read_json(folder / "quantization_comparison.json")
    told = report["communication"]["measured"]
    del told["shared_start_bytes"]
    told["compression_ratio"] = 1000.0
    for link in told["links"].values():
        del link["shared_start"]
    jsonschema.validate(report, SCHEMA)
    told["update_payload_bytes"] += 1
    (folder / "quantization_comparison.json").write_text(json.dumps(report))
    with pytest.raises(VerificationError, match="1 of its values"):
        verify(folder / "final_model.pt", None, None, DeploymentFiles([]))
    said = capsys.readouterr().out
    assert "this older report charged it for the first model" in said
    assert "DIFFERS  communication.measured.update_payload_bytes" in said


def test_the_console_keeps_the_form_users_know(compared):
    _, said = compared
    for line in (
        "POST-TRAINING QUANTIZATION COMPARISON",
        "Model parameters: 434,602",
        "Theoretical FP32 size: 1.66 MB",
        "Theoretical FP16 size: 0.83 MB",
        "Theoretical INT8 size: 0.41 MB",
        "1. FP32 (Baseline)",
        "2. FP16 (Half Precision)",
        "3. INT8 (Dynamic Quantization)",
        "4. INT8 static (Static Quantization)",
        "COMPARISON SUMMARY",
        "COMMUNICATION COST ANALYSIS (Theoretical)",
        "  - Each client: downloads + uploads model",
        "  - Cost: $5/MB",
        "  - 4 clients (satellites)",
        "  - 2 FL rounds",
        "Done!",
    ):
        assert line in said
    assert "SYNTHETIC" in said
    assert re.search(r"^FP32 +\d+\.\d\d% +\+0\.00% +1\.67 +1\.00x", said, re.MULTILINE)
    assert re.search(r"^INT8 +\d+\.\d\d% +[+-]\d+\.\d\d% +0\.42 +3\.9\dx", said, re.MULTILINE)
    assert "Savings vs FP32: $" in said


def test_accuracy_is_that_of_the_reloaded_file(compared, cache_dir):
    from fl.data import Synthetic, open_images
    from fl.models.net import to_input

    folder, _ = compared
    report = read_json(folder / "quantization_comparison.json")
    images = open_images(Synthetic(400).plan(cache_dir), cache_dir)
    test = np.load(folder / "indices.npz")["test"]
    for name, entry in report["precisions"].items():
        model = fl.load_model(folder / f"model_{name}.pt")
        assert model.quantization_info["precision"] == name
        predictions = []
        with torch.inference_mode():
            for start in range(0, len(test), 32):
                batch = torch.from_numpy(images.images[test[start : start + 32]])
                predictions.append(model(to_input(batch, model.input_dtype)).argmax(dim=1).numpy())
        accuracy = (np.concatenate(predictions) == images.labels[test]).mean()
        assert entry["accuracy"] == accuracy
        assert entry["accuracy_percent"] == 100 * accuracy
        drop = 100 * (accuracy - report["precisions"]["fp32"]["accuracy"])
        assert entry["accuracy_drop_percent"] == pytest.approx(drop)


def test_verify_accepts_its_own_report_and_refuses_any_change(compared, command, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(compared[0], folder)
    accepted = command("compare_quantizations.py", folder / "final_model.pt", "--verify", check=0)
    assert "Not verified: inference_ms" in accepted.stdout
    original = read_json(folder / "quantization_comparison.json")

    def refused_with(changes):
        report = json.loads(json.dumps(original))
        for path, value in changes.items():
            *keys, last = path.split(".")
            place = report
            for key in keys:
                place = place[key]
            place[last] = value
        (folder / "quantization_comparison.json").write_text(json.dumps(report))
        with pytest.raises(VerificationError, match="not what the files beside it give"):
            verify(folder / "final_model.pt", None, None, DeploymentFiles([]))
        told = capsys.readouterr().out
        assert all(f"DIFFERS  {path}" in told for path in changes), told

    refused_with({"precisions.int8.accuracy": original["precisions"]["int8"]["accuracy"] + 1e-4})
    refused_with(
        {
            "communication.precisions.fp16.total_cost_usd": 1.0,
            "precisions.fp32.file_size_bytes": original["precisions"]["fp32"]["file_size_bytes"] + 1,
            "communication.measured.total_mb": 1.0,
            "skipped": {"int8_static": "no reason"},
        }
    )
    refused_with({"communication.assumptions.num_rounds": 5})
    report = json.loads(json.dumps(original))
    del report["precisions"]["fp32"]["loss"]
    (folder / "quantization_comparison.json").write_text(json.dumps(report))
    assert command("compare_quantizations.py", folder, "--verify").returncode == 1
    (folder / "quantization_comparison.json").write_text("{")
    assert "not valid JSON" in command("compare_quantizations.py", folder, "--verify").stderr
    (folder / "quantization_comparison.json").write_text(json.dumps(original))
    shutil.copy(folder / "model_int8.pt", folder / "model_int8_static.pt")
    done = command("compare_quantizations.py", folder / "quantization_comparison.json", "--verify")
    assert done.returncode == 1
    assert "precisions.int8_static.file_sha256" in done.stdout


def test_verify_without_a_report_says_so(refused, small_run):
    refused("compare_quantizations.py", small_run / "final_model.pt", "--verify", words=["run without --verify first"])


def test_verify_of_what_is_not_there_says_so(compared, refused):
    """Beside a report that would verify."""
    folder, _ = compared
    refused("compare_quantizations.py", folder / "typo.pt", "--verify", words=["typo.pt: no such file or folder"])


@pytest.mark.exhaustive
def test_a_model_from_elsewhere_gets_default_clients_and_rounds(small_run, command, tmp_path):
    """Any state dict of this network, here with a custom test folder and no training images to calibrate on."""
    shutil.copy(small_run / "final_model.pt", tmp_path / "foreign.pt")
    options = ["--data", "synthetic", "--precisions", "int8,fp16", "--batch-size", "100"]
    command("compare_quantizations.py", "foreign.pt", *options, "--output", "results", check=0)
    report = read_json(tmp_path / "results" / "quantization_comparison.json")
    assert list(report["precisions"]) == ["fp32", "int8", "fp16"]
    assert report["communication"]["assumptions"]["num_clients"] == 10
    assert report["communication"]["assumptions"]["num_rounds"] == 10
    assert report["communication"]["assumptions"]["clients_and_rounds_from"] == "default"
    assert report["run"] is None
    assert "no run lies beside this model" in report["communication"]["measured"]["reason"]
    jsonschema.validate(report, SCHEMA)
    assert report["evaluation"]["batch_size"] == 100
    assert report["communication"]["precisions"]["fp32"]["per_round_mb"] == pytest.approx(
        20 * report["precisions"]["fp32"]["file_size_mb"]
    )


def test_options_give_clients_rounds_and_price_where_no_run_does(small_run, command, tmp_path):
    shutil.copy(small_run / "final_model.pt", tmp_path / "foreign.pt")
    options = ["--data", "synthetic", "--precisions", "fp16", "--clients", "7", "--rounds", "3", "--cost-per-mb", "2"]
    command("compare_quantizations.py", "foreign.pt", *options, "--output", "here.json", check=0)
    report = read_json(tmp_path / "here.json")["communication"]
    assert report["assumptions"] | {"num_clients": 7, "num_rounds": 3, "cost_per_mb_usd": 2.0} == report["assumptions"]
    assert report["scales"][0]["precisions"]["fp16"] == report["precisions"]["fp16"]


def test_our_own_fp32_file_is_taken_and_stays_the_same(compared, command, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(compared[0], folder)
    before = (folder / "model_fp32.pt").read_bytes()
    command("compare_quantizations.py", folder / "model_fp32.pt", "--precisions", "int8", check=0)
    assert (folder / "model_fp32.pt").read_bytes() == before


def test_a_folder_is_a_custom_test_set_taken_whole(compared, command, image_folder, tmp_path):
    names = read_json(compared[0] / "partition.json")["class_names"]
    shutil.copytree(compared[0], tmp_path / "run")
    images = image_folder(classes=names, per_class=3, size=(80, 80))
    done = command("compare_quantizations.py", "run/final_model.pt", "--data", images, check=0)
    report = read_json(tmp_path / "run" / "quantization_comparison.json")
    assert report["test_set"]["num_images"] == 30
    assert "30 images resized to 64x64" in done.stdout
    assert set(report["precisions"]) == set(NAMES)  # calibrated on the run's own training images


def test_without_training_images_static_int8_is_left_out_aloud(
    small_run, command, refused, image_folder, tmp_path, monkeypatch
):
    shutil.copy(small_run / "final_model.pt", tmp_path / "foreign.pt")
    images = image_folder(classes=EUROSAT_CLASSES, per_class=2)
    monkeypatch.setenv("EUROSAT_ZIP", "")
    done = command("compare_quantizations.py", "foreign.pt", "--data", images, check=0)
    assert "INT8 static  left out: needs training images" in done.stdout
    report = read_json(tmp_path / "quantization_comparison.json")
    assert list(report["precisions"]) == ["fp32", "fp16", "int8"]
    assert "EUROSAT_ZIP" in report["skipped"]["int8_static"]
    jsonschema.validate(report, SCHEMA)
    arguments = ["foreign.pt", "--data", images, "--precisions", "int8_static"]
    refused("compare_quantizations.py", *arguments, words=["int8_static", "training images"])


def test_a_custom_test_set_with_other_classes_is_refused(small_run, refused, image_folder, tmp_path):
    shutil.copytree(small_run, tmp_path / "run")
    images = image_folder(classes=("sea", "sky"))
    refused("compare_quantizations.py", "run/final_model.pt", "--data", images, words=["canopy", "sea", "sky"])


class Payload:
    """Would run a command if it were unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def bad_models(folder, good):
    """Yields (file name, how it was made bad, words that the error must hold)."""
    state = torch.load(good, weights_only=True)
    torch.save({name: t for name, t in state.items() if not name.startswith("conv2")}, folder / "missing.pt")
    yield "missing.pt", ["wrong keys", "conv2.weight", "conv2.bias"]
    torch.save({**state, "extra.weight": torch.zeros(1)}, folder / "extra.pt")
    yield "extra.pt", ["wrong keys", "unexpected extra.weight"]
    torch.save({**state, "fc1.weight": torch.zeros(128, 100)}, folder / "shape.pt")
    yield "shape.pt", ["wrong shapes", "fc1.weight is torch.float32[128, 100] instead of torch.float32[128, 2400]"]
    spoiled = {**state, "conv1.weight": state["conv1.weight"] * float("nan")}
    torch.save(spoiled, folder / "nan.pt")
    yield "nan.pt", ["conv1.weight", "NaN"]
    (folder / "truncated.pt").write_bytes(good.read_bytes()[:100_000])
    yield "truncated.pt", ["not a whole model file"]
    (folder / "empty.pt").write_bytes(b"")
    yield "empty.pt", ["empty.pt"]
    (folder / "text.pt").write_text("hello")
    yield "text.pt", ["text.pt"]
    torch.save(Net(), folder / "module.pt")
    yield "module.pt", ["refused"]
    (folder / "pickle.pt").write_bytes(pickle.dumps(Payload(folder / "pwned")))
    yield "pickle.pt", ["refused"]
    torch.save({"a": Payload(folder / "pwned")}, folder / "evil.pt")
    yield "evil.pt", ["refused"]
    broken = {**state, "bn1.running_var": -state["bn1.running_var"]}
    torch.save(broken, folder / "variance.pt")
    yield "variance.pt", ["bn1.running_var", "negative"]
    torch.save({1: torch.zeros(1)}, folder / "integers.pt")
    yield "integers.pt", ["no state dict", "it has 1"]
    torch.save({"fc3.bias": torch.zeros(10).to_sparse()}, folder / "sparse.pt")
    yield "sparse.pt", ["no tensors", "fc3.bias"]
    flipped = bytearray(good.read_bytes())
    flipped[500_000] ^= 1
    (folder / "flipped.pt").write_bytes(flipped)
    yield "flipped.pt", ["checksum"]
    torch.save({**state, "fc3.weight": state["fc3.weight"] * 1e9}, folder / "overflow.pt")
    yield "overflow.pt", ["fc3.weight", "FP16"]
    torch.save([1, 2], folder / "list.pt")
    yield "list.pt", ["no state dict"]
    torch.save({"a": 1}, folder / "numbers.pt")
    yield "numbers.pt", ["no state dict", "it has a"]
    torch.save({}, folder / "nothing.pt")
    yield "nothing.pt", ["no state dict"]


def test_bad_model_files_are_refused_one_by_one_and_nothing_is_written(compared, tmp_path, monkeypatch):
    """In one process: the commands' own start-up is tested elsewhere."""
    from fl.core.errors import QuantflError

    def attempt(path):
        conftest.compared(path, *NAMES, chosen=False, data="synthetic")

    cases = list(bad_models(tmp_path, compared[0] / "final_model.pt"))
    for name in ("fp16", "int8", "int8_static"):
        shutil.copy(compared[0] / f"model_{name}.pt", tmp_path)
        cases.append((f"model_{name}.pt", [name.upper(), "FP32"]))
    cases.append(("absent.pt", ["No such file"]))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for name, words in cases:
        with pytest.raises(QuantflError) as caught:
            attempt(tmp_path / name)
        message = str(caught.value)
        assert "\n" not in message
        assert name in message or name == "overflow.pt"
        for word in words:
            assert word in message, f"{name}: {word!r} is not in {message!r}"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--precisions", "fp32,int3"], ["int3", "fp16, fp32, int2, int4, int8, int8_static"]),
        (["--clients", "ten"], ["--clients ten", "10,100"]),
        (["--rounds", "0"], ["--rounds 0", "at least 1"]),
        (["--batch-size", "0"], ["--batch-size 0"]),
        (["--cost-per-mb", "-1"], ["--cost-per-mb -1"]),
        (["--cost-per-mb", "nan"], ["--cost-per-mb nan"]),
        (["--data", "nowhere.zip"], ["nowhere.zip", "no such file"]),
    ],
)
def test_bad_options_are_refused(options, words, refused, small_run):
    refused("compare_quantizations.py", small_run / "final_model.pt", *options, words=words)


def test_bad_files_end_the_command_in_one_line(refused, tmp_path):
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Payload(tmp_path / "pwned")))
    refused("compare_quantizations.py", tmp_path / "pickle.pt", words=["refused"])
    refused("compare_quantizations.py", tmp_path / "absent.pt", words=["No such file"])
    assert not (tmp_path / "pwned").exists()


def test_a_model_of_other_classes_is_compared_on_its_own_data(command, image_folder, tmp_path):
    images = image_folder(classes=("sea", "sky", "sand"), per_class=12)
    overrides = ["data=folder", f"data.path={images}", "num_clients=2", "num_rounds=1", "threads_per_client=1"]
    folder = train(command, *overrides, cwd=tmp_path)
    command("compare_quantizations.py", folder / "final_model.pt", check=0)
    report = read_json(folder / "quantization_comparison.json")
    assert report["class_names"] == ["sand", "sea", "sky"]
    assert fl.load_model(folder / "model_int8.pt").quantization_info["num_classes"] == 3
    assert report["precisions"]["fp32"]["accuracy"] == 1 / 3 or report["precisions"]["fp32"]["accuracy"] > 1 / 3


def test_naming_the_runs_own_images_gives_the_runs_own_test_part(command, tmp_path):
    """Not the default seed's, most of which this run has trained on."""
    overrides = ["data=synthetic", "data.num_images=100", "num_clients=2", "num_rounds=1", "seed=7"]
    folder = train(command, *overrides, "threads_per_client=1", cwd=tmp_path)
    hashes = []
    for options in ([], ["--data", "synthetic"]):
        command("compare_quantizations.py", folder / "final_model.pt", "--precisions", "fp16", *options, check=0)
        hashes.append(read_json(folder / "quantization_comparison.json")["test_set"]["sha256"])
    assert hashes[0] == hashes[1]


def test_images_of_other_classes_are_refused_by_name(refused, small_run, image_folder, tmp_path):
    shutil.copytree(small_run, tmp_path / "run")
    zip_of_others = zipped(image_folder(classes=EUROSAT_CLASSES, per_class=5), tmp_path / "some.zip")
    options = ["run/final_model.pt", "--data", zip_of_others]
    refused("compare_quantizations.py", *options, words=["AnnualCrop", "canopy"])


def test_a_quantized_model_can_be_copied_after_it_ran(compared):
    import copy

    model = fl.load_model(compared[0] / "model_int8.pt")
    x = torch.zeros(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(model(x), copy.deepcopy(model)(x))


@pytest.mark.eurosat
@pytest.mark.long
def test_the_example_model_keeps_its_promises_on_the_real_test_set(eurosat_zip, command, tmp_path):
    """The figures of the README: accuracy above the reference, every precision and format within 0.25 points."""
    for module in ("onnxruntime", "litert_torch"):
        pytest.importorskip(module)
    shutil.copytree(REPOSITORY / "examples", tmp_path / "examples")
    every = ["--precisions", "all", "--formats", "all"]
    command("compare_quantizations.py", "examples/final_model.pt", *every, check=0)
    report = read_json(tmp_path / "examples" / "quantization_comparison.json")
    jsonschema.validate(report, SCHEMA)
    assert report["test_set"]["num_images"] == 5400
    assert report["communication"]["assumptions"]["clients_and_rounds_from"] == "run"
    assert report["precisions"]["fp32"]["accuracy_percent"] > 85.2
    for name in NAMES:
        entry = report["precisions"][name]
        print(name, entry["accuracy_percent"], entry["file_size_bytes"], entry["inference_ms"])
        assert abs(entry["accuracy_drop_percent"]) <= 0.25
        assert entry["agreement_with_fp32"] > 0.97
    for name, precisions in report["formats"].items():
        for precision, entry in precisions.items():
            print(name, precision, entry["file_size_bytes"], entry["accuracy_percent"], entry["inference_ms"])
            assert abs(entry["accuracy_drop_percent"]) <= 0.25
            if precision == "fp32":
                assert entry["largest_logit_difference"] <= (5e-4 if name == "litert" else 1e-4)
            if name in ("torchexport", "torchscript"):
                assert entry["agreement_with_model_file"] >= 0.999
    command("compare_quantizations.py", "examples/final_model.pt", "--verify", check=0)
