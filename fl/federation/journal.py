"""What a run writes down and tells while it goes on: rounds, events, pictures, and a summary when it ends."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from torch import Tensor

from fl.codec.tensors import is_statistic
from fl.communication.clock import Event
from fl.communication.ledger import communication
from fl.communication.pricing import load_links
from fl.communication.tables import show_traffic
from fl.core.console import say
from fl.core.errors import ConfigError, QuantflError, counted
from fl.core.files import plain, write_json, write_jsonl
from fl.core.lines import Lines
from fl.core.machine import environment
from fl.core.records import VERSION, RoundRecord, reached, read_rounds, scores_of, totals, traffic
from fl.core.run_folder import COMMUNICATION, EVENTS, MODEL, ROUNDS, ROUNDS_PLOT, SUMMARY, TIMELINE
from fl.core.units import MIB
from fl.data.images import ImageSet
from fl.data.split import Split
from fl.federation.checkpoint import Checkpoint
from fl.federation.kept_models import keep_model
from fl.federation.plots import plot_rounds
from fl.federation.task import ServerTask
from fl.models.net import Network, num_parameters
from fl.quantization.model_file import save_trained

PLOTS = 20
"""The plot of a long run is drawn again when it has a 20th more rounds: one drawing takes as long as it has rounds."""


AS_ROUNDS = (
    "contacts: this is the run's traffic as if in rounds; contacts in summary.json is what it took in its own time"
)


class Journal:
    """One run's records while it goes on.

    Args:
        task: see `ServerTask`.
        images: of the run.
        network: the one that is trained, for its size.

    Attributes:
        began: when, in seconds since 1970.
        rounds: the lines of `rounds.jsonl`.
        records: the same, parsed.
        timeline: the lines of `timeline.jsonl`, of a run that contacts drive.
        also: returns what such a run's summary has beside.
    """

    def __init__(self, task: ServerTask, images: ImageSet, network: Network) -> None:
        self._task, self._images, self._network = task, images, network
        self._folder = task.run_dir
        self.began = time.time()
        self.rounds, self._events = Lines(self._folder / ROUNDS), Lines(self._folder / EVENTS)
        self.timeline, self._happened = Lines(self._folder / TIMELINE), list[Event]()
        self.records: list[dict[str, Any]] = []
        self.also: Callable[[Sequence[Mapping[str, Any]]], Mapping[str, Any]] = lambda records: {}
        self._evaluated_in = ""

    def go_back(self, checkpoint: Checkpoint | None) -> None:
        """Forgets the rounds after a checkpoint, all of them without one.

        Raises:
            ConfigError: what is left was written by a version that this one cannot go on with.
        """
        self.timeline.cut(checkpoint.timeline[0] if checkpoint and checkpoint.timeline else 0)
        if checkpoint is None:
            self.rounds.cut(0)
            return
        if checkpoint.records is not None:
            self.rounds.cut(checkpoint.records[0])
        self.records = read_rounds(self.rounds.path)[: checkpoint.round]
        if any(record.get("version") != VERSION for record in self.records):
            raise ConfigError(
                f"{self.rounds.path}: is of a version without bytes per client, which cannot go on in this one's "
                "lines; start the run again"
            )
        if checkpoint.records is None:
            write_jsonl(self.rounds.path, self.records)
            self.rounds = Lines(self.rounds.path)

    def was_out_of_time(self) -> bool:
        """Tells whether the time limit had ended the rounds when the run was killed, before it was finished."""
        last = self._events.last() if self.records else None
        ended = isinstance(last, dict) and last.get("event") == "time_limit"
        return ended and not (self._folder / SUMMARY).exists()

    def begin(self) -> None:
        """Notes that rounds are about to run; the summary of an attempt that ended early goes."""
        (self._folder / SUMMARY).unlink(missing_ok=True)
        self.event("resumed" if self.records else "started", round=len(self.records))

    def happened(self, event: Event) -> None:
        """Notes a line of the timeline; it is written with the next round."""
        self._happened.append(event)

    def _station(self, event: Event) -> str | None:
        """Returns which station it was in contact with, where a plan says so."""
        if self._task.plan is None or event.satellite is None or event.contact is None:
            return None
        return self._task.plan.station(event.satellite, event.contact)

    def _write_timeline(self) -> None:
        if self._happened:
            self.timeline.extend(each.to_json(self._station(each)) for each in self._happened)
            self._happened = []

    def keep(self, record: RoundRecord, state: dict[str, Tensor], evaluated_in: str) -> None:
        """Writes down a finished round.

        Args:
            record: of the round.
            state: the model after it, as it is saved.
            evaluated_in: the type that scores were computed in.
        """
        self._evaluated_in = evaluated_in
        for failure in (*record.clients_failed, *record.evaluation_failed):
            self.event("client_failed", round=record.round, **vars(failure))
        self.records.append(plain(record.to_json()))
        self._write_timeline()
        self.rounds.append(self.records[-1])
        keep_model(self._folder, state, self.records, self._task.server.checkpoint.keep, self._task.start.architecture)

    def show(self, record: RoundRecord) -> None:
        """Shows a round that was written down."""
        num_rounds = self._task.rounds.num_rounds
        if record.round < num_rounds and record.round % max(1, record.round // PLOTS) == 0:
            self._draw()
        say(round_line(record, num_rounds), event="round", **self.records[-1])
        for failure in record.clients_failed:
            told = f"           client {failure.partition_id} left out: {failure.reason}"
            say(told, "warning", "client_failed", round=record.round, **vars(failure))

    def finish(self, state: str, model: dict[str, Tensor]) -> None:
        """Writes what a finished run has; the summary comes last and says that all is there.

        Args:
            state: one of `ENDED`.
            model: the final one.
        """
        if state == "time_limit":
            limit, done = self._task.server.time_limit_min or 0, len(self.records)
            told = f"time_limit_min={limit:g} reached: stopped after round {done} of {self._task.rounds.num_rounds}"
            say(told, "warning", state)
        self._write_timeline()
        self._tell_contacts(state)
        self.event(state, round=len(self.records))
        model_sha256 = save_trained(self._folder / MODEL, model, self._task.start.architecture)
        self._draw()
        own = self._task.server.link
        shipped = [link for link in load_links(None, None) if link.name != own.name]
        ledger = communication(self.records, [own, *shipped])
        if self._task.clock.by_contacts:
            ledger["modelled"]["not_modelled"].insert(0, AS_ROUNDS)
        write_json(self._folder / COMMUNICATION, ledger)
        self._summarize(state, model_sha256=model_sha256)
        if not self._task.clock.by_contacts and (self._task.codecs.active or own.name != "flat_rate"):
            modelled = {**ledger["modelled"], "links": {own.name: ledger["modelled"]["links"][own.name]}}
            show_traffic({"this run": {**ledger, "modelled": modelled}})

    def _tell_contacts(self, state: str) -> None:
        told = self.also(self.records)
        if not told:
            return
        why = f"max_days={told['max_days']:g} reached: " if state == "max_days" else ""
        missing = ", ".join(map(str, told["never_returned"]))
        versions, updates = counted(told["versions"], "version"), counted(told["updates_used"], "update")
        say(
            f"{why}{told['hours']:.2f} simulated hours, ${told['cost_usd']:,.2f} over {self._task.server.link.name}, "
            f"{versions} of {updates}" + (f"; never returned: satellites {missing}" if missing else "")
        )

    def fail(self, error: Exception) -> None:
        """Notes why the run ended, as far as the disk takes it."""
        told = str(error) if isinstance(error, QuantflError) else f"{type(error).__name__}: {error}"
        notes: list[Callable[[], None]] = [
            self._write_timeline,
            lambda: self.event("failed", reason=told),
            lambda: self._summarize("failed", error=told),
        ]
        for note in notes:
            with suppress(OSError):
                note()

    def interrupt(self) -> None:
        """Notes that somebody stopped the run."""
        self.event("interrupted", round=len(self.records))
        self._summarize("interrupted")

    def event(self, event: str, **details: Any) -> None:
        """Adds a line to `events.jsonl`."""
        self._events.append({"event": event, **details, "time_s": time.time() - self.began})

    def _draw(self) -> None:
        plot_rounds(self._folder / ROUNDS_PLOT, self.records, self._images.title)

    def _summarize(self, state: str, error: str | None = None, model_sha256: str | None = None) -> None:
        task, records = self._task, self.records
        statistics = {name: tensor for name, tensor in self._network.state_dict().items() if is_statistic(name)}
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
            "num_parameters": num_parameters(self._network),
            "num_statistics": sum(tensor.numel() for tensor in statistics.values()),
            "weights_sha256": task.start.weights_sha256,
            "server_model": task.server.server_model,
            "training_precision": task.arithmetic,
            "evaluated_in": self._evaluated_in,
            "seed": task.rounds.seed,
            "data": data_description(self._images, task.split),
            "config": task.config,
            "environment": environment(task.device, task.compute.threads_per_client),
            **({"contacts": told} if (told := self.also(records)) else {}),
            "wall_s": time.time() - self.began,
        }
        write_json(self._folder / SUMMARY, summary)


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
    parts += [f"train loss {record.train_loss:.4f}"] if record.train_loss is not None else []
    parts += [f"clients {record.clients_completed}/{record.clients_asked}"]
    for name in ("broadcast", "update"):
        parts += [f"{name} {traffic(record.to_json(), name)['payload_bytes'] / MIB:.2f} MB"]
    return "  ".join([*parts, f"{record.train_s + record.evaluate_s + record.aggregate_s:.1f} s"])
