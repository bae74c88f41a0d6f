"""Optimizers beyond torch's own."""

from collections.abc import Callable, Iterable

import torch
from torch import nn


class Muon(torch.optim.Optimizer):
    """Muon for the hidden layers' weights, Adam for everything else (kellerjordan.github.io/posts/muon).

    Muon orthogonalizes the momentum of a weight matrix, so that every direction of it learns at the same speed. A
    convolution counts as the matrix [out, in * height * width]. The last matrix, which makes the logits, biases
    and BatchNorm are Adam's. One learning rate serves both (Moonshot's scaling, arXiv 2502.16982, eq. 4).

    Args:
        params: in the order of the network's layers, at least two of them matrices or convolutions.
        lr: learning rate.
        momentum: of Muon.
        weight_decay: of Muon's matrices, decoupled.
        betas: of Adam.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        every = list(params)
        super().__init__(every, {"lr": lr})
        hidden = [parameter for parameter in every if parameter.dim() >= 2][:-1]
        rest = [parameter for parameter in every if not any(parameter is each for each in hidden)]
        self._matrices = [(parameter, nn.Parameter(parameter.detach().flatten(1).clone())) for parameter in hidden]
        self._muon = torch.optim.Muon(
            [matrix for _, matrix in self._matrices],
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
        self._adam = torch.optim.Adam(rest, lr=lr, betas=betas)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Moves every parameter once. A closure is refused: nothing here evaluates the loss again."""
        if closure is not None:
            raise ValueError("closure: this optimizer takes none")
        for parameter, matrix in self._matrices:
            matrix.grad = None if parameter.grad is None else parameter.grad.flatten(1)
        self._muon.step()
        self._adam.step()
        for parameter, matrix in self._matrices:
            parameter.copy_(matrix.view_as(parameter))
