"""What the comparison derives from what it measured, and what a file beside it may say; no command is started."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import uneven_model

from fl.comparison import report as comparison
from fl.comparison.costs import CostAssumptions
from fl.comparison.measure import convert_and_save, measure
from fl.comparison.report import Comparison
from fl.core.errors import ModelFileError
from fl.core.files import sha256
from fl.core.units import MIB
from fl.data import provenance
from fl.data.provenance import Inputs
from fl.models.net import to_input
from fl.quantization import precision_of
from fl.quantization.model_file import load_fp32, load_model, read_file, save_model, save_state

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def some():
    """23 test images, and a model that is right about the most of them."""
    images = np.random.default_rng(0).integers(0, 256, (23, 64, 64, 3), dtype=np.uint8)
    model = uneven_model(torch.from_numpy(images))
    with torch.inference_mode():
        labels = model(to_input(torch.from_numpy(images))).argmax(1).numpy()
    labels[:5] = (labels[:5] + 1) % 10
    return provenance.TestSet(images, labels, "noise (SYNTHETIC images)", True, ("a note",)), model


@pytest.fixture(scope="module")
def report(some, tmp_path_factory):
    """The report on FP32, FP16 and INT2, the folder of its files, and what was measured."""
    test, model = some
    folder = tmp_path_factory.mktemp("measured")
    trained_with = {"int2": "qat int2"}
    measured = {}
    for name in ("fp32", "fp16", "int2"):
        path = convert_and_save(model, "5" * 64, precision_of(name), folder, None, trained_with.get(name))
        measured[name] = measure(path, test, batch_size=8, device=CPU)
    subject = Comparison(
        model_path="m.pt",
        model=model,
        source_sha256="5" * 64,
        notes=(),
        run=None,
        inputs=Inputs(test, None, "no images", tuple("abcdefghij")),
        batch_size=8,
        device=CPU,
        assumptions=CostAssumptions(4, 3, 7, 2.0, "options"),
        scales=((20, 100),),
    )
    return subject.report(measured, ["int8_static"]), folder, measured


def test_every_figure_of_a_precision_is_that_of_its_file_and_of_its_answers(report, some):
    content, folder, measured = report
    exact = measured["fp32"].evaluation
    assert list(content["precisions"]) == ["fp32", "fp16", "int2"]
    for name, entry in content["precisions"].items():
        path = folder / f"model_{name}.pt"
        size, found = path.stat().st_size, measured[name].evaluation
        assert (entry["file_size_bytes"], entry["file_size_mb"]) == (size, size / MIB)
        assert entry["file_sha256"] == sha256(path.read_bytes())
        assert entry["made_from_sha256"] == "5" * 64
        assert entry["compression_ratio"] == (folder / "model_fp32.pt").stat().st_size / size
        assert entry["loss"] == found.score.loss
        assert entry["accuracy"] == (found.predictions == some[0].labels).mean()
        assert entry["accuracy_percent"] == 100 * entry["accuracy"]
        assert entry["accuracy_drop_percent"] == 100 * (found.score.accuracy - exact.score.accuracy)
        assert entry["agreement_with_fp32"] == (found.predictions == exact.predictions).mean()
        right, exact_right = (each.predictions == some[0].labels for each in (found, exact))
        assert entry["only_this_right"] == (right & ~exact_right).sum()
        assert entry["only_fp32_right"] == (exact_right & ~right).sum()
        assert entry["inference_ms"] == found.ms_per_image
    assert content["precisions"]["int2"]["trained_with"] == "qat int2"
    assert content["precisions"]["int2"]["accuracy_drop_percent"] < 0, "or its sign would not be tested"
    assert "trained_with" not in content["precisions"]["fp16"]
    assert content["precisions"]["fp32"]["kernels"] == "cpu-fp32"


def test_the_report_says_what_it_was_measured_on(report, some):
    content, *_ = report
    assert content["test_set"] == {
        "title": "noise (SYNTHETIC images)",
        "synthetic": True,
        "num_images": 23,
        "sha256": sha256(some[0].labels, some[0].images),
        "notes": ["a note"],
    }
    assert content["evaluation"] == {"batch_size": 8, "device": "cpu"}
    assert content["num_parameters"] == 434_602
    assert content["skipped"] == {"int8_static": "no images"}
    assert content["communication"]["assumptions"]["num_satellites"] == 7
    assert content["run"] is None
    json.dumps(content, allow_nan=False)


def test_validation_images_are_measured_apart_from_test_images(some, tmp_path):
    """All validation images have the label that FP32 gives them, test images not."""
    test, model = some
    images = test.images[9:]
    with torch.inference_mode():
        labels = model(to_input(torch.from_numpy(images))).argmax(1).numpy()
    validation = provenance.TestSet(images, labels, "held out", True, ())
    measured = {}
    for name in ("fp32", "int2"):
        path = convert_and_save(model, "5" * 64, precision_of(name), tmp_path, None)
        measured[name] = measure(path, test, validation, batch_size=8, device=CPU)
    entry = comparison._entry(measured["int2"], measured["fp32"], test, validation)
    accuracy = (measured["int2"].validation.predictions == labels).mean()
    assert entry["validation"]["accuracy"] == entry["validation"]["agreement_with_fp32"] == accuracy < 1
    assert entry["validation"]["accuracy_change_points"] == 100 * (accuracy - 1)
    assert entry["validation"]["only_fp32_right"] == round(14 * (1 - accuracy))
    assert entry["accuracy"] == measured["int2"].evaluation.score.accuracy
    assert entry["validation"]["agreement_with_fp32"] != entry["agreement_with_fp32"]


def test_a_loss_that_is_not_finite_is_no_measurement(some, tmp_path):
    test, _ = some
    broken = uneven_model(torch.from_numpy(test.images))
    broken.fc3.bias.data[0] = 3e38
    broken.fc3.weight.data[0] = 3e38
    path = convert_and_save(broken, "5" * 64, precision_of("fp32"), tmp_path, None)
    with pytest.raises(ModelFileError, match=r"model_fp32\.pt: its loss is not finite"):
        measure(path, test, batch_size=8, device=CPU)


def test_calibration_uses_as_many_images_as_the_precision_asks_for(some, tmp_path):
    test, model = some
    few = replace(precision_of("int8_static"), num_calibration_images=5)
    one = convert_and_save(model, "5" * 64, few, tmp_path, test.images).read_bytes()
    assert load_model(tmp_path / "model_int8_static.pt").quantization_info["num_calibration_images"] == 5
    assert convert_and_save(model, "5" * 64, few, tmp_path, test.images[:5]).read_bytes() == one
    more = replace(precision_of("int8_static"), num_calibration_images=23)
    assert convert_and_save(model, "5" * 64, more, tmp_path, test.images).read_bytes() != one


# Model files


def test_a_file_says_what_it_holds(some, tmp_path):
    _, model = some
    assert save_state(tmp_path / "plain.pt", model.state_dict()) == sha256((tmp_path / "plain.pt").read_bytes())
    plain = read_file(tmp_path / "plain.pt")
    assert (plain.info, plain.made_from) == ({}, None)
    assert plain.num_bytes == (tmp_path / "plain.pt").stat().st_size
    save_model(tmp_path / "model.pt", precision_of("int8").convert(model), "7" * 64)
    stored = read_file(tmp_path / "model.pt")
    assert stored.made_from == "7" * 64
    told = {"precision": "int8", "num_parameters": 434_602, "num_classes": 10}
    assert stored.info.items() >= told.items()
    assert stored.sha256 == sha256((tmp_path / "model.pt").read_bytes())


def test_a_state_dict_loads_to_the_same_network_in_evaluation_mode(some, tmp_path):
    _, model = some
    save_state(tmp_path / "plain.pt", model.state_dict())
    loaded, _ = load_fp32(tmp_path / "plain.pt")
    assert not loaded.training
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in loaded.state_dict().items())


def spoilt(state, name, value):
    tensor = state[name].clone()
    tensor.view(-1)[-1] = value
    return {**state, name: tensor}


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("fc2.weight", float("nan"), "fc2.weight holds NaN or infinity"),
        ("bn2.running_mean", float("inf"), "bn2.running_mean holds NaN or infinity"),
        ("bn3.running_var", -1e-3, "bn3.running_var holds negative variances"),
    ],
)
def test_a_model_with_values_that_cannot_be_is_refused(some, tmp_path, name, value, words):
    path = tmp_path / "spoilt.pt"
    save_state(path, spoilt(some[1].state_dict(), name, value))
    with pytest.raises(ModelFileError, match=words):
        load_fp32(path)


def test_weights_beyond_fp32_are_refused(some, tmp_path):
    state = {name: tensor.double() if "fc2" in name else tensor for name, tensor in some[1].state_dict().items()}
    save_state(tmp_path / "double.pt", spoilt(state, "fc2.weight", 1e39))
    with pytest.raises(ModelFileError, match=r"fc2\.weight holds 1e\+39, which is beyond float32"):
        load_fp32(tmp_path / "double.pt")


def test_a_flipped_bit_is_found(some, tmp_path):
    path = Path(tmp_path / "flipped.pt")
    save_state(path, some[1].state_dict())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match="checksum"):
        read_file(path)
