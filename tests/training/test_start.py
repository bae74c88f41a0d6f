"""What a run starts from: weights of its seed, or of a file that both ends have."""

import pytest
import torch

from fl.core.errors import ConfigError
from fl.core.files import sha256
from fl.core.pixels import Pixels
from fl.core.targets import Target
from fl.models.architecture import Architecture, network_named
from fl.models.net import initial_model
from fl.quantization.model_file import save_state
from fl.training.start import ModelSettings, start_of

PIXELS = Pixels()


def saved(path, state):
    save_state(path, state)
    return ModelSettings(network_named("net"), path)


def test_without_a_file_it_is_the_seeds():
    start, told = start_of(ModelSettings(), 4, PIXELS, 9)
    assert told == ""
    assert start.architecture == Architecture(num_classes=4)
    expected = initial_model(4, 9).state_dict()
    assert all(torch.equal(start.state()[name], expected[name]) for name in expected)


def test_given_weights_are_taken_and_their_hash_is_known(tmp_path):
    given = initial_model(10, 1).state_dict()
    start, told = start_of(saved(tmp_path / "w.pt", given), 10, PIXELS, 9)
    assert str(tmp_path / "w.pt") in told
    assert start.weights_sha256 == sha256((tmp_path / "w.pt").read_bytes())
    assert all(torch.equal(start.state()[name], given[name]) for name in given)


@pytest.mark.parametrize("kind", ["other classes", "no head"])
def test_a_head_for_other_classes_is_drawn_anew_and_said(kind, tmp_path):
    given = initial_model(7, 1).state_dict()
    if kind == "no head":
        given = {name: tensor for name, tensor in given.items() if not name.startswith("fc3")}
    start, told = start_of(saved(tmp_path / "w.pt", given), 4, PIXELS, 9)
    there = "7 classes there" if kind == "other classes" else "none there"
    assert f"fc3.bias, fc3.weight: drawn anew, {there}, 4 in these images" in told
    state, drawn = start.state(), initial_model(4, 9).state_dict()
    for name in drawn:
        assert torch.equal(state[name], (drawn if name.startswith("fc3") else given)[name])


def test_weights_of_other_bands_or_networks_are_refused(tmp_path):
    settings = saved(tmp_path / "w.pt", Architecture(pixels=Pixels(bands=4)).initial(0).state_dict())
    with pytest.raises(ConfigError, match="is for images of 4 bands; these have 3"):
        start_of(settings, 10, PIXELS, 9)
    other = ModelSettings(network_named("linear"), tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=r"model.weights=.*holds no state dict of this network.*fc.weight"):
        start_of(other, 10, PIXELS, 9)
    with pytest.raises(ConfigError, match=r"model.weights=.*nothing.pt: cannot be read"):
        start_of(ModelSettings(network_named("net"), tmp_path / "nothing.pt"), 10, PIXELS, 9)


def test_another_file_in_the_same_place_is_noticed(tmp_path):
    start, _ = start_of(saved(tmp_path / "w.pt", initial_model(10, 1).state_dict()), 10, PIXELS, 9)
    save_state(tmp_path / "w.pt", initial_model(10, 2).state_dict())
    with pytest.raises(ConfigError, match="another file than the run began with"):
        start.state()


def test_settings_of_the_group_are_checked():
    with pytest.raises(ConfigError, match=r"model.width: .*has no such setting"):
        ModelSettings.from_config({"_target_": "fl.models.net.Net", "width": 3})
    with pytest.raises(ConfigError, match="built from files"):
        ModelSettings.from_config({"_target_": "networks.Residual"})
    config = {"_target_": "networks.Residual", "width": 8, "weights": None}
    found = ModelSettings.from_config(config, ["networks.Residual"])
    assert found == ModelSettings(Target("networks.Residual", {"width": 8}, "model"), None)
