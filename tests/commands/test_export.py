"""Which rounds are kept, which one is chosen and why, and what `python -m fl export` writes."""

import shutil

import pytest
import torch
from conftest import SMALL, composed, train
from federation.test_kept_models import kept

import fl
from fl.commands.export import parse
from fl.core.errors import QuantflError
from fl.core.files import read_json, read_jsonl, sha256, write_jsonl
from fl.core.records import best_round
from fl.core.run_folder import model_of_round
from fl.deployment.export import export
from fl.experiment.run import run
from fl.models.net import Net, to_input
from fl.quantization.model_file import load_fp32, save_state

VALIDATED = [*SMALL, "data.validation_fraction=0.1", "num_rounds=3"]


@pytest.fixture(scope="module")
def validated_run(tmp_path_factory):
    """A run that kept every round; read only."""
    folder = tmp_path_factory.mktemp("validated") / "run"
    folder.mkdir()
    run(composed(*VALIDATED, "checkpoint.keep=all"), folder)
    return folder


@pytest.fixture
def own_run(validated_run, tmp_path):
    """A copy of it to change."""
    return shutil.copytree(validated_run, tmp_path / "run")


@pytest.mark.exhaustive
def test_a_run_keeps_the_models_of_its_rounds_and_a_resumed_one_too(validated_run, tmp_path):
    assert kept(validated_run) == [1, 2, 3]
    assert model_of_round(validated_run, 3).read_bytes() == (validated_run / "final_model.pt").read_bytes()
    folder = tmp_path / "run"
    folder.mkdir()
    run(composed(*VALIDATED, "checkpoint.keep=all", "time_limit_min=0.0001"), folder)
    assert kept(folder) == [1]
    (folder / "final_model.pt").unlink()
    run(composed(*VALIDATED, "checkpoint.keep=all"), folder, resume=True)
    for number in (1, 2, 3):
        assert model_of_round(folder, number).read_bytes() == model_of_round(validated_run, number).read_bytes()


def test_what_is_exported_is_fp16_and_says_what_it_is(validated_run, command, tmp_path):
    done = command("fl", "export", validated_run, "--output", "out", "--plot", check=0)
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "model_fp16.pt", "selection.png", "selection.svg", "selection_metadata.json",
    ]  # fmt: skip
    told = read_json(out / "selection_metadata.json")
    scores = read_jsonl(validated_run / "rounds.jsonl")
    assert told["round"] == best_round(scores, "accuracy")
    assert [each["round"] for each in told["candidates"]] == [1, 2, 3]
    assert all(each["kept"] and 0 <= each["validation_accuracy"] <= 1 for each in told["candidates"])
    assert told["file_size_bytes"] == (out / "model_fp16.pt").stat().st_size
    assert told["file_sha256"] == sha256((out / "model_fp16.pt").read_bytes())
    assert f"Round {told['round']}: best validation accuracy of 3 rounds" in done.stdout
    content = torch.load(out / "model_fp16.pt", weights_only=True)
    state, info = content["model_state_dict"], content["quantization_info"]
    source = torch.load(model_of_round(validated_run, told["round"]), weights_only=True)
    for name, tensor in source.items():
        assert state[name].dtype == (torch.float16 if tensor.is_floating_point() else tensor.dtype)
        assert torch.equal(state[name], tensor.to(state[name].dtype))
    assert {key: info[key] for key in ("dtype", "fp16_parameters", "non_fp16_parameters", "total_parameters")} == {
        "dtype": "fp16",
        "fp16_parameters": 434_986,
        "non_fp16_parameters": 3,
        "total_parameters": 434_989,
    }
    assert info["compression_ratio"] == (4 * 434_986 + 24) / (2 * 434_986 + 24)
    assert "model_fp16.pt" in (out / "README.md").read_text()
    assert "SYNTHETIC" in (out / "README.md").read_text()
    images = torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8)
    exact, _ = load_fp32(model_of_round(validated_run, told["round"]))
    with torch.inference_mode():
        expected = exact(to_input(images))
        for fp16, dtype in ((None, torch.float16), ("auto", torch.float32), (True, torch.float16)):
            model = fl.load_model(out / "model_fp16.pt", fp16=fp16)
            assert model.fc1.weight.dtype == dtype
            assert model.quantization_info == {**info, **({"loaded_as": "fp32"} if fp16 == "auto" else {})}
            assert torch.allclose(model(to_input(images)).float(), expected, atol=0.02)


def test_batch_norm_can_stay_and_nothing_may_be_cast(validated_run, command, tmp_path):
    command("fl", "export", validated_run, "--output", "half", "--keep-batchnorm-fp32", check=0)
    info = read_json(tmp_path / "half" / "selection_metadata.json")["quantization_info"]
    assert (info["fp16_parameters"], info["non_fp16_parameters"]) == (434_986 - 768, 771)
    assert fl.load_model(tmp_path / "half" / "model_fp16.pt").bn1.running_var.dtype == torch.float32
    command("fl", "export", validated_run, "--output", "whole", "--quantize", "none", "--round", 2, check=0)
    told = read_json(tmp_path / "whole" / "selection_metadata.json")
    assert (told["round"], told["quantization_info"]["compression_ratio"]) == (2, 1.0)
    assert told["quantization_info"]["fp16_parameters"] == 0
    source = torch.load(model_of_round(validated_run, 2), weights_only=True)
    stored = fl.load_model(tmp_path / "whole" / "model_fp32.pt").state_dict()
    assert all(torch.equal(stored[name], tensor) for name, tensor in source.items())


@pytest.mark.parametrize(
    ("scores", "chosen", "told"),
    [
        (((0.9, 0.5), (0.9, 0.4), (0.6, 0.3)), 2, "3 rounds; rounds 1, 2 are equal in it, the lower loss decided"),
        (
            ((0.9, 0.4), (0.9, 0.4), (0.6, 0.3)),
            1,
            "rounds 1, 2 are equal in it, the lower loss, then the earlier round",
        ),
        (((0.9, 0.4), (0.8, 0.4), (0.6, 0.3)), 1, "best validation accuracy of 3 rounds"),
    ],
)
def test_ties_are_told_with_what_decided(scores, chosen, told, own_run, capsys):
    lines = read_jsonl(own_run / "rounds.jsonl")
    for record, (accuracy, loss) in zip(lines, scores, strict=True):
        record |= {"validation_accuracy": accuracy, "validation_loss": loss}
    write_jsonl(own_run / "rounds.jsonl", lines)
    export(parse([str(own_run)]))
    found = read_json(own_run / "export" / "selection_metadata.json")
    assert found["round"] == chosen
    assert told in found["reason"]
    assert ("equal" in found["reason"]) == ("equal" in told)
    assert told in capsys.readouterr().out
    assert told in (own_run / "export" / "README.md").read_text()


def test_the_best_kept_round_is_taken_and_a_better_one_named(own_run, command):
    scores = read_jsonl(own_run / "rounds.jsonl")
    for record, accuracy in zip(scores, (0.5, 0.9, 0.6), strict=True):
        record["validation_accuracy"] = accuracy
    write_jsonl(own_run / "rounds.jsonl", scores)
    model_of_round(own_run, 2).unlink()
    done = command("fl", "export", own_run, check=0)
    told = read_json(own_run / "export" / "selection_metadata.json")
    assert told["round"] == 3
    assert "round 2 was better" in told["reason"]
    assert [each["kept"] for each in told["candidates"]] == [True, False, True]
    assert "round 2 was better" in done.stdout
    command("fl", "export", own_run, "--metric", "loss", check=0)
    assert "loss" in read_json(own_run / "export" / "selection_metadata.json")["reason"]


def test_files_of_an_earlier_export_go(own_run, command):
    command("fl", "export", own_run, "--round", 2, "--plot", check=0)
    (own_run / "export" / "notes.txt").write_text("mine")
    command("fl", "export", own_run, "--quantize", "none", check=0)
    assert sorted(path.name for path in (own_run / "export").iterdir()) == [
        "README.md", "model_fp32.pt", "notes.txt", "selection_metadata.json",
    ]  # fmt: skip


def test_without_validation_images_the_last_round_is_taken_and_the_reason_told(small_run, command, tmp_path):
    done = command("fl", "export", small_run, "--output", "out", check=0)
    told = read_json(tmp_path / "out" / "selection_metadata.json")
    assert told["round"] == 2
    assert "no validation images" in told["reason"]
    assert "no validation images" in done.stdout


def test_bad_exports_are_refused(own_run, small_run, refused, tmp_path):
    refused("fl", "export", tmp_path, words=["no finished run", "final_model.pt"])
    refused("fl", "export", own_run, "--formats", ",", words=["--format ,: names nothing"])
    state = torch.load(model_of_round(own_run, 1), weights_only=True)
    save_state(model_of_round(own_run, 1), {**state, "fc1.bias": state["fc1.bias"] + 1e6})
    cases = {
        (own_run, "--data", "synthetic"): "--data synthetic.*--format",
        (own_run, "--round", "9"): "--round 9.*3 rounds",
        (small_run, "--round", "1"): "--round 1.*not kept.*checkpoint.keep=all",
        (own_run, "--quantize", "none", "--keep-batchnorm-fp32"): "--keep-batchnorm-fp32",
        (own_run, "--round", "1"): "FP16.*fc1.bias",
    }
    for arguments, message in cases.items():
        with pytest.raises(QuantflError, match=message):
            export(parse([str(each) for each in arguments]))
    assert not (own_run / "export" / "model_fp16.pt").exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["checkpoint.keep=first"], ["checkpoint.keep=first", "last, best, all"]),
        (["checkpoint.keep=0"], ["checkpoint.keep=0"]),
        (["checkpoint.keep=true"], ["checkpoint.keep=True"]),
        (["checkpoint.keep=best"], ["checkpoint.keep=best", "data.validation_fraction"]),
        (["checkpoint.keep=best", "data.validation_fraction=0.001"], ["checkpoint.keep=best", "0.001"]),
    ],
)
def test_impossible_keeping_is_refused(overrides, words, refused):
    refused("fl.train", *SMALL, *overrides, words=words)


def test_one_session_from_training_to_a_file_to_ship(command, tmp_path):
    folder = train(command, *VALIDATED, "checkpoint.keep=best", cwd=tmp_path)
    assert 1 <= len(kept(folder)) <= 2
    command("fl", "export", folder, check=0)
    assert isinstance(fl.load_model(folder / "export" / "model_fp16.pt"), Net)
