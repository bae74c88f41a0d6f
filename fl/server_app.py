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

from fl.checkpoint import Checkpoint, newest_checkpoint, save_checkpoint
from fl.client_states import ClientStates
from fl.codec import Codec, ServerLink
from fl.console import progress, say
from fl.data.images import ImageSet, Split, load_images
from fl.engine import LocalGrid
from fl.environment import compute_with, environment
from fl.errors import ConfigError, DataError, QuantflError
from fl.inference import evaluate_as_told
from fl.journal import Journal
from fl.ledger import communication
from fl.link import Link
from fl.link_report import show_traffic
from fl.messages import is_statistic
from fl.model import Net, channels_last, initial_model, num_parameters
from fl.model_file import save_state
from fl.plots import plot_rounds
from fl.results import (
    VERSION,
    RoundRecord,
    Score,
    Scores,
    plain,
    read_rounds,
    totals,
    write_json,
    write_jsonl,
)
from fl.rounds import RoundSettings, run_rounds
from fl.run_folder import COMMUNICATION, EVENTS, MODEL, ROUNDS, ROUNDS_PLOT, SUMMARY
from fl.run_summary import data_description, reached, round_line, scores_of
from fl.selection import Keep, keep_model
from fl.strategy import Aggregator
from fl.targets import Target

ServerModel = Literal["exact", "reference"]
EVALUATION_BATCH_SIZE = 250
PLOTS = 20
"""The plot of a long run is drawn again when it has a 20th more rounds: one drawing takes as long as it has rounds."""
MAY_CHANGE = ("data.path", "data.cache_dir", "link.windows", "engine", "time_limit_min")
"""Settings that make no difference to what a run's rounds are."""


@dataclass(frozen=True)
class ServerSettings:
    """All that the server needs.

    Attributes:
        run_dir: where everything is written; absolute.
        images_folder: of the image cache.
        split: which images test and validate.
        rounds: see `RoundSettings`.
        strategy: one of Flower's.
        device: "cpu" or "cuda".
        threads: torch threads while evaluating.
        broadcast: codes what the server sends; None for plain arrays.
        update: codes what clients answer; None for plain arrays.
        server_model: which model is tested and saved.
        link: what the run's traffic is priced over.
        time_limit_s: no round starts later than this after the first; None for no limit.
        config: the resolved configuration, for the summary.
        training_precision: in what clients compute, for the summary.
        fp16: evaluate in half precision or not; None: on CUDA only.
        keep: models of which rounds stay, for `fl.export`.
    """

    run_dir: Path
    images_folder: Path
    split: Split
    rounds: RoundSettings
    strategy: Target
    device: str
    threads: int
    broadcast: Codec | None
    update: Codec | None
    server_model: ServerModel
    link: Link
    time_limit_s: float | None
    config: Mapping[str, Any]
    training_precision: str
    fp16: bool | None
    keep: Keep


def make_server_app(settings: ServerSettings, *, resume: bool = False) -> ServerApp:
    """Returns a ServerApp that runs all rounds and fills `settings.run_dir`.

    It raises `RunError` when a round fails; then there is no `final_model.pt`.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        compute_with(settings.threads)
        images = load_images(settings.images_folder)
        aggregator = Aggregator(settings.strategy)
        arrays = initial_arrays(len(images.class_names), settings.rounds.seed)
        start = {name: array.numpy() for name, array in arrays.items()}
        seed = settings.rounds.seed
        link = ServerLink(settings.broadcast, settings.update, initial=lambda: start, seed=seed)
        this_run = _Run(settings, images, link)
        if resume:
            arrays = this_run.restore(grid, aggregator) or arrays
        this_run.train(grid, aggregator, arrays)

    return app


def initial_arrays(num_classes: int, seed: int) -> ArrayRecord:
    """Returns the first model as the server sends it; depends on the arguments only."""
    return ArrayRecord(initial_model(num_classes, seed).state_dict())


class _Run:
    """One run while it goes on: what is known so far, and writing it down."""

    def __init__(self, settings: ServerSettings, images: ImageSet, link: ServerLink) -> None:
        self.settings, self.images, self.link = settings, images, link
        self.began = time.time()
        self.records: list[dict[str, Any]] = []
        self.rounds, self.events = Journal(settings.run_dir / ROUNDS), Journal(settings.run_dir / EVENTS)
        self.inputs = {
            "settings": plain(settings.config),
            "images_sha256": images.sha256,
            "split_sha256": settings.split.sha256,
        }
        self.device = torch.device(settings.device)
        self.model = channels_last(Net(len(images.class_names)).to(self.device)).eval()
        self.told: set[str] = set()
        self.evaluated_in = ""

    def restore(self, grid: Grid, aggregator: Aggregator) -> ArrayRecord | None:
        """Goes back to the newest usable checkpoint and returns its model, None where there was none yet.

        Raises:
            QuantflError: there is none that can be used, or the run was begun with other settings.
        """
        path = self.settings.run_dir / ROUNDS
        checkpoint = newest_checkpoint(self.settings.run_dir, self.rounds)
        if checkpoint is None:
            self.rounds.cut(0)
            return None
        self._refuse_other_inputs(checkpoint)
        aggregator.load_state(checkpoint.strategy)
        self.link.load_state(checkpoint.link)
        if isinstance(grid, LocalGrid):
            grid.states.restore(checkpoint.clients, checkpoint.round + 1)
        else:
            self.link.forget_clients()
            if self.link.active:
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
            self.rounds = Journal(path)
        return ArrayRecord({name: Array(tensor.numpy()) for name, tensor in checkpoint.state.items()})

    def _refuse_other_inputs(self, checkpoint: Checkpoint) -> None:
        """Compares what the run is made of with what it was made of when the checkpoint was saved."""
        if checkpoint.inputs is None:
            return
        before, now = (_lasting(each["settings"]) for each in (checkpoint.inputs, self.inputs))
        for key in sorted({*before, *now}):
            if before.get(key) != now.get(key):
                raise ConfigError(
                    f"{self.settings.run_dir}: {key} was {before.get(key)} when round {checkpoint.round} was saved, "
                    f"and is {now.get(key)} now; a run goes on with the settings it began with"
                )
        for key in ("images_sha256", "split_sha256"):
            if checkpoint.inputs[key] != self.inputs[key]:
                raise DataError(
                    f"{self.settings.run_dir}: the data has changed since the run began ({key}); it cannot be continued"
                )

    def train(self, grid: Grid, aggregator: Aggregator, arrays: ArrayRecord) -> None:
        """Runs the rounds that are left and writes the final model."""
        rounds, done = self.settings.rounds, len(self.records)
        out_of_time = self._was_out_of_time()
        (self.settings.run_dir / SUMMARY).unlink(missing_ok=True)  # of an attempt that ended early
        self._event("resumed" if done else "started", round=done)
        stopped = "time_limit" if out_of_time else "completed"
        deadline = self.began + (self.settings.time_limit_s or float("inf"))
        try:
            with progress("training", (rounds.num_rounds - done) * rounds.clients_per_round) as advance:
                loop = run_rounds(
                    grid,
                    aggregator,
                    arrays,
                    rounds,
                    link=self.link,
                    evaluate=self._evaluate,
                    first_round=done + 1,
                    on_reply=lambda: advance(1),
                    spool_folder=self.settings.run_dir,
                )
                for record, arrays in () if out_of_time else loop:
                    self._keep(record, arrays, grid, aggregator)
                    if time.time() >= deadline and record.round < rounds.num_rounds:
                        stopped = "time_limit"
                        break
            if stopped == "time_limit":
                limit = (self.settings.time_limit_s or 0) / 60
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
        return ended and not (self.settings.run_dir / SUMMARY).exists()

    def _finish(self, state: str, arrays: ArrayRecord) -> None:
        """Writes what a finished run has; the summary comes last and says that all is there."""
        run_dir = self.settings.run_dir
        model_sha256 = save_state(run_dir / MODEL, self._chosen(arrays).to_torch_state_dict())
        plot_rounds(run_dir / ROUNDS_PLOT, self.records, self.images.title)
        ledger = communication(self.records, [self.settings.link])
        write_json(run_dir / COMMUNICATION, ledger)
        self._write_summary(state, model_sha256=model_sha256)
        if self.settings.broadcast or self.settings.update or self.settings.link.name != "flat_rate":
            show_traffic({"this run": ledger})

    def _record_failure(self, error: Exception) -> None:
        """Notes why the run ended, as far as the disk takes it."""
        told = str(error) if isinstance(error, QuantflError) else f"{type(error).__name__}: {error}"
        for note in (lambda: self._event("failed", reason=told), lambda: self._write_summary("failed", error=told)):
            with suppress(OSError):
                note()

    def _evaluate(self, arrays: ArrayRecord) -> Scores:
        compute_with(self.settings.threads)
        split, server_model = self.settings.split, self.settings.server_model
        models = {"exact": arrays}
        if self.settings.broadcast is not None and not self.settings.broadcast.exact:
            models["reference"] = self._reference(arrays)
        tested = {name: self._score(model, split.test) for name, model in models.items()}
        chosen = server_model if server_model in models else "exact"
        validation = self._score(models[chosen], split.validation) if len(split.validation) else None
        return Scores(tested[chosen], validation, **(tested if len(tested) > 1 else {}))

    def _reference(self, arrays: ArrayRecord) -> ArrayRecord:
        return ArrayRecord({name: Array(array) for name, array in self.link.reference(arrays).items()})

    def _chosen(self, arrays: ArrayRecord) -> ArrayRecord:
        return self._reference(arrays) if self.settings.server_model == "reference" else arrays

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
            fp16=self.settings.fp16,
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
        keep_model(self.settings.run_dir, final, self.records, self.settings.keep)
        states = grid.states if isinstance(grid, LocalGrid) else ClientStates()
        state, link, clients = dict(arrays.to_torch_state_dict()), self.link.state(), states.listing()
        save_checkpoint(
            self.settings.run_dir,
            Checkpoint(record.round, state, aggregator.state(), clients, link, self.rounds.mark, self.inputs),
            states.settle,
        )
        if record.round < self.settings.rounds.num_rounds and record.round % max(1, record.round // PLOTS) == 0:
            plot_rounds(self.settings.run_dir / ROUNDS_PLOT, self.records, self.images.title)
        say(round_line(record, self.settings.rounds.num_rounds))
        for failure in record.clients_failed:
            say(f"           client {failure.partition_id} left out: {failure.reason}")

    def _event(self, event: str, **details: Any) -> None:
        since = {"time_s": time.time() - self.began}
        self.events.append({"event": event, **details, **since})

    def _write_summary(self, state: str, error: str | None = None, model_sha256: str | None = None) -> None:
        settings, records = self.settings, self.records
        statistics = {name: tensor for name, tensor in self.model.state_dict().items() if is_statistic(name)}
        summary = {
            "state": state,
            "error": error,
            "model_sha256": model_sha256,
            "rounds_completed": len(records),
            "num_rounds": settings.rounds.num_rounds,
            "num_clients": settings.rounds.num_clients,
            "clients_per_round": settings.rounds.clients_per_round,
            "final": scores_of(records[-1]) if records else None,
            "totals": totals(records),
            "reached": reached(records),
            "num_parameters": num_parameters(self.model),
            "num_statistics": sum(tensor.numel() for tensor in statistics.values()),
            "server_model": settings.server_model,
            "training_precision": settings.training_precision,
            "evaluated_in": self.evaluated_in,
            "seed": settings.rounds.seed,
            "data": data_description(self.images, settings.split),
            "config": settings.config,
            "environment": environment(settings.device, settings.threads),
            "wall_s": time.time() - self.began,
        }
        write_json(settings.run_dir / SUMMARY, summary)


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
