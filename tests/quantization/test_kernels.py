"""INT8 kernels agree with the reference, and are not used where they would not."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fl.quantization import kernels
from fl.quantization.numeric import (
    QParams,
    dequantize_activation,
    quantize_activation,
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


ADDED = st.sampled_from(["both uint8", "float32 result", "float32 added"])
GEOMETRIES = [kernels.Geometry(), kernels.Geometry(stride=(2, 1), padding=(1, 0)), kernels.Geometry(groups=4)]


@pytest.mark.parametrize("in_kernel", [True, False], ids=["in the kernel", "beside it"])
@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32 - 1), st.booleans(), ADDED, st.sampled_from(GEOMETRIES), st.integers(0, 255))
def test_what_is_added_is_rounded_once(in_kernel, monkeypatch, seed, relu, kind, geometry, zero_point):
    if kernels.cpu_kernels() != kernels.ONEDNN:
        pytest.skip("this CPU has no right oneDNN INT8 kernels")
    if in_kernel and not kernels.adds_integers():
        pytest.skip("this CPU has no right oneDNN kernel that adds")
    monkeypatch.setattr(kernels, "adds_integers", lambda: in_kernel)
    if not in_kernel:
        monkeypatch.setattr(kernels, "_run_sum", None)
    generator = torch.Generator().manual_seed(seed)
    weight, scale = quantize_weight(torch.randn((8, 8 // geometry.groups, 3, 3), generator=generator))
    x = torch.randint(0, 256, (3, 8, 7, 6), generator=generator, dtype=torch.uint8)
    bias, incoming, qparams = torch.randn(8, generator=generator), QParams(0.01, 7), QParams(0.04, zero_point)
    outgoing = None if kind == "float32 result" else QParams(0.05 + 0.1 * torch.rand((), generator=generator).item(), 3)
    packed = kernels.pack(weight, scale, geometry)
    plain = kernels.run_reference(x, incoming, weight, scale, bias, relu=False, outgoing=None, geometry=geometry)
    other = torch.randint(0, 256, plain.shape, generator=generator, dtype=torch.uint8)
    values = dequantize_activation(other, qparams)
    added = kernels.Added(values, None) if kind == "float32 added" else kernels.Added(other, qparams)
    exact = (plain + values).relu() if relu else plain + values
    exact = exact if outgoing is None else quantize_activation(exact, outgoing)
    after = {"relu": relu, "outgoing": outgoing, "geometry": geometry}
    reference = kernels.run_reference(x, incoming, weight, scale, bias, **after, added=added)
    assert torch.equal(reference, exact)
    fast = kernels.run_onednn(x, incoming, packed, scale, bias, **after, added=added)
    assert fast.dtype == exact.dtype
    assert (exact.double() - fast.double()).abs().max() <= (1e-3 if outgoing is None else 1)


@pytest.mark.parametrize("error", [None, AttributeError("'qconv2d_pointwise' has no overload 'binary'")])
def test_a_kernel_that_adds_wrongly_is_not_used(error, monkeypatch):
    def wrong(before, into, *rest):
        if error:
            raise error
        return into

    monkeypatch.setattr(kernels, "_run_sum", wrong)
    assert not kernels.adds_integers.__wrapped__()


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
