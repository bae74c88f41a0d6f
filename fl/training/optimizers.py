"""Optimizers beyond torch's own."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn

from fl.training.arithmetic import native_bfloat16

COEFFICIENTS, STEPS, SMALLEST = (3.4445, -4.7750, 2.0315), 5, 1e-7
"""Of the Newton-Schulz iteration; those of the source above and of `torch.optim.Muon`."""


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
        matrices = [parameter.detach().flatten(1).clone() for parameter in hidden]
        self._hidden = [(*each, torch.zeros_like(each[1])) for each in zip(hidden, matrices, strict=True)]
        self._momentum, self._keep = momentum, 1 - lr * weight_decay
        self._lr = lr
        self._adam = torch.optim.Adam(rest, lr=lr, betas=betas)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Moves every parameter once. A closure is refused: nothing here evaluates the loss again."""
        if closure is not None:
            raise ValueError("closure: this optimizer takes none")
        for parameter, matrix, mean in self._hidden:
            if parameter.grad is None:
                continue
            gradient = parameter.grad.flatten(1)
            mean.lerp_(gradient, 1 - self._momentum)
            direction = orthogonalized(gradient.lerp(mean, self._momentum))
            matrix.mul_(self._keep)
            matrix.add_(direction, alpha=-self._lr * 0.2 * math.sqrt(max(matrix.shape)))
            parameter.copy_(matrix.view_as(parameter))
        self._adam.step()


def orthogonalized(matrix: torch.Tensor) -> torch.Tensor:
    """Returns a matrix with the same singular vectors and singular values near one, by Newton-Schulz steps in bfloat16.

    On a CPU without bfloat16 instructions products are made in FP32 and rounded to bfloat16, as such instructions do;
    PyTorch's own take 16 times as long there. Only the order of sums differs.

    Args:
        matrix: float32, [rows, columns].
    """
    native = matrix.device.type != "cpu" or native_bfloat16()

    def rounded(values: torch.Tensor) -> torch.Tensor:
        return values.bfloat16() if native else values.bfloat16().float()

    a, b, c = COEFFICIENTS
    tall = len(matrix) > matrix.shape[1]
    x = rounded(matrix.T if tall else matrix)
    x = rounded(x / rounded(x.norm()).clamp(min=SMALLEST))
    for _ in range(STEPS):
        gram = rounded(x @ x.T)
        x = rounded(torch.addmm(x, rounded(torch.addmm(gram, gram, gram, beta=b, alpha=c)), x, beta=a))
    return x.T if tall else x
