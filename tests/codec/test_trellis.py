"""The trellis finds the best path there is, and its codec takes fewer bytes than a single quantizer."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl.codec import Ecq, PayloadError, Tcq
from fl.codec.payload import specs_of
from fl.codec.tcq import _Part, _Quantized
from fl.codec.trellis import MOST, NEXT, NOMINAL, PRICE, Path, Prices, best_path, in_lanes, lanes_of, out_of_lanes

some = settings(max_examples=20, deadline=None, derandomize=True)


def normal(size, seed=0):
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)


def states_of(indices):
    """Returns the state before each step, and after the last one."""
    states = [0]
    for index in indices:
        states.append(int(NEXT[states[-1], index % 2]))
    return states


def cost(values, indices, prices):
    """Returns squared error plus priced bits of one lane, as the definition has it."""
    total = 0.0
    for value, index, state in zip(values, indices, states_of(indices)[:-1], strict=True):
        quantizer = state % 2
        total += (abs(value) - prices.levels[quantizer, index]) ** 2 + PRICE * prices.bits[quantizer, index]
    return total


@some
@given(seed=st.integers(0, 2**32), scale=st.floats(0.1, 2))
def test_no_path_is_better_than_the_one_that_is_found(seed, scale):
    rng = np.random.default_rng(seed)
    values = (scale * rng.normal(size=(4, 3))).astype(np.float32)
    bits = np.cumsum(rng.uniform(0.2, 2, (2, MOST + 1)), axis=1).astype(np.float32)
    prices = Prices(bits, NOMINAL)
    path = best_path(values, prices)
    for lane in range(values.shape[1]):
        everything = itertools.product(range(5), repeat=len(values))
        best = min(cost(values[:, lane], each, prices) for each in everything)
        assert cost(values[:, lane], path.indices[:, lane], prices) == pytest.approx(best, rel=1e-5)


def test_quantizers_follow_from_the_parities_of_the_indices():
    values = in_lanes(normal(5000))
    path = best_path(values, Prices.guess(1.0))
    for lane in range(values.shape[1]):
        assert [state % 2 for state in states_of(path.indices[:, lane])[:-1]] == path.quantizers[:, lane].tolist()


def test_each_state_is_reached_from_two_and_leads_to_two():
    assert sorted(NEXT.reshape(-1).tolist()) == sorted([*range(8)] * 2)
    assert all(a != b for a, b in NEXT.tolist())


@given(size=st.integers(1, 5000))
@some
def test_lanes_hold_the_vector_and_next_to_no_padding(size):
    vector = np.arange(1, size + 1, dtype=np.float32)
    lanes = in_lanes(vector)
    assert lanes.shape == lanes_of(size)
    assert np.array_equal(out_of_lanes(lanes, size), vector)
    assert lanes.size - size < lanes.shape[1]
    assert np.array_equal(lanes[:, 0], vector[: lanes.shape[0]]), "a lane is neighbours"


def test_prices_are_the_entropies_and_means_of_a_path():
    path = Path(
        np.array([[0, 1], [0, 1], [3, 0], [0, 1]], np.uint8), np.array([[0, 0], [0, 0], [0, 0], [1, 1]], np.uint8)
    )
    prices = Prices.of(np.array([[0.1, -2.5], [0.2, 1.5], [6.5, 0.0], [0.0, 1.25]], np.float32), path)
    assert prices.bits[0, 1] == pytest.approx(1 - np.log2(2.05 / (6 + 0.05 * (MOST + 1))))
    assert prices.bits[0, 0] == pytest.approx(-np.log2(3.05 / (6 + 0.05 * (MOST + 1))))
    assert prices.levels[0, [0, 1, 3]].tolist() == [0, 2.0, 6.5]
    assert prices.levels[1, [0, 1]].tolist() == [0, 1.25]
    assert path.bits() == pytest.approx(3 * np.log2(2) + 2 * np.log2(3) + np.log2(6) + 2)


@pytest.mark.parametrize("bits", [0.4, 1.0, 2.0])
@pytest.mark.parametrize("shape", [(128, 2400), (64, 1600)])
def test_the_same_error_takes_at_least_six_percent_fewer_bytes_than_with_one_quantizer(bits, shape):
    tensors = {"weight": normal(shape)}
    trellis, scalar = Tcq(bits, error_feedback=True), Ecq
    payload = trellis.encode(tensors, np.random.default_rng(0))
    error = squared_error(trellis, payload, tensors)
    low, high = bits, 2 * bits
    for _ in range(8):
        middle = (low + high) / 2
        single = scalar(middle, error_feedback=True)
        mine = single.encode(tensors, np.random.default_rng(0))
        low, high = (middle, high) if squared_error(single, mine, tensors) > error else (low, middle)
    assert len(payload) < 0.94 * len(mine)


def squared_error(codec, payload, tensors):
    decoded = codec.decode(payload, specs_of(tensors))
    return sum(float(np.square(decoded[name] - array).sum()) for name, array in tensors.items())


def test_a_rate_is_hit_from_below_and_closely():
    tensors = {f"layer{n}.weight": normal(shape, n) for n, shape in enumerate([(96, 576), (128, 128), (32, 75)])}
    elements = sum(array.size for array in tensors.values())
    for bits in (0.3, 0.51, 1.0, 3.0):
        payload = Tcq(bits).encode(tensors, np.random.default_rng(0))
        assert 0.98 * bits < 8 * len(payload) / elements < bits + 8 * 80 / elements


def test_a_step_is_never_too_small_for_the_largest_magnitude():
    vector = normal(4096)
    vector[7] = 5000.0
    decoded = Tcq(4.0, error_feedback=True)
    payload = decoded.encode({"weight": vector.reshape(64, 64)}, np.random.default_rng(0))
    found = decoded.decode(payload, specs_of({"weight": vector.reshape(64, 64)}))["weight"].reshape(-1)
    assert found[7] == pytest.approx(5000.0, rel=0.01)


def test_damaged_bodies_are_refused_or_decode():
    size, rng = 3000, np.random.default_rng(1)
    body = _Quantized(_Part(normal(size)), 1.2).body(shrunk=True)
    codec = Tcq()
    refused = 0
    for _ in range(600):
        damaged = bytearray(body)
        for _ in range(rng.integers(1, 4)):
            damaged[rng.integers(len(damaged))] = rng.integers(256)
        cut = bytes(damaged[: rng.integers(1, len(body) + 1)]) if rng.random() < 0.3 else bytes(damaged)
        try:
            assert codec.decode_large(memoryview(cut), (1, size)).shape == (1, size)
        except PayloadError:
            refused += 1
    assert refused > 100


def test_a_change_of_one_index_is_noticed():
    body = bytearray(_Quantized(_Part(normal(3000)), 1.2).body(shrunk=True))
    body[-2] ^= 16  # among the coded words
    with pytest.raises(PayloadError, match=r"payload: "):
        Tcq().decode_large(memoryview(bytes(body)), (1, 3000))
