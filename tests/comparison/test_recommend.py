"""`python -m fl recommend`: fixed measurements have one expected answer each."""

import json

import jsonschema
import numpy as np
import pytest
import torch
from conftest import REPOSITORY, SMALL, compared, train

from fl.comparison.recommend import Evidence, chosen_by, evidence, recommend
from fl.comparison.verify import verify
from fl.core.errors import VerificationError
from fl.core.files import read_json, sha256, write_json
from fl.core.intervals import Z, paired_interval
from fl.data.provenance import find_inputs, find_run
from fl.deployment.beside import DeploymentFiles
from fl.quantization.model_file import load_with_info
from fl.training.evaluation import evaluate

SIZES = {"fp32": 1_748_050, "fp16": 878_098, "int8": 443_117, "int8_static": 446_473, "int4": 243_000}
TIMES = {"fp32": 0.567, "fp16": 0.467, "int8": 0.237, "int8_static": 0.111, "int4": 0.24}


def counts(change, images, differing):
    """Answers to `images` images of which so many differ, with this net change in points."""
    net = change / 100 * images
    return {
        "agreement_with_fp32": 1 - differing / images,
        "only_this_right": (differing + net) / 2,
        "only_fp32_right": (differing - net) / 2,
    }


def report(drops, *, trained_with=None, measured=None, device="cpu", images=5400, validation=None):
    """A comparison with these drops in points, by precision; `validation` has those of 2,160 validation images."""
    entries = {
        name: {
            "accuracy_percent": 92.0 + drop,
            "accuracy_drop_percent": drop,
            "file_size_bytes": SIZES[name],
            "compression_ratio": SIZES["fp32"] / SIZES[name],
            "inference_ms": TIMES[name],
            **counts(drop, images, abs(drop) / 100 * images * 1.5),
            **({"trained_with": trained_with} if trained_with and name == "int4" else {}),
        }
        for name, drop in drops.items()
    }
    for name, drop in (validation or {}).items():
        own = counts(drop, 2160, abs(drop) / 100 * 2160)
        entries[name]["validation"] = {"accuracy": 0.91 + drop / 100, "accuracy_change_points": drop, **own}
    return {
        "precisions": entries,
        "communication": {"measured": measured or {}},
        "evaluation": {"device": device},
        "test_set": {"title": "EuroSAT", "num_images": images},
        "validation_set": {"num_images": 2160, "sha256": ""} if validation else None,
    }


GOOD = {"fp32": 0.0, "fp16": 0.02, "int8": -0.17, "int8_static": -0.07, "int4": -0.9}


def test_a_model_that_quantizes_well_is_shipped_static_and_sent_in_int8():
    found = recommend(report(GOOD), 0.5, None)
    assert (found.train, found.ship, found.transmit) == ("fp32", "int8_static", "int8")
    assert "0.111 ms" in found.why[1]
    assert "codec@update=int8" in found.why[2]


def test_a_drop_beyond_the_limit_asks_for_quantization_aware_training():
    drops = {"fp32": 0.0, "fp16": 0.02, "int8": -1.4, "int8_static": -2.0, "int4": -9.0}
    found = recommend(report(drops), 0.5, None)
    assert (found.train, found.ship, found.transmit) == ("qat int8", "fp16", "fp16")
    assert "training.bits=8" in found.why[0]
    assert "int8 lost more than 0.5 points after training: -1.40 (" in found.why[0]


def test_a_small_file_needs_int4_trained_for():
    found = recommend(report(GOOD), 0.5, 300)
    assert (found.train, found.ship, found.transmit) == ("qat int4", None, "int8")
    assert "training.bits=4" in found.why[0]
    assert "int4" in found.why[1]
    again = recommend(report({**GOOD, "int4": -0.2}, trained_with="qat int4"), 0.5, 300, "qat int4")
    assert (again.train, again.ship, again.transmit) == ("qat int4", "int4", "int4")
    worse = recommend(report({**GOOD, "int4": -0.8}, trained_with="qat int4"), 0.5, 300, "qat int4")
    assert (worse.train, worse.ship) == ("qat int4", None)
    assert "although trained for it" in worse.why[0]


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [
        (100 * (4563 / 5400 - 4590 / 5400), 0.0, "kept"),  # -0.5000000000000004
        (-0.51, 0.0, "within noise"),
        (-0.9, -0.5, "within noise"),
        (-0.9, -0.51, "lost"),
    ],
)
def test_the_whole_interval_must_be_within_the_limit(low, high, told):
    assert Evidence(92.0, (low + high) / 2, low, high, 0.99).judged(0.5) == told


def test_the_interval_is_the_published_one():
    """Airway response of 21 children, 1 and 7 discordant pairs: -0.517 to -0.026 (Fagerland, Lydersen, Laake 2014)."""
    assert paired_interval(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)
    assert paired_interval(7, 1, 21) == pytest.approx((0.026, 0.517), abs=5e-4)
    wide = Z**2 / (60 + Z**2)
    assert paired_interval(0, 0, 60) == pytest.approx((-wide, wide))
    assert paired_interval(60, 0, 60)[1] == 1.0
    assert paired_interval(0, 60, 60)[0] == -1.0


def test_the_interval_holds_the_true_change_as_often_as_it_says():
    rng = np.random.default_rng(0)
    for images in (60, 400):
        draws = rng.multinomial(images, [0.01, 0.04, 0.95], size=300)
        held = [low <= -0.03 <= high for low, high in (paired_interval(*draw[:2], images) for draw in draws)]
        assert 0.91 < np.mean(held) < 0.99


def test_few_images_ship_nothing_that_they_cannot_tell():
    drops = {"fp32": 0.0, "fp16": 0.0, "int8": 0.0, "int4": 0.0}
    found = recommend(report(drops, images=60), 0.5, None)
    assert (found.train, found.ship, found.transmit) == ("fp32", "fp32", "fp32")
    for why in found.why:
        assert "within noise: " in why
        assert "int8 +0.00 (-6.02 to +6.02)" in why
        assert "60 images cannot tell" in why
    small = recommend(report(drops, images=60), 0.5, 450)
    assert (small.train, small.ship) == ("fp32", None)
    assert "within noise" in small.why[1]
    assert recommend(report(drops, images=5400), 0.5, None).ship == "int8"


def test_validation_images_choose_not_test_images():
    test = {"fp32": 0.0, "int8": 0.5, "int8_static": -3.0}
    held_out = {"fp32": 0.0, "int8": -3.0, "int8_static": -0.1}
    found = recommend(report(test, validation=held_out), 0.5, None)
    assert (found.ship, found.transmit) == ("int8_static", "fp32")
    assert "90.90% (-0.10 points, " in found.why[1]
    assert "agreement 99.90%" in found.why[1]
    assert chosen_by(report(test, validation=held_out)) == "chosen by 2,160 validation images"
    assert "chosen by 5,400 test images" in chosen_by(report(test))
    assert "optimistic" in chosen_by(report(test))


def test_a_report_without_counts_gives_intervals_that_are_no_narrower():
    new = report({"fp32": 0.0, "int8": -0.2})
    old = report({"fp32": 0.0, "int8": -0.2})
    for key in ("only_this_right", "only_fp32_right"):
        del old["precisions"]["int8"][key]
    del old["validation_set"]
    new["precisions"]["int8"] |= {"only_this_right": 0, "only_fp32_right": 10.8}
    narrow, wide = (evidence(each)[0]["int8"] for each in (new, old))
    assert wide.low < narrow.low
    assert wide.high > narrow.high


def test_traffic_that_was_not_coded_is_no_codec():
    found = recommend(report({"fp32": 0.0, "fp16": -0.1}, measured={"compression_ratio": 1.0}), 0.0, None)
    assert found.transmit == "fp32"


def test_what_a_run_really_sent_counts_more_than_a_file():
    found = recommend(report(GOOD, measured={"compression_ratio": 33.8}), 0.5, None)
    assert found.transmit == "the codecs of this run"
    assert "33.80x" in found.why[2]


def test_words_fit_the_numbers():
    alone = recommend(report({"fp32": 0.0, "int8": -20.0}), 0.5, None)
    assert "the only one within the limits" in alone.why[1]
    assert "x fewer" not in alone.why[2], "FP32 is as many bytes as FP32"
    unclear = recommend(report({"fp32": 0.0, "int8": 0.0}, images=1), 0.5, 450)
    assert "int8 is small enough, but not shown to lose at most 0.5 points" in unclear.why[1]
    assert "1 image cannot tell" in unclear.why[1]
    assert chosen_by(report({"fp32": 0.0}, images=1)).startswith("chosen by 1 test image, ")


def test_nothing_small_enough_is_said():
    found = recommend(report(GOOD), 0.5, 100)
    assert found.ship is None
    assert "no file is that small; int4" in found.why[1]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "quantization_comparison.json").write_text(json.dumps(report(GOOD)))
    return tmp_path


def test_the_command_prints_three_answers_with_reasons(folder, command):
    said = command(
        "fl", "recommend", folder, "--max-drop", 0.5, "--device", "cpu", "--max-size-kb", 450, check=0
    ).stdout
    assert "Train:    fp32" in said
    assert "Ship:     int8_static" in said
    assert "Transmit: int8" in said
    assert "chosen by 5,400 test images, for want of validation images" in said
    assert "; agreement 99." in said
    (folder / "summary.json").write_text(json.dumps({"training_precision": "amp bfloat16"}))
    assert "Train:    amp bfloat16" in command("fl", "recommend", folder, check=0).stdout


def test_bad_questions_are_refused(folder, refused, tmp_path):
    refused("fl", "recommend", folder, "--device", "cuda", words=["--device cuda", "measured on cpu"])
    refused("fl", "recommend", folder, "--max-drop", "-1", words=["--max-drop -1"])
    refused("fl", "recommend", folder, "--max-size-kb", "nan", words=["--max-size-kb nan"])
    refused("fl", "recommend", tmp_path / "none", words=["none: no such folder"])
    (tmp_path / "a run").mkdir()
    refused("fl", "recommend", tmp_path / "a run", words=["compare_quantizations.py 'a run'"])
    refused("fl", "recommend", tmp_path / "summary.json.pt", words=["no such folder"])
    (tmp_path / "final_model.pt").touch()
    refused("fl", "recommend", tmp_path / "final_model.pt", words=["is a file; give the folder of its run"])
    (folder / "quantization_comparison.json").write_text('{"evaluation": {"device": "cpu"}}')
    refused("fl", "recommend", folder, words=["no whole report", "precisions"])
    (folder / "quantization_comparison.json").write_text(json.dumps({**report(GOOD), "precisions": {}}))
    refused("fl", "recommend", folder, words=["no whole report", "precisions"])


def test_a_run_with_validation_images_is_compared_and_chosen_by_them(command, tmp_path, capsys):
    folder = train(command, *SMALL, "num_rounds=1", "data.num_images=200", "data.validation_fraction=0.2", cwd=tmp_path)
    place, path = folder / "final_model.pt", folder / "quantization_comparison.json"
    compared(place, "int8")
    found = read_json(path)
    jsonschema.validate(found, json.loads((REPOSITORY / "docs" / "quantization_comparison.schema.json").read_text()))
    run = find_run(place, sha256(place.read_bytes()))
    held_out = find_inputs(run, None, 10).validation
    assert found["validation_set"] == {"num_images": len(held_out.labels), "sha256": held_out.sha256}
    assert len(held_out.labels) == run.summary["data"]["num_validation"] > 0
    answers = {}
    for name in ("fp32", "int8"):
        model, _ = load_with_info(folder / f"model_{name}.pt", torch.device("cpu"))
        done = evaluate(model, held_out.images, held_out.labels, batch_size=32, device=torch.device("cpu"))
        assert found["precisions"][name]["validation"]["accuracy"] == done.score.accuracy
        answers[name] = done.predictions
    own = found["precisions"]["int8"]["validation"]
    assert own["agreement_with_fp32"] == (answers["int8"] == answers["fp32"]).mean()
    right = {name: each == held_out.labels for name, each in answers.items()}
    assert own["only_this_right"] == (right["int8"] & ~right["fp32"]).sum()
    assert own["only_fp32_right"] == (right["fp32"] & ~right["int8"]).sum()
    assert chosen_by(found) == f"chosen by {len(held_out.labels)} validation images"
    assert recommend(found, 0.5, None).ship == "fp32"  # so few images tell nothing

    verify(place, None, None, DeploymentFiles([]))
    changed = json.loads(json.dumps(found))
    changed["precisions"]["int8"]["validation"]["only_this_right"] += 1
    write_json(path, changed)
    with pytest.raises(VerificationError):
        verify(place, None, None, DeploymentFiles([]))
    older = json.loads(json.dumps(found))
    del older["validation_set"]
    for entry in older["precisions"].values():
        for key in ("validation", "only_this_right", "only_fp32_right"):
            del entry[key]
    write_json(path, older)
    capsys.readouterr()
    verify(place, None, None, DeploymentFiles([]))
    assert "answers image by image: not in this older report" in capsys.readouterr().out
