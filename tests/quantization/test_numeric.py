"""Numbers agree with torch's own, and levels of few bits come back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fl.models.net import to_input
from fl.quantization.numeric import (
    GROUP_LEVELS,
    IMAGE,
    QParams,
    choose_activation_qparams,
    dequantize_activation,
    dequantize_weight,
    int8_of_groups,
    pack_levels,
    quantize_activation,
    quantize_groups,
    quantize_weight,
    unpack_levels,
)


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
    assert (scale > 0).all()
    assert torch.equal(dequantize_weight(weight, scale), torch.zeros(2, 3))


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([2, 4]),
    st.sampled_from([(4, 3, 5, 5), (7, 33), (1, 1), (3, 16)]),
    st.floats(1e-20, 1e20),
)
def test_weights_of_few_bits_are_the_nearest_levels_of_their_group(seed, bits, shape, size):
    kind, weight = GROUP_LEVELS[bits], size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    index, multiplier, scale = quantize_groups(weight, kind)
    assert index.max() < len(kind.levels) == 2**bits - (bits == 4)
    integers = int8_of_groups(index, multiplier, kind)
    unit = (multiplier.repeat_interleave(kind.group_size, 1)[:, : weight[0].numel()] * scale[:, None]).reshape(shape)
    error = (dequantize_weight(integers, scale) - weight).abs()
    largest = unit * kind.levels[-1]
    inside = weight.abs() <= largest
    assert (error <= unit * kind.step / 2 * 1.001)[inside].all()
    assert (weight.abs() <= largest + scale.reshape(-1, *[1] * (len(shape) - 1)) * kind.levels[-1] * 0.501).all()


@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 4]), st.integers(1, 70))
def test_packed_levels_come_back_and_take_their_bits(seed, bits, count):
    index = torch.randint(0, 2**bits, (count,), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    packed = pack_levels(index, bits)
    assert len(packed) == -(-count * bits // 8)
    assert torch.equal(unpack_levels(packed, bits, index.shape), index)


def test_zero_and_constant_weights_of_few_bits():
    for kind in GROUP_LEVELS.values():
        index, multiplier, scale = quantize_groups(torch.zeros(2, 40), kind)
        assert multiplier.min() >= 1
        assert dequantize_weight(int8_of_groups(index, multiplier, kind), scale).abs().max() < 1e-30
        constant = torch.full((2, 40), -0.3)
        index, multiplier, scale = quantize_groups(constant, kind)
        assert torch.allclose(dequantize_weight(int8_of_groups(index, multiplier, kind), scale), constant, rtol=1e-6)


def test_the_image_is_not_rounded():
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3, 1).T.reshape(1, 16, 16, 3)
    x = to_input(pixels)
    integers = quantize_activation(x, IMAGE)
    assert torch.equal(integers.permute(0, 2, 3, 1), pixels)
    assert (dequantize_activation(integers, IMAGE) - x).abs().max() <= 1e-6


def test_halves_of_a_step_go_to_the_even_side_of_a_whole_zero_point():
    """As they did from the first: answers of stored files depend on it."""
    x = torch.tensor([0.5, 1.5, 2.5, -0.5])
    assert quantize_activation(x, QParams(1.0, 3)).tolist() == [3, 5, 5, 3]
