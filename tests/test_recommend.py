"""`python -m fl.recommend`: fixed measurements have one expected answer each."""

import json

import pytest

from fl.recommend import recommend

SIZES = {"fp32": 1_748_050, "fp16": 878_098, "int8": 443_117, "int8_static": 446_473, "int4": 243_000}
TIMES = {"fp32": 0.567, "fp16": 0.467, "int8": 0.237, "int8_static": 0.111, "int4": 0.24}


def report(drops, *, trained_with=None, measured=None, device="cpu"):
    """A comparison with these drops in points, by precision."""
    entries = {
        name: {
            "accuracy_percent": 92.0 + drop,
            "accuracy_drop_percent": drop,
            "file_size_bytes": SIZES[name],
            "compression_ratio": SIZES["fp32"] / SIZES[name],
            "inference_ms": TIMES[name],
            **({"trained_with": trained_with} if trained_with and name == "int4" else {}),
        }
        for name, drop in drops.items()
    }
    return {
        "precisions": entries,
        "communication": {"measured": measured or {}},
        "evaluation": {"device": device},
        "test_set": {"title": "EuroSAT", "num_images": 5400},
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
    assert "1.40 points" in found.why[0]


def test_a_small_file_needs_int4_trained_for():
    found = recommend(report(GOOD), 0.5, 300)
    assert (found.train, found.ship, found.transmit) == ("qat int4", None, "int8")
    assert "training.bits=4" in found.why[0]
    assert "int4" in found.why[1]
    again = recommend(report({**GOOD, "int4": -0.3}, trained_with="qat int4"), 0.5, 300, "qat int4")
    assert (again.train, again.ship, again.transmit) == ("qat int4", "int4", "int4")
    worse = recommend(report({**GOOD, "int4": -0.8}, trained_with="qat int4"), 0.5, 300, "qat int4")
    assert (worse.train, worse.ship) == ("qat int4", None)
    assert "although trained for it" in worse.why[0]


def test_a_drop_of_exactly_the_limit_is_within_it():
    drop = 100 * (4563 / 5400 - 4590 / 5400)  # -0.5000000000000004
    assert recommend(report({"fp32": 0.0, "int8": drop}), 0.5, None).ship == "int8"


def test_traffic_that_was_not_coded_is_no_codec():
    found = recommend(report({"fp32": 0.0, "fp16": -0.1}, measured={"compression_ratio": 1.0}), 0.0, None)
    assert found.transmit == "fp32"


def test_what_a_run_really_sent_counts_more_than_a_file():
    found = recommend(report(GOOD, measured={"compression_ratio": 33.8}), 0.5, None)
    assert found.transmit == "the codecs of this run"
    assert "33.80x" in found.why[2]


def test_nothing_small_enough_is_said():
    found = recommend(report(GOOD), 0.5, 100)
    assert found.ship is None
    assert "no file is that small; int4" in found.why[1]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "quantization_comparison.json").write_text(json.dumps(report(GOOD)))
    return tmp_path


def test_the_command_prints_three_answers_with_reasons(folder, command):
    said = command("fl.recommend", folder, "--max-drop", 0.5, "--device", "cpu", "--max-size-kb", 450, check=0).stdout
    assert "Train:    fp32" in said
    assert "Ship:     int8_static" in said
    assert "Transmit: int8" in said
    (folder / "summary.json").write_text(json.dumps({"training_precision": "amp bfloat16"}))
    assert "Train:    amp bfloat16" in command("fl.recommend", folder, check=0).stdout


def test_bad_questions_are_refused(folder, refused, tmp_path):
    refused("fl.recommend", folder, "--device", "cuda", words=["--device cuda", "measured on cpu"])
    refused("fl.recommend", folder, "--max-drop", "-1", words=["--max-drop -1"])
    refused("fl.recommend", folder, "--max-size-kb", "nan", words=["--max-size-kb nan"])
    refused("fl.recommend", tmp_path / "none", words=["nothing was measured", "compare_quantizations.py"])
    (folder / "quantization_comparison.json").write_text('{"evaluation": {"device": "cpu"}}')
    refused("fl.recommend", folder, words=["no whole report", "precisions"])
    (folder / "quantization_comparison.json").write_text(json.dumps({**report(GOOD), "precisions": {}}))
    refused("fl.recommend", folder, words=["no whole report", "precisions"])
