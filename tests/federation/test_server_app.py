"""What the server tests, validates and saves; clients move the model by arithmetic instead of training."""

import numpy as np
import pytest
import torch
from communication.test_link import preset
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fl.codec import Uniform, codec_mod
from fl.core.files import read_json, read_jsonl
from fl.core.targets import Target
from fl.data import Synthetic, open_images
from fl.data.split import Split
from fl.federation.codecs import Codecs
from fl.federation.engine import InProcess
from fl.federation.messages import ARRAYS, METRICS, NUM_EXAMPLES, TRAIN_S
from fl.federation.rounds import RoundSettings
from fl.federation.server_app import make_server_app
from fl.federation.task import ServerSettings, ServerTask
from fl.models.architecture import Architecture
from fl.models.net import Net, initial_model
from fl.training.compute import ComputeSettings, InferenceSettings
from fl.training.evaluation import evaluate
from fl.training.start import Start

SPLIT = Split(np.arange(0, 20), np.arange(20, 33), np.arange(33, 50))


def initial():
    return {name: tensor.numpy() for name, tensor in initial_model(10, 3).state_dict().items()}


def served(folder, cache_dir, broadcast=None, server_model="exact"):
    """One round with one client; returns the record, the summary, and the images."""
    app = ClientApp(mods=[codec_mod(broadcast=broadcast, initial=initial, seed=3)])

    @app.train()
    def train(message, context):
        rng = np.random.default_rng(0)
        received = {name: array.numpy() for name, array in message.content[ARRAYS].items()}
        moved = {
            name: array + 0.03 * rng.standard_normal(array.shape).astype(np.float32) if "fc" in name else array
            for name, array in received.items()
        }
        metrics = MetricRecord({NUM_EXAMPLES: 5, "train-loss": 1.0, TRAIN_S: 1.0})
        arrays = ArrayRecord({name: Array(array) for name, array in moved.items()})
        return Message(RecordDict({ARRAYS: arrays, METRICS: metrics}), reply_to=message)

    @app.query()
    def partition(message, context):
        return Message(RecordDict({"config": ConfigRecord({"partition-id": 0})}), reply_to=message)

    images = open_images(Synthetic(50).plan(cache_dir), cache_dir)
    task = ServerTask(
        run_dir=folder,
        images_folder=images.folder,
        split=SPLIT,
        device="cpu",
        arithmetic="fp32",
        config={},
        rounds=RoundSettings(3, 1, 1, 1.0, 0.0, 1, 0.1, "constant"),
        server=ServerSettings(Target("flwr.serverapp.strategy.FedAvg"), server_model, preset("flat_rate"), None),
        compute=ComputeSettings("cpu", 1, InferenceSettings("no")),
        start=Start(Architecture(), 3),
        codecs=Codecs(broadcast),
    )
    with InProcess().open(app, 1) as grid:
        make_server_app(task)(grid, None)
    (record,) = read_jsonl(folder / "rounds.jsonl")
    return record, read_json(folder / "summary.json"), images


def scored(folder, images, positions):
    model = Net(10).eval()
    model.load_state_dict(torch.load(folder / "final_model.pt", weights_only=True))
    device = torch.device("cpu")
    return evaluate(model, images.images[positions], images.labels[positions], batch_size=250, device=device).score


def test_a_round_is_tested_on_test_images_and_validated_on_others(tmp_path, cache_dir):
    record, summary, images = served(tmp_path, cache_dir)
    for name, positions in (("test", SPLIT.test), ("validation", SPLIT.validation)):
        score = scored(tmp_path, images, positions)
        assert record[f"{name}_loss"] == pytest.approx(score.loss, rel=1e-5)
        assert record[f"{name}_accuracy"] == score.accuracy
    assert summary["final"]["test_loss"] == record["test_loss"]
    assert (summary["data"]["num_train"], summary["data"]["num_validation"], summary["data"]["num_test"]) == (
        20,
        13,
        17,
    )


@pytest.mark.parametrize("server_model", ["exact", "reference"])
def test_the_model_that_was_chosen_is_saved(tmp_path, cache_dir, server_model):
    record, _, images = served(tmp_path, cache_dir, Uniform(2), server_model)
    assert record["exact_loss"] != record["reference_loss"]
    score = scored(tmp_path, images, SPLIT.test)
    assert record["test_loss"] == record[f"{server_model}_loss"] == pytest.approx(score.loss, rel=1e-5)
