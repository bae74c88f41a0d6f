"""Codecs around other people's strategies: what a strategy sends is what arrives, or one line says what cannot be."""

import gc
import logging
import random

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod, arrays_size_mod, fixedclipping_mod, message_size_mod
from flwr.server.strategy import FedAvg as LegacyFedAvg
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import FedAvg, FedProx

from fl.codec import CodecStrategy, Ecq, Eden, PayloadError, Raw, ServerLink, Uniform, codec_mod
from fl.codec.client_mod import RESIDUAL
from fl.codec.entropy import pack
from fl.codec.payload import specs_of
from fl.codec.wire import STYPE, WIRE, payload_array
from fl.core.errors import ConfigError, QuantflError, RunError
from fl.federation.engine.in_process import InProcess

INT8 = Uniform(8, error_feedback=True)
BOTH = {"broadcast": Uniform(8), "update": INT8}
AVERAGE = {"fraction_train": 1.0, "fraction_evaluate": 0.0}


def model(size=(32, 64)):
    rng = np.random.default_rng(7)
    return {"fc.weight": rng.normal(size=size).astype(np.float32), "fc.bias": np.zeros(size[0], np.float32)}


def record(tensors):
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in tensors.items()})


def arrays_in(record):
    return {name: array.numpy() for name, array in record.items()}


def learning(mods, change=None, failing=(), seen=None):
    """A ClientApp that moves what it received; it may fail in a (round, client)."""
    app = ClientApp(mods=list(mods))

    def drift(received, server_round, client):
        rng = np.random.default_rng((server_round, client))
        steps = {name: rng.normal(size=array.shape) / 100 for name, array in received.items()}
        return {name: array + steps[name].astype(array.dtype) for name, array in received.items()}

    @app.train()
    def train(message, context):
        server_round, client = message.content["config"]["server-round"], context.node_config["partition-id"]
        (key,) = [key for key in message.content.array_records if key == "arrays"] or message.content.array_records
        received = arrays_in(message.content[key])
        if seen is not None:
            seen[server_round, client] = received
        if (server_round, client) in failing or (server_round, "all") in failing:
            raise ValueError("battery empty")
        arrays = record((change or drift)(received, server_round, client))
        metrics = MetricRecord({"num-examples": 1 + client, "train_loss": 1.0})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message, context):
        received = arrays_in(message.content["arrays"])
        if seen is not None:
            seen["evaluate", message.content["config"]["server-round"], context.node_config["partition-id"]] = received
        total = float(sum(np.abs(array).sum() for array in received.values()))
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1, "total": total})}), reply_to=message)

    return app


def trained(strategy, app, num_clients=4, num_rounds=3, start=model):
    random.seed(1)
    np.random.seed(1)
    with InProcess().open(app, num_clients) as grid:
        carry = grid.send_and_receive
        grid.send_and_receive = lambda messages, timeout: list(carry(messages))  # as Flower's own grids do
        return strategy.start(grid, record(start()), num_rounds=num_rounds)


def add_one(received, server_round, client):
    return {name: array + np.asarray(1, array.dtype) for name, array in received.items()}


HALF = {"fraction_train": 0.6, "fraction_evaluate": 0.5, "min_train_nodes": 1, "min_evaluate_nodes": 1}
STRATEGIES = {
    "FedAvg": lambda: flower.FedAvg(**HALF),
    "FedProx": lambda: flower.FedProx(proximal_mu=0.1, **HALF),
    "FedAvgM": lambda: flower.FedAvgM(server_learning_rate=0.5, server_momentum=0.9, **HALF),
    "FedAdam": lambda: flower.FedAdam(**HALF),
    "FedYogi": lambda: flower.FedYogi(**HALF),
    "FedAdagrad": lambda: flower.FedAdagrad(**HALF),
    "FedMedian": lambda: flower.FedMedian(**HALF),
    "FedTrimmedAvg": lambda: flower.FedTrimmedAvg(beta=0.2, **HALF),
    "Krum": lambda: flower.Krum(num_malicious_nodes=0, **HALF),
    "MultiKrum": lambda: flower.MultiKrum(num_malicious_nodes=0, num_nodes_to_select=2, **HALF),
    "Bulyan": lambda: flower.Bulyan(num_malicious_nodes=0, **HALF),
    "QFedAvg": lambda: flower.QFedAvg(q=0.2, client_learning_rate=0.1, **HALF),
    "DP, server side": lambda: flower.DifferentialPrivacyServerSideFixedClipping(flower.FedAvg(**HALF), 0.0, 1.0, 3),
    "DP, server side, adaptive": lambda: flower.DifferentialPrivacyServerSideAdaptiveClipping(
        flower.FedAvg(**HALF), 0.0, 3
    ),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_of_flower_ends_as_without_codecs(name, monkeypatch):
    """Exactly the same with an exact codec, close with integers; with partial participation and failing clients."""
    failing = {(2, 3), (3, 0)}
    monkeypatch.setattr(gc, "collect", lambda: 0)  # QFedAvg collects garbage for every array: half a second each
    plain = trained(STRATEGIES[name](), learning([], failing=failing), num_clients=5)
    results = {}
    for codec in (Raw(), INT8):
        mods = [codec_mod(broadcast=codec, update=codec, initial=model)]
        wrapped = CodecStrategy(STRATEGIES[name](), broadcast=codec, update=codec, initial=model)
        results[codec.description] = trained(wrapped, learning(mods, failing=failing), num_clients=5)
    for described, tolerance in (("raw", 1e-5), (INT8.description, 0.02)):
        result = results[described]
        assert set(result.evaluate_metrics_clientapp) == set(plain.evaluate_metrics_clientapp)
        for key, expected in arrays_in(plain.arrays).items():
            np.testing.assert_allclose(result.arrays[key].numpy(), expected, atol=tolerance, err_msg=key)


@pytest.mark.parametrize("private", [False, True])
def test_momentum_is_of_what_clients_learned_alone(private):
    """Each round adds as much: 1 + 0.5 * (1 + 0.5), however far the model that they were sent is from the exact one."""
    averaging = flower.FedAvgM(server_momentum=0.5, **AVERAGE)
    strategy = flower.DifferentialPrivacyServerSideFixedClipping(averaging, 0.0, 1e6, 4) if private else averaging
    codecs = {"broadcast": Uniform(bits=2, error_feedback=False), "initial": model}
    added = {name: np.arange(1, array.size + 1).reshape(array.shape) % 7 for name, array in model().items()}

    def add(received, server_round, client):
        return {name: array + added[name].astype(array.dtype) for name, array in received.items()}

    trained(CodecStrategy(strategy, **codecs), learning([codec_mod(**codecs)], change=add))
    for gradient, each in zip(averaging.momentum_vector, added.values(), strict=True):
        np.testing.assert_allclose(gradient, -1.75 * each, rtol=1e-3, atol=1e-3)


def test_client_side_privacy_clips_what_clients_learned():
    def wrapped(inner):
        return CodecStrategy(flower.DifferentialPrivacyClientSideFixedClipping(inner, 0.0, 0.5, 4), **BOTH)

    app = learning([codec_mod(**BOTH), fixedclipping_mod], change=add_one)
    result = trained(wrapped(FedAvg(**AVERAGE)), app, num_rounds=1)
    moved = arrays_in(result.arrays)["fc.weight"] - model()["fc.weight"]
    size = sum(array.size for array in model().values())
    np.testing.assert_allclose(moved, 0.5 / np.sqrt(size), rtol=0.02)  # all of them by one, clipped to a norm of 0.5


@pytest.mark.parametrize(
    "mods",
    [[fixedclipping_mod, codec_mod(**BOTH)], [LocalDpMod(1, 1, 1, 0.1), codec_mod(**BOTH)]],
    ids=["clipping", "local"],
)
def test_a_mod_that_must_see_arrays_may_not_come_first(mods):
    inner = flower.DifferentialPrivacyClientSideFixedClipping(FedAvg(**AVERAGE), 0.0, 0.5, 4)
    with pytest.raises(RunError, match=r"codec_mod cannot take part where it stands.* must be the first of mods"):
        trained(CodecStrategy(inner, **BOTH), learning(mods))


@pytest.mark.parametrize("mods", [[codec_mod(**BOTH), secaggplus_mod], [secaggplus_mod, codec_mod(**BOTH)]])
def test_secure_aggregation_is_refused_in_the_first_round(mods):
    with pytest.raises(RunError, match=r"round 1: .*cannot take part beside SecAgg\+.* take one of the two mods out"):
        trained(CodecStrategy(FedAvg(**AVERAGE), **BOTH), learning(mods))


@pytest.mark.parametrize("mod", [arrays_size_mod, message_size_mod])
def test_mods_that_only_look_may_stand_anywhere(mod):
    for mods in ([codec_mod(**BOTH), mod], [mod, codec_mod(**BOTH)]):
        assert trained(CodecStrategy(FedAvg(**AVERAGE), **BOTH), learning(mods)).arrays


class PerClient(FedAvg):
    """Sends another model to each client: 0, 301, 601, …; keeps what it is told that they trained."""

    def configure_train(self, server_round, arrays, config, grid):
        messages = list(super().configure_train(server_round, arrays, config, grid))
        for message in messages:
            number = message.metadata.dst_node_id - 2
            own = {n: np.full_like(a.numpy(), 300 * number + bool(number)) for n, a in arrays.items()}
            message.content = RecordDict({**message.content, "arrays": record(own)})
        return messages

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        self.answers = {r.metadata.src_node_id - 2: arrays_in(r.content["arrays"]) for r in replies}
        return super().aggregate_train(server_round, replies)


@pytest.mark.parametrize(
    "settings",
    [BOTH, {"update": INT8}, {"broadcast": INT8}, BOTH | {"initial": model}],
    ids=["both", "update", "broadcast", "initial"],
)
def test_every_client_gets_the_model_that_its_strategy_chose_for_it(settings):
    seen, strategy = {}, CodecStrategy(PerClient(**AVERAGE), **settings)
    trained(strategy, learning([codec_mod(**settings)], add_one, seen=seen), num_clients=5)
    for (_, client), received in seen.items():
        assert all((array == 300 * client + bool(client)).all() for array in received.values())
    for client, answer in strategy.answers.items():
        for array in answer.values():
            np.testing.assert_allclose(array, 300 * client + bool(client) + 1, atol=0.01)
    assert len(seen) == 15


class Averaging(FedAvg):
    """Evaluates an average over rounds instead of the model."""

    average = None

    def configure_evaluate(self, server_round, arrays, config, grid):
        now = arrays_in(arrays)
        before = self.average or now
        self.average = {
            name: np.asarray(0.9 * before[name] + 0.1 * now[name], array.dtype) for name, array in now.items()
        }
        return super().configure_evaluate(server_round, record(self.average), config, grid)


def test_a_model_for_evaluation_only_arrives_as_it_is_and_training_goes_on_from_the_other():
    seen, settings = {}, BOTH | {"initial": model}
    strategy = CodecStrategy(Averaging(), **settings)
    result = trained(strategy, learning([codec_mod(**settings)], add_one, seen=seen))
    for name, array in strategy.average.items():
        np.testing.assert_array_equal(seen["evaluate", 3, 0][name], array)
        np.testing.assert_allclose(result.arrays[name].numpy(), model()[name] + 3, atol=0.02)


class Tracked(FedProx):
    """Has a `start` of its own, as apps have that tell a tracker what happens."""

    def start(self, grid, initial_arrays, num_rounds=3, note=print):
        note("begin")
        arrays = initial_arrays
        for server_round in range(1, num_rounds + 1):
            config = ConfigRecord({"lr": 0.1 / server_round})
            replies = grid.send_and_receive(self.configure_train(server_round, arrays, config, grid))
            arrays, metrics = self.aggregate_train(server_round, replies)
            note(sorted(metrics))
        self.last = arrays
        return "done"


def test_a_strategys_own_start_runs_with_codecs_around_its_messages():
    notes, sent, settings = [], [], BOTH | {"initial": model}
    strategy = CodecStrategy(Tracked(proximal_mu=0.1, **AVERAGE), **settings)
    with InProcess().open(learning([codec_mod(**settings)], add_one), 3) as grid:
        carry = grid.send_and_receive
        grid.send_and_receive = lambda messages: (sent.append(m) or reply for m in messages for reply in carry([m]))
        assert strategy.start(grid, record(model()), num_rounds=4, note=notes.append) == "done"
    assert notes == ["begin", *[["train_loss"]] * 4]
    assert len(sent) == 12
    assert all(array.stype == STYPE for message in sent for array in message.content["arrays"].values())
    np.testing.assert_allclose(strategy.last["fc.weight"].numpy(), model()["fc.weight"] + 4, atol=0.02)


def test_attributes_and_classes_are_those_of_both():
    inner = Tracked(proximal_mu=0.1)
    strategy = CodecStrategy(inner, **BOTH)
    assert isinstance(strategy, Tracked)
    assert isinstance(strategy, CodecStrategy)
    assert (strategy.proximal_mu, strategy.fraction_train) == (0.1, 1.0)
    strategy.proximal_mu = 0.5
    inner.note = "seen"
    assert (inner.proximal_mu, strategy.note) == (0.5, "seen")
    with pytest.raises(AttributeError):
        strategy.nothing_of_this_name  # noqa: B018


class Scaffold(FedAvg):
    """Sends control variates beside the model, and is answered with both."""

    def configure_train(self, server_round, arrays, config, grid):
        self.control = getattr(self, "control", {name: np.zeros_like(a.numpy()) for name, a in arrays.items()})
        messages = list(super().configure_train(server_round, arrays, config, grid))
        for message in messages:
            message.content = RecordDict({"control": record(self.control), **message.content})
        return messages

    def aggregate_train(self, server_round, replies):
        models = []
        for reply in replies:
            control = arrays_in(reply.content.array_records["control"])
            self.control = {name: array + control[name] / 4 for name, array in self.control.items()}
            models.append(arrays_in(reply.content.array_records["arrays"]))
        return record({n: np.mean([each[n] for each in models], axis=0) for n in models[0]}), MetricRecord({"n": 4})


@pytest.mark.parametrize("same", [False, True], ids=["apart", "same"])
def test_a_second_record_travels_beside_the_model(same):
    """Plain, to the bit, in both directions; even if it equals the model."""
    settings = BOTH | {"initial": model}
    app, sent = ClientApp(mods=[codec_mod(**settings)]), []

    @app.train()
    def train(message, context):
        moved = add_one(arrays_in(message.content["arrays"]), 0, 0)
        control = {name: array + np.float32(0.3) for name, array in arrays_in(message.content["control"]).items()}
        records = {"control": record(control), "arrays": record(moved)}
        return Message(RecordDict(records | {"metrics": MetricRecord({"num-examples": 1})}), reply_to=message)

    strategy = CodecStrategy(Scaffold(**AVERAGE), **settings)
    if same:
        strategy.control = model()
    with InProcess().open(app, 4) as grid:
        carry = grid.send_and_receive
        grid.send_and_receive = lambda messages, timeout: carry([sent.append(m) or m for m in messages])
        result = strategy.start(grid, record(model()), num_rounds=3)
    expected = np.asarray(model()["fc.weight"] if same else np.zeros((32, 64)), np.float32)
    for _ in range(12):
        expected = expected + (np.float32(0.3) + sent_control(sent, _)["fc.weight"]) / 4
    np.testing.assert_allclose(strategy.control["fc.weight"], expected, atol=1e-5)
    np.testing.assert_allclose(result.arrays["fc.weight"].numpy(), model()["fc.weight"] + 3, atol=0.02)
    assert all(array.stype == STYPE for message in sent for array in message.content["arrays"].values())
    assert all(array.stype != STYPE for message in sent[4:] for array in message.content["control"].values())


def sent_control(messages, number):
    return arrays_in(messages[number].content["control"])


class Unclear(FedAvg):
    """Sends two models, neither of which is the one it was given."""

    def configure_train(self, server_round, arrays, config, grid):
        messages = list(super().configure_train(server_round, arrays, config, grid))
        moved = {name: array.numpy() + 1 for name, array in arrays.items()}
        for message in messages:
            message.content = RecordDict({"teacher": record(moved), "student": record(moved), **message.content})
            del message.content["arrays"]
        return messages


def test_records_of_which_none_is_the_model_are_refused_before_training():
    seen = {}
    with pytest.raises(RunError, match=r"round 1: the strategy's messages cannot be sent: .*'teacher', 'student'"):
        trained(CodecStrategy(Unclear(), **BOTH), learning([codec_mod(**BOTH)], seen=seen))
    assert not seen


def booster():
    return {"0": np.frombuffer(b'{"trees": []}', np.uint8)}


@pytest.mark.parametrize("inner", [flower.FedXgbBagging, flower.FedXgbCyclic])
def test_trees_are_refused_before_training(inner):
    seen = {}
    with pytest.raises(RunError, match=r"uint8 and no floating-point numbers.*without CodecStrategy"):
        trained(CodecStrategy(inner(), **BOTH), learning([codec_mod(**BOTH)], seen=seen), start=booster)
    assert not seen


@pytest.mark.parametrize(
    ("inner", "words"),
    [
        (LegacyFedAvg(), "flwr.server.strategy.fedavg.FedAvg.*legacy"),
        (FedAvg, r"is a class; pass an object, FedAvg\(...\)"),
        (CodecStrategy(FedAvg()), "is coded already"),
        (None, "is no strategy of flwr.serverapp.strategy"),
    ],
)
def test_what_cannot_be_wrapped_is_refused(inner, words):
    with pytest.raises(ConfigError, match=words):
        CodecStrategy(inner, **BOTH)


def test_a_method_that_was_set_on_the_object_is_refused():
    inner = FedAvg()
    inner.configure_train = print
    with pytest.raises(ConfigError, match="configure_train was set on the object"):
        CodecStrategy(inner, **BOTH)


@pytest.mark.parametrize(
    ("server", "client", "words"),
    [
        ({"update": Ecq(2.0)}, {"update": INT8}, "update=int8 per channel.*update=ecq.*both the same arguments"),
        ({"broadcast": INT8}, {}, "broadcast=None.*broadcast=int8 per channel"),
        ({"update": INT8}, {"broadcast": INT8, "update": INT8}, "give both the same arguments"),
        (BOTH | {"initial": model}, BOTH, "initial=None.*initial=given"),
        ({"update": INT8}, None, r"the answer came without it; .*mods=\[codec_mod"),
        ({"broadcast": INT8}, None, r"the answer came without it; .*mods=\[codec_mod"),
        (BOTH | {"initial": model}, None, r"Unsupported.*quantfl.payload.*mods=\[codec_mod"),
    ],
    ids=[
        "other codec",
        "no codec",
        "more codecs",
        "no first model",
        "no mod",
        "no mod, plain updates",
        "no mod, no bytes",
    ],
)
def test_ends_that_do_not_match_are_told_after_one_round(server, client, words):
    mods, seen = [] if client is None else [codec_mod(**client)], {}
    with pytest.raises(RunError, match=f"round 1: .*codec_mod cannot take part.*{words}"):
        trained(CodecStrategy(FedAvg(**AVERAGE), **server), learning(mods, seen=seen), num_rounds=9)
    assert all(server_round == 1 for server_round, _ in seen)


def test_evaluation_without_the_mod_is_told_too():
    app = learning([])
    with pytest.raises(RunError, match=r"round 1: .*codec_mod cannot take part: the answer came without it"):
        trained(CodecStrategy(FedAvg(fraction_train=0.0), broadcast=INT8), app)


def test_one_client_without_the_mod_is_left_out_with_a_warning(caplog):
    coded, plain = learning([codec_mod(**BOTH)], add_one), learning([], lambda r, *_: {n: a - 99 for n, a in r.items()})

    class Mixed:
        def __call__(self, message, context):
            return (plain if context.node_config["partition-id"] == 1 else coded)(message, context)

    with caplog.at_level(logging.WARNING, "flwr"):
        result = trained(CodecStrategy(FedAvg(**AVERAGE), **BOTH), Mixed())
    np.testing.assert_allclose(result.arrays["fc.bias"].numpy(), 3, atol=0.02)
    assert "node 3: codec_mod cannot take part: the answer came without it" in caplog.text


@pytest.mark.parametrize("codecs", [BOTH, {"update": INT8}, {"broadcast": INT8}], ids=["both", "update", "broadcast"])
def test_a_mod_that_sees_plain_models_says_so(codecs):
    app = learning([codec_mod(**codecs)])
    with InProcess().open(app, 1) as grid:
        for kind in ("train", "evaluate"):
            content = RecordDict({"arrays": record(model()), "config": ConfigRecord({"server-round": 1})})
            (reply,) = grid.send_and_receive([Message(content, 2, kind)])
            assert "codec_mod cannot take part: the server sent plain arrays; wrap its strategy" in reply.error.reason


def test_a_mod_without_codecs_and_messages_without_a_model_pass():
    app = learning([codec_mod()])

    @app.query()
    def query(message, context):
        return Message(
            RecordDict({"config": ConfigRecord({"arrays": len(message.content.array_records)})}), reply_to=message
        )

    with InProcess().open(app, 1) as grid:
        content = RecordDict({"arrays": record(model()), "config": ConfigRecord({"server-round": 1})})
        for kind in ("train", "query"):
            (reply,) = grid.send_and_receive([Message(content, 2, kind)])
            assert not reply.has_error()


def test_training_without_a_single_answer_is_an_error_with_the_reason():
    failing = {(server_round, "all") for server_round in (1, 2)}
    app = learning([codec_mod(**BOTH)], failing=failing)
    with pytest.raises(RunError, match=r"there is no model .*battery empty"):
        trained(CodecStrategy(FedAvg(), **BOTH), app, num_rounds=2)
    assert trained(CodecStrategy(FedAvg(), **BOTH), app, num_rounds=3).arrays, "a later round may succeed"


def test_a_run_that_was_to_train_nobody_may_end():
    inner = FedAvg(fraction_train=0.0)
    result = trained(CodecStrategy(inner, broadcast=INT8), learning([codec_mod(broadcast=INT8)]))
    assert len(result.evaluate_metrics_clientapp) == 3


def answering(change):
    return trained(CodecStrategy(FedAvg(**AVERAGE), **BOTH), learning([codec_mod(**BOTH)], change), num_rounds=2)


def test_answers_in_other_types_are_cast_with_care():
    result = answering(lambda received, *_: {n: a.astype(np.float64) + 1 for n, a in reversed(received.items())})
    assert {n: a.dtype for n, a in arrays_in(result.arrays).items()} == {n: a.dtype for n, a in model().items()}
    np.testing.assert_allclose(result.arrays["fc.weight"].numpy(), model()["fc.weight"] + 2, atol=0.02)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r, *_: r | {"more": np.zeros(3, np.float32)}, "other names .*'more' is not in it"),
        (lambda r, *_: {"fc.weight": r["fc.weight"]}, "other names .*'fc.bias' is missing"),
        (lambda r, *_: r | {"fc.bias": r["fc.bias"][1:]}, r"other shapes: 'fc.bias' is \[31\] .*, \[32\]"),
        (lambda r, *_: r | {"fc.bias": np.full(32, 1e300)}, "other types: 'fc.bias' is float64, which float32"),
        (lambda r, *_: r | {"fc.bias": np.full(32, np.nan, np.float32)}, "fc.bias holds NaN or infinity"),
    ],
    ids=["more", "missing", "shape", "beyond", "nan"],
)
def test_answers_that_do_not_fit_are_refused_by_name(change, words):
    with pytest.raises(RunError, match=f"codec_mod.*{words}"):
        answering(change)


def test_integers_may_come_back_as_whole_numbers_only():
    def start():
        return model() | {"steps": np.array(3)}

    def run(step):
        app = learning([codec_mod(**BOTH)], lambda r, *_: r | {"steps": np.float64(r["steps"]) + step})
        return trained(CodecStrategy(FedAvg(**AVERAGE), **BOTH), app, start=start).arrays["steps"].numpy()

    assert run(2.0) == 9
    with pytest.raises(RunError, match="other types: 'steps' is float64, which int64 cannot hold"):
        run(0.5)


def batchnorm_list():
    """Weights as apps send them that know no names: gamma, beta, mean and variance among them."""
    rng = np.random.default_rng(3)
    return [
        rng.normal(size=(64, 32)).astype(np.float32),
        np.ones(2048, np.float32),
        np.zeros(2048, np.float32),
        rng.normal(size=2048).astype(np.float32),
        rng.uniform(1e-6, 1, 2048).astype(np.float32),
        np.ones((1, 2048, 1, 1), np.float32) * np.float32(1e-5),
    ]


@pytest.mark.parametrize("codec", [Uniform(2), Ecq(0.5, error_feedback=True), Eden(1)], ids=lambda c: c.description)
def test_variances_without_a_name_stay_positive(codec):
    settings, seen = {"broadcast": codec, "update": codec}, {}

    def shrink(received, *_):
        rng = np.random.default_rng(5)
        return {n: a * rng.uniform(0.05, 1, a.shape).astype(np.float32) for n, a in received.items()}

    app = learning([codec_mod(**settings)], shrink, seen=seen)
    random.seed(0)
    with InProcess().open(app, 3) as grid:
        result = CodecStrategy(FedAvg(**AVERAGE), **settings).start(grid, ArrayRecord(batchnorm_list()), num_rounds=4)
    for received in (*seen.values(), arrays_in(result.arrays)):
        assert (received["4"] > 0).all()
        assert (received["5"] > 0).all()
    exact = {str(number): array for number, array in enumerate(batchnorm_list())}
    for _ in range(4):
        exact = shrink(exact)
    for name in ("4", "5"):
        np.testing.assert_allclose(result.arrays[name].numpy(), exact[name], rtol=1e-5)


def test_a_vector_that_was_never_negative_may_become_so():
    """Exact while it could be a variance, an ordinary tensor after that; what feedback remembers changes with it."""
    codec = Uniform(4, error_feedback=True)
    settings = {"broadcast": codec, "update": codec}

    def change(received, server_round, client):
        return {"0": received["0"] + np.linspace(-1, 1, 2048).astype(np.float32) * (-1) ** server_round}

    app, zeros = learning([codec_mod(**settings)], change), np.zeros(2048, np.float32)
    with InProcess().open(app, 2) as grid:
        result = CodecStrategy(FedAvg(**AVERAGE), **settings).start(grid, ArrayRecord([zeros]), num_rounds=6)
    np.testing.assert_allclose(result.arrays["0"].numpy(), 0, atol=0.5)
    assert np.abs(result.arrays["0"].numpy()).max() > 1e-3, "it is rounded"


def sent_by(link, tensors, node=2):
    link.begin(record(tensors))
    content = RecordDict({"arrays": record(tensors), "config": ConfigRecord({"server-round": 1})})
    return link.send([Message(content, node, "train")])


def test_what_feedback_keeps_of_a_broadcast_decays_and_is_in_the_answers():
    """A strategy moves the reference plus the decayed loss, and answers are changes to just that."""
    first, second = model(), add_one(model(), 0, 0) | {"fc.weight": np.random.default_rng(1).normal(size=(32, 64)) * 3}
    second["fc.weight"] = second["fc.weight"].astype(np.float32)
    for decay in (1.0, 0.25, None):
        codec = Uniform(4, error_feedback=decay is not None, decay=1.0 if decay is None else decay)
        link = ServerLink(codec, None, initial=model)
        with InProcess().open(learning([codec_mod(broadcast=codec, initial=model)], lambda r, *_: r), 1) as grid:
            list(grid.send_and_receive(sent_by(link, first)))
            basis = link.begin(record(second))
            content = RecordDict({"arrays": basis, "config": ConfigRecord({"server-round": 2})})
            (message,) = link.send([Message(content, 2, "train")])
            assert all(array.stype == STYPE for array in message.content["arrays"].values())
            (reply,) = grid.send_and_receive([message])
            link.receive(reply)
        reference = link.reference(record(second))["fc.weight"]
        lost = second["fc.weight"] - reference
        assert np.abs(lost).max() > 0.1
        np.testing.assert_allclose(basis["fc.weight"].numpy(), reference + (decay or 0) * lost, atol=1e-6)
        np.testing.assert_array_equal(reply.content["arrays"]["fc.weight"].numpy(), basis["fc.weight"].numpy())


@pytest.mark.parametrize("decay", [1.0, 0.25, 0.0])
def test_what_feedback_keeps_of_an_update_decays(decay):
    """What arrives and what is kept is all that was learned, and the decayed loss before."""
    codec = Uniform(4, error_feedback=True, decay=decay)
    strategy, residuals, moved = CodecStrategy(FedAvg(**AVERAGE), update=codec), [np.zeros((32, 64))], [model()]
    app = learning([codec_mod(update=codec)])
    with InProcess().open(app, 1) as grid:
        for server_round in (1, 2, 3):
            config = ConfigRecord({"server-round": server_round})
            strategy.min_train_nodes = strategy.min_available_nodes = 1
            replies = grid.send_and_receive(strategy.configure_train(server_round, record(moved[-1]), config, grid))
            moved.append(arrays_in(strategy.aggregate_train(server_round, replies)[0]))
            residuals.append(grid.states.get(2).array_records[RESIDUAL]["fc.weight"].numpy())
            learned = np.random.default_rng((server_round, 0)).normal(size=(32, 64)) / 100
            arrived = moved[-1]["fc.weight"] - moved[-2]["fc.weight"]
            np.testing.assert_allclose(arrived + residuals[-1], learned + decay * residuals[-2], atol=2e-6)
    assert np.abs(residuals[1]).max() > 1e-4


def test_an_update_to_another_model_than_was_sent_is_refused():
    link, other = ServerLink(None, INT8), add_one(model(), 0, 0)
    with InProcess().open(learning([codec_mod(update=INT8)]), 1) as grid:
        (stale,) = grid.send_and_receive(sent_by(link, model()))
        sent_by(link, other)
        with pytest.raises(PayloadError, match="based on another model than was sent"):
            link.receive(stale)


def test_answers_to_earlier_messages_are_refused():
    link = ServerLink(None, INT8)
    with InProcess().open(learning([codec_mod(update=INT8)]), 1) as grid:
        (stale,) = grid.send_and_receive(sent_by(link, model()))
        link.begin(record(add_one(model(), 0, 0)))
        with pytest.raises(PayloadError, match="an answer to an earlier message"):
            link.receive(stale)


def test_an_answer_of_two_payloads_is_refused():
    link = ServerLink(None, INT8)
    with InProcess().open(learning([codec_mod(update=INT8)]), 1) as grid:
        (reply,) = grid.send_and_receive(sent_by(link, model()))
    reply.content["more"] = ArrayRecord({"update": payload_array(reply.content["arrays"]["update"].data)})
    with pytest.raises(PayloadError, match="not one payload"):
        link.receive(reply)


def test_who_is_asked_twice_for_one_model_answers_twice():
    """Its first answer, or the news of it, may be lost: it has the model already."""
    settings = BOTH | {"initial": model}
    link, seen = ServerLink(BOTH["broadcast"], INT8, initial=model), {}
    moved = add_one(model(), 0, 0)
    with InProcess().open(learning([codec_mod(**settings)], seen=seen), 1) as grid:
        list(grid.send_and_receive(sent_by(link, model())))
        for _ in range(2):
            (reply,) = grid.send_and_receive(sent_by(link, moved))
            assert "holds" not in reply.content.config_records.get(WIRE, {})
        link.receive(reply)
    assert specs_of(arrays_in(reply.content["arrays"])) == specs_of(moved)


def test_a_strategys_model_that_cannot_be_sent_is_named():
    class Broken(FedAvg):
        def aggregate_train(self, server_round, replies):
            arrays, metrics = super().aggregate_train(server_round, replies)
            return record({n: a.numpy() * np.float32(np.nan) for n, a in arrays.items()}), metrics

    with pytest.raises(RunError, match=r"the strategy's model cannot be sent: .*fc.weight"):
        trained(CodecStrategy(Broken(**AVERAGE), **BOTH), learning([codec_mod(**BOTH)]))


def test_the_first_model_may_be_a_state_dict_or_a_record():
    import torch

    for initial in (lambda: record(model()), lambda: {n: torch.from_numpy(a) for n, a in model().items()}, model):
        settings, seen = BOTH | {"initial": initial}, {}
        result = trained(CodecStrategy(FedAvg(**AVERAGE), **settings), learning([codec_mod(**settings)], seen=seen))
        np.testing.assert_array_equal(seen[1, 0]["fc.weight"], model()["fc.weight"])
        assert result.arrays


def test_the_bytes_of_a_run_are_told(caplog):
    settings = BOTH | {"initial": model}
    with caplog.at_level(logging.INFO, "flwr"):
        trained(CodecStrategy(FedAvg(**AVERAGE), **settings), learning([codec_mod(**settings)]))
    sent, received = [line for line in caplog.messages if line.startswith("codec: ")]
    numbers = [int(word.replace(",", "")) for word in sent.split() if word[0].isdigit()]
    assert 0 < numbers[0] < numbers[1] / 4
    assert numbers[1] == 4 * 3 * sum(len(Array(array).data) for array in model().values())
    assert "received" in received


def masked():
    """A model with a constant buffer of a transformer."""
    mask = np.triu(np.full((48, 48), -np.inf, np.float32), 1)
    return model() | {"mask": mask, "small_mask": mask[:4, :4].copy()}


@pytest.mark.parametrize("codec", [Raw(), INT8, Ecq(4.0, error_feedback=True)], ids=lambda c: c.description)
def test_a_constant_mask_of_infinities_survives(codec):
    def change(received, server_round, client):
        return received | {"fc.weight": received["fc.weight"] + np.float32(0.5)}

    settings = {"broadcast": codec, "update": codec, "initial": masked}
    app = learning([codec_mod(**settings)], change)
    result = trained(CodecStrategy(FedAvg(**AVERAGE), **settings), app, start=masked, num_rounds=4)
    for name in ("mask", "small_mask"):
        np.testing.assert_array_equal(result.arrays[name].numpy(), masked()[name])
    np.testing.assert_allclose(result.arrays["fc.weight"].numpy(), model()["fc.weight"] + 2, atol=0.05)


def test_leaving_codecs_out_changes_nothing():
    plain = trained(FedAvg(**AVERAGE), learning([]))
    result = trained(CodecStrategy(FedAvg(**AVERAGE)), learning([codec_mod()]))
    for name, array in plain.arrays.items():
        assert array.data == result.arrays[name].data


def test_errors_are_one_line():
    with pytest.raises(QuantflError) as caught:
        trained(CodecStrategy(FedAvg(**AVERAGE), **BOTH), learning([]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "codec", [Uniform(8), Uniform(2), Uniform(8, "stochastic", entropy="none")], ids=["int8", "int2", "stochastic"]
)
def test_a_tensor_of_one_column_does_not_grow(codec):
    column = {"w": np.random.default_rng(0).normal(size=(4096, 1)).astype(np.float32)}
    payload = codec.encode(column, np.random.default_rng(0))
    assert len(payload) < 4096 * codec.bits / 8 + 120 < 16384
    decoded = codec.decode(payload, specs_of(column))["w"]
    step = np.abs(column["w"]).max() / (2 ** (codec.bits - 1) - 1)
    assert np.abs(decoded - column["w"]).max() <= step * (1.001 if codec.rounding == "stochastic" else 0.501)
    scales = np.arange(1, 4097, dtype="<f4")  # as payloads had it: one for each element
    before = scales.tobytes() + pack(np.ones((4096, 1), np.int8), codec.entropy)
    np.testing.assert_array_equal(codec.decode_large(memoryview(before), (4096, 1)).ravel(), scales)


@pytest.mark.parametrize(
    ("initial", "words"),
    [
        (lambda: {"w": np.random.default_rng().normal(size=3)}, "two different models; seed it"),
        (lambda: [np.zeros(3)], "initial: returned a list, not an ArrayRecord"),
    ],
    ids=["unseeded", "list"],
)
def test_a_first_model_that_is_none_is_refused(initial, words):
    with pytest.raises(ConfigError, match=words):
        CodecStrategy(FedAvg(), **BOTH, initial=initial)


def test_a_client_that_begins_elsewhere_is_told_why_and_goes_on_in_the_next_round(caplog):
    server, client = BOTH | {"initial": model}, BOTH | {"initial": lambda: add_one(model(), 0, 0)}
    seen = {}
    with caplog.at_level(logging.WARNING, "flwr"):
        trained(CodecStrategy(FedAvg(**AVERAGE), **server), learning([codec_mod(**client)], seen=seen))
    assert {server_round for server_round, _ in seen} == {2, 3}
    np.testing.assert_array_equal(seen[2, 0]["fc.weight"], model()["fc.weight"])
    assert "initial must return the same bits in every process" in caplog.text


def test_two_answers_of_which_none_is_the_models_are_refused():
    app = ClientApp(mods=[codec_mod(**BOTH)])

    @app.train()
    def train(message, context):
        arrays = message.content["arrays"]
        return Message(RecordDict({"teacher": arrays, "student": arrays.copy()}), reply_to=message)

    with pytest.raises(
        RunError, match=r"round 1: .*codec_mod cannot take part: the array records 'teacher', 'student'"
    ):
        trained(CodecStrategy(FedAvg(**AVERAGE), **BOTH), app)


def test_plain_answers_to_a_coded_broadcast_move_the_model_that_was_sent():
    """Here the strategy sends a model of its own keeping, not the one it is given."""

    class Keeping(FedAvg):
        def configure_train(self, server_round, arrays, config, grid):
            messages = list(super().configure_train(server_round, arrays, config, grid))
            for message in messages:
                message.content = RecordDict({**message.content, "arrays": record(self.kept)})
            return messages

        def aggregate_train(self, server_round, replies):
            result = super().aggregate_train(server_round, replies)
            self.kept = arrays_in(result[0])
            return result

    codec = Uniform(4)
    strategy = CodecStrategy(Keeping(**AVERAGE), broadcast=codec, initial=model)
    strategy.kept, seen = model(), {}
    step = np.random.default_rng(5).normal(size=(32, 64)).astype(np.float32)
    mods = [codec_mod(broadcast=codec, initial=model)]
    trained(strategy, learning(mods, lambda r, *_: r | {"fc.weight": r["fc.weight"] + step}, seen=seen))
    np.testing.assert_allclose(strategy.kept["fc.weight"], model()["fc.weight"] + 3 * step, atol=1e-5)
    apart = np.abs(seen[3, 0]["fc.weight"] - model()["fc.weight"] - 2 * step).max()
    assert apart > 0.1, "clients hold what frames bring"


NAMED = {"0": "0", "1": "1", "2.running_mean": "2", "3.running_var": "3", "4.num_batches_tracked": "4"}
"""Of a layer with BatchNorm: what its arrays are, and what they are called in a list."""
STATISTICS = {"2": "running_mean", "3": "running_var", "4": "num_batches_tracked"}


def normalised():
    rng = np.random.default_rng(3)
    arrays = [rng.normal(size=(64, 32)), rng.normal(size=64), rng.normal(size=64), rng.uniform(0, 1e-3, 64)]
    return [*(array.astype(np.float32) for array in arrays), np.array(0)]


def with_statistics(received, server_round, client):
    """Trains, whatever arrays are called: a variance comes down to nearly nothing."""
    rng = np.random.default_rng((server_round, client))
    first, bias, mean, variance, count = received.values()
    new = [first + rng.normal(size=first.shape) / 9, bias - 0.1, mean * 0.5 - 1, variance * 0.01, count + 7]
    return {name: np.asarray(array, old.dtype) for (name, old), array in zip(received.items(), new, strict=True)}


@pytest.mark.parametrize("codec", [Uniform(2, error_feedback=True), Ecq(bits=1.5), Uniform(8)], ids=str)
def test_a_list_whose_statistics_are_named_is_coded_as_arrays_with_such_names(codec, monkeypatch):
    sizes, results = {}, {}
    for kind, told, called in (("named", None, {}), ("list", STATISTICS, NAMED), ("silent", None, NAMED)):
        settings = {"broadcast": codec, "update": codec, "statistics": told}
        settings["initial"] = lambda called=called: {
            called.get(name, name): array for name, array in zip(NAMED, normalised(), strict=True)
        }
        seen, sizes[kind] = {}, []
        receive = ServerLink.receive

        def counted(link, reply, receive=receive, sizes=sizes[kind]):
            sizes.append(sum(len(each.data) for each in reply.content["arrays"].values()))
            receive(link, reply)

        with monkeypatch.context() as patched:
            patched.setattr(ServerLink, "receive", counted)
            app = learning([codec_mod(**settings)], with_statistics, seen=seen)
            result = trained(CodecStrategy(FedAvg(**AVERAGE), **settings), app, start=settings["initial"])
        results[kind] = list(arrays_in(result.arrays).values())
        assert list(seen[2, 0]) == [called.get(name, name) for name in NAMED], "what the app sees is its own"
        assert list(result.arrays) == list(seen[2, 0])
    assert sizes["list"] == sizes["named"]
    for one, other in zip(results["list"], results["named"], strict=True):
        assert one.tobytes() == other.tobytes()
    assert sum(sizes["list"]) < sum(sizes["silent"]), "a variance that nobody knows takes four bytes an element"
    assert (results["list"][3] >= 0).all()
    assert results["list"][4] == 21


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"3": "variance"}, "must say of names of arrays which of running_mean, running_var, num_batches_tracked"),
        ({3: "running_var"}, "must say of names of arrays"),
        (["3"], "must say of names of arrays"),
    ],
)
def test_statistics_of_another_kind_are_refused_at_both_ends(told, words):
    with pytest.raises(ConfigError, match=rf"codec_mod\(statistics=.*{words}"):
        codec_mod(update=INT8, statistics=told)
    with pytest.raises(ConfigError, match=rf"CodecStrategy\(statistics=.*{words}"):
        CodecStrategy(FedAvg(), update=INT8, statistics=told)


def test_statistics_that_one_end_alone_knows_or_that_are_not_there_are_refused():
    app = learning([codec_mod(**BOTH)])
    with pytest.raises(
        RunError, match=r"has broadcast=.*, initial=None, the server's CodecStrategy .*statistics=fc.bias"
    ):
        trained(CodecStrategy(FedAvg(**AVERAGE), **BOTH, statistics={"fc.bias": "running_mean"}), app)
    nowhere = {**BOTH, "statistics": {"9": "running_mean"}}
    with pytest.raises(ConfigError, match=r"the model has no array .9., its arrays are fc\.weight, fc\.bias"):
        trained(CodecStrategy(FedAvg(**AVERAGE), **nowhere), learning([codec_mod(**nowhere)]))
