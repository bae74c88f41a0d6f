"""A filter's rounding errors cancel."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl.quantization.numeric import (
    dequantize_weight,
    quantize_weight,
)
from fl.quantization.rounding import quantize_weight_together


def _steps(weight, integers, scale):
    """Returns errors of a rounded weight, and how far it is from the nearest, in steps, float64 [out, ...]."""
    exact = weight.double() / scale.double().reshape(-1, *[1] * (weight.dim() - 1))
    return integers.double() - exact, (integers - quantize_weight(weight)[0]).abs()


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([((32, 3, 5, 5), True), ((6, 4, 5, 5), False), ((5, 8, 3, 3), False), ((4, 200), False)]),
    st.floats(1e-3, 1e3),
)
def test_a_filters_rounding_errors_cancel(seed, kind, size):
    shape, sees_image = kind
    weight = size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    integers, scale = quantize_weight_together(weight, sees_image)
    error, moved = _steps(weight, integers, scale)
    assert torch.equal(scale, quantize_weight(weight)[1])
    assert error.flatten(1).sum(1).abs().max() <= 0.501
    assert moved.max() <= 1  # from the nearest
    assert integers.abs().max() <= 127
    if len(shape) == 4 and not sees_image:
        assert error.abs().max() < 1.001
        assert (error.sum((2, 3)).abs() <= 0.501).double().mean() >= 0.7  # a kernel's


def test_as_few_weights_as_possible_leave_the_nearest():
    up = torch.tensor([127.0, 1.375, 2.375, 3.25, -4.0])
    integers, scale = quantize_weight_together(torch.stack([up, -up, torch.tensor([127.0, 1.125, 2.25, 3.0, 4.0])]))
    assert torch.equal(scale, torch.ones(3))
    assert integers.tolist() == [[127, 2, 2, 3, -4], [-127, -2, -2, -3, 4], [127, 1, 2, 3, 4]]  # the first of equals


def test_a_weight_of_few_values_and_one_of_zeros_are_rounded_as_they_are():
    for weight in (torch.zeros(2, 3, 5, 5), torch.ones(2, 3, 5, 5), -torch.ones(4, 6)):
        integers, scale = quantize_weight_together(weight, sees_image=weight.dim() == 4)
        assert torch.equal(integers, quantize_weight(weight)[0])
        assert torch.allclose(dequantize_weight(integers, scale), weight)
