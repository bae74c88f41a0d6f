"""Numbers agree with torch's own; INT8 kernels agree with the reference; converted models agree with FP32."""

import copy
import re

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from fl.model import Net, initial_model, to_input
from fl.model_file import load_model, save_model, to_bytes
from fl.quantization import Fp16, Fp32, Int8, Int8Static, kernels, modules
from fl.quantization.numeric import (
    QParams,
    choose_activation_qparams,
    dequantize_activation,
    dequantize_weight,
    quantize_activation,
    quantize_weight,
)

PRECISIONS = {"fp32": Fp32(), "fp16": Fp16(), "int8": Int8(), "int8_static": Int8Static()}


@pytest.fixture(scope="module")
def images():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (64, 64, 64, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def model(images):
    """A network whose BatchNorm statistics and logits are not those of a fresh one."""
    net = initial_model(10, seed=1).train()
    torch.nn.init.normal_(net.fc3.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for _ in range(5):
            net(to_input(images))
    return net.eval()


@pytest.fixture(params=[kernels.ONEDNN, kernels.REFERENCE])
def executed_by(request, monkeypatch):
    """Runs a test with each way of executing INT8 layers that this CPU has."""
    if request.param == kernels.ONEDNN and kernels.cpu_kernels() != kernels.ONEDNN:
        pytest.skip("this CPU has no right oneDNN INT8 kernels")
    monkeypatch.setattr(modules, "cpu_kernels", lambda: request.param)
    return request.param


@given(st.floats(-100, 100), st.floats(0, 100))
def test_activation_parameters_are_those_of_torchs_observer(low, width):
    from torch.ao.quantization import MinMaxObserver

    observer = MinMaxObserver(dtype=torch.quint8, qscheme=torch.per_tensor_affine, quant_min=0, quant_max=255)
    observer(torch.tensor([low, low + width], dtype=torch.float32))
    scale, zero_point = observer.calculate_qparams()
    ends = torch.tensor([low, low + width], dtype=torch.float32)
    ours = choose_activation_qparams(ends[0].item(), ends[1].item())
    assert ours.scale == pytest.approx(scale.item(), rel=1e-6)
    assert abs(ours.zero_point - zero_point.item()) <= 1  # at exact halves float32 and float64 round apart


@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3))
def test_activations_come_back_within_half_a_step_and_zero_exactly(seed, size):
    x = torch.randn(500, generator=torch.Generator().manual_seed(seed)) * size
    x[0] = 0
    qparams = choose_activation_qparams(x.min().item(), x.max().item())
    back = dequantize_activation(quantize_activation(x, qparams), qparams)
    assert back[0] == 0
    assert (back - x).abs().max() <= qparams.scale * 0.501 + 1e-6 * size


@given(st.integers(0, 2**32 - 1), st.sampled_from([(4, 3, 5, 5), (7, 20), (1, 1)]))
def test_weights_are_those_of_torchs_per_channel_quantization(seed, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    ours, scale = quantize_weight(weight)
    import warnings

    with warnings.catch_warnings(action="ignore"):  # torch deprecates quantized tensors; here they are the oracle
        theirs = torch.quantize_per_channel(weight, scale, torch.zeros(shape[0], dtype=torch.int64), 0, torch.qint8)
    assert (ours.int() - theirs.int_repr().int()).abs().max() <= 1
    assert (ours != theirs.int_repr()).float().mean() < 0.01  # torch multiplies by 1 / scale
    assert (dequantize_weight(ours, scale) - weight).abs().max() <= 0.501 * scale.max()
    assert ours.abs().amax() == 127


def test_a_channel_of_zeros_stays_zero():
    weight, scale = quantize_weight(torch.zeros(2, 3))
    assert torch.equal(dequantize_weight(weight, scale), torch.zeros(2, 3))


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1), st.booleans(), st.booleans(), st.integers(0, 255))
def test_integer_kernels_agree_with_the_reference(seed, is_image, relu, zero_point):
    if kernels.cpu_kernels() != kernels.ONEDNN:
        pytest.skip("this CPU has no right oneDNN INT8 kernels")
    generator = torch.Generator().manual_seed(seed)
    weight, scale = quantize_weight(torch.randn((6, 4, 3, 3) if is_image else (6, 36), generator=generator))
    shape = (3, 4, 7, 7) if is_image else (3, 36)
    x = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    bias, incoming = torch.randn(6, generator=generator), QParams(0.01, zero_point)
    packed = kernels.pack(weight, scale)
    for outgoing in (None, QParams(0.05, 3)):
        exact = kernels.run_reference(x, incoming, weight, scale, bias, relu=relu, outgoing=outgoing)
        fast = kernels.run_onednn(x, incoming, packed, scale, bias, relu=relu, outgoing=outgoing)
        tolerance = 1e-3 if outgoing is None else 1
        assert (exact.double() - fast.double()).abs().max() <= tolerance


def test_kernels_that_saturate_are_not_used(monkeypatch):
    """A CPU whose kernels add in 16 bits gives other numbers; the reference takes over and the model says so."""
    correct = kernels.run_onednn
    monkeypatch.setattr(kernels, "run_onednn", lambda *a, **k: correct(*a, **k).clamp(-100, 100))
    assert kernels.cpu_kernels.__wrapped__() == kernels.REFERENCE


def test_missing_kernels_are_not_used(monkeypatch):
    def absent(*args, **kwargs):
        raise AttributeError("'_OpNamespace' 'onednn' object has no attribute 'qconv_prepack'")

    monkeypatch.setattr(kernels, "pack", absent)
    assert kernels.cpu_kernels.__wrapped__() == kernels.REFERENCE


def test_folding_batch_norm_changes_nothing(model, images):
    x = to_input(images)
    assert torch.allclose(modules.fold_batch_norm(model)(x), model(x), atol=1e-4)


@pytest.mark.parametrize("name", ["int8", "int8_static"])
def test_int8_logits_are_close_to_fp32(model, images, name, executed_by):
    x = to_input(images)
    converted = PRECISIONS[name].convert(model, x)
    assert converted.kernels == executed_by
    with torch.inference_mode():
        exact, quantized = model(x), converted(x)
    assert (exact - quantized).norm() <= 0.1 * exact.norm()


@pytest.mark.parametrize("name", ["int8", "int8_static"])
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
    converted = Int8Static().convert(model, to_input(images))
    seen = {}
    for name in modules.LAYERS:
        hook = lambda module, args, output, name=name: seen.update({name: (args[0].dtype, output.dtype)})  # noqa: E731
        converted.get_submodule(name).register_forward_hook(hook)
    with torch.inference_mode():
        converted(to_input(images))
    assert all(before == torch.uint8 for before, _ in seen.values())
    assert [after for _, after in seen.values()] == [torch.uint8] * 5 + [torch.float32]


def test_every_convolution_and_linear_weight_is_int8(model, images):
    for name in ("int8", "int8_static"):
        state = PRECISIONS[name].convert(model, to_input(images)).state_dict()
        assert {state[f"{layer}.weight"].dtype for layer in modules.LAYERS} == {torch.int8}
        assert not any("bn" in key for key in state)


def test_half_precision_halves_every_float_and_answers_in_half(model, images):
    half = Fp16().convert(model)
    assert {t.dtype for t in half.state_dict().values() if t.is_floating_point()} == {torch.float16}
    with torch.inference_mode():
        assert half(to_input(images, torch.float16)).dtype == torch.float16


def test_half_convolutions_in_float32_arithmetic_are_torchs_own(monkeypatch):
    torch.manual_seed(0)
    layer = modules.HalfConv2d(3, 8, 5).half()
    x = torch.rand(2, 3, 16, 16).half()
    results = []
    for native in (True, False):
        monkeypatch.setattr(modules, "native_half_convolution", lambda native=native: native)
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
    target, source = Int8().convert(model), Int8().convert(other)
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


def test_number_of_parameters():
    assert sum(p.numel() for p in Net().parameters()) == 434_602


def test_the_precision_that_the_readme_adds_works(model, images, monkeypatch, tmp_path):
    """Runs the README's own text as if it stood in precisions.py."""
    from fl.quantization import precisions

    readme = (REPOSITORY / "README.md").read_text()
    (text,) = re.findall(r"```python\n(class Bf16.*?)```", readme, re.DOTALL)
    names = dict(vars(precisions))
    exec(text, names)
    names["Bf16"].__module__ = precisions.__name__
    monkeypatch.setattr(precisions, "Bf16", names["Bf16"], raising=False)
    converted = precisions.Bf16().convert(model)
    save_model(tmp_path / "model_bf16.pt", converted, "0" * 64)
    loaded = load_model(tmp_path / "model_bf16.pt")
    with torch.inference_mode():
        answers = loaded(to_input(images, loaded.input_dtype))
        assert answers.dtype == torch.bfloat16
        assert (answers.float() - model(to_input(images))).norm() <= 0.1 * model(to_input(images)).norm()
