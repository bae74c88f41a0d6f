"""The Flower ClientApp: train the received model on this client's images, answer with the result."""

import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod

from fl.codec import codec_mod
from fl.core.errors import DataError
from fl.core.files import sha256
from fl.core.machine import compute_with
from fl.core.seeds import drawn_by, torch_generator
from fl.data.images import ImageSet, load_images
from fl.federation.codecs import Codecs
from fl.federation.faults import Fault
from fl.federation.messages import ARRAYS, CONFIG, METRICS, NUM_EXAMPLES, TRAIN_S, arrays_of, config_of, number
from fl.models.net import Network, channels_last
from fl.training.compute import ComputeSettings
from fl.training.evaluation import evaluate_as_told
from fl.training.local import TrainingSettings, train_locally
from fl.training.start import Start

SCALER = "quantfl.scaler"
"""Record in a client's state: what its loss scaling has learned."""


@dataclass(frozen=True)
class ClientSettings:
    """All that a client process is told; images are opened where they are used, never sent.

    Attributes:
        images_folder: of the image cache.
        shares_file: `.npz` with one array of image positions per client, named by partition id.
        start: the network, and its first weights.
        num_clients: of the run.
        seed: of the run.
        device: "cpu" or "cuda".
        compute: threads, and half precision or not while evaluating.
        training: see `TrainingSettings`.
        codecs: of both directions.
        faults: put into this or other clients; None for none.
        shares_sha256: of `shares_file`; None: it is taken as it is.
    """

    images_folder: Path
    shares_file: Path
    start: Start
    num_clients: int
    seed: int
    device: str
    compute: ComputeSettings
    training: TrainingSettings
    codecs: Codecs
    faults: Fault | None = None
    shares_sha256: str | None = None


@lru_cache(maxsize=2)
def _open_once(folder: Path) -> ImageSet:
    return load_images(folder)


@lru_cache(maxsize=1)
def _shares_once(path: Path, expected: str | None) -> Mapping[str, np.ndarray]:
    """Returns all clients' shares, each read when it is asked for: a file of many clients takes long to open.

    Raises:
        DataError: it is another file than the run was told of.
    """
    content = path.read_bytes()
    if expected not in (None, sha256(content)):
        raise DataError(f"{path}: is damaged (its content does not have its SHA-256)")
    shares: Mapping[str, np.ndarray] = np.load(io.BytesIO(content), allow_pickle=False)
    return shares


def make_client_app(settings: ClientSettings, mods: Sequence[Mod] = ()) -> ClientApp:
    """Returns a ClientApp that answers `train`, `evaluate` and `query` (its partition id).

    Args:
        settings: see `ClientSettings`.
        mods: Flower mods around `train`, first one outermost.
    """
    ways, initial = settings.codecs, settings.start.arrays
    codecs = codec_mod(broadcast=ways.broadcast, update=ways.update, initial=initial, seed=settings.seed)
    faults = [settings.faults.mod(settings.seed, settings.num_clients)] if settings.faults else []
    outside = settings.faults is not None and settings.faults.outside_codec
    app = ClientApp(mods=[*(faults if outside else ()), codecs, *(() if outside else faults)])
    client = _Client(settings)
    app.train(mods=list(mods))(client.train)
    app.evaluate()(client.evaluate)
    app.query()(client.partition)
    return app


@dataclass(frozen=True)
class _Client:
    """What is done with each kind of message; which client it is, the context says."""

    settings: ClientSettings

    def train(self, message: Message, context: Context) -> Message:
        settings, device = self.settings, torch.device(self.settings.device)
        arithmetic = settings.training.arithmetic
        model, scaler = arithmetic.prepared(settings.start.network()), arithmetic.scaler(device.type)
        partition_id, images, labels = self._start(message, context, model)
        if SCALER in context.state.config_records:
            scaler.load_state_dict(dict(context.state.config_records[SCALER]))
        config = config_of(message)
        of_round = int(number(config, "server-round")), partition_id
        began = time.perf_counter()
        with drawn_by(settings.seed, "dropout", *of_round):
            loss = train_locally(
                model,
                torch.from_numpy(images).to(device),
                torch.from_numpy(labels).to(device),
                settings.training,
                lr=number(config, "lr"),
                proximal_mu=number(config, "proximal-mu", 0.0),
                generator=torch_generator(settings.seed, "local", *of_round),
                scaler=scaler,
            )
        if scaler.is_enabled():
            context.state[SCALER] = ConfigRecord(scaler.state_dict())
        arrays = ArrayRecord({name: tensor.contiguous() for name, tensor in model.state_dict().items()})
        train_s = time.perf_counter() - began
        metrics = MetricRecord({NUM_EXAMPLES: len(labels), "train-loss": loss, TRAIN_S: train_s})
        return Message(RecordDict({ARRAYS: arrays, METRICS: metrics}), reply_to=message)

    def evaluate(self, message: Message, context: Context) -> Message:
        settings, model = self.settings, self.settings.start.network()
        _, images, labels = self._start(message, context, model)
        batch_size, fp16 = settings.training.batch_size, settings.compute.inference.fp16
        device = torch.device(settings.device)
        found, _ = evaluate_as_told(model.eval(), images, labels, batch_size=batch_size, device=device, fp16=fp16)
        score = found.score
        metrics = MetricRecord({NUM_EXAMPLES: len(labels), "loss": score.loss, "accuracy": score.accuracy})
        return Message(RecordDict({METRICS: metrics}), reply_to=message)

    def partition(self, message: Message, context: Context) -> Message:
        record = ConfigRecord({"partition-id": int(context.node_config["partition-id"])})
        return Message(RecordDict({CONFIG: record}), reply_to=message)

    def _start(self, message: Message, context: Context, model: Network) -> tuple[int, np.ndarray, np.ndarray]:
        """Fills `model` with what was received; returns this client's partition id, images and labels."""
        compute_with(self.settings.compute.threads_per_client)
        partition_id = int(context.node_config["partition-id"])
        share = _shares_once(self.settings.shares_file, self.settings.shares_sha256)[str(partition_id)]
        source = _open_once(self.settings.images_folder)
        model.load_state_dict(arrays_of(message).to_torch_state_dict())
        channels_last(model.to(self.settings.device))
        return partition_id, source.images[share], source.labels[share]
