"""What apps bring that is not as the codecs expect: it works, or one line says what does not."""

import logging

import numpy as np
import pytest
import torch
from codec.test_strategy import AVERAGE, BOTH, arrays_in, learning, model, record, trained
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from fl.codec import CodecStrategy, Ecq, Eden, Fp16, Stc, Tcq, Uniform, codec_mod
from fl.codec.payload import specs_of
from fl.core.errors import ConfigError, ModelFileError, RunError
from fl.federation.engine.in_process import InProcess
from fl.models.net import initial_model
from fl.quantization.model_file import load_fp32, load_model

FROZEN = {"frozen.weight": np.random.default_rng(5).normal(size=(256, 300)).astype(np.float32)}
TO_BIT = [Ecq(0.5), Ecq(1, error_feedback=True), Uniform(8)]


def nothing(received, server_round, client):
    return received


@pytest.mark.parametrize("codec", [Uniform, Ecq, Tcq, Eden, Stc, Fp16])
def test_a_setting_that_a_codec_does_not_have_is_an_error(codec):
    with pytest.raises(ValueError, match="bitz"):
        codec(bitz=4)


@pytest.mark.parametrize("broadcast", TO_BIT, ids=str)
def test_a_first_model_that_is_not_initials_is_sent_whole(broadcast, caplog):
    """A checkpoint that training goes on from is not replaced by what a low rate leaves of the way to it."""
    settings, seen = {"broadcast": broadcast, "update": Uniform(8), "initial": lambda: model()}, {}
    begun = {name: array + np.float32(0.3) for name, array in model().items()}
    strategy = CodecStrategy(FedAvg(**AVERAGE), **settings)
    with caplog.at_level(logging.WARNING, "flwr"):
        result = trained(strategy, learning([codec_mod(**settings)], nothing, seen=seen), start=lambda: begun)
    assert "another model than initial returns" in caplog.text
    for received in (*seen.values(), arrays_in(result.arrays)):
        assert all(np.allclose(received[name], array, atol=1e-6) for name, array in begun.items())


@pytest.mark.parametrize("broadcast", [Ecq(1), Uniform(8), Eden(1), Fp16(), Stc(0.1)], ids=str)
def test_what_no_client_trains_costs_nothing(broadcast):
    """A weighted mean of equal arrays is a few units in the last place off, which is nothing to be sent."""

    def head(received, server_round, client):
        return {n: a if n in FROZEN else a + np.float32(0.01 * server_round) for n, a in received.items()}

    sent = []
    for frozen in ({}, FROZEN):
        settings = {
            "broadcast": broadcast,
            "update": Uniform(8),
            "initial": lambda frozen=frozen: {**frozen, **model()},
        }
        strategy = CodecStrategy(FedAvg(**AVERAGE), **settings)
        result = trained(strategy, learning([codec_mod(**settings)], head), 3, 6, settings["initial"])
        assert all(np.allclose(arrays_in(result.arrays)[n], a, rtol=1e-5) for n, a in frozen.items())
        sent.append(strategy._codec_run.bytes["sent"][0])
    assert sent[1] - sent[0] < 400


def test_a_small_change_of_everything_is_no_rounding():
    settings = {"broadcast": Uniform(8), "initial": lambda: model()}
    moved = learning(
        [codec_mod(**settings)], lambda received, *_: {n: a + np.float32(2e-7) for n, a in received.items()}
    )
    result = arrays_in(trained(CodecStrategy(FedAvg(**AVERAGE), **settings), moved, num_rounds=5).arrays)
    assert np.median(result["fc.weight"] - model()["fc.weight"]) > 5e-7


def test_arrays_in_an_answer_to_evaluation_are_no_update():
    """A client's own model, or a table of counts, reaches the strategy as it is, and feedback does not learn of it."""
    results = []
    for own in (None, "model", "counts"):
        settings, seen = {"update": Ecq(0.6, error_feedback=True)}, []

        def evaluate(message, context, own=own):
            received = arrays_in(message.content["arrays"])
            other = (
                {"counts": np.eye(3, dtype=np.float32)} if own == "counts" else {n: a * 9 for n, a in received.items()}
            )
            metrics = MetricRecord({"num-examples": 1, "loss": 1.0})
            more = {} if own is None else {"arrays": record(other)}
            return Message(RecordDict({"metrics": metrics, **more}), reply_to=message)

        app = with_evaluate(settings, evaluate)

        class Looking(FedAvg):
            def aggregate_evaluate(self, server_round, replies, seen=seen):
                replies = list(replies)
                seen += [dict(reply.content.array_records) for reply in replies]
                for reply in replies:
                    for name in list(reply.content.array_records):
                        del reply.content[name]
                return super().aggregate_evaluate(server_round, replies)

        result = trained(CodecStrategy(Looking(), **settings), app)
        assert len(seen) == 12
        assert all(set(each) == ({"arrays"} if own else set()) for each in seen)
        if own == "counts":
            assert all((arrays_in(each["arrays"])["counts"] == np.eye(3)).all() for each in seen)
        results.append(arrays_in(result.arrays))
    for other in results[1:]:
        assert all(np.array_equal(other[name], array) for name, array in results[0].items())


def with_evaluate(settings, evaluate):
    """The app of `learning` with another evaluation."""
    app = ClientApp(mods=[codec_mod(**settings)])

    @app.train()
    def train(message, context):
        rng = np.random.default_rng((message.content["config"]["server-round"], context.node_config["partition-id"]))
        received = arrays_in(message.content["arrays"])
        moved = {n: (a + rng.normal(size=a.shape) / 100).astype(a.dtype) for n, a in received.items()}
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"arrays": record(moved), "metrics": metrics}), reply_to=message)

    app.evaluate()(evaluate)
    return app


def test_clients_may_be_told_apart_by_any_text():
    settings, app = BOTH | {"initial": model}, ClientApp(mods=[codec_mod(**BOTH, initial=model)])

    @app.train()
    def train(message, context):
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"arrays": message.content["arrays"], "metrics": metrics}), reply_to=message)

    with InProcess().open(app, 3) as grid:
        plain = grid._context

        def renamed(node):
            context = plain(node)
            context.node_config["partition-id"] = f"sat-{context.node_config['partition-id']}"
            return context

        grid._context = renamed
        carry = grid.send_and_receive
        grid.send_and_receive = lambda messages, timeout: list(carry(messages))
        assert CodecStrategy(FedAvg(**AVERAGE), **settings).start(grid, record(model()), num_rounds=2).arrays


def test_gradients_instead_of_a_model_are_noticed(caplog):
    app = learning(
        [codec_mod(**BOTH)], lambda received, *_: {n: (a * 0.1).astype(a.dtype) for n, a in received.items()}
    )
    with caplog.at_level(logging.WARNING, "flwr"):
        trained(CodecStrategy(FedAvg(**AVERAGE), **BOTH), app, num_rounds=1)
    assert "as gradients or differences are" in caplog.text


@pytest.mark.parametrize(
    ("end", "settings", "told"),
    [
        (codec_mod, {"broadcast": "int8"}, r"codec_mod\(broadcast='int8'\): must be a codec"),
        (codec_mod, {"update": Uniform}, r"codec_mod\(update=<class .*must be a codec, as in update=Uniform"),
        (codec_mod, {"initial": {"w": 1}}, r"codec_mod\(initial=...\): is a dict; must be a function"),
        (codec_mod, {"seed": -1}, r"codec_mod\(seed=-1\): must be a whole number"),
        (lambda **each: CodecStrategy(FedAvg(), **each), {"broadcast": 8}, r"CodecStrategy\(broadcast=8\): must be"),
        (
            lambda **each: CodecStrategy(FedAvg(), **each),
            {"initial": ArrayRecord()},
            r"is a ArrayRecord; must be a func",
        ),
    ],
)
def test_arguments_of_another_kind_are_refused_at_once(end, settings, told):
    with pytest.raises(ConfigError, match=told):
        end(**settings)


def test_a_mod_that_was_not_called_ends_the_first_round():
    with pytest.raises(RunError, match=r"round 1: .*call it: mods=\[codec_mod\(...\)\]"):
        trained(CodecStrategy(FedAvg(**AVERAGE), **BOTH), learning([codec_mod]))


@pytest.mark.parametrize("size", [1e-4, 1e-7, 1e-9, 1e-30])
def test_fp16_keeps_small_changes_of_any_size(size):
    tensors = {"fc.weight": (np.random.default_rng(0).normal(size=(40, 50)) * size).astype(np.float32)}
    payload = Fp16().encode(tensors, np.random.default_rng(0))
    decoded = Fp16().decode(payload, specs_of(tensors))["fc.weight"]
    assert np.abs(decoded - tensors["fc.weight"]).max() <= 2**-11 * np.abs(tensors["fc.weight"]).max()


def test_checkpoints_of_any_arrangement(tmp_path):
    ours, other = initial_model(10, 0).state_dict(), initial_model(10, 7).state_dict()
    path = tmp_path / "x.pt"

    def loaded(content):
        torch.save(content, path)
        network, file = load_fp32(path)
        assert torch.equal(network.fc1.weight, ours["fc1.weight"])
        return file.notes

    assert loaded({"optimal_state_dict": ours}) == ("took entry 'optimal_state_dict'",)
    assert loaded({"models": [ours]}) == ("took entry 'models.0'",)
    assert loaded({"model": ours, "optimizer": other, "optim": other}) == ("took entry 'model'",)
    assert loaded({name: 5 if name.endswith("tracked") else each for name, each in ours.items()}) == ()
    averaged = torch.optim.swa_utils.AveragedModel(initial_model(10, 0)).state_dict()
    assert loaded(averaged) == ("removed prefix 'module.'", "left out n_averaged")
    for several in ({"optimized_model": ours, "initial_model": other}, {"models": [ours], "ema": other}):
        with pytest.raises(ModelFileError, match="hold state dicts of this network; save the one that is meant"):
            loaded(several)
    half = {name: each.half() if each.is_floating_point() else each for name, each in ours.items()}
    torch.save({"model_state_dict": half, "quantization_info": {"precision": "fp16", "dtype": "fp16"}}, path)
    assert "cast float16 to float32" in load_fp32(path)[1].notes
    assert load_model(path).quantization_info["precision"] == "fp32"
