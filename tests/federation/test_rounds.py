"""The round loop on real messages, with clients of unequal shares that train by arithmetic instead of images."""

from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fl.codec import ServerLink
from fl.communication.link import LONGEST_S
from fl.core.errors import RunError
from fl.core.records import Score, Scores, Traffic
from fl.core.targets import Target
from fl.federation.engine.in_process import InProcess
from fl.federation.messages import ARRAYS, CONFIG, METRICS, NUM_EXAMPLES, TRAIN_S, message_bytes, payload_bytes
from fl.federation.replies import LONGEST_REASON
from fl.federation.rounds import Federation, RoundSettings, node_of_partition, run_rounds, sample_size, total_of
from fl.federation.strategy import Aggregator
from fl.training.local import learning_rate

SHARES = (10, 20, 70, 300, 5, 95)
FEDAVG = Target("flwr.serverapp.strategy.FedAvg")


def model(value=0.0):
    tensors = {"w": np.full((3, 4), value, np.float32), "bn.running_var": np.full(3, 1 + value, np.float32)}
    return ArrayRecord({name: Array(array) for name, array in tensors.items()})


def value_of(arrays):
    return float(arrays["w"].numpy()[0, 0])


def clients(seen=None, spoil=None, rounds=(1,), deaf=None):
    """A ClientApp: client k has SHARES[k] images, adds k + 1 to the model, and finds a loss of k.

    Args:
        seen: is filled with what each client was told, by (round, client).
        spoil: changes the answer of client 1 in `rounds`, or raises.
        rounds: see `spoil`.
        deaf: how often each client does not say its partition.
    """
    app, silent = ClientApp(), dict(deaf or {})

    def numbers(message, context):
        return int(message.content[CONFIG].get("server-round", 0)), int(context.node_config["partition-id"])

    @app.train()
    def train(message, context):
        server_round, client = numbers(message, context)
        if seen is not None:
            seen[server_round, client] = (message.content[CONFIG]["lr"], value_of(message.content[ARRAYS]))
        arrays = {n: Array(a.numpy() + np.float32(client + 1)) for n, a in message.content[ARRAYS].items()}
        metrics = {NUM_EXAMPLES: SHARES[client], "train-loss": float(client), TRAIN_S: 1.0 + client}
        records = {ARRAYS: ArrayRecord(arrays), METRICS: MetricRecord(metrics)}
        if spoil is not None and client == 1 and server_round in rounds:
            spoil(records)
        return Message(RecordDict(records), reply_to=message)

    @app.evaluate()
    def evaluate(message, context):
        server_round, client = numbers(message, context)
        if seen is not None:
            seen["evaluate", server_round, client] = value_of(message.content[ARRAYS])
        metrics = {NUM_EXAMPLES: SHARES[client], "loss": float(client), "accuracy": client / 10}
        records = {METRICS: MetricRecord(metrics)}
        if spoil is not None and client == 1 and server_round in rounds:
            spoil(records)
        return Message(RecordDict(records), reply_to=message)

    @app.query()
    def partition(message, context):
        client = context.node_config["partition-id"]
        if silent.get(client, 0):
            silent[client] -= 1
            raise OSError("still booting")
        return Message(RecordDict({CONFIG: ConfigRecord({"partition-id": client})}), reply_to=message)

    return app


def scores_of_value(arrays):
    return Scores(Score(value_of(arrays), 0.5)), "float32"


def ran(app, *, strategy=FEDAVG, start=0.0, first_round=1, on_reply=lambda: None, evaluate=None, **changes):
    """Runs the loop over all of SHARES; returns the records and the models after the rounds."""
    wanted = {
        **{"seed": 1, "num_rounds": 2, "num_clients": len(SHARES), "fraction_train": 1.0, "fraction_evaluate": 0.0},
        **{"min_completed": 1, "lr": 0.5, "lr_schedule": "linear"},
        **changes,
    }
    with InProcess().open(app, len(SHARES)) as grid:
        loop = run_rounds(
            Federation(grid, Aggregator(strategy), ServerLink(None, None), RoundSettings(**wanted)),
            model(start),
            evaluate=evaluate or scores_of_value,
            first_round=first_round,
            on_reply=on_reply,
        )
        records, models, _ = zip(*loop, strict=True)
    return records, models


def mean(values, of=(0, 1, 2, 3, 4, 5)):
    """Returns the mean over clients of a figure, weighted by their images."""
    return np.average([values(client) for client in of], weights=[SHARES[client] for client in of])


# Sampling


@pytest.mark.parametrize(
    ("fraction", "num_clients", "expected"),
    [(1.0, 7, 7), (0.5, 4, 2), (0.3, 9, 3), (0.15, 10, 2), (0.39, 10, 4), (0.24, 10, 2), (0.01, 10, 1)],
)
def test_a_fraction_of_clients_is_rounded_to_the_nearest_and_never_nobody(fraction, num_clients, expected):
    assert sample_size(fraction, num_clients) == expected


def test_the_clients_of_a_round_depend_on_seed_round_and_purpose_alone():
    def asked(**changes):
        records, _ = ran(clients(), num_rounds=6, fraction_train=0.5, fraction_evaluate=0.5, **changes)
        return [
            [tuple(client.partition_id for client in each) for each in (record.clients, record.evaluated)]
            for record in records
        ]

    first = asked()
    assert all(len(set(each)) == 3 and list(each) == sorted(each) for both in first for each in both)
    assert first == asked()
    assert first != asked(seed=2)
    assert len({trained for trained, _ in first}) > 2, "rounds differ"
    assert any(trained != evaluated for trained, evaluated in first)
    assert first[3:] == asked(first_round=4), "a resumed run asks the same ones"


def test_fractions_of_training_and_evaluation_are_apart():
    (record, _), _ = ran(clients(), fraction_train=0.5, fraction_evaluate=0.2)
    assert (len(record.clients), len(record.evaluated)) == (3, 1)


# What a round does


def test_clients_get_the_last_rounds_mean_and_this_rounds_rate():
    seen = {}
    records, models = ran(clients(seen), num_rounds=3)
    moved = mean(lambda client: client + 1)
    for server_round, (record, arrays) in enumerate(zip(records, models, strict=True), start=1):
        lr = learning_rate(0.5, "linear", server_round, 3)
        assert record.round == server_round
        assert record.lr == lr
        assert value_of(arrays) == pytest.approx(server_round * moved, rel=1e-5)
        assert record.test.loss == value_of(arrays), "the new model is tested, not the one before"
        for client in range(len(SHARES)):
            told, received = seen[server_round, client]
            assert told == lr
            assert received == pytest.approx((server_round - 1) * moved, rel=1e-5)
    assert len(seen) == 3 * len(SHARES)


def test_a_resumed_loop_goes_on_with_the_next_round_to_the_last():
    whole, models = ran(clients(), num_rounds=4)
    records, continued = ran(clients(), num_rounds=4, first_round=3, start=value_of(models[1]))
    assert [record.round for record in records] == [3, 4]
    assert [record.lr for record in records] == [record.lr for record in whole[2:]]
    assert value_of(continued[-1]) == value_of(models[-1])
    assert [record.control_message_bytes for record in records] == [0, 0]


def test_a_round_records_the_weighted_loss_and_every_clients_seconds():
    replies = []
    records, _ = ran(clients(), on_reply=lambda: replies.append(1))
    for record in records:
        assert record.train_loss == pytest.approx(mean(lambda client: client))
        assert (record.clients_asked, record.clients_completed) == (6, 6)
        assert [client.partition_id for client in record.clients] == list(range(6))
        assert [client.train_s for client in record.clients] == [1.0 + client for client in range(6)]
        assert record.federated is None
        assert record.evaluation_traffic is None
    assert len(replies) == 12


def test_bytes_of_a_round_are_those_of_its_messages():
    (first, second), _ = ran(clients(), fraction_train=0.5)
    one = payload_bytes(RecordDict({ARRAYS: model()}))
    for traffic in (second.broadcast, second.update):
        assert traffic.payload_bytes == traffic.fp32_payload_bytes == 3 * one
        assert 3 * one < traffic.message_bytes < 3 * (one + 600)
    for record in (first, second):
        for name in ("broadcast", "update"):
            for kind in ("payload_bytes", "message_bytes"):
                each = [getattr(client, f"{name}_{kind}") for client in record.clients]
                assert sum(each) == getattr(getattr(record, name), kind)
                assert all(each)
    assert first.control_message_bytes > 0
    assert second.control_message_bytes == 0, "who is who is asked once"


def test_payload_bytes_are_those_of_the_serialized_arrays():
    arrays = model()
    serialized = sum(len(array.data) for array in arrays.values())
    assert payload_bytes(RecordDict({ARRAYS: arrays})) == serialized > sum(a.numpy().nbytes for a in arrays.values())


def test_control_traffic_is_questions_and_answers():
    question = message_bytes(RecordDict({CONFIG: ConfigRecord()}))
    answer = message_bytes(RecordDict({CONFIG: ConfigRecord({"partition-id": 1})}))
    with InProcess().open(clients(), 6) as grid:
        assert node_of_partition(grid, 6)[1] == pytest.approx(6 * (question + answer), abs=12)  # 0 is a byte shorter


# Evaluation on clients


def test_nothing_is_no_traffic():
    assert total_of(iter(()), 100) == Traffic(0, 0, 0)
    assert total_of([(0, 5), (7, 9)], 100) == Traffic(7, 14, 100)


def test_clients_evaluate_the_new_model_and_count_by_their_images():
    seen = {}
    (record, *_), (arrays, *_) = ran(clients(seen), fraction_evaluate=1.0)
    assert record.federated.loss == pytest.approx(mean(lambda client: client))
    assert record.federated.accuracy == pytest.approx(mean(lambda client: client / 10))
    assert all(seen["evaluate", 1, client] == value_of(arrays) for client in range(len(SHARES)))
    one = payload_bytes(RecordDict({ARRAYS: model()}))
    assert record.evaluation_traffic.payload_bytes == len(SHARES) * one
    both = [client.broadcast_message_bytes + client.update_message_bytes for client in record.evaluated]
    assert record.evaluation_traffic.message_bytes == sum(both)
    assert all(client.update_message_bytes > 0 == client.update_payload_bytes for client in record.evaluated)


EVALUATION_FAULTS = {
    "raises": (lambda records: 1 / 0, "evaluation: raised: ZeroDivisionError"),
    "records": (lambda records: records.pop(METRICS), "evaluation: wrong records: [] instead of metrics"),
    "metric": (lambda records: records[METRICS].pop("loss"), "evaluation: wrong metrics"),
    "nan": (lambda records: records[METRICS].update({"accuracy": float("nan")}), "evaluation: metric accuracy is nan"),
}


@pytest.mark.parametrize("kind", EVALUATION_FAULTS)
def test_a_client_that_cannot_evaluate_is_left_out_of_the_mean(kind):
    spoil, reason = EVALUATION_FAULTS[kind]

    def only_evaluation(records):
        if ARRAYS not in records:
            spoil(records)

    (record, after), _ = ran(clients(spoil=only_evaluation), fraction_evaluate=1.0)
    (failure,) = record.evaluation_failed
    assert failure.partition_id == 1
    assert failure.reason.startswith(reason)
    assert record.federated.loss == pytest.approx(mean(lambda client: client, of=(0, 2, 3, 4, 5)))
    assert record.clients_failed == after.evaluation_failed == ()


# Failing clients


def wrong(name, change):
    """Returns what changes one array of an answer."""

    def spoil(records):
        array = np.array(records[ARRAYS][name].numpy())
        records[ARRAYS][name] = change(array)

    return spoil


def filled(value):
    return wrong("w", lambda array: Array(np.full_like(array, value)))


def told(**metrics):
    return lambda records: records[METRICS].update(metrics)


def raising(records):
    raise ValueError("battery empty\nand " + 300 * "very " + "cold")


def without_an_array(records):
    records[ARRAYS].pop("w")


def with_another(records):
    records[ARRAYS]["surprise"] = records[ARRAYS]["w"]


FAULTS = {
    "raises": (raising, "raised: ValueError: battery empty"),
    "nan": (filled(np.nan), "NaN or infinity in w"),
    "infinity": (filled(-np.inf), "NaN or infinity in w"),
    "shape": (
        wrong("w", lambda array: Array(array.T.copy())),
        "wrong shape or type: w is float32[4, 3], not float32[3, 4]",
    ),
    "type": (wrong("w", lambda array: Array(array.astype(np.float64))), "wrong shape or type: w is float64"),
    "missing": (without_an_array, "wrong keys: ['w'] missing or unexpected"),
    "unexpected": (with_another, "wrong keys: ['surprise']"),
    "unreadable": (
        wrong("w", lambda array: Array("f4", (1,), "numpy.ndarray", b"\x80\x04pickled")),
        "unreadable array w",
    ),
    "no images": (told(**{NUM_EXAMPLES: 0}), "metric num-examples is 0"),
    "negative images": (told(**{NUM_EXAMPLES: -5}), "metric num-examples is -5"),
    "endless images": (told(**{NUM_EXAMPLES: float("inf")}), "metric num-examples is inf"),
    "loss": (told(**{"train-loss": float("nan")}), "metric train-loss is nan"),
    "list": (told(**{"train-loss": [1.0] * 300}), "metric train-loss is [1.0, 1.0, "),
    "no loss": (lambda records: records[METRICS].pop("train-loss"), "wrong metrics: ['num-examples', 'train-s']"),
    "extra metric": (told(battery=0.5), "wrong metrics"),
    "negative time": (told(**{TRAIN_S: -5.0}), "metric train-s is -5.0"),
    "endless time": (told(**{TRAIN_S: 2 * LONGEST_S}), "metric train-s is"),
    "records": (lambda records: records.pop(METRICS), "wrong records: ['arrays'] instead of arrays and metrics"),
    "more records": (
        lambda records: records.update(more=ArrayRecord()),
        "wrong records: ['arrays', 'metrics', 'more']",
    ),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_an_answer_that_cannot_be_used_is_left_out_and_the_reason_told(kind):
    spoil, reason = FAULTS[kind]
    (first, second), (arrays, _) = ran(clients(spoil=spoil))
    (failure,) = first.clients_failed
    assert failure.partition_id == 1
    assert failure.reason.startswith(reason)
    assert len(failure.reason) <= LONGEST_REASON
    assert "\n" not in failure.reason
    assert (first.clients_asked, first.clients_completed) == (6, 5)
    assert value_of(arrays) == pytest.approx(mean(lambda client: client + 1, of=(0, 2, 3, 4, 5)))
    assert first.clients[1].train_s == 0.0
    assert second.clients_failed == ()
    answers = [client for client in first.clients if client.update_payload_bytes]
    assert len(answers) == (5 if kind == "raises" else 6), "what arrived was paid for, used or not"


def test_as_many_as_are_needed_are_enough_and_one_less_ends_the_run():
    spoil = FAULTS["raises"][0]
    assert len(ran(clients(spoil=spoil), min_completed=5)[0]) == 2
    with pytest.raises(
        RunError, match=r"round 1: 5 of 6 clients completed, min_completed=6 are needed \(client 1: rai"
    ):
        ran(clients(spoil=spoil), min_completed=6)


def test_a_model_that_is_not_finite_is_never_recorded():
    strategy = Target("fl.federation.nesterov.FedAvgNesterov", {"server_learning_rate": 3e38})
    with np.errstate(over="ignore"), pytest.raises(RunError, match="round 1: the aggregated w is not finite; lower lr"):
        ran(clients(), strategy=strategy)


# Who is who


def test_a_client_that_is_slow_to_start_is_asked_again():
    with InProcess().open(clients(deaf={2: 1}), 6) as grid:
        nodes, asked_twice = node_of_partition(grid, 6)
    with InProcess().open(clients(), 6) as grid:
        expected, control_bytes = node_of_partition(grid, 6)
    assert nodes == expected == {partition: 2 + partition for partition in range(6)}
    assert control_bytes < asked_twice < 2 * control_bytes


def test_a_client_that_never_says_who_it_is_ends_the_run_with_its_reason():
    words = (
        r"num_clients=6: 6 nodes are connected, 5 answered, with partitions \[0, 1, 3, 4, 5\]; raised: .*still booting"
    )
    with pytest.raises(RunError, match=words):
        ran(clients(deaf={2: 3}))
    assert len(ran(clients(deaf={2: 2}))[0]) == 2


def test_clients_that_connect_late_are_waited_for():
    with InProcess().open(clients(), 6) as grid:
        connected = iter([[2, 3], [2, 3, 4], list(range(2, 8))])
        late = SimpleNamespace(get_node_ids=lambda: next(connected), send_and_receive=grid.send_and_receive)
        assert sorted(node_of_partition(late, 6)[0]) == list(range(6))


def test_more_nodes_than_clients_are_refused():
    with InProcess().open(clients(), 6) as grid, pytest.raises(RunError, match=r"num_clients=5: 6 nodes are connected"):
        node_of_partition(grid, 5)
