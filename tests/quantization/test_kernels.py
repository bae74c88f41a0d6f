"""INT8 kernels agree with the reference, and are not used where they would not."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl.quantization import kernels
from fl.quantization.numeric import (
    QParams,
    quantize_weight,
)


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
