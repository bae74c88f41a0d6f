"""The Flower ServerApp: strategy, evaluation, records and checkpoints around the round loop."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from fl.checkpoint import FILE as CHECKPOINT
from fl.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from fl.codec import Codec, ServerLink
from fl.console import progress, say
from fl.data.images import ImageSet, Split, load_images
from fl.engine import LocalGrid
from fl.environment import compute_with, environment
from fl.errors import ConfigError, QuantflError
from fl.inference import evaluate_as_told
from fl.ledger import COMMUNICATION, MILESTONES_PERCENT, communication
from fl.link import Link
from fl.link_report import show_traffic
from fl.messages import is_statistic
from fl.model import Net, channels_last, initial_model, num_parameters
from fl.model_file import save_state
from fl.plots import plot_rounds
from fl.results import (
    MIB,
    VERSION,
    RoundRecord,
    Score,
    Scores,
    plain,
    read_jsonl,
    read_rounds,
    totals,
    traffic,
    write_json,
    write_jsonl,
)
from fl.rounds import RoundSettings, run_rounds
from fl.selection import Keep, keep_model
from fl.strategy import Aggregator
from fl.targets import Target

ServerModel = Literal["exact", "reference"]
EVALUATION_BATCH_SIZE = 250
MODEL, ROUNDS, EVENTS, SUMMARY, ROUNDS_PLOT = (
    "final_model.pt",
    "rounds.jsonl",
    "events.jsonl",
    "summary.json",
    "rounds.png",
)


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
        records: list[dict[str, Any]] = []
        start = {name: array.numpy() for name, array in arrays.items()}
        seed = settings.rounds.seed
        link = ServerLink(settings.broadcast, settings.update, initial=lambda: start, seed=seed)
        if resume and _has_rounds(settings.run_dir):
            arrays, records = _restore(settings, grid, aggregator, link)
        _Run(settings, images, records, link).train(grid, aggregator, arrays)

    return app


def initial_arrays(num_classes: int, seed: int) -> ArrayRecord:
    """Returns the first model as the server sends it; depends on the arguments only."""
    return ArrayRecord(initial_model(num_classes, seed).state_dict())


def _has_rounds(run_dir: Path) -> bool:
    """Tells whether there is a checkpoint, or should be: the first line of records is written just before it."""
    rounds = run_dir / ROUNDS
    return (run_dir / CHECKPOINT).exists() or (rounds.exists() and len(read_jsonl(rounds)) > 1)


def _restore(
    settings: ServerSettings, grid: Grid, aggregator: Aggregator, link: ServerLink
) -> tuple[ArrayRecord, list[dict[str, Any]]]:
    checkpoint = load_checkpoint(settings.run_dir)
    aggregator.load_state(checkpoint.strategy)
    link.load_state(checkpoint.link)
    if isinstance(grid, LocalGrid):
        grid.load_state(checkpoint.clients)
    arrays = ArrayRecord({name: Array(tensor.numpy()) for name, tensor in checkpoint.state.items()})
    records = read_rounds(settings.run_dir / ROUNDS)[: checkpoint.round]
    if any(record.get("version") != VERSION for record in records):
        raise ConfigError(
            f"{settings.run_dir / ROUNDS}: is of a version without bytes per client, which cannot go on in this one's "
            "lines; start the run again"
        )
    return arrays, records


class _Run:
    """One run while it goes on: what is known so far, and writing it down."""

    def __init__(
        self, settings: ServerSettings, images: ImageSet, records: list[dict[str, Any]], link: ServerLink
    ) -> None:
        self.settings, self.images, self.records, self.link = settings, images, records, link
        self.began = time.time()
        events = settings.run_dir / EVENTS
        self.events: list[dict[str, Any]] = read_jsonl(events) if events.exists() else []
        self.device = torch.device(settings.device)
        self.model = channels_last(Net(len(images.class_names)).to(self.device)).eval()
        self.told: set[str] = set()
        self.evaluated_in = ""

    def train(self, grid: Grid, aggregator: Aggregator, arrays: ArrayRecord) -> None:
        """Runs the rounds that are left and writes the final model."""
        rounds, done = self.settings.rounds, len(self.records)
        (self.settings.run_dir / SUMMARY).unlink(missing_ok=True)  # of an attempt that ended early
        self._event("resumed" if done else "started", round=done)
        stopped = "completed"
        deadline = self.began + (self.settings.time_limit_s or float("inf"))
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
            )
            try:
                for record, arrays in loop:
                    self._keep(record, arrays, grid, aggregator)
                    if time.time() >= deadline and record.round < rounds.num_rounds:
                        stopped = "time_limit"
                        break
            except QuantflError as error:
                self._event("failed", reason=str(error))
                self._write_summary("failed", error=str(error))
                raise
            except KeyboardInterrupt:
                self._event("interrupted", round=len(self.records))
                self._write_summary("interrupted")
                raise
        if stopped == "time_limit":
            limit = (self.settings.time_limit_s or 0) / 60
            say(f"time_limit_min={limit:g} reached: stopped after round {len(self.records)} of {rounds.num_rounds}")
        final = self._chosen(arrays)
        model_sha256 = save_state(self.settings.run_dir / MODEL, final.to_torch_state_dict())
        self._event(stopped, round=len(self.records))
        self._write_summary(stopped, model_sha256=model_sha256)
        ledger = communication(self.records, [self.settings.link])
        write_json(self.settings.run_dir / COMMUNICATION, ledger)
        if self.settings.broadcast or self.settings.update or self.settings.link.name != "flat_rate":
            show_traffic({"this run": ledger})

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
        write_jsonl(self.settings.run_dir / ROUNDS, self.records)
        final = self._chosen(arrays).to_torch_state_dict()
        keep_model(self.settings.run_dir, final, self.records, self.settings.keep)
        clients = grid.state() if isinstance(grid, LocalGrid) else {}
        state = dict(arrays.to_torch_state_dict())
        save_checkpoint(
            self.settings.run_dir, Checkpoint(record.round, state, aggregator.state(), clients, self.link.state())
        )
        plot_rounds(self.settings.run_dir / ROUNDS_PLOT, self.records, self.images.title)
        say(round_line(record, self.settings.rounds.num_rounds))
        for failure in record.clients_failed:
            say(f"           client {failure.partition_id} left out: {failure.reason}")

    def _event(self, event: str, **details: Any) -> None:
        since = {"time_s": time.time() - self.began}
        self.events.append({"event": event, **details, **since})
        write_jsonl(self.settings.run_dir / EVENTS, self.events)

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
            "final": _scores(records[-1]) if records else None,
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


def data_description(images: ImageSet, split: Split) -> dict[str, Any]:
    """Returns what identifies the images of a run and their split."""
    return {
        "name": images.name,
        "synthetic": images.synthetic,
        "class_names": images.class_names,
        "images_sha256": images.sha256,
        "split_sha256": split.sha256,
        "num_train": len(split.train),
        "num_validation": len(split.validation),
        "num_test": len(split.test),
        "notes": images.notes,
    }


def round_line(record: RoundRecord, num_rounds: int) -> str:
    """Returns what is printed after a round."""
    parts = [f"round {record.round:>{len(str(num_rounds))}}/{num_rounds}"]
    parts += [f"test {100 * record.test.accuracy:.2f}% loss {record.test.loss:.4f}"]
    also = {"validation": record.validation, "exact": record.exact, "reference": record.reference}
    for name, score in (also | {"clients": record.federated}).items():
        parts += [f"{name} {100 * score.accuracy:.2f}%"] if score else []
    parts += [f"train loss {record.train_loss:.4f}", f"clients {record.clients_completed}/{record.clients_asked}"]
    for name in ("broadcast", "update"):
        parts += [f"{name} {traffic(record.to_json(), name)['payload_bytes'] / MIB:.2f} MB"]
    return "  ".join([*parts, f"{record.train_s + record.evaluate_s + record.aggregate_s:.1f} s"])


def _scores(record: Mapping[str, Any]) -> dict[str, float]:
    return {key: value for key, value in record.items() if key.endswith(("_loss", "_accuracy"))}


def reached(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int] | None]:
    """Returns for each milestone the first round whose test accuracy is there, and the payload bytes until then."""
    found: dict[str, dict[str, int] | None] = {}
    for percent in MILESTONES_PERCENT:
        number = next((r["round"] for r in records if 100 * r["test_accuracy"] >= percent), None)
        found[str(percent)] = None
        if number is not None:
            sums = totals([record for record in records if record["round"] <= number])
            found[str(percent)] = {
                "rounds": number,
                "broadcast_payload_bytes": sums["broadcast"]["payload_bytes"],
                "update_payload_bytes": sums["update"]["payload_bytes"],
            }
    return found
