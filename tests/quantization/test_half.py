"""`inference.fp16`: who wins, what it does, and what happens where half precision cannot be had."""

import numpy as np
import pytest
import torch
from conftest import SMALL, composed, train

import fl
from fl.core.errors import ConfigError, ModelFileError
from fl.core.files import read_json
from fl.experiment.settings import settings_from
from fl.models.net import initial_model, to_input
from fl.quantization import precision_of
from fl.quantization.half import fp16_wanted, prepare
from fl.quantization.model_file import save_model
from fl.training.evaluation import evaluate_as_told

CPU = torch.device("cpu")


@pytest.fixture
def model():
    net = initial_model(10, 0).eval()
    torch.nn.init.normal_(net.fc3.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    return net


@pytest.fixture
def x():
    return to_input(
        torch.randint(0, 256, (8, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    )


@pytest.mark.parametrize("word", ["1", "true", "yes", "enable", "TRUE", "Yes", " enable ", 1, True])
def test_words_for_yes(word):
    assert fp16_wanted(word) is True


@pytest.mark.parametrize("word", ["0", "false", "no", "disable", "FALSE", "No", "DISABLE", 0, False])
def test_words_for_no(word):
    assert fp16_wanted(word) is False


@pytest.mark.parametrize("word", ["auto", "AUTO", "Auto"])
def test_the_default_word(word):
    assert fp16_wanted(word) is None


@pytest.mark.parametrize("word", ["", "maybe", "2", None, "on", "fp16", 0.5])
def test_other_words_are_refused(word):
    with pytest.raises(ConfigError, match=f"inference.fp16={word}: must be auto, 1 true yes enable or 0 false no"):
        fp16_wanted(word)


def test_by_default_a_cpu_answers_in_fp32(model, x):
    said = []
    ready = prepare(model, CPU, None, said.append)
    assert {parameter.dtype for parameter in ready.parameters()} == {torch.float32}
    assert not said
    assert torch.equal(ready(x), model(x))


def test_half_precision_takes_half_the_bytes_casts_its_input_and_keeps_shapes(model, x):
    said, before = [], {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ready = prepare(model, CPU, True, said.append)
    weights = [sum(p.numel() * p.element_size() for p in each.parameters()) for each in (ready, model)]
    assert 2 * weights[0] == weights[1]
    assert said == ["inference.fp16: the model was converted to FP16 for memory efficiency"]
    with torch.inference_mode():
        answers, exact = ready(x), model(x)  # float32 goes in
    assert answers.dtype == torch.float16
    assert answers.shape == exact.shape
    assert torch.allclose(answers.float(), exact, atol=0.02)
    assert all(p.shape == q.shape for p, q in zip(ready.parameters(), model.parameters(), strict=True))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def overflowing(model):
    model.fc2.weight.data[0, 0] = 1e6
    return "fc2.weight"


def overflowing_in_between(model):
    model.fc1.bias.data += 60000.0
    model.fc2.weight.data.fill_(1.0)
    return "not finite"


@pytest.mark.parametrize("break_it", [overflowing, overflowing_in_between])
def test_a_model_that_cannot_be_halved_answers_in_fp32_and_says_why(model, x, break_it):
    reason, said = break_it(model), []
    ready = prepare(model, CPU, True, said.append)
    assert len(said) == 1
    assert "FP32 is used instead" in said[0]
    assert reason in said[0]
    assert torch.equal(ready(x), model(x))


def test_answers_that_overflow_half_precision_on_real_images_are_given_in_fp32(model):
    """Zeros stay finite, so only the images tell."""
    model.fc3.weight.data.mul_(2e4 / model.fc3.weight.abs().max())
    images = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
    labels, said = np.zeros(8, np.int64), []
    found, dtype = evaluate_as_told(
        model, images, labels, batch_size=4, device=CPU, fp16=True, tell=said.append
    )  # fmt: skip
    exact, _ = evaluate_as_told(model, images, labels, batch_size=4, device=CPU, fp16=None)
    assert dtype == torch.float32
    assert "overflow" in said[-1]
    assert np.array_equal(found.logits, exact.logits)


def test_a_device_that_refuses_half_precision_is_told_apart(model, x, monkeypatch):
    from fl.quantization import halved

    def refuses(self, x):
        raise RuntimeError("\"slow_conv2d_cpu\" not implemented for 'Half'")

    monkeypatch.setattr(halved._Half, "forward", refuses)
    said = []
    assert torch.equal(prepare(model, CPU, True, said.append)(x), model(x))
    assert "not implemented for 'Half'" in said[0]


@pytest.mark.parametrize(
    ("variable", "typed", "expected"),
    [(None, [], None), ("Yes", [], True), ("1", ["inference.fp16=no"], False), ("0", ["inference.fp16=enable"], True)],
)
def test_the_command_line_wins_over_the_variable_and_that_over_auto(variable, typed, expected, monkeypatch):
    monkeypatch.delenv("USE_FP16", raising=False)
    if variable:
        monkeypatch.setenv("USE_FP16", variable)
    assert settings_from(composed(*SMALL, *typed)).compute.inference.fp16 is expected


def test_a_run_evaluates_as_told_and_trains_the_same_model(command, small_run, tmp_path, monkeypatch):
    monkeypatch.setenv("USE_FP16", "Yes")
    folder = train(command, *SMALL, "fraction_evaluate=0.5", cwd=tmp_path)
    assert read_json(folder / "summary.json")["evaluated_in"] == "float16"
    assert read_json(small_run / "summary.json")["evaluated_in"] == "float32"
    assert (folder / "final_model.pt").read_bytes() == (small_run / "final_model.pt").read_bytes()


def test_a_wrong_word_is_refused_before_training(refused, monkeypatch):
    refused("fl.train", *SMALL, "inference.fp16=maybe", words=["inference.fp16=maybe", "auto", "enable", "disable"])
    monkeypatch.setenv("USE_FP16", "fast")
    refused("fl.train", *SMALL, words=["inference.fp16=fast", "USE_FP16"])


def test_a_file_is_loaded_in_the_precision_asked_for(model, x, tmp_path, capsys):
    save_model(tmp_path / "half.pt", precision_of("fp16").convert(model), "0" * 64)
    save_model(tmp_path / "whole.pt", precision_of("fp32").convert(model), "0" * 64)
    save_model(tmp_path / "int8.pt", precision_of("int8").convert(model), "0" * 64)
    for name in ("half.pt", "whole.pt"):
        for fp16, dtype in (("yes", torch.float16), ("no", torch.float32), ("auto", torch.float32)):
            loaded = fl.load_model(tmp_path / name, device="cpu", fp16=fp16)
            assert loaded.fc1.weight.dtype == dtype
            with torch.inference_mode():
                assert torch.allclose(loaded(x).float(), model(x), atol=0.02)
    assert "memory efficiency" in capsys.readouterr().out
    assert fl.load_model(tmp_path / "half.pt", fp16="no").quantization_info["loaded_as"] == "fp32"
    with pytest.raises(ModelFileError, match="INT8"):
        fl.load_model(tmp_path / "int8.pt", fp16="yes")
    assert fl.load_model(tmp_path / "half.pt", device="auto").fc1.weight.dtype == torch.float16


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_by_default_a_gpu_answers_in_half_precision(model, x):
    ready = prepare(model, torch.device("cuda"), None)
    assert ready.fc1.weight.dtype == torch.float16
    with torch.inference_mode():
        assert torch.allclose(ready(x.cuda()).float().cpu(), initial_model(10, 0).eval()(x), atol=0.5)
