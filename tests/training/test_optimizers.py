"""Muon is torch's, and as good where the CPU has no bfloat16 instructions."""

import pytest
import torch

from fl.models.net import initial_model


def test_muon_moves_hidden_weights_as_torchs_muon_and_the_rest_as_adam(monkeypatch):
    from fl.training import optimizers

    monkeypatch.setattr(optimizers, "native_bfloat16", lambda: True)
    ours, plain = initial_model(10, 0), initial_model(10, 0)
    hidden = [plain.conv1.weight, plain.conv2.weight, plain.conv3.weight, plain.fc1.weight, plain.fc2.weight]
    matrices = [torch.nn.Parameter(weight.detach().flatten(1).clone()) for weight in hidden]
    rest = [p for p in plain.parameters() if not any(p is weight for weight in hidden)]
    optimizer = optimizers.Muon(ours.parameters(), lr=0.002, momentum=0.9)
    muon = torch.optim.Muon(matrices, lr=0.002, momentum=0.9, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.Adam(rest, lr=0.002)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for weight, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
            weight.grad = torch.randn(weight.shape, generator=generator)
            theirs.grad = weight.grad.clone()
        optimizer.step()
        for weight, matrix in zip(hidden, matrices, strict=True):
            matrix.grad = weight.grad.flatten(1)
        muon.step()
        adam.step()
        for weight, matrix in zip(hidden, matrices, strict=True):
            weight.data.copy_(matrix.detach().view_as(weight))
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize("shape", [(32, 75), (128, 128), (300, 40)])
def test_products_rounded_to_bfloat16_are_those_of_bfloat16_instructions(monkeypatch, shape):
    from fl.training import optimizers

    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    both = []
    for native in True, False:
        monkeypatch.setattr(optimizers, "native_bfloat16", lambda native=native: native)
        both.append(optimizers.orthogonalized(matrix).float())
    assert torch.equal(both[1], both[1].bfloat16().float())
    assert (both[0] - both[1]).norm() < 0.02 * both[0].norm()
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    assert ((left.T @ both[1] @ right.T).diagonal() > 0).all(), "not the same singular vectors"
    assert torch.linalg.svdvals(both[1]).max() < 1.3
