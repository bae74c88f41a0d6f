"""Bits that go by the client or the round: as many in all, and closer where it counts."""

from itertools import pairwise

import numpy as np
import pytest
from codec.test_strategy import learning, record
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp.strategy import FedAvg
from hypothesis import given
from hypothesis import strategies as st

from fl.codec import CodecStrategy, Ecq, ServerLink, Tcq, Uniform, codec_mod
from fl.codec.broadcast import BroadcastChain
from fl.codec.shares import MOST_BITS, shared_bits
from fl.core.errors import ConfigError, PayloadError
from fl.federation.engine.in_process import InProcess

WEIGHTS = st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=12)
SHAPE = 64, 512
CLIENTS = 6
"""The first has one image, the last six."""


def loss(weights, bits):
    return float((np.square(weights) / (np.exp2(2 * np.asarray(bits)) - 1)).sum())


@given(st.floats(0.05, 3), WEIGHTS)
def test_the_mean_stays_and_more_weight_has_more_bits(mean, weights):
    bits = shared_bits(mean, weights)
    assert np.mean(bits) == pytest.approx(mean, rel=1e-9)
    assert all(0 < each <= MOST_BITS for each in bits)
    by_weight = np.asarray(bits)[np.argsort(weights, kind="stable")]
    assert (np.diff(by_weight) >= -1e-12).all()


@given(st.floats(0.05, 40), st.floats(1e-3, 1e3), st.integers(1, 20))
def test_equal_clients_have_what_was_set_to_the_bit(mean, weight, count):
    assert shared_bits(mean, [weight] * count) == [mean] * count


@given(st.floats(0.3, 1.5), st.lists(st.floats(0.2, 5), min_size=3, max_size=8), st.integers(0, 2**32))
def test_no_other_share_of_the_same_bits_is_better(mean, weights, seed):
    bits = np.asarray(shared_bits(mean, weights))
    if bits.max() == MOST_BITS:
        return
    rng = np.random.default_rng(seed)
    for size in (0.2, 0.02):
        change = rng.normal(size=len(bits)) * size * bits.min()
        other = bits + change - change.mean()
        if other.min() > 0:
            assert loss(weights, bits) <= loss(weights, other) * (1 + 1e-9)


def learned(received, server_round, client):
    rng = np.random.default_rng([server_round, client])
    return {name: array + rng.laplace(size=array.shape).astype(array.dtype) for name, array in received.items()}


def asks(model, number, client, what):
    return Message(RecordDict({"arrays": model, "config": ConfigRecord({"server-round": number})}), 2 + client, what)


def rounds(codec, count=2, stop_after=None):
    """Returns the payloads' lengths and the error of the weighted mean, by round; perhaps continued by another link."""
    start = {"fc.weight": np.zeros(SHAPE, np.float32)}
    weights, link = np.arange(1.0, CLIENTS + 1), ServerLink(None, codec)
    lengths, errors = [], []
    with InProcess().open(learning([codec_mod(update=codec)], learned), CLIENTS) as grid:
        for number in range(1, count + 1):
            link.begin(record(start))
            messages = [asks(record(start), number, client, "train") for client in range(CLIENTS)]
            found = np.zeros(SHAPE)
            lengths.append([0] * CLIENTS)
            for reply in grid.send_and_receive(link.send(messages)):
                client = reply.metadata.src_node_id - 2
                lengths[-1][client] = len(next(iter(reply.content["arrays"].values())).data)
                link.receive(reply)
                link.accept(reply)
                found += weights[client] * reply.content["arrays"]["fc.weight"].numpy()
            exact = sum(w * learned(start, number, c)["fc.weight"] for c, w in enumerate(weights))
            questions = [asks(record(start), number, client, "evaluate") for client in range(CLIENTS)]
            for reply in grid.send_and_receive(link.send(questions)):  # whose number of images is no weight
                link.receive(reply)
                link.accept(reply)
            errors.append(np.square(found - exact).sum() / np.square(exact).sum())
            if number == stop_after:
                state, link = link.state(), ServerLink(None, codec)
                link.load_state(state)
    return lengths, errors


@pytest.mark.parametrize("kind", [Ecq, Tcq])
def test_by_weight_the_mean_is_closer_for_as_many_bytes(kind):
    lengths, errors = rounds(kind(bits=0.94, by_weight=True))
    equal, equal_errors = rounds(kind(bits=0.94))
    assert lengths[0] == equal[0]  # nobody has said yet what it trained on
    assert lengths[1] == sorted(lengths[1])
    assert lengths[1][-1] > 2 * lengths[1][0]
    assert sum(lengths[1]) == pytest.approx(sum(equal[1]), rel=0.02)
    print(f"{kind.__name__}: error {errors[1]:.3f}, with equal bits {equal_errors[1]:.3f}")
    assert errors[1] < 0.85 * equal_errors[1]


def test_weights_are_remembered_over_a_kill():
    codec = Ecq(bits=0.94, by_weight=True)
    assert rounds(codec, 3, stop_after=1) == rounds(codec, 3)


def test_a_share_that_says_nothing_is_the_usual_one():
    """Small networks have a floor; who is given less than that sends what all were told to."""
    few = min(shared_bits(0.012, range(1, CLIENTS + 1)))
    with pytest.raises(PayloadError, match="choose at least"):
        Ecq().at(few).encode(learned({"fc.weight": np.zeros(SHAPE, np.float32)}, 2, 0), np.random.default_rng(0))
    lengths, _ = rounds(Ecq(bits=0.012, by_weight=True))
    assert lengths[1][0] == lengths[0][0] < lengths[1][-1]


@pytest.mark.parametrize("bits", [0.0, -1.0, float("nan"), 1e9])
def test_bits_that_cannot_be_are_refused(bits):
    with pytest.raises(PayloadError, match="bits for each element"):
        Ecq().at(bits)


def test_a_broadcast_has_no_weights():
    for make in (lambda codec: CodecStrategy(FedAvg(), broadcast=codec), lambda codec: codec_mod(broadcast=codec)):
        with pytest.raises(ConfigError, match="by_weight is for updates"):
            make(Ecq(by_weight=True))


@given(st.floats(0.1, 6), st.floats(1, 2), st.integers(1, 10**9))
def test_bits_rise_by_the_round_up_to_four(bits, rise, number):
    exact = bits * rise ** min(number - 1, 900)
    assert Ecq(bits=bits, rise=rise).in_round(number).bits == pytest.approx(min(exact, max(bits, 4)))
    assert Ecq(bits=bits, rise=rise).in_round(1).bits == bits


@pytest.mark.parametrize("rise", [0.99, 2.01, True, float("nan"), "2"])
def test_bits_neither_fall_nor_leap(rise):
    with pytest.raises(ValueError, match="rise"):
        Tcq(rise=rise)


def test_a_codec_without_a_rate_is_the_same_in_every_round():
    assert all(Uniform(bits=4).in_round(number) == Uniform(bits=4) for number in (1, 7))


@pytest.mark.parametrize("kind", [Ecq, Tcq])
@pytest.mark.parametrize("by_weight", [False, True])
def test_what_rises_loses_less_round_by_round(kind, by_weight):
    lengths, errors = rounds(kind(bits=0.6, rise=1.4, by_weight=by_weight), 3)
    total = [sum(each) for each in lengths]
    assert [b / a for a, b in pairwise(total)] == pytest.approx([1.4, 1.4], rel=0.03)
    assert errors[0] > 1.1 * errors[1] > 1.2 * errors[2]
    assert (lengths[2][-1] > 1.2 * lengths[2][0]) == by_weight


def test_frames_rise_and_go_on_rising_after_a_kill():
    models = [learned({"fc.weight": np.zeros(SHAPE, np.float32)}, number, 0) for number in range(5)]

    def frames(stop_after):
        chain, lengths = BroadcastChain(Ecq(bits=0.6, rise=1.4), models[0], 0), []
        for number, model in enumerate(models[1:], 1):
            held = chain.state()["ids"][-1]
            chain.advance(model)
            lengths += [len(each) for each in chain.payloads_for(bytes.fromhex(held))]
            if number == stop_after:
                state, chain = chain.state(), BroadcastChain(Ecq(bits=0.6, rise=1.4), models[0], 0)
                chain.load_state(state)
        return lengths

    lengths = frames(None)
    assert [b / a for a, b in pairwise(lengths)] == pytest.approx([1.4] * 3, rel=0.05)
    assert frames(2) == lengths
