"""Any network in integers: close to FP32, layers and nothing else quantized, files that come back."""

import networks
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fl.core.pixels import Pixels
from fl.core.targets import Target
from fl.models.architecture import Architecture, input_of, network_named
from fl.models.net import to_input
from fl.quantization import aware, graphs, kernels, kernels_of, modules, precision_of
from fl.quantization.folding import fold_batch_norm, quantizable
from fl.quantization.graphs import QuantizedGraph, float_tensors
from fl.quantization.model_file import load_fp32, load_model, save_model, save_state
from fl.quantization.modules import GroupedLayer, QuantizedLayer
from fl.quantization.numeric import GROUP_LEVELS, choose_activation_qparams

NETWORKS = ("networks.Residual", "networks.Grouped", "networks.Attention", "networks.Branching", "linear")
INTEGER = {"int8": 0.05, "int8_static": 0.05, "int4": 0.5}
"""Relative error of logits, at most."""


def images(count=16):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 64, 64, 3), dtype=torch.uint8, generator=generator)


def used(network):
    """Returns a network whose BatchNorm has seen images, in evaluation mode."""
    network.train()
    with torch.no_grad():
        for _ in range(5):
            network(to_input(images(32)))
    return network.eval()


@pytest.fixture(scope="module", params=NETWORKS)
def model(request):
    return used(Architecture(network_named(request.param)).initial(0))


@pytest.mark.parametrize("precision", INTEGER)
@pytest.mark.parametrize("name", ["networks.Residual", "net"])
def test_normalised_bands_lose_little(name, precision):
    """16-bit bands of different brightness, which reach six deviations to one side: far beyond what an image does."""
    values = torch.randn(16, 64, 64, 4, generator=torch.Generator().manual_seed(1)).exp() * torch.tensor(
        [50.0, 900, 9, 99]
    )
    given = values.numpy().astype("uint16")
    mean, deviation = given.mean((0, 1, 2), dtype=float), given.std((0, 1, 2), dtype=float)
    pixels = Pixels(bands=4, dtype="uint16", mean=tuple(mean), deviation=tuple(deviation))
    model = Architecture(network_named(name), 10, pixels).initial(0).train()
    x = input_of(model)(torch.from_numpy(given))
    assert x.max() > 6
    with torch.inference_mode():
        for _ in range(5):
            model(x)
        expected = model.eval()(x)
        found = precision_of(precision).convert(model, x)(x)
    assert (found - expected).norm() < INTEGER[precision] * expected.norm()


@pytest.fixture(params=[kernels.ONEDNN, kernels.REFERENCE])
def executed_by(request, monkeypatch):
    if request.param == kernels.ONEDNN and kernels.cpu_kernels() != kernels.ONEDNN:
        pytest.skip("this CPU has no right oneDNN INT8 kernels")
    for place in (modules, graphs):
        monkeypatch.setattr(place, "cpu_kernels", lambda: request.param)
    return request.param


def relative_error(exact, found):
    return ((exact - found.float()).norm() / exact.norm()).item()


@pytest.mark.parametrize("name", INTEGER)
def test_integer_logits_are_close_to_fp32(model, name, executed_by):
    x = to_input(images())
    converted = precision_of(name).convert(model, x)
    with torch.inference_mode():
        error = relative_error(model(x), converted(x))
    print(f"{type(model).__name__} {name}: {error:.4f}")
    assert error <= INTEGER[name]


@pytest.mark.parametrize("name", ["fp32", "fp16", "int8", "int8_static", "int4", "int2"])
def test_a_file_loads_to_the_same_answers_and_says_its_network(model, name, tmp_path):
    x, path = to_input(images(4)), tmp_path / f"model_{name}.pt"
    converted = precision_of(name).convert(model, x)
    save_model(path, converted, "0" * 64)
    loaded = load_model(
        path, device="cpu", model=model.architecture.target.target if "networks" in type(model).__module__ else None
    )
    assert loaded.quantization_info["network"]["_target_"] == model.architecture.target.target
    with torch.inference_mode():
        assert torch.equal(loaded(x.to(loaded.input_dtype)), converted(x.to(converted.input_dtype)))


def test_every_layer_is_quantized_and_what_is_not_is_told(model):
    converted = precision_of("int8").convert(model)
    state, layers = converted.state_dict(), quantizable(model)
    assert layers
    assert all(state[f"{name}.weight"].dtype == torch.int8 for name in layers)
    told = converted.quantization_info.get("float_tensors", {})
    assert told == float_tensors(converted)
    rest = {n: t.nbytes for n, t in state.items() if t.is_floating_point() and n.rpartition(".")[0] not in layers}
    assert told == rest
    if isinstance(model, networks.Attention):
        assert {"place", "mask", "norm.weight"} <= told.keys()
    if type(model) is networks.Residual:
        assert not told


def test_converting_leaves_the_network_as_it_was(model):
    x, before = to_input(images(4)), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.inference_mode():
        answers = model(x)
        for name in ("fp32", "fp16", *INTEGER):
            precision_of(name).convert(model, x)
        assert torch.equal(model(x), answers)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_what_cannot_be_traced_is_quantized_layer_by_layer():
    model = used(Architecture(network_named("networks.Branching")).initial(0))
    converted = precision_of("int8").convert(model)
    assert isinstance(converted, networks.Branching)
    assert not isinstance(converted, QuantizedGraph)
    assert kernels_of(converted) == kernels.cpu_kernels()
    assert {"norm.weight", "stem.1.running_var"} <= converted.quantization_info["float_tensors"].keys()


@pytest.mark.parametrize("bits", [8, 4])
def test_aware_training_of_any_network_sees_what_its_integers_will_answer(model, bits):
    x, exact_model = to_input(images()), model
    trained = aware(exact_model.architecture.build(), bits)
    trained.load_state_dict(exact_model.state_dict())
    assert [name for name, _ in trained.named_parameters()] == [name for name, _ in exact_model.named_parameters()]
    exact, seen = exact_model(x), trained.eval()(x)
    assert 0 < relative_error(exact, seen) <= INTEGER[f"int{bits}"]
    seen.square().mean().backward()
    assert all(parameter.grad is not None for parameter in trained.parameters())


def residual():
    return used(Architecture(network_named("networks.Residual")).initial(0))


def test_batch_norm_is_folded_by_what_it_is_not_by_names():
    model, x = residual(), to_input(images())
    folded = fold_batch_norm(model)
    assert not [each for each in folded.modules() if isinstance(each, nn.BatchNorm2d)]
    with torch.inference_mode():
        assert torch.allclose(folded(x), model(x), atol=1e-5)


class Twice(nn.Module):
    """A convolution whose result is normalized and used as it is, and one that is called twice."""

    def __init__(self, num_classes=10, in_channels=3):
        super().__init__()
        self.seen, self.norm = nn.Conv2d(in_channels, 8, 3), nn.BatchNorm2d(8)
        self.again, self.after = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, num_classes)

    def forward(self, x):
        x = self.seen(x)
        x = self.norm(x) + x
        x = self.after(self.again(self.again(x)))
        return self.head(x.mean((2, 3)))


def test_a_layer_whose_result_goes_elsewhere_keeps_its_batch_norm():
    model, x = used(Architecture(Target(f"{__name__}.Twice", {}, "model")).initial(0)), to_input(images())
    folded = fold_batch_norm(model)
    assert sum(isinstance(each, nn.BatchNorm2d) for each in folded.modules()) == 2
    with torch.inference_mode():
        assert torch.equal(folded(x), model(x))
        for name in ("int8", "int8_static"):
            assert relative_error(model(x), precision_of(name).convert(model, x)(x)) <= 0.05


def test_static_activations_stay_integers_where_only_layers_take_them():
    """The pointwise layer adds the depthwise one's input; a result that is averaged stays float."""
    model, x, seen = residual(), to_input(images()), {}
    converted = precision_of("int8_static").convert(model, x)
    for name, layer in converted.named_modules():
        if isinstance(layer, QuantizedLayer):
            layer.register_forward_hook(
                lambda module, args, output, name=name: seen.update({name: (*(a.dtype for a in args), output.dtype)})
            )
    with torch.inference_mode():
        converted(x)
    floats, bytes_ = torch.float32, torch.uint8
    assert seen == {
        "stem.0": (floats, bytes_),
        "depthwise": (bytes_, bytes_),
        "pointwise": (bytes_, bytes_, bytes_),
        "down": (bytes_, floats),
        "head": (floats, floats),
    }


class Chain(nn.Module):
    """Convolutions that pool, flatten and feed two layers."""

    def __init__(self, num_classes=10, in_channels=3):
        super().__init__()
        self.first, self.pool = nn.Conv2d(in_channels, 8, 5, stride=2), nn.MaxPool2d(3, stride=2, padding=1)
        self.left, self.right = nn.Conv2d(8, 4, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.relu, self.head = nn.ReLU(), nn.Linear(4 * 15 * 15, num_classes)

    def forward(self, x):
        x = self.pool(self.relu(self.first(x)))
        x = self.left(x) + self.right(x)
        return self.head(torch.flatten(x.view(x.size(0), 4, 15, 15), 1))


@pytest.fixture
def chain():
    return used(Architecture(Target(f"{__name__}.Chain", {}, "model")).initial(0))


def test_one_value_that_two_layers_take_has_one_range(chain):
    x = to_input(images())
    converted = precision_of("int8_static").convert(chain, x)
    left, right = converted.left.incoming(), converted.right.incoming()
    with torch.inference_mode():
        pooled = F.max_pool2d(F.relu(chain.first(x)), 3, 2, 1)
        largest = pooled.max().item()
        assert left == right == choose_activation_qparams(0.0, largest)
        assert relative_error(chain(x), converted(x)) <= 0.05
        added = choose_activation_qparams(*(each.item() for each in torch.aminmax(chain.left(pooled))))
    assert converted.first.following == (converted.left, converted.right)
    assert converted.first.relu
    assert (converted.left.outgoing(), converted.right.added_from) == (added, (converted.left,))


def test_a_file_keeps_the_range_of_what_is_only_added(chain, tmp_path):
    x, path = to_input(images()), tmp_path / "model_int8_static.pt"
    converted = precision_of("int8_static").convert(chain, x)
    save_model(path, converted, "0" * 64)
    loaded = load_model(path, device="cpu", model=Chain)
    assert loaded.left.outgoing() == converted.left.outgoing() is not None
    with torch.inference_mode():
        assert torch.equal(loaded(x), converted(x))


def test_a_file_of_before_adds_in_float(chain, executed_by):
    x = to_input(images())
    converted = precision_of("int8_static").convert(chain, x)
    with torch.inference_mode():
        expected = converted(x)
        state = converted.state_dict()
        for name in ("scale", "zero_point"):
            del state[f"left.output_{name}"]
        converted.load_state_dict(state)
        assert converted.left.outgoing() is None
        found = converted(x)
    assert not torch.equal(found, expected)
    assert relative_error(chain(x), found) <= 0.05


class Reused(nn.Module):
    """Sums of what the convolution takes itself, of what nobody needs then, and of what another view shows."""

    def __init__(self, num_classes=10, in_channels=3):
        super().__init__()
        self.first = nn.Conv2d(in_channels, 8, 5, stride=4)
        self.own, self.inner, self.plain = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.between, self.viewed, self.last = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.head = nn.Linear(2 * 8 * 225, num_classes)

    def forward(self, x):
        x = self.first(x).relu()
        x = self.own(x) + x
        x = torch.add(x, self.plain(self.inner(x)))
        one, other = x.view(-1, 8, 15, 15), x.view(-1, 8, 15, 15)
        x = self.viewed(self.between(x)) + one
        return self.head(torch.cat([x.flatten(1), self.last(other).flatten(1)], 1))


def test_what_is_added_may_be_needed_later(executed_by):
    kept = {"own": True, "plain": False, "viewed": True}
    model, x = used(Architecture(Target(f"{__name__}.Reused", {}, "model")).initial(0)), to_input(images())
    converted = precision_of("int8_static").convert(model, x)
    with torch.inference_mode():
        assert [converted.get_submodule(name).keeps_added for name in kept] == list(kept.values())
        assert relative_error(model(x), converted(x)) <= 0.03


class Unlike(nn.Module):
    """Additions that no convolution makes within: of another shape, scaled, to what others take, or later."""

    def __init__(self, num_classes=10, in_channels=3):
        super().__init__()
        self.first = nn.Conv2d(in_channels, 8, 5, stride=4)
        self.wide, self.same = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.scaled, self.shared, self.early = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.head = nn.Linear(8, num_classes)

    def forward(self, x):
        x = self.first(x).relu()
        mean = self.wide(x.mean((2, 3), keepdim=True))
        x = mean + self.same(x)
        x = torch.add(x, self.scaled(x), alpha=2)
        shared = self.shared(x)
        x = shared + x
        x = self.early(x) + F.silu(shared)
        return self.head(x.mean((2, 3)))


def test_what_is_not_the_sum_of_a_convolution_is_added_in_float(executed_by):
    model, x = used(Architecture(Target(f"{__name__}.Unlike", {}, "model")).initial(0)), to_input(images())
    converted = precision_of("int8_static").convert(model, x)
    layers = [node for node in converted.graph.nodes if node.op == "call_module"]
    assert [len(node.args) for node in layers] == [1] * 7
    with torch.inference_mode():
        assert relative_error(model(x), converted(x)) <= 0.05


class Pooled(nn.Module):
    """A value with negative elements that one layer takes as it is, and another one pooled."""

    def __init__(self, num_classes=10, in_channels=3):
        super().__init__()
        self.first, self.left, self.right = nn.Conv2d(in_channels, 8, 4, 4), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)
        self.head = nn.Linear(8, num_classes)

    def forward(self, x):
        x = self.first(x)
        parts = [self.left(x).mean((2, 3)), self.right(F.max_pool2d(x, kernel_size=4)).mean((2, 3))]
        return self.head(torch.cat(parts, 1))


def test_a_value_that_is_pooled_for_one_layer_has_the_range_of_all_of_it():
    model, x = used(Architecture(Target(f"{__name__}.Pooled", {}, "model")).initial(0)), to_input(images())
    converted = precision_of("int8_static").convert(model, x)
    with torch.inference_mode():
        value = model.first(x)
        whole = choose_activation_qparams(value.min().item(), value.max().item())
        assert F.max_pool2d(value, 4).min() > value.min() + 0.1
        assert converted.left.incoming() == converted.right.incoming() == whole
        assert converted.first.following == (converted.left, converted.right)
        assert relative_error(model(x), converted(x)) <= 0.05


def test_a_network_in_half_precision_takes_any_float(model):
    x, half = to_input(images(4)), precision_of("fp16").convert(model)
    with torch.inference_mode():
        assert torch.equal(half(x), half(x.half()))
        assert half(x).dtype == torch.float16


def test_ranges_are_those_of_every_calibration_image(chain, monkeypatch):
    monkeypatch.setattr(graphs, "CALIBRATION_PIXELS", 32 * 64 * 64)
    x = to_input(images(80))
    every, few = (precision_of("int8_static").convert(chain, each) for each in (x, x[:32]))
    with torch.inference_mode():
        added = torch.cat([chain.left(y) + chain.right(y) for y in [chain.pool(chain.relu(chain.first(x)))]])
    assert every.head.incoming() == choose_activation_qparams(added.min().item(), added.max().item())
    assert every.head.incoming() != few.head.incoming()


def test_other_weights_loaded_into_a_converted_network_count(chain):
    x = to_input(images(4))
    other = used(Architecture(Target(f"{__name__}.Chain", {}, "model")).initial(3))
    target, source = (precision_of("int8_static").convert(each, x) for each in (chain, other))
    with torch.inference_mode():
        target(x)
        target.load_state_dict(source.state_dict())
        assert torch.equal(target(x), source(x))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 12, 3, stride=2, padding=(1, 0), dilation=2, groups=4),
        nn.Conv2d(8, 6, (1, 3), bias=False),
        nn.Linear(16, 6, bias=False),
    ],
    ids=["depthwise", "dilated", "not square", "no bias"],
)
@pytest.mark.parametrize("groups", [None, GROUP_LEVELS[4]], ids=["int8", "int4"])
def test_layers_of_any_geometry_compute_with_what_their_weights_stand_for(layer, groups, executed_by):
    quantized = QuantizedLayer(layer, None) if groups is None else GroupedLayer(layer, groups)
    x = torch.randint(0, 256, (3, 8, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    x = x if isinstance(layer, nn.Linear) else x.contiguous(memory_format=torch.channels_last)
    qparams = choose_activation_qparams(-1.0, 2.0)
    weight = quantized.weight.float() * quantized.weight_scale.reshape(-1, *[1] * (layer.weight.dim() - 1))
    with torch.inference_mode():
        values = (x.float() - qparams.zero_point) * qparams.scale
        found = quantized.computed(x, qparams, None)
        if isinstance(layer, nn.Linear):
            expected = F.linear(values, weight)
        else:
            expected = F.conv2d(values, weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_a_plain_state_dict_is_of_the_network_that_is_named(tmp_path):
    model = residual()
    save_state(tmp_path / "weights.pt", {f"module.{name}": tensor for name, tensor in model.state_dict().items()})
    loaded, file = load_fp32(tmp_path / "weights.pt", network_named(networks.Residual))
    assert file.notes == ("removed prefix 'module.'",)
    with torch.inference_mode():
        assert torch.equal(loaded(to_input(images(2))), model(to_input(images(2))))
    found = load_model(tmp_path / "weights.pt", model=networks.Residual)
    assert type(found) is networks.Residual
