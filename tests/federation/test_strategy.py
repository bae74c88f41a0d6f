"""Clients count by their images, under every strategy, and what a strategy remembers can be saved."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from fl.core.errors import ConfigError
from fl.core.targets import Target
from fl.federation.engine import InProcess
from fl.federation.messages import ARRAYS, CONFIG, METRICS, NUM_EXAMPLES
from fl.federation.strategy import Aggregator, check_strategy

SHARES = (10, 30, 200)
STRATEGIES = {
    "fedavg": Target("flwr.serverapp.strategy.FedAvg"),
    "fedprox": Target("flwr.serverapp.strategy.FedProx", {"proximal_mu": 0.3}),
    "fedadam": Target("flwr.serverapp.strategy.FedAdam", {"eta": 0.01}),
    "fedavgm": Target("flwr.serverapp.strategy.FedAvgM", {"server_momentum": 0.5}),
    "nesterov": Target("fl.federation.nesterov.FedAvgNesterov", {"momentum": 0.5}),
}
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)


@pytest.fixture(autouse=True)
def _at_a_server():
    """Flower's messages want to know who writes them."""
    with InProcess().open(ClientApp(), len(SHARES)):
        yield


def model(seed):
    """Two parameters with BatchNorm's statistics between them, all different for each seed."""
    rng = np.random.default_rng(seed)
    return {
        "conv.weight": rng.normal(size=(3, 4)).astype(np.float32),
        "bn.running_mean": rng.normal(size=3).astype(np.float32),
        "bn.running_var": rng.lognormal(size=3).astype(np.float32),
        "bn.num_batches_tracked": np.array(10 * seed, np.int64),
        "fc.weight": rng.normal(size=5).astype(np.float32),
    }


def record(tensors):
    return ArrayRecord({name: Array(array) for name, array in tensors.items()})


def numpy_of(arrays):
    return {name: array.numpy() for name, array in arrays.items()}


@pytest.mark.parametrize("again", ["configure_train", "begin_from"])
def test_momentum_is_of_what_clients_learned_though_they_were_sent_another_model(again):
    """What a broadcast lost is no change: 2 now and half of 1 before, from wherever clients began."""
    aggregator = Aggregator(STRATEGIES["fedavgm"])
    first, other = record({"w": np.zeros(3, np.float32)}), record({"w": np.full(3, 100, np.float32)})
    nodes = [11]
    aggregator.configure_train(1, first, ConfigRecord({"lr": 0.1}), nodes)
    moved, _ = aggregator.aggregate_train(1, first, [answer(11, {"w": np.ones(3, np.float32)}, 10)])
    np.testing.assert_array_equal(moved["w"].numpy(), [1, 1, 1])
    if again == "configure_train":
        aggregator.configure_train(2, other, ConfigRecord({"lr": 0.1}), nodes)
    else:
        aggregator.begin_from(2, other)
    moved, _ = aggregator.aggregate_train(2, other, [answer(11, {"w": np.full(3, 102, np.float32)}, 10)])
    np.testing.assert_array_equal(moved["w"].numpy(), [102.5] * 3)
    np.testing.assert_array_equal(aggregator.inner.momentum_vector, [[-2.5] * 3])


def answer(number, tensors, num_examples, **metrics):
    content = RecordDict({ARRAYS: record(tensors), METRICS: MetricRecord({NUM_EXAMPLES: num_examples, **metrics})})
    reply = Message(content, dst_node_id=1, message_type="train")
    reply.metadata.__dict__["_src_node_id"] = number
    return reply


def aggregated(aggregator, server_round=1, start=0, shares=SHARES):
    """One round from `model(start)` with answers that differ; returns the new model and the metrics."""
    arrays = record(model(start))
    aggregator.configure_train(server_round, arrays, ConfigRecord({"lr": 0.1}), [11, 12, 13])
    replies = [
        answer(10 + number, model(100 * server_round + number), share, **{"train-loss": float(number), "train-s": 1.0})
        for number, share in enumerate(shares, start=1)
    ]
    return aggregator.aggregate_train(server_round, arrays, replies)


def weighted(name, shares=SHARES, server_round=1):
    return np.average([model(100 * server_round + n)[name] for n in (1, 2, 3)], axis=0, weights=shares)


def test_a_client_counts_by_its_images():
    arrays, metrics = aggregated(Aggregator(STRATEGIES["fedavg"]))
    assert list(arrays) == list(model(0)), "in the order of the model"
    for name, array in numpy_of(arrays).items():
        assert array.dtype == model(0)[name].dtype
        if array.dtype == np.float32:
            np.testing.assert_allclose(array, weighted(name), rtol=1e-5, atol=1e-6)
    assert metrics["train-loss"] == pytest.approx(np.average([1, 2, 3], weights=SHARES))


@every_strategy
def test_statistics_are_the_weighted_mean_of_all_clients_under_every_strategy(strategy):
    arrays = numpy_of(aggregated(Aggregator(strategy))[0])
    for name in ("bn.running_mean", "bn.running_var"):
        np.testing.assert_allclose(arrays[name], weighted(name), rtol=1e-5, atol=1e-6)
    assert arrays["bn.running_var"].min() > 0
    assert arrays["bn.num_batches_tracked"] == 1028, "1027.9 by their images; 1020 if all counted the same"
    assert arrays["bn.num_batches_tracked"].dtype == np.int64


@every_strategy
def test_a_constant_that_is_not_finite_stays_as_it_is(strategy):
    """As an attention mask: no strategy is to compute with it."""
    mask = np.triu(np.full((3, 3), -np.inf, np.float32), 1)
    arrays = record({**model(0), "mask": mask})
    aggregator = Aggregator(strategy)
    messages = aggregator.configure_train(1, arrays, ConfigRecord({"lr": 0.1}), [11, 12, 13])
    assert all("mask" in message.content[ARRAYS] for message in messages)
    told = {"train-loss": 1.0, "train-s": 1.0}
    replies = [answer(10 + n, {**model(100 + n), "mask": mask}, share, **told) for n, share in enumerate(SHARES, 1)]
    found = numpy_of(aggregator.aggregate_train(1, arrays, replies)[0])
    assert list(found) == list(arrays)
    assert np.array_equal(found.pop("mask"), mask)
    assert all(np.isfinite(array).all() for array in found.values())


@every_strategy
def test_each_client_asked_gets_the_whole_model_the_rate_and_the_round(strategy):
    arrays = record(model(0))
    messages = Aggregator(strategy).configure_train(7, arrays, ConfigRecord({"lr": 0.25}), [13, 11, 12])
    assert [message.metadata.dst_node_id for message in messages] == [13, 11, 12], "in the order they were named"
    for message in messages:
        assert list(message.content.array_records[ARRAYS]) == list(arrays)
        told = dict(message.content.config_records[CONFIG])
        assert told.pop("proximal-mu", None) == strategy.parameters.get("proximal_mu")
        assert told == {"lr": 0.25, "server-round": 7}


class Telling(FedAvg):
    """Tells every client something of its own, in a record of its own."""

    def configure_train(self, server_round, arrays, config, grid):
        messages = list(super().configure_train(server_round, arrays, config, grid))
        for message in messages:
            told = ConfigRecord({**config, "epochs": message.metadata.dst_node_id})
            message.content = RecordDict({**message.content, CONFIG: told})
        return messages


def test_what_a_strategy_tells_each_client_arrives():
    aggregator = Aggregator(Target(f"{__name__}.Telling"))
    messages = aggregator.configure_train(1, record(model(0)), ConfigRecord({"lr": 0.25}), [13, 11])
    assert [message.content[CONFIG]["epochs"] for message in messages] == [13, 11]
    assert [message.content[CONFIG]["lr"] for message in messages] == [0.25, 0.25]


def test_evaluation_counts_by_images_too():
    aggregator = Aggregator(STRATEGIES["fedavg"])
    messages = aggregator.configure_evaluate(1, record(model(0)), ConfigRecord(), [13, 11])
    assert [message.metadata.dst_node_id for message in messages] == [13, 11]
    replies = []
    for number, share in enumerate(SHARES, start=1):
        metrics = MetricRecord({NUM_EXAMPLES: share, "accuracy": number / 3, "loss": float(number)})
        replies.append(Message(RecordDict({METRICS: metrics}), 1, "evaluate"))
    metrics = aggregator.aggregate_evaluate(1, replies)
    assert metrics["accuracy"] == pytest.approx(np.average([1, 2, 3], weights=SHARES) / 3)
    assert metrics["loss"] == pytest.approx(np.average([1, 2, 3], weights=SHARES))
    assert aggregator.aggregate_evaluate(1, []) is None


@every_strategy
def test_a_strategy_continues_from_what_it_remembered(strategy):
    """Three rounds at once, and three with a new strategy before each that is given the last one's state."""
    whole, parts = Aggregator(strategy), Aggregator(strategy)
    for server_round in (1, 2, 3):
        expected, _ = aggregated(whole, server_round)
        state = parts.state()
        parts = Aggregator(strategy)
        parts.load_state(state)
        continued, _ = aggregated(parts, server_round)
        for name, array in numpy_of(expected).items():
            np.testing.assert_array_equal(numpy_of(continued)[name], array)


def test_a_strategy_may_remember_a_record():
    remembering, continued = Aggregator(STRATEGIES["fedavg"]), Aggregator(STRATEGIES["fedavg"])
    remembering.inner.memory, _ = aggregated(remembering, 1)
    continued.load_state(remembering.state())
    for name, array in numpy_of(remembering.inner.memory).items():
        np.testing.assert_array_equal(numpy_of(continued.inner.memory)[name], array)


@pytest.mark.parametrize("strategy", ["fedadam", "fedavgm", "nesterov"])
def test_momentum_makes_a_second_round_differ_from_a_first(strategy):
    """Otherwise the test above would hold of strategies that forget everything."""
    remembering, fresh = (Aggregator(STRATEGIES[strategy]) for _ in range(2))
    aggregated(remembering, 1)
    second, alone = (numpy_of(aggregated(each, 2)[0])["conv.weight"] for each in (remembering, fresh))
    assert not np.allclose(second, alone)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("fraction_train", 0.5, "strategy.fraction_train: is set by the run itself"),
        ("weighted_by_key", "train-loss", "strategy.weighted_by_key: is set by the run itself"),
        ("proximal_mu", -0.1, "strategy.proximal_mu=-0.1: must be a number of at least 0"),
        ("proximal_mu", float("inf"), "strategy.proximal_mu=inf: must be a number"),
        ("proximal_mu", float("nan"), "strategy.proximal_mu=nan: must be a number"),
        ("proximal_mu", True, "strategy.proximal_mu=True: must be a number"),
        ("proximal_mu", "much", "strategy.proximal_mu=much: must be a number"),
        ("mu", 0.1, "mu: .* has no such setting"),
    ],
)
def test_settings_of_a_strategy_that_make_no_sense_are_refused(name, value, words):
    with pytest.raises(ConfigError, match=words):
        check_strategy(Target("flwr.serverapp.strategy.FedProx", {"proximal_mu": 0.1, name: value}), 3)
    check_strategy(Target("flwr.serverapp.strategy.FedProx", {"proximal_mu": 0}), 3)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"momentum": 1.0}, "momentum=1.0: must be from 0 to below 1"),
        ({"server_learning_rate": 0}, "server_learning_rate=0: must be above 0"),
    ],
)
def test_a_nesterov_that_cannot_converge_is_refused(parameters, words):
    with pytest.raises(ConfigError, match=words):
        check_strategy(Target("fl.federation.nesterov.FedAvgNesterov", parameters), 3)
