"""Which network is trained: built for the images, told by its file, refused where it does not go with them."""

import json
import re
from dataclasses import replace

import networks
import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from torch import nn

from fl.core.errors import ConfigError
from fl.core.pixels import Pixels
from fl.core.presets import choices, preset
from fl.core.targets import Target
from fl.models.architecture import Architecture, architecture_of, described, input_of, network_named
from fl.models.linear import BandStatistics
from fl.models.net import initial_model, to_input

OWN = ("Residual", "Grouped", "Attention", "function_of_a_network")


def target(name, **parameters):
    return Target(f"networks.{name}", parameters, "model")


@pytest.mark.parametrize(
    ("document", "name", "stem"),
    [
        ("docs/networks.md", "net", None),
        ("docs/networks.md", "resnet18", "small"),
        ("docs/networks.md", "resnet18", "published"),
        ("docs/networks.md", "mobilenet_v3_small", "small"),
        ("docs/networks.md", "linear", None),
        ("docs/tutorials/own-network.md", "examples.small_net.SmallNet", None),
        ("examples/small_net.py", "examples.small_net.SmallNet", None),
    ],
)
def test_documents_say_how_many_parameters_there_are(document, name, stem, monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY)
    named = network_named(name)
    named = replace(named, parameters={**named.parameters, "stem": stem}) if stem else named
    network = Architecture(named, num_classes=10, pixels=Pixels(bands=3)).build()
    count = sum(each.numel() for each in network.parameters())
    assert re.search(rf"(?<![\d,]){count:,}(?![\d,])", (REPOSITORY / document).read_text()), count


@pytest.fixture(params=[*choices("model"), *OWN, "torchvision.models.shufflenet_v2_x0_5"])
def named(request):
    return network_named(f"networks.{request.param}" if request.param in OWN else request.param)


def test_a_network_is_built_for_the_images(named):
    bands = 3 if "torchvision.models" in named.target else 5
    architecture = Architecture(named, num_classes=7, pixels=Pixels(bands=bands))
    architecture.refuse_misfits()
    state = architecture.build().state_dict()
    assert {name: tensor.shape for name, tensor in state.items()} == {
        name: tensor.shape for name, tensor in architecture.shapes.items()
    }
    assert architecture.shapes.keys() >= architecture.head > frozenset()
    assert all(tensor.device.type == "meta" for tensor in architecture.shapes.values())
    assert architecture.parameters == {name for name, _ in architecture.build().named_parameters()}


def test_the_sizes_of_a_state_dict_are_found_in_it(named):
    bands = 3 if "torchvision.models" in named.target else 5
    real = Architecture(named, num_classes=7, pixels=Pixels(bands=bands))
    sizes = {name: tuple(tensor.shape) for name, tensor in real.build().state_dict().items()}
    assert Architecture(named).fitted(sizes) == real
    assert Architecture(named).fitted({}) == Architecture(named)


def test_weights_depend_on_the_seed_alone(named):
    architecture = Architecture(named)
    torch.manual_seed(1)
    first = architecture.initial(5).state_dict()
    before = torch.get_rng_state()
    again, other = architecture.initial(5).state_dict(), architecture.initial(6).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_the_default_starts_as_it_always_did():
    ours, before = Architecture(num_classes=4).initial(9).state_dict(), initial_model(4, 9).state_dict()
    assert list(ours) == list(before)
    assert all(torch.equal(ours[name], before[name]) for name in before)


OTHER = Pixels(32, 48, 4, "uint16", (1.5, 2, 3, 4), (1, 2, 3, 4))


@pytest.mark.parametrize("pixels", [Pixels(bands=4), OTHER, OTHER.plain], ids=["usual", "normalised", "plain"])
def test_a_description_comes_back(named, pixels):
    architecture = Architecture(named, 7, pixels)
    told = json.loads(json.dumps(architecture.describe()))
    assert ("pixels" in told) == (pixels != Pixels(bands=4))
    assert described(told, lambda own: Target.from_config("model", own, [named.target])) == architecture
    with pytest.raises(ValueError, match="asks for weights_backbone"):
        described({**told, "weights_backbone": "DEFAULT"}, lambda own: named)
    for broken in ({**told, "num_classes": -1}, {**told, "bands": True}, {**told, "num_classes": "7"}):
        with pytest.raises(ValueError, match="sizes"):
            described(broken, lambda own: named)
    forged = [{"height": 0}, {"width": 10**6}, {"dtype": "object"}, {"mean": [1, 2]}, {"deviation": [1, 2, 3, 0]}]
    forged += [{"mean": "1234"}, {"mean": [1, 2, 3, float("nan")]}, {"mean": []}, {"height": True}]
    for each in (3, "uint16", *({**OTHER.describe(), **one} for one in forged)):
        with pytest.raises(ValueError, match=r"images|normalises"):
            described({**told, "pixels": each}, lambda own: named)


def test_input_is_normalised_by_each_bands_mean_and_deviation():
    images = np.random.default_rng(0).integers(0, 60_000, (3, 32, 48, 4)).astype(np.uint16)
    architecture = Architecture(network_named("linear"), 7, OTHER)
    given = input_of(architecture.build())(torch.from_numpy(images))
    expected = (images.astype(np.float64) - OTHER.mean) / OTHER.deviation
    assert given.shape == (3, 4, 32, 48)
    assert torch.allclose(given, torch.from_numpy(expected).permute(0, 3, 1, 2).float(), rtol=1e-6)
    half = architecture.build()
    half.input_dtype = torch.float16
    assert input_of(half)(torch.from_numpy(images)).dtype == torch.float16
    assert architecture.blank(2).numpy().dtype == np.uint16
    assert architecture.zeros(2).shape == (2, 4, 32, 48)


def test_input_leaves_the_images_as_they_are():
    pixels = Pixels(8, 8, 1, "float32", (2.0,), (3.0,))
    images = torch.rand(2, 8, 8, 1)
    before = images.clone()
    to_input(images, pixels=pixels)
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("name", "bands", "size", "told"),
    [
        ("SevenClasses", 3, 64, "answers two images with [2, 7] instead of [2, 10]"),
        ("TwoAnswers", 3, 64, "answers two images with tuple instead of [2, 10]"),
        ("SevenClasses", 4, 64, "cannot answer for images of 64x64 pixels, 4 bands of uint8 ("),
        ("Attention", 3, 32, "cannot answer for images of 32x32 pixels, 3 bands of uint8 ("),
    ],
)
def test_a_network_that_does_not_go_with_the_images_is_refused(name, bands, size, told):
    with pytest.raises(ConfigError) as error:
        Architecture(target(name), 10, Pixels(size, size, bands)).refuse_misfits()
    assert told in str(error.value)
    assert f"model._target_=networks.{name}: " in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_network_is_refused():
    with pytest.raises(ConfigError, match="makes a OrderedDict"):
        Architecture(Target("collections.OrderedDict", {}, "model")).build()
    with pytest.raises(ConfigError, match="arguments are not known"):
        Architecture(Target("collections.OrderedDict", {}, "model")).check()
    with pytest.raises(ConfigError, match="is none of linear, mobilenet_v3_small, net, resnet18"):
        network_named("resnet19")
    with pytest.raises(ConfigError, match="cannot be imported"):
        network_named("nowhere.Network")
    with pytest.raises(ConfigError, match="at the top of a module"):
        network_named(lambda num_classes: nn.Linear(1, num_classes))
    with pytest.raises(ConfigError, match=r"stem=huge|must be one of small, published"):
        Architecture(Target("fl.models.published.resnet18", {"stem": "huge"}, "model")).build()


def test_a_class_itself_names_a_network():
    assert network_named(networks.Residual) == target("Residual")
    assert network_named("networks.Residual") == target("Residual")
    assert network_named("resnet18") == Target("fl.models.published.resnet18", {"stem": "small"})


def test_others_networks_are_built_only_if_somebody_typed_them():
    config = {"_target_": "networks.Residual", "width": 8}
    assert Target.from_config("model", config, ["networks.Residual"]).parameters == {"width": 8}
    assert Target.from_config("model", {"_target_": "torchvision.models.resnet34"})
    for name in (
        "networks.Residual",
        "torchvision.models.get_model",
        "torchvision.models._api.register_model",
        "os.system",
    ):
        with pytest.raises(ConfigError, match="built from files"):
            Target.from_config("model", {"_target_": name})


def test_published_stems_and_small_ones():
    for name, sizes in (
        ("resnet18", ((64, 32, 32), (64, 64, 64))),
        ("mobilenet_v3_small", ((16, 32, 32), (16, 64, 64))),
    ):
        for stem, expected in zip(("published", "small"), sizes, strict=True):
            network = Architecture(
                Target(f"fl.models.published.{name}", {"stem": stem}, "model"), pixels=Pixels(bands=4)
            ).build()
            first = network.conv1 if name == "resnet18" else network.features[0][0]
            assert first(torch.zeros(1, 4, 64, 64)).shape[1:] == expected


def test_the_features_of_the_smallest_network_are_what_it_says():
    network, x = BandStatistics(2, 3), torch.randn(4, 3, 5, 5)
    seen = []
    network.fc.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    network(x)
    expected = torch.cat([x.mean((2, 3)), x.std((2, 3), correction=0), x.amin((2, 3)), x.amax((2, 3))], 1)
    assert torch.allclose(seen[0], expected, atol=1e-6)


def test_who_built_a_network_is_known():
    architecture = Architecture(target("Residual"), 4)
    assert architecture_of(architecture.build()) is architecture
    assert architecture_of(initial_model(4, 0)) == Architecture(num_classes=4)
    with pytest.raises(ValueError, match="nobody knows"):
        architecture_of(nn.Linear(1, 1))


def test_presets_have_what_the_command_line_changes():
    assert all("weights" in preset("model", name) for name in choices("model"))
