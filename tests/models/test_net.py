"""The network is the one that docs and files speak of, and begins as its seed says."""

import numpy as np
import torch
import torch.nn.functional as F
from conftest import uneven_model

from fl.models.net import Net, channels_last, initial_model, num_parameters, to_input


def test_the_network_is_three_convolutions_and_three_linear_layers():
    model = uneven_model(torch.randint(0, 256, (8, 64, 64, 3), dtype=torch.uint8))
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    state, y = model.state_dict(), x
    for n in (1, 2, 3):
        y = F.conv2d(y, state[f"conv{n}.weight"], state[f"conv{n}.bias"])
        mean, variance = state[f"bn{n}.running_mean"], state[f"bn{n}.running_var"]
        y = F.batch_norm(y, mean, variance, state[f"bn{n}.weight"], state[f"bn{n}.bias"])
        y = F.max_pool2d(y.clamp_min(0), 2)
    y = y.flatten(1)
    for n in (1, 2, 3):
        y = F.linear(y, state[f"fc{n}.weight"], state[f"fc{n}.bias"])
        y = y if n == 3 else y.clamp_min(0)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), y, rtol=1e-4, atol=1e-5)
    assert num_parameters(model) == 434_602
    assert Net(7).fc3.out_features == 7


def test_the_first_model_is_of_its_seed_and_he_initialized():
    """Weights have a variance of 2 over the inputs; biases are 0."""
    model, again, other = initial_model(10, 5), initial_model(10, 5), initial_model(10, 6)
    for (name, one), two in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(one, two), name
    assert not torch.equal(model.fc1.weight, other.fc1.weight)
    assert not torch.equal(model.conv2.weight, other.conv2.weight)
    for name in ("conv2", "conv3", "fc1", "fc2"):
        layer = model.get_submodule(name)
        inputs = layer.weight[0].numel()
        assert abs(layer.weight.var() * inputs - 2) < 0.1, name
        assert layer.bias.abs().max() == 0, name


def test_pooling_before_relu_while_training_changes_no_bit():
    """Even where pixels are alike, so that maxima are not unique, and where none is above zero."""
    images = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
    images[:3] = images[:3, :1, :1]
    inputs, labels = to_input(torch.from_numpy(images)), torch.arange(8)
    results = []
    for textbook in (False, True):
        model = channels_last(initial_model(10, 0)).train()
        if textbook:
            model._activated = lambda x: F.max_pool2d(F.relu(x), 2)
        logits = model(inputs)
        F.cross_entropy(logits, labels).backward()
        results.append([logits, *(p.grad for p in model.parameters()), *model.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
