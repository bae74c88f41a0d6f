"""Whatever a client answers, the others' round goes on, and the server ends in a record."""

from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import SMALL, composed
from federation.test_rounds import SHARES, clients, mean, model, ran, value_of
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict

from fl.core.errors import RunError
from fl.core.files import read_json, read_jsonl
from fl.core.records import Score, Scores
from fl.experiment.run import run
from fl.federation.engine.in_process import InProcess
from fl.federation.messages import ARRAYS, METRICS, NUM_EXAMPLES
from fl.federation.rounds import node_of_partition

OTHERS = (0, 2, 3, 4, 5)


def left_out(spoil, **options):
    """Runs a round in which client 1 answers otherwise; returns why it was left out, and checks the others' mean."""
    (record, *_), (after, *_) = ran(clients(spoil=spoil), images_of=SHARES, num_rounds=1, **options)
    (failure,) = record.clients_failed
    assert failure.partition_id == 1
    assert value_of(after) == pytest.approx(mean(lambda client: client + 1, OTHERS))
    return failure.reason


def of_metrics(**changes):
    def spoil(records):
        records[METRICS] = MetricRecord({**records[METRICS], **changes})

    return spoil


def of_arrays(change):
    def spoil(records):
        arrays = {name: array.numpy().copy() for name, array in records[ARRAYS].items()}
        change(arrays)
        records[ARRAYS] = ArrayRecord({name: Array(array) for name, array in arrays.items()})

    return spoil


@pytest.mark.parametrize("count", [1e308, 2**62, 21, 20.5, 3.5, 0.5, 0, -20, float("nan"), float("inf")])
def test_a_count_that_cannot_be_is_left_out(count):
    reason = left_out(of_metrics(**{NUM_EXAMPLES: count}))
    assert reason.startswith(f"metric num-examples is {count}")
    assert "this client holds 20 images" in reason


def test_without_known_shares_a_count_is_bounded_as_well():
    for count in (1e308, 2**62):
        (record,), _ = ran(clients(spoil=of_metrics(**{NUM_EXAMPLES: count})), num_rounds=1)
        assert "this client holds fewer" in record.clients_failed[0].reason


@pytest.mark.parametrize("loss", [1e308, -1e31, float("inf")])
def test_a_loss_that_cannot_be_averaged_is_left_out(loss):
    assert left_out(of_metrics(**{"train-loss": loss})).startswith("metric train-loss is ")


POISON = {
    "largest": lambda arrays: arrays["w"].fill(3e38),
    "one largest": lambda arrays: arrays["w"].__setitem__((0, 0), -3e38),
    "1e20": lambda arrays: [array.fill(1e20) for array in arrays.values()],
    "variance": lambda arrays: arrays["bn.running_var"].__setitem__(0, -1e-6),
}


@pytest.mark.parametrize("poison", POISON)
def test_values_that_no_aggregation_bears_are_left_out(poison):
    reason = left_out(of_arrays(POISON[poison]))
    assert ("a negative variance in bn.running_var" if poison == "variance" else "more than an aggregation") in reason


@pytest.mark.parametrize("failure", [SystemExit(3), MemoryError("no room"), RecursionError("deep"), AssertionError()])
def test_a_client_that_gives_up_is_one_failure(failure):
    def spoil(records):
        raise failure

    assert left_out(spoil).startswith(f"raised: {type(failure).__name__}")


def test_what_a_client_says_is_data():
    def spoil(records):
        raise ValueError("\x1b[2J\x1b]0;owned\x07 \u202e {bold} [red]\nsecond line" + "x" * 10_000)

    reason = left_out(spoil)
    assert reason.isprintable()
    assert "\\x1b[2J" in reason
    assert len(reason) <= 200


class Crowd:
    """A grid that answers with more than was asked for."""

    def __init__(self, grid, forge):
        self._grid, self._forge = grid, forge

    def __getattr__(self, name):
        return getattr(self._grid, name)

    def send_and_receive(self, messages, *, timeout=None):
        for reply in self._grid.send_and_receive(messages, timeout=timeout):
            yield from self._forge(reply)


def stranger(reply):
    """Answers for a node that does not exist, too."""
    yield reply
    yield SimpleNamespace(
        content=reply.content, has_error=lambda: False, metadata=SimpleNamespace(src_node_id=987_654_321)
    )


def twice(reply):
    """Answers again, with another model."""
    again = RecordDict(dict(reply.content))
    if ARRAYS in again:
        again[ARRAYS] = model(999.0)
    yield reply
    yield SimpleNamespace(content=again, has_error=lambda: False, metadata=reply.metadata)


@pytest.mark.parametrize(
    ("forge", "words"),
    [(stranger, "node 987654321 answered without having been asked"), (twice, "node 3 answered twice")],
)
def test_answers_that_were_not_asked_for_are_left_out(forge, words, monkeypatch, capsys):
    calm, _ = ran(clients(), fraction_evaluate=1.0)
    opened = InProcess.open

    class Crowded(InProcess):
        def open(self, *arguments):
            return _Entered(opened(self, *arguments), forge)

    monkeypatch.setattr("federation.test_rounds.InProcess", Crowded)
    noisy, _ = ran(clients(), fraction_evaluate=1.0)
    assert f"{words}; this is left out" in capsys.readouterr().out
    for one, other in zip(calm, noisy, strict=True):
        assert (one.update, one.clients, one.evaluated, one.federated) == (
            other.update,
            other.clients,
            other.evaluated,
            other.federated,
        )


class _Entered:
    def __init__(self, context, forge):
        self._context, self._forge = context, forge

    def __enter__(self):
        return Crowd(self._context.__enter__(), self._forge)

    def __exit__(self, *error):
        return self._context.__exit__(*error)


@pytest.mark.parametrize("told", [7, -1, 1.5, "0", None])
def test_a_partition_that_cannot_be_ends_in_one_line(told):
    def forged(reply):
        record = reply.content.config_records["config"]
        if record["partition-id"] == 1:
            if told is None:
                del reply.content["config"]
            else:
                record["partition-id"] = told
        yield reply

    with (
        InProcess().open(clients(), len(SHARES)) as grid,
        pytest.raises(RunError, match=r"num_clients=6: 6 nodes are connected, [56] answered") as error,
    ):
        node_of_partition(Crowd(grid, forged), len(SHARES))
    assert "\n" not in str(error.value)
    assert ("node 3: " in str(error.value)) == (told not in (7, -1))


def test_a_model_without_a_loss_ends_the_run_in_a_record():
    with pytest.raises(RunError, match="round 1: the test loss of the aggregated model is nan"):
        ran(clients(), evaluate=lambda arrays: (Scores(Score(float("nan"), 0.1)), "float32"))


def poisoned(value):
    """Returns a mod with which client 0 answers with one value everywhere from the second round on."""

    def mod(message, context, call_next):
        reply = call_next(message, context)
        late = message.content["config"]["server-round"] > 1
        if late and context.node_config["partition-id"] == 0 and reply.content.array_records:
            arrays = reply.content[ARRAYS]
            new = {name: np.full_like(array.numpy(), value) for name, array in arrays.items()}
            reply.content[ARRAYS] = ArrayRecord({name: Array(array) for name, array in new.items()})
        return reply

    return mod


EVERY = pytest.mark.exhaustive


@pytest.mark.parametrize(
    "value",
    [pytest.param(3e38, marks=pytest.mark.long), *(pytest.param(each, marks=EVERY) for each in (1e20, 1e12, -1.0))],
)
def test_a_run_with_poison_ends_in_a_record(value, tmp_path):
    """1e12 can be aggregated; whether the model is worth anything then is not for the server to say."""
    with suppress(RunError):
        run(composed(*SMALL), tmp_path, mods=[poisoned(value)])
    summary = read_json(tmp_path / "summary.json")
    assert summary["state"] in ("completed", "failed")
    assert read_jsonl(tmp_path / "events.jsonl")[-1]["event"] == summary["state"]
    if summary["state"] == "failed":
        assert "loss of the aggregated model is" in summary["error"]
    if value != 1e12:
        assert summary["state"] == "completed"
        (failure,) = read_jsonl(tmp_path / "rounds.jsonl")[1]["clients_failed"]
        assert failure["partition_id"] == 0
