"""What every codec promises, on models of any names, shapes, types and values."""

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fl.codec import Ecq, Eden, Fp16, PayloadError, Raw, Stc, Tcq, Uniform, entropy
from fl.codec.entropy import _ans, _best_split, pack, plain_bytes, unpack
from fl.codec.payload import CODED, Header, assemble, composition, dissect, specs_of
from fl.codec.tensors import encode_exact
from fl.models.net import initial_model

CODECS = {
    "raw": Raw(),
    "fp16": Fp16(),
    "int8": Uniform(8),
    "int8-stochastic": Uniform(8, "stochastic"),
    "int8-tensor": Uniform(8, scales="tensor", entropy="none"),
    "int4": Uniform(4, error_feedback=True),
    "int4-stochastic-tensor": Uniform(4, "stochastic", "tensor", entropy="zstd"),
    "int2": Uniform(2),
    "ecq": Ecq(),
    "ecq-3-nearest": Ecq(3, offset=0.5, entropy="none"),
    "ecq-zstd": Ecq(0.5, entropy="zstd"),
    "ecq-feedback": Ecq(2.0, error_feedback=True),
    "tcq": Tcq(2.0),
    "tcq-feedback": Tcq(3.0, error_feedback=True),
    "eden": Eden(),
    "eden-feedback": Eden(error_feedback=True),
    "eden-4": Eden(4, entropy="ans"),
    "stc": Stc(),
    "stc-third": Stc(1 / 3, entropy="none"),
}
every_codec = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
some = settings(max_examples=30, deadline=None, derandomize=True)

SHAPES = [(), (0,), (3, 0), (1,), (7,), (1, 1), (33, 40), (1500,), (4097,), (1024, 1), (1, 1025), (16, 3, 5, 5)]
DTYPES = ["f4", "f4", "f4", "f8", "f2", "i8", "i4", "u1", "?"]
VALUES = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "laplace": lambda rng, shape: rng.laplace(size=shape) * 10 ** rng.uniform(-6, 2),
    "heavy": lambda rng, shape: np.clip(rng.standard_cauchy(size=shape), -6e4, 6e4),
    "sparse": lambda rng, shape: rng.normal(size=shape) * (rng.random(shape) < 0.01),
    "zero": lambda rng, shape: np.zeros(shape),
    "constant": lambda rng, shape: np.full(shape, rng.normal()),
    "denormal": lambda rng, shape: rng.integers(-300, 300, shape) * 1.4e-45,
    "huge": lambda rng, shape: rng.choice([-3.4e38, -3e38, 1.0, 3e38, 3.4028234e38], shape),
}
LARGEST = {2: 65504, 4: 3.4028234e38, 8: 1e300}


def drawn(values, shape, dtype, seed):
    """Returns a tensor; what its type cannot hold is cut to the largest it can."""
    array, dtype = np.asarray(VALUES[values](np.random.default_rng(seed), shape)), np.dtype(dtype)
    if dtype.kind == "f":
        array = np.clip(array, -LARGEST[dtype.itemsize], LARGEST[dtype.itemsize])
    else:
        array = np.abs(np.clip(array, -100, 100))
    return np.asarray(array).astype(dtype)


@st.composite
def models(draw, values=tuple(VALUES)):
    """Up to four tensors of any kind, and BatchNorm's statistics."""
    seed = draw(st.integers(0, 2**32))
    kinds = st.tuples(st.sampled_from(values), st.sampled_from(SHAPES), st.sampled_from(DTYPES))
    drawings = draw(st.lists(kinds, min_size=0, max_size=4))
    tensors = {f"layer{n}.weight": drawn(*each, seed + n) for n, each in enumerate(drawings)}
    rng = np.random.default_rng(seed)
    variance = rng.lognormal(0, draw(st.floats(0, 20)), 20).astype(np.float32)
    return tensors | {
        "bn.running_mean": rng.normal(size=20).astype(np.float32),
        "bn.running_var": variance,
        "bn.num_batches_tracked": np.array(seed),
    }


def through(codec, tensors, seed=0):
    """Returns the payload and what it decodes to."""
    payload = codec.encode(tensors, np.random.default_rng(seed))
    return payload, codec.decode(payload, specs_of(tensors))


def large(seed=0, shape=(40, 100), scale=1.0):
    """Returns a model of one tensor that is the codec's own."""
    return {"weight": (scale * np.random.default_rng(seed).laplace(size=shape)).astype(np.float32)}


def gaussian(shape, rng):
    return rng.normal(size=shape) / 100


def laplacian(shape, rng):
    return rng.laplace(size=shape) / 100


def trained(shape, rng):
    """As an update looks: layers of different size, most elements small, some channels silent."""
    values = rng.standard_t(3, size=shape) * 10 ** rng.uniform(-4, -2)
    return values * (rng.random((shape[0] if shape else 1, *[1] * (len(shape) - 1))) > 0.1)


def network(values):
    """Returns the state dict of our network with its large tensors drawn from `values`."""
    rng = np.random.default_rng(0)
    state = {name: tensor.numpy() for name, tensor in initial_model(10, 0).state_dict().items()}
    return {n: values(a.shape, rng).astype(np.float32) if n.endswith("weight") else a for n, a in state.items()}


# Any codec


@every_codec
@some
@given(data=st.data())
def test_names_shapes_and_dtypes_survive_any_values(codec, data):
    values = [each for each in VALUES if not isinstance(codec, Fp16) or each != "huge"]  # which FP16 refuses
    tensors = data.draw(models(tuple(values)))
    payload, decoded = through(codec, tensors)
    assert specs_of(decoded) == specs_of(tensors)
    assert list(decoded) == list(tensors)
    for name, array in decoded.items():
        assert isinstance(array, np.ndarray)
        assert array.flags.writeable
        assert np.isfinite(array).all()
        if array.dtype.kind != "f":
            assert np.array_equal(array, tensors[name]), "integers and booleans are exact"
    assert payload == through(codec, tensors)[0], "the same seed gives the same bytes"


def strided(array):
    wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
    wide[..., ::2] = array
    return wide[..., ::2]


LAYOUTS = {
    "transposed": lambda array: np.ascontiguousarray(array.T).T,
    "strided": strided,
    "reversed": lambda array: array[::-1].copy()[::-1],
    "big-endian": lambda array: array.astype(array.dtype.newbyteorder(">")),
}


@every_codec
@pytest.mark.parametrize("layout", LAYOUTS)
def test_how_an_array_lies_in_memory_changes_no_value(codec, layout):
    """As PyTorch's transposed weights, slices, and arrays of other machines."""
    rng = np.random.default_rng(5)
    plain = large() | {
        "lora_A.default.weight": rng.normal(size=(8, 256)).astype(np.float32),
        "lora_B.default.weight": np.zeros((256, 8), np.float32),
        "double.weight": rng.normal(size=(40, 50)),
        "half.weight": rng.normal(size=(40, 50)).astype(np.float16),
        "norm.weight": rng.normal(size=300).astype(np.float32),
        "counts": rng.integers(0, 9, (30, 40)),
    }
    laid = {name: LAYOUTS[layout](array) for name, array in plain.items()}
    (_, expected), (_, decoded) = through(codec, plain), through(codec, laid)
    for name, array in decoded.items():
        assert np.array_equal(array, expected[name]), name
        assert array.dtype == laid[name].dtype
    assert all(np.array_equal(laid[name], plain[name]) for name in plain), "what was given stays as it was"


@every_codec
@pytest.mark.parametrize("seed", range(3))
def test_the_largest_floats_there_are_can_be_coded(codec, seed):
    if isinstance(codec, Fp16):
        pytest.skip("refuses them")
    largest = np.array([LARGEST[4], 3e38, 1.0, -3e38, -3.4e38], np.float32)
    tensors = {"weight": np.random.default_rng(seed).choice(largest, size=(64, 64))}
    _, decoded = through(codec, tensors)
    assert np.isfinite(decoded["weight"]).all()


@every_codec
@some
@given(data=st.data())
def test_what_is_decoded_points_to_the_input_and_its_error_is_bounded(codec, data):
    """Of each tensor, so that neither a sign nor a scale nor an order of elements can be wrong."""
    tensors = data.draw(models(("normal", "laplace", "constant", "zero")))
    _, decoded = through(codec, tensors)
    for name, array in tensors.items():
        if codec.travels_as_value(name, array.dtype):
            if array.dtype.kind != "f":
                assert np.array_equal(decoded[name], array)
            continue
        before, after = (each.astype(np.float64).reshape(-1) for each in (array, decoded[name]))
        if not before.any():
            assert not after.any()
            continue
        along = before @ after / (before @ before)
        most = 2.0 if isinstance(codec, Eden) else 1.05  # one block, unbiased: 0.57 on average
        sent = np.count_nonzero(after) / after.size
        assert np.square(before - after).sum() <= most * np.square(before).sum()
        assert along > (0 if sent < 0.1 else 0.3)
        assert along < 1.6
        if codec.description in ("fp16", "raw", "int8 per channel", "int8 per tensor", "eden4"):
            assert along == pytest.approx(1, abs=0.05)


@every_codec
@some
@given(exponent=st.floats(-38, 38), spread=st.floats(0, 15), seed=st.integers(0, 2**32))
def test_variances_stay_positive(codec, exponent, spread, seed):
    variance = np.clip(np.random.default_rng(seed).lognormal(exponent, spread, 1500), 1e-44, 3e38).astype(np.float32)
    _, decoded = through(codec, {"bn.running_var": variance})
    assert (decoded["bn.running_var"] > 0).all()
    assert np.allclose(decoded["bn.running_var"], variance, rtol=2**-5 if codec.small_bytes == 1 else 2**-10, atol=0)


@every_codec
def test_statistics_and_counters_keep_their_values(codec):
    """Also where a mean in floats was made of a counter, and a variance is tiny beside another."""
    tensors = {
        "bn.running_mean": np.linspace(-3, 3, 96, dtype=np.float32),
        "bn.running_var": np.array([1e-8, 1, 50], np.float32),
        "bn.num_batches_tracked": np.array(1035.0),
        "bn2.num_batches_tracked": np.array(2**40 + 1),
    }
    _, decoded = through(codec, tensors)
    assert decoded["bn.num_batches_tracked"] == 1035
    assert decoded["bn2.num_batches_tracked"] == 2**40 + 1
    assert np.allclose(decoded["bn.running_mean"], tensors["bn.running_mean"], rtol=2**-5, atol=3 * 2**-11)
    assert np.allclose(decoded["bn.running_var"], tensors["bn.running_var"], rtol=2**-10, atol=0)


@every_codec
def test_a_negative_variance_is_refused(codec):
    tensors = {"bn.running_var": np.array([1, -1e-3], np.float32)}
    with pytest.raises(PayloadError, match=r"bn\.running_var holds a negative variance"):
        through(codec, tensors)
    specs = specs_of(tensors)
    forged = assemble(Header(codec.description), specs, [encode_exact(tensors["bn.running_var"])])
    with pytest.raises(PayloadError, match=r"bn\.running_var holds a negative variance"):
        codec.decode(forged, specs)


@every_codec
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["weight", "bias", "bn.running_mean"])
def test_nan_and_infinity_are_refused_by_name(codec, value, name):
    tensors = {"weight": np.ones((40, 100), np.float32), "bias": np.ones(3, np.float32)}
    tensors["bn.running_mean"] = np.ones(3, np.float32)
    tensors[name].flat[1] = value
    with pytest.raises(PayloadError, match=rf"{name} holds NaN or infinity"):
        codec.encode(tensors, np.random.default_rng(0))


@every_codec
def test_a_difference_that_overflows_is_refused(codec):
    if codec.exact:
        return
    new, base = ({"weight": np.full((40, 100), sign * 3e38, np.float32)} for sign in (1, -1))
    with pytest.raises(PayloadError, match="weight holds NaN or infinity"):
        codec.encode(codec.differences(new, base), np.random.default_rng(0))
    with pytest.raises(PayloadError, match="weight holds NaN or infinity"):
        codec.applied(new, new)


@every_codec
def test_biases_and_weights_of_normalizations_lose_next_to_nothing(codec):
    rng = np.random.default_rng(0)
    shapes = {"fc.weight": (2048, 16), "fc.bias": (2048,), "norm.weight": (4096,), "norm.bias": (4096,)}
    tensors = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    _, decoded = through(codec, tensors)
    part = 2**-5 if codec.small_bytes == 1 else 2**-11
    for name in ("fc.bias", "norm.weight", "norm.bias"):
        assert np.allclose(decoded[name], tensors[name], rtol=part, atol=2**-11 * np.abs(tensors[name]).max())
        assert np.square(decoded[name] - tensors[name]).sum() < 4e-4 * np.square(tensors[name]).sum()


@every_codec
@pytest.mark.parametrize("size", [3, 40, 4000])
def test_a_mask_that_does_not_change_stays_and_nothing_else_becomes_infinite(codec, size):
    """As attention has one: constant, and never a number."""
    rng, mask = np.random.default_rng(0), np.triu(np.full((size, size // 2), -np.inf, np.float32), 1)
    mask[0, 0] = np.nan
    base = {"mask": mask, "bn.running_mean": mask[:, 0].copy(), "fc.weight": rng.normal(size=(40, 50)).astype("f4")}
    new = base | {"fc.weight": base["fc.weight"] + rng.normal(size=(40, 50)).astype("f4")}
    _, change = through(codec, codec.differences(new, base))
    assert all(np.isfinite(array).all() for array in change.values())
    after = codec.applied(base, change)
    for name in ("mask", "bn.running_mean"):
        assert np.array_equal(after[name], base[name], equal_nan=True)
    assert np.isfinite(after["fc.weight"]).all()
    assert (after["fc.weight"] != base["fc.weight"]).any()
    changed = {name: array.copy() for name, array in base.items()}
    changed["mask"][1, 0] = -np.inf  # was a number
    with pytest.raises(PayloadError, match="mask holds NaN or infinity"):
        codec.encode(codec.differences(changed, base), rng)
    changed["mask"] = np.zeros_like(mask)
    with pytest.raises(PayloadError, match="mask holds NaN or infinity, which may not change"):
        codec.encode(codec.differences(changed, base), rng)


@every_codec
def test_what_a_payload_brings_cannot_become_infinite(codec):
    base = {"w": np.array([1, -np.inf, 3e38], np.float32)}
    for change in ([np.nan, 0, 0], [0, 0, -np.inf], *([[0, 0, 3e38]] if not codec.exact else [])):
        with pytest.raises(PayloadError, match="w holds NaN or infinity"):
            codec.applied(base, {"w": np.array(change, np.float32)})
    assert codec.applied(base, {"w": np.array([1, 5, 0], np.float32)})["w"][1] == -np.inf


@every_codec
def test_the_composition_of_a_payload_adds_up(codec):
    state = network(trained)
    payload, _ = through(codec, state)
    parts = composition(payload, specs_of(state))
    assert parts.coded_bytes + parts.small_bytes + parts.frame_bytes == len(payload)
    _, bodies = dissect(payload, specs_of(state))
    coded = [spec.size for spec, (kind, _) in zip(specs_of(state).values(), bodies, strict=True) if kind == CODED]
    assert parts.coded_elements == sum(coded) == (0 if codec.exact else 433_760 + 842 * isinstance(codec, Fp16))
    assert parts.bits == pytest.approx(8 * parts.coded_bytes / 433_760 if coded else 0, rel=0.003)


@every_codec
def test_another_codec_is_refused(codec):
    other = Raw() if not codec.exact else Fp16()
    with pytest.raises(PayloadError, match="was coded by"):
        other.decode(codec.encode(large(), np.random.default_rng(0)), specs_of(large()))


@pytest.fixture(scope="module")
def encoded_elsewhere(tmp_path_factory):
    """Payloads that another process made of `network(trained)`, cut to three tensors."""
    folder = tmp_path_factory.mktemp("elsewhere")
    code = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from test_codecs import *\n"
        "for name, codec in CODECS.items():\n"
        "    open(f'{sys.argv[1]}/{name}', 'wb').write(through(codec, some_tensors(), 7)[0])\n"
    )
    subprocess.run([sys.executable, "-c", code, str(folder), str(__file__).rsplit("/", 1)[0]], check=True)
    return folder


def some_tensors():
    state = network(trained)
    return {name: state[name] for name in ("conv2.weight", "bn2.running_var", "fc3.weight", "fc3.bias")}


@pytest.mark.parametrize("name", CODECS)
def test_another_process_makes_the_same_bytes_and_they_decode_here(name, encoded_elsewhere):
    payload, decoded = through(CODECS[name], some_tensors(), 7)
    elsewhere = (encoded_elsewhere / name).read_bytes()
    assert elsewhere == payload
    for each, array in CODECS[name].decode(elsewhere, specs_of(some_tensors())).items():
        assert np.array_equal(array, decoded[each])


# Raw and FP16


@some
@given(
    st.binary(min_size=0, max_size=4096), st.sampled_from(["<f4", ">f4", "f8", "f2", "i8", ">i2", "u2", "c8", "M8[s]"])
)
def test_raw_is_exact_to_the_bit(content, dtype):
    array = np.frombuffer(content[: len(content) // 16 * 16], dtype)
    _, decoded = through(Raw(), {"weight": array})
    assert decoded["weight"].dtype == array.dtype
    assert decoded["weight"].tobytes() == array.tobytes()


def test_python_objects_are_refused():
    with pytest.raises(PayloadError, match="weight holds Python objects"):
        through(Raw(), {"weight": np.array([{}, None])})


@pytest.mark.parametrize("shape", [(3,), (40, 100)])
def test_fp16_refuses_what_it_cannot_hold(shape):
    biggest = np.full(shape, 65519, np.float32)
    if shape == (40, 100):
        with pytest.raises(PayloadError, match="exceeds FP16"):
            through(Fp16(), {"weight": biggest + 1})
    assert (through(Fp16(), {"weight": biggest})[1]["weight"] >= 65504).all()


# Integers


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("scales", ["channel", "tensor"])
@some
@given(data=st.data())
def test_integers_are_off_by_half_a_step_or_a_step_when_stochastic(bits, rounding, scales, data):
    shape = data.draw(st.sampled_from([each for each in SHAPES if math.prod(each) >= 1024]))
    array = drawn(data.draw(st.sampled_from(list(VALUES))), shape, "f4", data.draw(st.integers(0, 2**32)))
    _, decoded = through(Uniform(bits, rounding, scales, entropy="none"), {"weight": array})
    own_scales = scales == "channel" and len(shape) > 1 and math.prod(shape[1:]) > 1
    rows = array.reshape(shape[0] if own_scales else 1, -1).astype(np.float64)
    step = np.maximum(np.abs(rows).max(axis=1, keepdims=True) / (2 ** (bits - 1) - 1), np.finfo(np.float32).tiny)
    error = np.abs(decoded["weight"].reshape(rows.shape).astype(np.float64) - rows)
    assert (error <= step * (0.5 if rounding == "nearest" else 1) * (1 + 1e-4)).all()


@pytest.mark.parametrize("bits", [8, 4])
def test_stochastic_rounding_is_unbiased(bits):
    tensors, draws, rng = large(shape=(16, 64)), 400, np.random.default_rng(0)
    codec = Uniform(bits, "stochastic", entropy="none")
    payloads = [codec.encode(tensors, rng) for _ in range(draws)]
    mean = np.mean([codec.decode(each, specs_of(tensors))["weight"] for each in payloads], axis=0, dtype=np.float64)
    step = np.abs(tensors["weight"]).max(axis=1, keepdims=True) / (2 ** (bits - 1) - 1)
    off = (mean - tensors["weight"]) / step
    assert math.sqrt(np.square(off).mean()) < 0.5 / math.sqrt(draws), "half a step is the largest deviation of a draw"
    assert abs(off.mean()) < 4 * 0.5 / math.sqrt(draws * off.size)


# EDEN


def relative_error(codec, array, draws):
    """Returns the mean over draws of |decoded - array|^2 / |array|^2, and that of their mean."""
    rng = np.random.default_rng(1)
    decoded = [codec.decode(codec.encode({"w": array}, rng), specs_of({"w": array}))["w"] for _ in range(draws)]
    energy = np.square(array.astype(np.float64)).sum()
    each = np.mean([np.square(one.astype(np.float64) - array).sum() for one in decoded]) / energy
    return each, np.square(np.mean(decoded, axis=0, dtype=np.float64) - array).sum() / energy


@pytest.mark.parametrize(("feedback", "expected"), [(False, 0.571), (True, 0.363)])
def test_eden_has_the_published_error_at_one_bit(feedback, expected):
    error, _ = relative_error(Eden(1, error_feedback=feedback), large(shape=(8, 4096))["weight"], 10)
    assert error == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [3000, 8192])
def test_eden_is_unbiased_where_no_element_stands_out(bits, size):
    draws, array = 200, large(shape=(size,))["weight"]
    each, of_mean = relative_error(Eden(bits), array, draws)
    assert of_mean < 1.5 * each / draws + 1e-12


def test_eden_of_a_spike_among_noise_is_the_spike():
    """What its documentation says: it is not unbiased there, for the mean of many draws still lacks the noise."""
    array = np.random.default_rng(0).normal(size=4096).astype("f4") / 1000
    array[17] = 1000
    rng, codec = np.random.default_rng(1), Eden(1)
    draws = [codec.decode(codec.encode({"w": array}, rng), specs_of({"w": array}))["w"] for _ in range(50)]
    mean = np.mean(draws, axis=0)
    assert mean[17] == pytest.approx(1000, rel=1e-3)
    noise = np.delete(array, 17)
    assert np.square(np.delete(mean, 17) - noise).sum() > 0.5 * np.square(noise).sum()
    assert "only the spike" in " ".join(Eden.__doc__.split())


def test_eden_has_smaller_errors_with_more_bits_in_every_block():
    blocks = large(shape=(4, 4096))["weight"] * np.float32([[1], [100], [1e-4], [1e4]])  # of one tensor
    before = np.full(4, 0.6)
    for bits in (1, 2, 3, 4, 6, 8):
        _, decoded = through(Eden(bits), {"weight": blocks})
        error = np.square(decoded["weight"] - blocks).sum(axis=1) / np.square(blocks).sum(axis=1)
        assert (error < before).all()
        before = error / 1.8


# Entropy-coded quantization


@pytest.mark.parametrize("entropy", ["ans", "zstd"])
@pytest.mark.parametrize("values", [gaussian, laplacian, trained])
def test_ecq_hits_its_rate_and_its_error_falls_with_it(values, entropy):
    state = network(values)
    elements = sum(array.size for array in state.values() if array.ndim > 1)
    rates = (0.05, 0.1, 0.15, 0.2, 0.32, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0) if entropy == "ans" else (0.25, 1.0, 4.0)
    errors = []
    for bits in rates:
        payload, decoded = through(Ecq(bits, entropy=entropy), state)
        parts = composition(payload, specs_of(state))
        assert parts.coded_elements == elements
        assert parts.bits == pytest.approx(bits, rel=0.02)
        assert parts.bits <= bits
        errors.append(sum(np.square(decoded[n].astype(np.float64) - a).sum() for n, a in state.items()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 50


@pytest.mark.parametrize("bits", [0.25, 1.0, 4.0])
@pytest.mark.parametrize("values", [gaussian, laplacian, trained])
def test_ecq_keeps_the_length_without_feedback_and_has_the_smaller_error_with_it(values, bits):
    state = {name: array.astype(np.float64) for name, array in network(values).items() if array.size >= 1024}
    plain, feedback = (through(Ecq(bits, error_feedback=each), state)[1] for each in (False, True))
    for name, array in state.items():
        energy = np.square(array).sum()
        along, short = ((decoded[name] * array).sum() / energy for decoded in (plain, feedback))
        assert short < 1 + 1e-3
        assert along == pytest.approx(min(1, 2 * short), abs=1e-3)  # raised no further than twofold
        assert np.square(feedback[name] - array).sum() <= 1.05 * np.square(plain[name] - array).sum()


def test_ecq_gives_small_tensors_finer_steps():
    state = {f"{side}.weight": gaussian((side, side), np.random.default_rng(side)).astype("f4") for side in (64, 256)}
    for power, ratio in ((0.0, 1.0), (0.25, 2.0), (0.5, 4.0)):
        codec = Ecq(2.0, size_power=power, error_feedback=True)
        _, bodies = dissect(codec.encode(state, np.random.default_rng(0)), specs_of(state))
        small, big = (float(np.frombuffer(body[:4], "<f4")[0]) for _, body in bodies)
        assert big / small == pytest.approx(ratio, rel=1e-6)


def test_ecq_without_entropy_coding_stays_below_its_rate():
    state = network(laplacian)
    payload, _ = through(Ecq(2.5, entropy="none"), state)
    assert 1 < composition(payload, specs_of(state)).bits <= 2.5
    with pytest.raises(PayloadError, match=r"ecq: bits=2 is less than .* takes; choose at least 2\.0"):
        through(Ecq(2.0, entropy="none"), state)


@pytest.mark.parametrize("offset", [0.4, 0.5])
def test_ecq_without_entropy_coding_packs_once(offset, monkeypatch):
    arrays, packed = [gaussian((64, 64), np.random.default_rng(1)).astype("f4")], []
    monkeypatch.setattr(entropy, "_plain", lambda *each, inner=entropy._plain: packed.append(1) or inner(*each))
    (body,) = Ecq(6.0, offset=offset, entropy="none").encode_large(arrays, np.random.default_rng(0), 0, 0)
    assert len(packed) == 1
    assert 5 / 8 < len(body) / arrays[0].size <= 6 / 8, "the finest step whose bins fit"


def silent(decoded, tensors):
    return [name for name, array in tensors.items() if array.any() and not decoded[name].any()]


@pytest.mark.parametrize("codec", [c for c in CODECS.values() if not isinstance(c, Fp16 | Raw)], ids=str)
@pytest.mark.parametrize("scale", [1, 1e-2, 1e-6])
def test_no_tensor_is_silent_beside_others(codec, scale):
    rng = np.random.default_rng(0)
    tensors = {f"{n}.weight": rng.normal(size=(64, 64)).astype("f4") * np.float32(scale**n) for n in range(4)}
    tensors["still.weight"] = np.zeros((64, 64), np.float32)
    decoded = through(codec, tensors)[1]
    assert silent(decoded, tensors) == []
    assert not decoded["still.weight"].any()


def test_ecq_gives_each_tensor_a_quarter_of_the_rate():
    rng = np.random.default_rng(0)
    tensors = {f"{n}.weight": rng.normal(size=(100, 100)).astype("f4") * np.float32(10.0**-n) for n in range(4)}
    payload, _ = through(Ecq(1.0), tensors)
    _, bodies = dissect(payload, specs_of(tensors))
    assert min(len(body) for _, body in bodies) > 0.24 * 10_000 / 8
    assert sum(len(body) for _, body in bodies) <= 40_000 / 8


@pytest.mark.parametrize("scale", [1, 1e-3])
@pytest.mark.parametrize("entropy", ["ans", "zstd"])
def test_a_rate_below_the_floor_is_refused_and_the_floor_works(entropy, scale):
    rng = np.random.default_rng(0)
    tensors = {f"{n}.weight": rng.normal(size=(32, 32 + n)).astype("f4") * np.float32(scale**n) for n in range(6)}
    with pytest.raises(PayloadError, match=r"ecq: bits=0\.02 is less than one element of each .* at least ") as caught:
        through(Ecq(0.02, entropy=entropy), tensors)
    floor = float(str(caught.value).rsplit(" ", 1)[1])
    payload, decoded = through(Ecq(floor, entropy=entropy), tensors)
    assert silent(decoded, tensors) == []
    assert 0.02 < composition(payload, specs_of(tensors)).bits <= floor < 0.4
    through(Ecq(0.02), {name: np.zeros_like(array) for name, array in tensors.items()})  # nothing to say is no rate


@pytest.mark.parametrize("bits", [0.1, 0.5, 0.9])
def test_ecq_sends_some_of_many_that_are_equally_large(bits):
    """As the first step of Adam moves all elements by the same length."""
    signs = np.random.default_rng(0).choice(np.float32([-1, 1]), (64, 64))
    payload, decoded = through(Ecq(bits), {"w": signs})
    assert 0.8 * bits < composition(payload, specs_of({"w": signs})).bits <= bits
    sent = decoded["w"] != 0
    assert (np.sign(decoded["w"][sent]) == signs[sent]).all()
    others = (
        Ecq(bits).decode(Ecq(bits).encode({"w": signs}, np.random.default_rng(1)), specs_of({"w": signs}))["w"] != 0
    )
    assert (others != sent).any(), "other ones with another seed, so that none is left behind"


def test_few_tensors_that_change_do_not_get_the_rate_of_all():
    tensors = {"frozen.weight": np.zeros((400, 400), np.float32), "head.weight": large()["weight"]}
    payload, _ = through(Ecq(1.0), tensors)
    (_, still), (_, body) = dissect(payload, specs_of(tensors))[1]
    assert len(still) == 0
    assert len(body) <= 4000 / 8


@pytest.mark.parametrize("bits", [0, -1, 33, float("nan"), float("inf"), True, "1 bit"])
def test_a_rate_that_is_none_is_refused(bits):
    with pytest.raises(ValidationError, match="bits"):
        Ecq(bits=bits)


@pytest.mark.parametrize("offset", [0, 0.123456789, 0.4, 0.5])
def test_ecq_decodes_each_element_within_its_bin(offset):
    codec, array = Ecq(3.0, offset=offset), large(shape=(8, 400))["weight"]
    body = codec._encode(array, np.float32(0.25))
    decoded = codec.decode_large(memoryview(body), (8, 400))
    assert np.abs(decoded - array).max() <= 0.25 * (1 + 1e-6)
    assert np.square(decoded - array).mean() < 0.25**2 / 4


# Sparse ternary compression


@pytest.mark.parametrize("fraction", [0.001, 0.01, 0.3, 1.0])
@pytest.mark.parametrize("values", ["normal", "constant", "sparse", "zero"])
def test_stc_sends_the_right_fraction(fraction, values):
    tensors = {f"weight{n}": drawn(values, (50, 60), "f4", 5 + n) for n in range(2)}
    _, decoded = through(Stc(fraction), tensors)
    before, after = (np.concatenate([each.reshape(-1) for each in side.values()]) for side in (tensors, decoded))
    sent, wanted = np.count_nonzero(after), min(max(1, round(fraction * 6000)), np.count_nonzero(before))
    assert sent == wanted if values != "constant" else wanted <= sent <= wanted + 1
    if sent:
        assert np.abs(before[after != 0]).min() >= np.abs(before[after == 0]).max(initial=0) or values == "constant"
        assert (np.sign(after[after != 0]) == np.sign(before[after != 0])).all()
    for name, array in tensors.items():
        if array.any():
            chosen = decoded[name] != 0
            assert np.allclose(np.abs(decoded[name][chosen]), np.abs(array[chosen]).mean(), rtol=1e-6)


def test_stc_sends_the_first_of_equal_ones_of_large_tensors():
    """Tensors of several blocks; their values lie so close that only the last bits of their FP32 tell them apart."""
    alike = np.full((300, 500), -2 - 5 * 2**-22, np.float32)
    close = (2 + np.arange(5, 150_005) * 2**-22).astype(np.float32).reshape(300, 500)
    _, decoded = through(Stc(0.6), {"alike.weight": alike, "close.weight": close[::-1].copy()})
    order = np.flatnonzero(decoded["alike.weight"])
    assert (order == np.arange(30_001)).all()  # of 180,000 those that `close` leaves, whose smallest is as large
    assert np.count_nonzero(decoded["close.weight"]) == 149_999


def test_stc_leaves_no_tensor_silent():
    tensors = {"big.weight": large()["weight"], "small.weight": large(1)["weight"] * np.float32(1e-4)}
    _, decoded = through(Stc(), tensors)
    (place,) = np.argwhere(decoded["small.weight"])
    assert np.abs(tensors["small.weight"]).max() == np.abs(decoded["small.weight"][tuple(place)])


# Packing


@pytest.mark.parametrize(
    "codec", [Uniform(8), Uniform(4), Uniform(3, scales="tensor"), Eden(1), Eden(3), Eden(8), Stc(0.1)]
)
def test_every_packing_decodes_to_the_same(codec):
    decoded = {entropy: through(replace(codec, entropy=entropy), large()) for entropy in ("none", "zstd", "ans")}
    for _, tensors in decoded.values():
        assert np.array_equal(tensors["weight"], decoded["ans"][1]["weight"])
    assert min(len(payload) for payload, _ in decoded.values()) > 100


def test_every_packing_of_ecq_decodes_to_the_same_at_the_same_step():
    array = large()["weight"]
    bodies = [Ecq(3.0, entropy=entropy)._encode(array, np.float32(0.01)) for entropy in ("none", "zstd", "ans")]
    first, *others = [Ecq().decode_large(memoryview(body), array.shape) for body in bodies]
    assert all(np.array_equal(first, other) for other in others)


SYMBOLS = {
    "normal": lambda rng, size, width: rng.normal(0, width / 6, size),
    "laplace": lambda rng, size, width: rng.laplace(0, width / 20, size),
    "uniform": lambda rng, size, width: rng.integers(0, width + 1, size),
    "two": lambda rng, size, width: (rng.random(size) < rng.random() ** 4) * width,
    "few far apart": lambda rng, size, width: rng.choice(rng.integers(-width, width + 1, 20), size),
    "outliers": lambda rng, size, width: rng.normal(0, 3, size) * np.where(rng.random(size) < 0.001, width / 9, 1),
    "all different": lambda rng, size, width: rng.permutation(size) * (width / size),
    "half zero, half far apart": lambda rng, size, width: (
        rng.integers(-width, width + 1, size) * (rng.random(size) > 0.5)
    ),
    "one alone": lambda rng, size, width: 1 * (np.arange(size) == 17),
    "constant": lambda rng, size, width: np.full(size, width),
}


def stored_model_bytes(symbols):
    """A byte or more for each count of a histogram, or for each entry of a list where that has too many places."""
    listed, counts = np.unique(symbols, return_counts=True)
    span = int(symbols.max()) - int(symbols.min())
    seven_bits = [*counts, len(counts), *np.diff(listed)] if span >= 512 else counts
    absent = 0 if span >= 512 else span + 1 - len(counts)
    return absent + sum((int(number).bit_length() + 6) // 7 for number in seven_bits)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(list(SYMBOLS)),
    size=st.sampled_from([4096, 5001, 20_000]),
    width=st.sampled_from([1, 2, 7, 40, 254, 511, 512, 3000, 2**16, 2**20, 2**30]),
    dtype=st.sampled_from([np.int8, np.int32, np.int64]),
    seed=st.integers(0, 2**32),
)
def test_ans_is_close_to_the_entropy_and_never_longer_than_plain_packing(kind, size, width, dtype, seed):
    values = SYMBOLS[kind](np.random.default_rng(seed), size, width)
    limit = min(np.iinfo(dtype).max, 2**31 - 1)
    symbols = np.clip(np.rint(values), -limit, limit).astype(dtype)
    coded = pack(symbols, "ans")
    assert np.array_equal(unpack(memoryview(coded), size), symbols)
    _, counts = np.unique(symbols, return_counts=True)
    entropy_bytes = -(counts * np.log2(counts / size)).sum() / 8
    assert len(coded) <= 1.02 * entropy_bytes + stored_model_bytes(symbols) + 64
    assert len(coded) <= len(pack(symbols, "none")) + 64


@pytest.mark.parametrize("kind", ["laplace", "outliers"])
@pytest.mark.parametrize("width", [1000, 2**14, 2**24])
@pytest.mark.parametrize("size", [700, 1500, 20_000])
def test_wide_symbols_are_split_where_it_is_shortest(kind, width, size):
    """Of all splits by their true length: no part of the cost may be doubled or left out."""
    symbols = np.rint(SYMBOLS[kind](np.random.default_rng(width), size, width)).astype(np.int64)
    offsets = (symbols - symbols.min()).astype(np.uint32)
    span, lengths = int(offsets.max()), {}
    for shift in range(max(0, span.bit_length() - 9) + 1):
        listed = len(np.unique(offsets >> shift))
        if span >> shift < 512 or 2 <= listed <= size * 3 // 4:
            lengths[shift] = len(_ans(offsets >> shift, span >> shift)) + (size * shift + 7) // 8
    assert lengths[_best_split(offsets, span)] <= min(lengths.values()) + 4


@some
@given(
    size=st.integers(0, 3000),
    low=st.integers(1 - 2**31, 2**31 - 1),
    width=st.integers(0, 32),
    entropy=st.sampled_from(["none", "zstd", "ans"]),
    seed=st.integers(0, 2**32),
)
def test_symbols_survive_any_packing(size, low, width, entropy, seed):
    high = min(2**31 - 1, low + 2**width - 1)
    symbols = np.random.default_rng(seed).integers(low, high, size, np.int64, endpoint=True)
    symbols[:2] = [low, high][: len(symbols[:2])]
    coded = pack(symbols, entropy)
    assert np.array_equal(unpack(memoryview(coded), size), symbols)
    assert len(coded) <= (plain_bytes(low, high, size) if size else 0)
    if size > 1 and entropy == "none":
        assert len(coded) == plain_bytes(low, high, size) == 10 + -(-size * (high - low).bit_length() // 8)
