"""The Flower ServerApp: strategy, evaluation, records and checkpoints around the round loop."""

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from pydantic import SkipValidation
from pydantic.dataclasses import dataclass as group

from fl.codec import ServerLink
from fl.communication.ledger import communication
from fl.communication.link import Link
from fl.communication.tables import show_traffic
from fl.core.console import progress, say
from fl.core.errors import ConfigError, DataError, QuantflError
from fl.core.files import plain, write_json, write_jsonl
from fl.core.groups import STRICT, Positive
from fl.core.lines import Lines
from fl.core.machine import compute_with, environment
from fl.core.records import VERSION, RoundRecord, Score, Scores, reached, read_rounds, scores_of, totals
from fl.core.run_folder import COMMUNICATION, EVENTS, MODEL, ROUNDS, ROUNDS_PLOT, SUMMARY
from fl.core.targets import Target
from fl.data.images import ImageSet, Split, load_images
from fl.federation.checkpoint import Checkpoint, newest_checkpoint, save_checkpoint
from fl.federation.client_states import ClientStates
from fl.federation.codecs import Codecs
from fl.federation.engine import LocalGrid
from fl.federation.journal import data_description, round_line
from fl.federation.kept_models import CheckpointSettings, keep_model
from fl.federation.messages import is_statistic
from fl.federation.plots import plot_rounds
from fl.federation.rounds import RoundSettings, run_rounds
from fl.federation.strategy import Aggregator
from fl.models.net import Net, channels_last, initial_model, num_parameters
from fl.quantization.model_file import save_state
from fl.training.compute import ComputeSettings
from fl.training.evaluation import evaluate_as_told

ServerModel = Literal["exact", "reference"]

EVALUATION_BATCH_SIZE = 250

PLOTS = 20
"""The plot of a long run is drawn again when it has a 20th more rounds: one drawing takes as long as it has rounds."""

MAY_CHANGE = ("data.path", "data.cache_dir", "link.windows", "engine", "time_limit_min")
"""Settings that make no difference to what a run's rounds are."""


@group(frozen=True, config=STRICT)
class ServerSettings:
    """What the server obeys beside its rounds.

    Attributes:
        strategy: one of Flower's.
        server_model: which model is tested and saved.
        link: what the run's traffic is priced over.
        time_limit_min: no round starts later than this after the first; None for no limit.
        checkpoint: models of which rounds stay, for `quantfl export`.
    """

    strategy: Target
    server_model: ServerModel
    link: SkipValidation[Link]
    time_limit_min: Positive | None
    checkpoint: CheckpointSettings = CheckpointSettings()


@dataclass(frozen=True)
class ServerTask:
    """One run, as its server is given it.

    Attributes:
        run_dir: where everything is written; absolute.
        images_folder: of the image cache.
        split: which images test and validate.
        device: "cpu" or "cuda".
        arithmetic: in what clients compute, for the summary.
        config: the resolved configuration, to be written down and held against that of a run which is resumed.
        rounds: see `RoundSettings`.
        server: see `ServerSettings`.
        compute: threads, and half precision or not while evaluating.
        codecs: of both directions.
    """

    run_dir: Path
    images_folder: Path
    split: Split
    device: str
    arithmetic: str
    config: Mapping[str, Any]
    rounds: RoundSettings
    server: ServerSettings
    compute: ComputeSettings
    codecs: Codecs


def make_server_app(task: ServerTask, *, resume: bool = False) -> ServerApp:
    """Returns a ServerApp that runs all rounds and fills `task.run_dir`.

    It raises `RunError` when a round fails; then there is no `final_model.pt`.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        compute_with(task.compute.threads_per_client)
        images = load_images(task.images_folder)
        aggregator = Aggregator(task.server.strategy)
        arrays = initial_arrays(len(images.class_names), task.rounds.seed)
        start = {name: array.numpy() for name, array in arrays.items()}
        seed = task.rounds.seed
        server_link = ServerLink(task.codecs.broadcast, task.codecs.update, initial=lambda: start, seed=seed)
        this_run = _Run(task, images, server_link)
        if resume:
            arrays = this_run.restore(grid, aggregator) or arrays
        this_run.train(grid, aggregator, arrays)

    return app


def initial_arrays(num_classes: int, seed: int) -> ArrayRecord:
    """Returns the first model as the server sends it; depends on the arguments only."""
    return ArrayRecord(initial_model(num_classes, seed).state_dict())


class _Run:
    """One run while it goes on: what is known so far, and writing it down."""

    def __init__(self, task: ServerTask, images: ImageSet, server_link: ServerLink) -> None:
        self.task, self.images, self.server_link = task, images, server_link
        self.began = time.time()
        self.records: list[dict[str, Any]] = []
        self.rounds, self.events = Lines(task.run_dir / ROUNDS), Lines(task.run_dir / EVENTS)
        self.inputs = {
            "settings": plain(task.config),
            "images_sha256": images.sha256,
            "split_sha256": task.split.sha256,
        }
        self.device = torch.device(task.device)
        self.model = channels_last(Net(len(images.class_names)).to(self.device)).eval()
        self.told: set[str] = set()
        self.evaluated_in = ""

    def restore(self, grid: Grid, aggregator: Aggregator) -> ArrayRecord | None:
        """Goes back to the newest usable checkpoint and returns its model, None where there was none yet.

        Raises:
            QuantflError: there is none that can be used, or the run was begun with other settings.
        """
        path = self.task.run_dir / ROUNDS
        checkpoint = newest_checkpoint(self.task.run_dir, self.rounds)
        if checkpoint is None:
            self.rounds.cut(0)
            return None
        self._refuse_other_inputs(checkpoint)
        aggregator.load_state(checkpoint.strategy)
        self.server_link.load_state(checkpoint.link)
        if isinstance(grid, LocalGrid):
            grid.states.restore(checkpoint.clients, checkpoint.round + 1)
        else:
            self.server_link.forget_clients()
            if self.server_link.active:
                say(
                    "note: what clients remember lies with Flower's SuperNodes and goes with the run that was stopped: "
                    "they are sent the model again, and what error feedback kept is lost"
                )
        if checkpoint.records is not None:
            self.rounds.cut(checkpoint.records[0])
        self.records = read_rounds(path)[: checkpoint.round]
        if any(record.get("version") != VERSION for record in self.records):
            raise ConfigError(
                f"{path}: is of a version without bytes per client, which cannot go on in this one's lines; start the "
                "run again"
            )
        if checkpoint.records is None:
            write_jsonl(path, self.records)
            self.rounds = Lines(path)
        return ArrayRecord({name: Array(tensor.numpy()) for name, tensor in checkpoint.state.items()})

    def _refuse_other_inputs(self, checkpoint: Checkpoint) -> None:
        """Compares what the run is made of with what it was made of when the checkpoint was saved."""
        if checkpoint.inputs is None:
            return
        before, now = (_lasting(each["settings"]) for each in (checkpoint.inputs, self.inputs))
        for key in sorted({*before, *now}):
            if before.get(key) != now.get(key):
                raise ConfigError(
                    f"{self.task.run_dir}: {key} was {before.get(key)} when round {checkpoint.round} was saved, "
                    f"and is {now.get(key)} now; a run goes on with the settings it began with"
                )
        for key in ("images_sha256", "split_sha256"):
            if checkpoint.inputs[key] != self.inputs[key]:
                raise DataError(
                    f"{self.task.run_dir}: the data has changed since the run began ({key}); it cannot be continued"
                )

    def train(self, grid: Grid, aggregator: Aggregator, arrays: ArrayRecord) -> None:
        """Runs the rounds that are left and writes the final model."""
        rounds, done = self.task.rounds, len(self.records)
        out_of_time = self._was_out_of_time()
        (self.task.run_dir / SUMMARY).unlink(missing_ok=True)  # of an attempt that ended early
        self._event("resumed" if done else "started", round=done)
        stopped = "time_limit" if out_of_time else "completed"
        deadline = self.began + 60 * (self.task.server.time_limit_min or float("inf"))
        try:
            with progress("training", (rounds.num_rounds - done) * rounds.clients_per_round) as advance:
                loop = run_rounds(
                    grid,
                    aggregator,
                    arrays,
                    rounds,
                    server_link=self.server_link,
                    evaluate=self._evaluate,
                    first_round=done + 1,
                    on_reply=lambda: advance(1),
                )
                for record, arrays in () if out_of_time else loop:
                    self._keep(record, arrays, grid, aggregator)
                    if time.time() >= deadline and record.round < rounds.num_rounds:
                        stopped = "time_limit"
                        break
            if stopped == "time_limit":
                limit = self.task.server.time_limit_min or 0
                say(f"time_limit_min={limit:g} reached: stopped after round {len(self.records)} of {rounds.num_rounds}")
            self._event(stopped, round=len(self.records))
            self._finish(stopped, arrays)
        except Exception as error:
            self._record_failure(error)
            raise
        except KeyboardInterrupt:
            self._event("interrupted", round=len(self.records))
            self._write_summary("interrupted")
            raise

    def _was_out_of_time(self) -> bool:
        """Tells whether the time limit had ended the rounds when the run was killed, before it was finished."""
        last = self.events.last() if self.records else None
        ended = isinstance(last, dict) and last.get("event") == "time_limit"
        return ended and not (self.task.run_dir / SUMMARY).exists()

    def _finish(self, state: str, arrays: ArrayRecord) -> None:
        """Writes what a finished run has; the summary comes last and says that all is there."""
        run_dir = self.task.run_dir
        model_sha256 = save_state(run_dir / MODEL, self._chosen(arrays).to_torch_state_dict())
        plot_rounds(run_dir / ROUNDS_PLOT, self.records, self.images.title)
        ledger = communication(self.records, [self.task.server.link])
        write_json(run_dir / COMMUNICATION, ledger)
        self._write_summary(state, model_sha256=model_sha256)
        if self.task.codecs.active or self.task.server.link.name != "flat_rate":
            show_traffic({"this run": ledger})

    def _record_failure(self, error: Exception) -> None:
        """Notes why the run ended, as far as the disk takes it."""
        told = str(error) if isinstance(error, QuantflError) else f"{type(error).__name__}: {error}"
        for note in (lambda: self._event("failed", reason=told), lambda: self._write_summary("failed", error=told)):
            with suppress(OSError):
                note()

    def _evaluate(self, arrays: ArrayRecord) -> Scores:
        compute_with(self.task.compute.threads_per_client)
        split, server_model = self.task.split, self.task.server.server_model
        models = {"exact": arrays}
        if self.task.codecs.broadcast is not None and not self.task.codecs.broadcast.exact:
            models["reference"] = self._reference(arrays)
        tested = {name: self._score(model, split.test) for name, model in models.items()}
        chosen = server_model if server_model in models else "exact"
        validation = self._score(models[chosen], split.validation) if len(split.validation) else None
        return Scores(tested[chosen], validation, **(tested if len(tested) > 1 else {}))

    def _reference(self, arrays: ArrayRecord) -> ArrayRecord:
        return ArrayRecord({name: Array(array) for name, array in self.server_link.reference(arrays).items()})

    def _chosen(self, arrays: ArrayRecord) -> ArrayRecord:
        return self._reference(arrays) if self.task.server.server_model == "reference" else arrays

    def _tell_once(self, text: str) -> None:
        if text not in self.told:
            self.told.add(text)
            say(text)

    def _score(self, model: ArrayRecord, positions: np.ndarray) -> Score:
        self.model.load_state_dict(model.to_torch_state_dict())
        images, labels = self.images.images[positions], self.images.labels[positions]
        found, dtype = evaluate_as_told(
            self.model,
            images,
            labels,
            batch_size=EVALUATION_BATCH_SIZE,
            device=self.device,
            fp16=self.task.compute.inference.fp16,
            tell=self._tell_once,
        )
        self.evaluated_in = str(dtype).removeprefix("torch.")
        return found.score

    def _keep(self, record: RoundRecord, arrays: ArrayRecord, grid: Grid, aggregator: Aggregator) -> None:
        """Writes down a finished round, then shows it."""
        for failure in (*record.clients_failed, *record.evaluation_failed):
            self._event("client_failed", round=record.round, **vars(failure))
        self.records.append(plain(record.to_json()))
        self.rounds.append(self.records[-1])
        final = self._chosen(arrays).to_torch_state_dict()
        keep_model(self.task.run_dir, final, self.records, self.task.server.checkpoint.keep)
        states = grid.states if isinstance(grid, LocalGrid) else ClientStates()
        state, memory, clients = dict(arrays.to_torch_state_dict()), self.server_link.state(), states.listing()
        save_checkpoint(
            self.task.run_dir,
            Checkpoint(record.round, state, aggregator.state(), clients, memory, self.rounds.mark, self.inputs),
            states.settle,
        )
        if record.round < self.task.rounds.num_rounds and record.round % max(1, record.round // PLOTS) == 0:
            plot_rounds(self.task.run_dir / ROUNDS_PLOT, self.records, self.images.title)
        say(round_line(record, self.task.rounds.num_rounds))
        for failure in record.clients_failed:
            say(f"           client {failure.partition_id} left out: {failure.reason}")

    def _event(self, event: str, **details: Any) -> None:
        since = {"time_s": time.time() - self.began}
        self.events.append({"event": event, **details, **since})

    def _write_summary(self, state: str, error: str | None = None, model_sha256: str | None = None) -> None:
        task, records = self.task, self.records
        statistics = {name: tensor for name, tensor in self.model.state_dict().items() if is_statistic(name)}
        summary = {
            "state": state,
            "error": error,
            "model_sha256": model_sha256,
            "rounds_completed": len(records),
            "num_rounds": task.rounds.num_rounds,
            "num_clients": task.rounds.num_clients,
            "clients_per_round": task.rounds.clients_per_round,
            "final": scores_of(records[-1]) if records else None,
            "totals": totals(records),
            "reached": reached(records),
            "num_parameters": num_parameters(self.model),
            "num_statistics": sum(tensor.numel() for tensor in statistics.values()),
            "server_model": task.server.server_model,
            "training_precision": task.arithmetic,
            "evaluated_in": self.evaluated_in,
            "seed": task.rounds.seed,
            "data": data_description(self.images, task.split),
            "config": task.config,
            "environment": environment(task.device, task.compute.threads_per_client),
            "wall_s": time.time() - self.began,
        }
        write_json(task.run_dir / SUMMARY, summary)


def _lasting(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that rounds depend on, flat, groups' own as `group.name`."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if name not in MAY_CHANGE:
            own = (
                {f"{name}.{key}": each for key, each in value.items()} if isinstance(value, Mapping) else {name: value}
            )
            flat |= {key: each for key, each in own.items() if key not in MAY_CHANGE}
    return flat
