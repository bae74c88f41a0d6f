"""Both ends of the link by themselves: what is recognized, remembered, rounded, forgotten."""

import numpy as np
import pytest
from codec.test_strategy import AVERAGE, BOTH, INT8, add_one, arrays_in, learning, model, record, sent_by, trained
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp.strategy import FedAvg

from fl.codec import CodecStrategy, Raw, ServerLink, Uniform, codec_mod, fingerprint
from fl.codec.broadcast import BroadcastChain, follow
from fl.codec.changes import applied, difference, lost, specs_of_difference
from fl.codec.client_mod import REFERENCE
from fl.codec.payload import base_of, specs_of
from fl.codec.wire import STYPE, WIRE
from fl.core.errors import PayloadError
from fl.federation.engine.in_process import InProcess


@pytest.fixture(autouse=True)
def _an_identity():
    """Flower makes no message outside of a run."""
    with InProcess().open(learning([]), 1):
        yield


def is_payload(array):
    return array.stype == STYPE


def asked(link, grid, arrays, client=0, server_round=1):
    """Sends arrays to one client; returns its decoded answer."""
    content = RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": server_round})})
    (reply,) = grid.send_and_receive(link.send([Message(content, 2 + client, "train")]))
    link.receive(reply)
    link.accept(reply)
    return reply


def test_a_model_is_recognized_by_its_bytes():
    """A copy is the model; the same arrays in another order, or one of them alone, are another."""
    link = ServerLink(Uniform(8), None, initial=model)
    moved = add_one(model(), 0, 0)
    link.begin(record(model()))
    link.begin(record(moved))
    backwards, alone = dict(reversed(moved.items())), {"fc.bias": moved["fc.bias"]}
    for arrays, coded in ((moved, True), (backwards, False), (alone, False), (model(), False)):
        (message,) = link.send([Message(RecordDict({"arrays": record(arrays)}), 2, "train")])
        assert all(is_payload(array) == coded for array in message.content["arrays"].values())
        if not coded:
            assert list(message.content["arrays"]) == list(arrays)
            assert all(message.content["arrays"][n].data == record(arrays)[n].data for n in arrays)


def test_who_was_sent_a_model_of_its_own_still_holds_the_reference():
    settings, seen = BOTH | {"initial": model}, {}
    link = ServerLink(BOTH["broadcast"], INT8, initial=model)
    second, third = add_one(model(), 0, 0), add_one(add_one(model(), 0, 0), 0, 0)
    with InProcess().open(learning([codec_mod(**settings)], seen=seen), 1) as grid:
        asked(link, grid, link.begin(record(second)))
        held = fingerprint(arrays_in(grid.states.get(2).array_records[REFERENCE]))
        link.begin(record(third))
        asked(link, grid, record({n: a * 0 for n, a in model().items()}), server_round=2)
        assert fingerprint(arrays_in(grid.states.get(2).array_records[REFERENCE])) == held
        basis = link.begin(record(third))
        (message,) = link.send([Message(RecordDict({"arrays": basis, "config": ConfigRecord()}), 2, "train")])
        (payload,) = message.content["arrays"].values()
        assert base_of(payload.data) == held


def test_a_client_may_be_sent_a_model_of_another_size():
    """What feedback remembers of one model is not added to another."""
    link, seen = ServerLink(None, INT8), {}
    with InProcess().open(learning([codec_mod(update=INT8)], add_one, seen=seen), 1) as grid:
        for server_round, size in enumerate([(32, 64), (16, 128), (32, 64), (64, 64)], 1):
            link.begin(record(model()))
            reply = asked(link, grid, record(model(size)), server_round=server_round)
            for name, array in reply.content["arrays"].items():
                np.testing.assert_allclose(array.numpy(), model(size)[name] + 1, atol=0.05)


def test_a_mod_with_codecs_lets_queries_pass():
    app = learning([codec_mod(**BOTH)])

    @app.query()
    def query(message, context):
        return Message(RecordDict({"arrays": message.content["arrays"]}), reply_to=message)

    with InProcess().open(app, 1) as grid:
        (reply,) = grid.send_and_receive([Message(RecordDict({"arrays": record(model())}), 2, "query")])
    assert fingerprint(arrays_in(reply.content["arrays"])) == fingerprint(model())


def test_rounding_depends_on_seed_round_and_client():
    codec, payloads = Uniform(4, "stochastic"), []
    for seed, server_round, client in [(0, 1, 0), (0, 1, 0), (5, 1, 0), (0, 2, 0), (0, 1, 1)]:
        link = ServerLink(None, codec)
        app = learning([codec_mod(update=codec, seed=seed)], lambda r, *_: {n: a * 2 for n, a in r.items()})
        with InProcess().open(app, 2) as grid:
            link.begin(record(model()))
            content = RecordDict({"arrays": record(model()), "config": ConfigRecord({"server-round": server_round})})
            (reply,) = grid.send_and_receive(link.send([Message(content, 2 + client, "train")]))
            payloads.append(reply.content["arrays"]["update"].data)
    assert payloads[0] == payloads[1]
    assert len(set(payloads)) == 4


def test_feedback_leaves_counters_alone():
    codec = Uniform(4, error_feedback=True)

    def start():
        return model() | {"bn.running_var": np.full(32, 0.1, np.float32), "steps": np.array(7)}

    link = ServerLink(codec, None, initial=start)
    moved = start() | {"bn.running_var": np.full(32, 1 / 3, np.float32), "steps": np.array(9)}
    link.begin(record(start()))
    basis, held = arrays_in(link.begin(record(moved))), link.reference(record(moved))
    assert basis["steps"] == 9
    assert (held["bn.running_var"] != moved["bn.running_var"]).all()
    np.testing.assert_array_equal(basis["bn.running_var"], held["bn.running_var"])


def test_vectors_with_a_name_travel_as_before():
    names = ("fc.bias", "bn.weight", "bn.running_var", "bn.running_mean")
    base = {name: np.ones(2048, np.float32) for name in names} | {"matrix": np.ones((64, 32), np.float32)}
    new = {name: array + np.float32(0.3) for name, array in base.items()}
    change = difference(Uniform(8), new, base)
    assert {name: array.dtype.str for name, array in change.items()} == dict.fromkeys(base, "<f4")
    assert specs_of_difference(base) == specs_of(base)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_vectors_without_a_name_are_exact_in_every_type(dtype):
    base = {"0": np.linspace(0, 1, 1500).astype(dtype), "1": np.zeros((1, 1500, 1), dtype), "2": np.ones((), dtype)}
    new = {name: np.asarray(array + np.asarray(0.123, dtype)) for name, array in base.items()}
    payload = Uniform(2).encode(difference(Uniform(2), new, base), np.random.default_rng(0))
    for name, array in applied(Uniform(2), payload, base).items():
        np.testing.assert_array_equal(array, new[name])
        assert array.dtype == new[name].dtype


def test_bits_that_are_no_number_are_refused():
    base, new = {"0": np.ones(8, np.float32)}, {"0": np.full(8, np.nan, np.float32)}
    payload = Uniform(8).encode(difference(Uniform(8), new, base), np.random.default_rng(0))
    with pytest.raises(PayloadError, match="0 holds NaN or infinity"):
        applied(Uniform(8), payload, base)


def test_a_lost_update_of_another_kind_is_read_as_it_was_sent():
    """The first update was exact, the second one a difference; the second one does not arrive."""
    codec, got = Uniform(8, error_feedback=True), {}
    app = learning([codec_mod(update=codec)], lambda r, number, _: {"0": r["0"] + np.float32(got["step"])})
    link = ServerLink(None, codec)
    with InProcess().open(app, 1) as grid:
        for server_round, (start, step, arrives) in enumerate([(1, 1, False), (-1, 2, False), (-1, 0, True)], 1):
            vector = record({"0": np.full(2048, start, np.float32)})
            link.begin(vector)
            got["step"] = step
            content = RecordDict({"arrays": vector, "config": ConfigRecord({"server-round": server_round})})
            (reply,) = grid.send_and_receive(link.send([Message(content, 2, "train")]))
            assert not reply.has_error()
            if arrives:
                link.receive(reply)
        np.testing.assert_allclose(reply.content["arrays"]["0"].numpy(), -1 + 2, atol=0.05)


def test_what_is_lost_of_a_constant_is_nothing():
    exact = np.array([np.inf, -np.inf, np.nan, 1.5, -0.0], np.float32)
    np.testing.assert_array_equal(lost(exact, exact), np.zeros(5))
    np.testing.assert_array_equal(lost(exact, np.where(exact == 1.5, 1, exact)), [0, 0, 0, 0.5, 0])
    assert lost(exact, exact).dtype == np.float32


def test_counters_that_flower_averaged_are_rounded():
    link = ServerLink(None, INT8)
    start = model() | {"steps": np.array(4)}
    link.begin(record(start))
    basis = link.begin(record(start | {"steps": np.array(6.9999)}))
    assert basis["steps"].numpy() == 7
    assert basis["steps"].dtype == "int64"


def test_messages_without_a_model_pass_both_ends():
    link = ServerLink(BOTH["broadcast"], INT8)
    app = learning([codec_mod(**BOTH)])

    @app.train("count")
    def count(message, context):
        assert WIRE not in message.content
        return Message(RecordDict({"arrays": record(model())}), reply_to=message)

    with InProcess().open(app, 1) as grid:
        link.begin(record(model()))
        (message,) = link.send([Message(RecordDict({"config": ConfigRecord({"n": 1})}), 2, "train.count")])
        assert set(message.content) == {"config"}
        (reply,) = grid.send_and_receive([message])
        link.receive(reply)
    assert fingerprint(arrays_in(reply.content["arrays"])) == fingerprint(model())


def test_a_strategy_is_given_what_clients_hold():
    """So that what it takes for a client's change is one."""
    given, seen = [], {}

    class Watching(FedAvg):
        def configure_train(self, server_round, arrays, config, grid):
            given.append(fingerprint(arrays_in(arrays)))
            return super().configure_train(server_round, arrays, config, grid)

    settings = {"broadcast": Uniform(3), "initial": model}
    trained(CodecStrategy(Watching(**AVERAGE), **settings), learning([codec_mod(**settings)], seen=seen))
    assert given == [fingerprint(seen[server_round, 0]) for server_round in (1, 2, 3)]


def test_a_strategy_sees_its_clients_errors():
    counted = []

    class Counting(FedAvg):
        def aggregate_train(self, server_round, replies):
            replies = list(replies)
            counted.append(sum(reply.has_error() for reply in replies))
            return super().aggregate_train(server_round, replies)

    trained(CodecStrategy(Counting(**AVERAGE), **BOTH), learning([codec_mod(**BOTH)], failing={(1, 0), (1, 2), (3, 1)}))
    assert counted == [2, 0, 1]


def test_the_model_is_the_record_that_the_strategy_calls_so():
    class Twice(FedAvg):
        def configure_train(self, server_round, arrays, config, grid):
            messages = list(super().configure_train(server_round, arrays, config, grid))
            for message in messages:
                message.content = RecordDict({"arrays": arrays, **message.content})
            return messages

    strategy = CodecStrategy(Twice(arrayrecord_key="weights", **AVERAGE), broadcast=INT8, initial=model)
    with InProcess().open(learning([]), 2) as grid:
        messages = list(strategy.configure_train(1, record(model()), ConfigRecord(), grid))
    assert all(is_payload(array) for array in messages[0].content["weights"].values())
    assert not any(is_payload(array) for array in messages[0].content["arrays"].values())


def chain_of(codec, steps, seed=0, size=(32, 64)):
    """Returns a chain after some models, and the reference after each."""
    chain, rng = BroadcastChain(codec, model(size), seed), np.random.default_rng(2)
    references, now = [model(size)], model(size)
    for _ in range(steps):
        now = {name: array + rng.normal(size=array.shape).astype(np.float32) for name, array in now.items()}
        references.append({name: array.copy() for name, array in chain.advance(now).items()})
    return chain, references


def test_frames_are_rounded_by_seed_and_number():
    codec, same = (
        Uniform(4, "stochastic"),
        [{"fc.weight": np.full((32, 64), number, np.float32)} for number in range(3)],
    )
    step = np.random.default_rng(0).normal(size=(32, 64)).astype(np.float32)

    def frames(seed):
        chain = BroadcastChain(codec, same[0], seed)
        moved = chain.advance({"fc.weight": step})
        first = moved["fc.weight"]
        second = chain.advance({"fc.weight": first + step})["fc.weight"] - first
        return first, second

    first, second = frames(0)
    assert np.abs(first - second).max() > 0.1, "the same change is rounded otherwise the next time"
    np.testing.assert_array_equal(first, frames(0)[0])
    assert np.abs(first - frames(1)[0]).max() > 0.1


def test_frames_longer_than_the_model_are_forgotten():
    chain, references = chain_of(Uniform(8), 12)
    held = sum(len(frame) for frame in chain._frames)
    assert held <= sum(array.nbytes for array in model().values())
    (whole,) = chain.payloads_for(fingerprint(references[0]))
    assert base_of(whole) == bytes(8)
    assert fingerprint(follow(Uniform(8), references[0], [whole])) == fingerprint(references[-1])


def test_one_missed_frame_is_sent_whatever_its_length():
    chain, references = chain_of(Raw(), 2)
    (frame,) = chain.payloads_for(fingerprint(references[1]))
    assert base_of(frame) == fingerprint(references[1])


def test_the_whole_model_is_sent_where_it_is_shorter():
    chain, references = chain_of(Raw(), 2)
    zeros = {name: array * 0 for name, array in model().items()}
    chain.advance(zeros)
    (whole,) = chain.payloads_for(fingerprint(references[1]))
    assert base_of(whole) == bytes(8)
    assert len(whole) < 500 < sum(len(frame) for frame in chain._frames[-2:])
    assert fingerprint(follow(Raw(), references[1], [whole])) == fingerprint(zeros)


def test_who_has_some_of_the_frames_begins_at_the_one_it_lacks():
    codec = Uniform(4)
    chain, references = chain_of(codec, 3)
    frames = chain.payloads_for(fingerprint(references[0]))
    assert len(frames) == 3
    for held in references[:3]:
        assert fingerprint(follow(codec, held, frames)) == fingerprint(references[-1])
    assert follow(codec, add_one(model(), 0, 0), frames) is None
    assert follow(codec, None, frames) is None


def test_a_link_says_where_its_records_are():
    link = ServerLink(BOTH["broadcast"], INT8, initial=model)
    (message,) = sent_by(link, model())
    told = message.content.config_records[WIRE]
    assert told["reference"] == fingerprint(model())
    assert told["settings"] == "broadcast=int8 per channel, update=int8 per channel, initial=given"
    assert isinstance(message.content["arrays"], ArrayRecord)


def test_a_mask_is_in_no_frame_and_no_whole_model():
    """Who missed one round, or all of them, has it still."""
    codec, rng = Uniform(8, error_feedback=True), np.random.default_rng(2)
    now = model() | {"mask": np.triu(np.full((48, 48), -np.inf, np.float32), 1)}
    chain, references = BroadcastChain(codec, now, 0), [now]
    for _ in range(12):
        moved = {n: now[n] + rng.normal(size=now[n].shape).astype(np.float32) for n in ("fc.weight", "fc.bias")}
        now = now | moved
        references.append(dict(chain.advance(now)))
    for held in (references[0], references[-2]):
        payloads = chain.payloads_for(fingerprint(held))
        assert fingerprint(follow(codec, held, payloads)) == fingerprint(references[-1])
    np.testing.assert_array_equal(references[-1]["mask"], references[0]["mask"])
