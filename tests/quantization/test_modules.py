"""Converted models agree with FP32, run on integer kernels, and come back from their files as they were."""

import copy
import re
import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import REPOSITORY, uneven_model
from torch.profiler import ProfilerActivity, profile

from fl.core import presets
from fl.core.errors import ModelFileError
from fl.data.provenance import find_inputs
from fl.models.net import Net, initial_model, to_input
from fl.quantization import Precision, aware, graphs, halved, kernels, kernels_of, methods, modules, precision_of
from fl.quantization.folding import fold_batch_norm
from fl.quantization.model_file import load_fp32, load_model, save_model, to_bytes
from fl.quantization.numeric import (
    QParams,
    choose_activation_qparams,
    dequantize_weight,
    quantize_activation,
    quantize_weight,
)
from fl.quantization.precisions import precisions
from fl.quantization.rounding import quantize_weight_together

PRECISIONS = {name: precision_of(name) for name in ("fp32", "fp16", "int8", "int8_static", "int4", "int2")}
LAYERS = ("conv1", "conv2", "conv3", "fc1", "fc2", "fc3")
INTEGER = ["int8", "int8_static", "int4", "int2"]
"""Precisions that run on INT8 kernels."""
CLOSE = {"int8": 0.02, "int8_static": 0.02, "int4": 0.3, "int2": 1.2}
"""Relative error of logits, at most."""


@pytest.fixture(scope="module")
def images():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (64, 64, 64, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def model(images):
    return uneven_model(images)


@pytest.fixture(params=[kernels.ONEDNN, kernels.REFERENCE])
def executed_by(request, monkeypatch):
    """Runs a test with each way of executing INT8 layers that this CPU has."""
    if request.param == kernels.ONEDNN and kernels.cpu_kernels() != kernels.ONEDNN:
        pytest.skip("this CPU has no right oneDNN INT8 kernels")
    for place in (modules, graphs):
        monkeypatch.setattr(place, "cpu_kernels", lambda: request.param)
    return request.param


def test_folding_batch_norm_changes_nothing(model, images):
    x = to_input(images)
    assert torch.allclose(fold_batch_norm(model)(x), model(x), atol=1e-4)


@pytest.mark.parametrize("name", INTEGER)
def test_integer_logits_are_close_to_fp32(model, images, name, executed_by):
    x = to_input(images)
    converted = PRECISIONS[name].convert(model, x)
    assert kernels_of(converted) == executed_by
    with torch.inference_mode():
        exact, quantized = model(x), converted(x)
    error = (exact - quantized).norm() / exact.norm()
    print(f"{name}: relative error {error:.3f}")
    assert error <= CLOSE[name]


@pytest.mark.parametrize("name", INTEGER)
def test_the_profiler_sees_integer_kernels_and_no_float_convolution(model, images, name):
    if kernels.cpu_kernels() != kernels.ONEDNN:
        pytest.skip("this CPU has no right oneDNN INT8 kernels")
    x = to_input(images)
    converted = PRECISIONS[name].convert(model, x)
    with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU]) as trace:
        converted(x)
    events = [event.name for event in trace.events()]
    assert events.count("onednn::qconv_pointwise") == 3
    assert events.count("onednn::qlinear_pointwise") == 3
    assert not [each for each in events if "convolution" in each or "conv2d" in each or "addmm" in each]


def test_static_activations_stay_uint8_between_layers(model, images):
    converted = PRECISIONS["int8_static"].convert(model, to_input(images))
    seen = {}
    for name in LAYERS:
        hook = lambda module, args, output, name=name: seen.update({name: (args[0].dtype, output.dtype)})  # noqa: E731
        converted.get_submodule(name).register_forward_hook(hook)
    with torch.inference_mode():
        converted(to_input(images))
    assert [before for before, _ in seen.values()] == [torch.float32] + [torch.uint8] * 5
    assert [after for _, after in seen.values()] == [torch.uint8] * 5 + [torch.float32]


def test_every_convolution_and_linear_weight_is_int8(model, images):
    for name in ("int8", "int8_static"):
        state = PRECISIONS[name].convert(model, to_input(images)).state_dict()
        assert {state[f"{layer}.weight"].dtype for layer in LAYERS} == {torch.int8}
        assert not any("bn" in key for key in state)


def test_half_precision_halves_every_float_and_answers_in_half(model, images):
    half = PRECISIONS["fp16"].convert(model)
    assert {t.dtype for t in half.state_dict().values() if t.is_floating_point()} == {torch.float16}
    with torch.inference_mode():
        assert half(to_input(images, torch.float16)).dtype == torch.float16


def test_half_convolutions_in_float32_arithmetic_are_torchs_own(monkeypatch):
    torch.manual_seed(0)
    layer = halved.HalfConv2d(3, 8, 5).half()
    x = torch.rand(2, 3, 16, 16).half()
    results = []
    for native in (True, False):
        monkeypatch.setattr(halved, "native_half_convolution", lambda native=native: native)
        results.append(layer(x).float())
    assert torch.allclose(*results, atol=2e-3)


@pytest.mark.parametrize("name", PRECISIONS)
def test_a_saved_model_loads_to_the_same_answers(model, images, name, tmp_path):
    x = to_input(images)
    converted = PRECISIONS[name].convert(model, x)
    path = tmp_path / f"model_{name}.pt"
    save_model(path, converted, "0" * 64)
    loaded = load_model(path)
    assert loaded.quantization_info["precision"] == name
    assert loaded.quantization_info["num_parameters"] == 434_602
    assert not loaded.training
    with torch.inference_mode():
        assert torch.equal(loaded(x.to(loaded.input_dtype)), converted(x.to(converted.input_dtype)))


def test_a_loaded_int8_file_is_at_most_27_percent_of_fp32(model, images):
    fp32 = len(to_bytes(dict(model.state_dict())))
    for name in ("int8", "int8_static"):
        converted = PRECISIONS[name].convert(model, to_input(images))
        content = {"model_state_dict": converted.state_dict(), "quantization_info": converted.quantization_info}
        assert len(to_bytes(content)) <= 0.27 * fp32


def test_converting_leaves_the_model_as_it_was(model, images):
    before = copy.deepcopy(model.state_dict())
    for precision in PRECISIONS.values():
        precision.convert(model, to_input(images))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_loading_other_weights_into_a_quantized_model_is_not_hidden_by_packed_ones(model, images):
    x = to_input(images)
    other = initial_model(10, seed=2).eval()
    torch.nn.init.normal_(other.fc3.weight)
    target, source = (PRECISIONS["int8"].convert(each) for each in (model, other))
    with torch.inference_mode():
        target(x)
        target.load_state_dict(source.state_dict())
        assert torch.equal(target(x), source(x))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("name", PRECISIONS)
def test_every_precision_runs_on_cuda(model, images, name):
    converted = PRECISIONS[name].convert(model, to_input(images))
    x = to_input(images).to(converted.input_dtype)
    with torch.inference_mode():
        on_cpu = converted(x).float()
        on_cuda = converted.to("cuda")(x.to("cuda")).float().cpu()
    assert (on_cpu - on_cuda).norm() <= 0.1 * on_cpu.norm()


@pytest.mark.parametrize(("name", "percent"), [("int4", 14.0), ("int2", 8.5)])
def test_files_of_few_bits_are_really_packed(model, name, percent, tmp_path):
    save_model(tmp_path / "model.pt", PRECISIONS[name].convert(model), "0" * 64)
    fp32 = len(to_bytes(dict(model.state_dict())))
    size = (tmp_path / "model.pt").stat().st_size
    print(f"{name}: {size:,} bytes, {100 * size / fp32:.1f} % of FP32")
    assert size <= percent / 100 * fp32


@pytest.mark.parametrize(("bits", "name", "most"), [(8, "int8", 2.0), (4, "int4", 0.25)])
def test_quantization_aware_training_computes_what_the_integer_model_will(model, images, bits, name, most):
    """The same up to BatchNorm, which the integer model folds, and, in 8 bits, to errors that it lets cancel."""
    trained, x = aware(Net(), bits).eval(), to_input(images)
    trained.load_state_dict(model.state_dict())
    assert list(trained.state_dict()) == list(model.state_dict())
    with torch.inference_mode():
        seen, exact, converted = trained(x), model(x), PRECISIONS[name].convert(model)(x)
    assert 0.5 * (converted - exact).norm() <= (seen - exact).norm() <= 0.3 * exact.norm()
    assert (seen - converted).norm() <= most * (converted - exact).norm()


def test_gradients_pass_through_the_rounding(model, images):
    trained = aware(Net(), 4)
    trained.load_state_dict(model.state_dict())
    trained(to_input(images)).square().mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for name, parameter in trained.named_parameters() if "conv" not in name)
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in trained.parameters())


@pytest.mark.parametrize(("buffer", "value"), [("levels", 255), ("multiplier", 200)])
def test_a_forged_int4_file_is_refused(model, tmp_path, buffer, value):
    forged = PRECISIONS["int4"].convert(model)
    forged.get_buffer(f"fc1.{buffer}").fill_(value)
    save_model(tmp_path / "model.pt", forged, "0" * 64)
    with pytest.raises(ModelFileError, match="beyond those of 4 bits"):
        load_model(tmp_path / "model.pt")


def test_batch_norm_may_stay_in_fp32(model, images, tmp_path):
    half = PRECISIONS["fp16"].convert(model, keep_batchnorm_fp32=True)
    kinds = {name: tensor.dtype for name, tensor in half.state_dict().items() if tensor.is_floating_point()}
    assert {name for name, dtype in kinds.items() if dtype == torch.float32} == {n for n in kinds if "bn" in n}
    save_model(tmp_path / "model.pt", half, "0" * 64)
    loaded = load_model(tmp_path / "model.pt")
    with torch.inference_mode():
        answers = loaded(to_input(images, torch.float16))
        assert torch.equal(answers, half(to_input(images, torch.float16)))
        assert (answers.float() - model(to_input(images))).norm() <= 0.01 * model(to_input(images)).norm()


def test_values_beyond_fp16_are_refused_and_named(model):
    large = copy.deepcopy(model)
    large.fc2.weight.data[0, 0] = 70000.0
    large.bn1.running_var[3] = 1e6
    with pytest.raises(ModelFileError, match=r"bn1.running_var \(1e\+06\), fc2.weight \(70000\)"):
        PRECISIONS["fp16"].convert(large)
    large.fc2.weight.data[0, 0] = 65504.0
    PRECISIONS["fp16"].convert(large, keep_batchnorm_fp32=True)


@pytest.mark.parametrize("name", ["method", "Net", "copy", "calibrate", "../precision/int8", "nothing"])
def test_only_methods_are_precisions(name):
    with pytest.raises(ValueError, match="has no function"):
        Precision(name, "Title", "Method")
    with pytest.raises(ValueError, match="has no function"):
        precision_of(name)


def test_number_of_parameters():
    assert sum(p.numel() for p in Net().parameters()) == 434_602


def test_precisions_are_in_the_order_of_the_methods_and_all_have_a_title():
    assert list(precisions(["all"])) == list(methods.METHODS) == list(PRECISIONS)
    assert list(precisions(["int4", "all"])) == ["int4", "fp32", "fp16", "int8", "int8_static", "int2"]
    assert all(each.title and each.method for each in PRECISIONS.values())


def test_the_precision_that_the_readme_adds_works(model, images, monkeypatch, tmp_path):
    """Runs the documentation's own texts as if they stood in methods.py and conf/."""
    readme = (REPOSITORY / "docs" / "precisions.md").read_text()
    (text,) = re.findall(r"```python\n(@method\ndef bf16.*?)```", readme, re.DOTALL)
    (title,) = re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL)
    shutil.copytree(presets.CONF, tmp_path / "conf")
    (tmp_path / "conf" / "precision" / "bf16.yaml").write_text(title)
    monkeypatch.setattr(presets, "CONF", tmp_path / "conf")
    monkeypatch.setitem(methods.METHODS, "bf16", None)  # it is gone again after this
    exec(text, dict(vars(methods)))
    assert list(precisions(["all"])) == [*PRECISIONS, "bf16"]
    assert precision_of("bf16").title == "BF16"
    save_model(tmp_path / "model_bf16.pt", precision_of("bf16").convert(model), "0" * 64)
    loaded = load_model(tmp_path / "model_bf16.pt")
    with torch.inference_mode():
        answers = loaded(to_input(images, loaded.input_dtype))
        assert answers.dtype == torch.bfloat16
        assert (answers.float() - model(to_input(images))).norm() <= 0.1 * model(to_input(images)).norm()


def _smooth(channels, size, count=400):
    """Returns patches as they are everywhere: a level, slopes, little noise; colours are alike; [count, n]."""
    generator = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    place = torch.arange(size).float() - size // 2
    down, across = 0.15 * draw(count, 1, 1, 1), 0.15 * draw(count, 1, 1, 1)
    level = draw(count, 1, 1, 1) + 0.15 * draw(count, 3, 1, 1) if channels == 3 else draw(count, channels, 1, 1)
    return (level + down * place[:, None] + across * place + 0.05 * draw(count, channels, size, size)).flatten(1)


@pytest.mark.parametrize(("name", "times"), [("conv1", 4), ("conv2", 2), ("conv3", 2)])
def test_smooth_inputs_pass_rounded_filters_with_far_less_error(model, name, times):
    weight = fold_batch_norm(model).get_submodule(name).weight.detach()
    patches = _smooth(weight.shape[1], weight.shape[-1])
    errors = [
        (patches @ (dequantize_weight(*pair) - weight).flatten(1).T).norm().item()
        for pair in (quantize_weight(weight), quantize_weight_together(weight, name == "conv1"))
    ]
    print(f"{name}: {errors[0] / errors[1]:.1f} times less")
    assert errors[1] <= errors[0] / times


@pytest.mark.parametrize("name", INTEGER)
def test_the_first_layer_adds_no_error_but_that_of_its_weights(model, images, name, executed_by):
    """An image's integers have their zero between two, which kernels do not know."""
    x = to_input(images)
    layer = PRECISIONS[name].convert(model, x).conv1
    layer.relu, layer.following = False, ()
    with torch.inference_mode():
        ours, integers = layer(x), quantize_activation(x, layer.incoming())
        exact = F.conv2d(x, dequantize_weight(layer.weight, layer.weight_scale), layer.bias)
    assert torch.equal(integers.permute(0, 2, 3, 1), images)
    assert (ours - exact).abs().max() <= 1e-4 * exact.abs().max()


@pytest.mark.parametrize("name", INTEGER)
def test_first_and_last_layer_have_8_bits_and_groups_their_sizes(model, images, name):
    state = PRECISIONS[name].convert(model, to_input(images)).state_dict()
    assert {state[f"{layer}.weight"].dtype for layer in ("conv1", "fc3")} == {torch.int8}
    assert not any(f"{layer}.levels" in state for layer in ("conv1", "fc3"))
    if name in ("int4", "int2"):
        groups = {"int4": 2400 // 32, "int2": 2400 // 16}[name]
        assert state["fc1.multiplier"].shape == (128, groups)
        assert state["fc1.levels"].numel() == 128 * 2400 * int(name[-1]) // 8
        assert state["conv2.multiplier"].shape == (64, -(-800 // (2400 // groups)))


def test_ranges_are_those_of_every_calibration_image_after_relu(model, images, monkeypatch):
    """Largest values in the last of three batches, one in the second; none is below 0 where ReLU was."""
    inputs = to_input(images)[:9].clone()
    inputs[:4] *= 0.1
    folded, x, expected = fold_batch_norm(model), inputs, {}
    with torch.inference_mode():
        for name, following in pairwise(LAYERS):
            x = F.relu(folded.get_submodule(name)(x))
            x = F.max_pool2d(x, 2) if "conv" in name else x
            x = x.flatten(1) if name == "conv3" else x
            expected[following] = x.max().item() / 255
    monkeypatch.setattr(graphs, "CALIBRATION_PIXELS", 4 * 64 * 64)
    found, first = (_ranges(PRECISIONS["int8_static"].convert(model, each)) for each in (inputs, inputs[:4]))
    assert {name: qparams.scale for name, qparams in found.items()} == pytest.approx(expected, rel=1e-5)
    assert {qparams.zero_point for qparams in found.values()} == {0}
    assert all(found[name].scale > 1.2 * first[name].scale for name in ("conv2", "conv3", "fc1"))


def _ranges(converted):
    return {name: converted.get_submodule(name).incoming() for name in LAYERS[1:]}


def _as_layout_1(model, inputs, name):
    """Returns a state dict as the first version wrote it: every weight the nearest, the image over a range too."""
    state = PRECISIONS[name].convert(model, inputs).state_dict()
    folded = fold_batch_norm(model)
    for layer in LAYERS:
        if f"{layer}.levels" not in state:
            weight = folded.get_submodule(layer).weight.detach()
            state[f"{layer}.weight"], state[f"{layer}.weight_scale"] = quantize_weight(weight)
    if name == "int8_static":
        image = choose_activation_qparams(inputs.min().item(), inputs.max().item())
        state["conv1.input_scale"] = torch.tensor(image.scale)
        state["conv1.input_zero_point"] = torch.tensor(image.zero_point, dtype=torch.int32)
    return state


@pytest.mark.parametrize("name", INTEGER)
def test_files_of_the_first_layout_give_the_answers_they_gave(model, images, name, tmp_path, monkeypatch):
    monkeypatch.setattr(modules, "cpu_kernels", lambda: kernels.REFERENCE)
    x = to_input(images)
    state = _as_layout_1(model, x, name)
    info = {"precision": name, "num_parameters": 434_602, "num_classes": 10}
    torch.save({"model_state_dict": state, "quantization_info": info, "made_from": "0" * 64}, tmp_path / "old.pt")
    loaded = load_model(tmp_path / "old.pt")
    weights = {layer: loaded.get_buffer(f"{layer}.weight") for layer in LAYERS}  # unpacked, if packed
    y = x
    for layer in LAYERS:
        if name == "int8_static":
            incoming = QParams(state[f"{layer}.input_scale"].item(), state[f"{layer}.input_zero_point"].item())
        else:
            incoming = choose_activation_qparams(y.min().item(), y.max().item())
        integers = quantize_activation(y, incoming)
        scale, bias = state[f"{layer}.weight_scale"], state[f"{layer}.bias"]
        y = kernels.run_reference(integers, incoming, weights[layer], scale, bias, relu=layer != "fc3", outgoing=None)
        y = F.max_pool2d(y, 2) if "conv" in layer else y
        y = y.flatten(1) if layer == "conv3" else y
    with torch.inference_mode():
        assert torch.allclose(loaded(x), y, rtol=1e-5, atol=1e-5)
    save_model(tmp_path / "again.pt", loaded, "0" * 64)
    with torch.inference_mode():
        assert torch.equal(load_model(tmp_path / "again.pt")(x), loaded(x))


def test_a_layout_of_a_newer_version_is_refused(model, tmp_path):
    newer = PRECISIONS["int8"].convert(model)
    assert newer.quantization_info["layout"] == 2
    newer.quantization_info["layout"] = 3
    save_model(tmp_path / "model.pt", newer, "0" * 64)
    with pytest.raises(ModelFileError, match="layout 3 is not known"):
        load_model(tmp_path / "model.pt")


@pytest.mark.parametrize("name", INTEGER)
def test_the_same_model_and_images_make_the_same_bytes(model, images, name, tmp_path):
    for file in ("first.pt", "second.pt"):
        save_model(tmp_path / file, PRECISIONS[name].convert(model, to_input(images)), "0" * 64)
    assert (tmp_path / "first.pt").read_bytes() == (tmp_path / "second.pt").read_bytes()


@pytest.mark.eurosat
@pytest.mark.parametrize(("name", "most"), [("int8", 0.0002), ("int8_static", 0.0003)])
def test_the_example_model_answers_as_before_on_its_training_images(eurosat_zip, name, most):
    """Mean divergence of its answers: 0.0011 (0.0014 static) with nearest rounding and a rounded image."""
    model = load_fp32(REPOSITORY / "examples" / "final_model.pt")[0]
    x = to_input(torch.from_numpy(find_inputs(None, None, 10).calibration))
    converted = PRECISIONS[name].convert(model, x[:256])
    with torch.inference_mode():
        exact = torch.cat([model(each) for each in x.split(32)]).log_softmax(1)
        ours = torch.cat([converted(each) for each in x.split(32)]).log_softmax(1)
    divergence = F.kl_div(ours, exact, reduction="batchmean", log_target=True).item()
    print(f"{name}: divergence {divergence:.6f}")
    assert divergence <= most
    assert (ours.argmax(1) == exact.argmax(1)).double().mean() >= 0.994
