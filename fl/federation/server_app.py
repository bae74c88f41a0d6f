"""The Flower ServerApp: one run around the round loop."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from torch import Tensor

from fl.codec import ServerLink
from fl.codec.broadcast import Once
from fl.core.console import progress, say
from fl.core.files import plain, sha256
from fl.core.machine import compute_with
from fl.core.records import RoundRecord
from fl.data.images import load_images
from fl.federation.checkpoint import (
    Checkpoint,
    held_once,
    newest_checkpoint,
    refuse_other_inputs,
    refuse_other_network,
    save_checkpoint,
)
from fl.federation.client_states import ClientStates
from fl.federation.contacts import ContactLoop
from fl.federation.engine import LocalGrid
from fl.federation.evaluator import Evaluator
from fl.federation.journal import Journal
from fl.federation.planes import PlaneLoop
from fl.federation.rounds import Federation, run_rounds
from fl.federation.strategy import Aggregator
from fl.federation.task import ServerTask


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
        start, seed = task.start.arrays(), task.rounds.seed
        arrays = ArrayRecord({name: Array(array) for name, array in start.items()})
        link = partial(ServerLink, task.codecs.broadcast, task.codecs.update, initial=lambda: start, seed=seed)
        server_link = ServerLink(None, None) if task.clock.by_contacts else link()
        evaluator = Evaluator(task, images, server_link)
        journal = Journal(task, images, evaluator.network)
        inputs = {
            "settings": plain(task.config),
            "images_sha256": images.sha256,
            "split_sha256": task.split.sha256,
            "weights_sha256": task.start.weights_sha256,
        }
        federation = Federation(grid, aggregator, server_link, task.rounds)
        contacts: ContactLoop | None = None
        if task.clock.by_contacts:
            inputs["contacts_sha256"] = sha256(repr(task.server.link.windows).encode())
            of_all = (federation, task.clock, task.server.link, task.train_s, arrays)
            seeded = task.codecs.broadcast is not None
            if task.rings:
                contacts = PlaneLoop(*of_all, link, shares_start=seeded, rings=task.rings, update=task.codecs.update)
            else:
                contacts = ContactLoop(*of_all, partial(link, once=Once()), shares_start=seeded)
        run = _Run(task, federation, evaluator, journal, inputs, contacts)
        if resume:
            arrays = run.restore(arrays) or arrays
        run.train(arrays)

    return app


class _Run:
    """One run: restored from its newest checkpoint or not, then trained to its end."""

    def __init__(  # six: a run has so many parts
        self,
        task: ServerTask,
        federation: Federation,
        evaluator: Evaluator,
        journal: Journal,
        inputs: dict[str, Any],
        contacts: ContactLoop | None,
    ) -> None:
        self._task, self._federation, self._evaluator = task, federation, evaluator
        self._journal, self._inputs, self._contacts = journal, inputs, contacts
        if contacts is not None:
            contacts.on_event, journal.also = journal.happened, contacts.summary

    def restore(self, start: ArrayRecord) -> ArrayRecord | None:
        """Goes back to the newest usable checkpoint and returns its model, None where there was none yet.

        Args:
            start: the model that the run began with.

        Raises:
            QuantflError: there is none that can be used, or the run was begun with other settings.
        """
        checkpoint = newest_checkpoint(
            self._task.run_dir,
            self._journal.rounds,
            self._journal.timeline,
            partial(self._take, start.to_torch_state_dict()),
        )
        if checkpoint is None:
            self._journal.go_back(None)
            return None
        server_link = self._federation.server_link
        if not isinstance(self._federation.grid, LocalGrid):
            server_link.forget_clients()
            if server_link.active:
                say(
                    "note: what clients remember lies with Flower's SuperNodes and goes with the run that was stopped: "
                    "they are sent the model again, and what error feedback kept is lost"
                )
        self._journal.go_back(checkpoint)
        return _arrays(checkpoint)

    def _take(self, start: dict[str, Tensor], checkpoint: Checkpoint) -> None:
        """Gives every part of the run what it remembered; a later call replaces all that an earlier one gave."""
        refuse_other_inputs(self._task.run_dir, checkpoint, self._inputs)
        refuse_other_network(checkpoint.state, start)
        self._federation.aggregator.load_state(checkpoint.strategy)
        self._federation.server_link.load_state(checkpoint.link)
        if isinstance(grid := self._federation.grid, LocalGrid):
            grid.states.restore(checkpoint.clients, checkpoint.round + 1)
        if self._contacts is not None and checkpoint.contacts is not None:
            self._contacts.load_state(checkpoint.contacts, _arrays(checkpoint), checkpoint.round)

    def train(self, arrays: ArrayRecord) -> None:
        """Runs the rounds that are left and writes the final model."""
        rounds, journal, done = self._task.rounds, self._journal, len(self._journal.records)
        deadline = journal.began + 60 * (self._task.server.time_limit_min or float("inf"))
        stopped = "time_limit" if journal.was_out_of_time() else "completed"
        journal.begin()
        try:
            with progress("training", rounds.num_rounds, "round", done=done) as step:
                loop = self._loop(arrays, done, lambda: step(1 / rounds.clients_per_round))
                for record, arrays, evaluated_in in () if stopped == "time_limit" else loop:
                    step.done = record.round  # who did not reply included
                    self._keep(record, arrays, evaluated_in)
                    if time.time() >= deadline and record.round < rounds.num_rounds:
                        stopped = "time_limit"
                        break
            if self._contacts is not None and stopped == "completed":
                stopped = self._contacts.ended
            journal.finish(stopped, self._evaluator.chosen(arrays).to_torch_state_dict())
        except Exception as error:
            journal.fail(error)
            raise
        except KeyboardInterrupt:
            journal.interrupt()
            raise

    def _loop(
        self, arrays: ArrayRecord, done: int, on_reply: Callable[[], object]
    ) -> Iterator[tuple[RoundRecord, ArrayRecord, str]]:
        """Returns what trains: rounds, or contacts."""
        evaluate = self._evaluator.scores
        if self._contacts is not None:
            self._contacts.on_reply = on_reply
            return self._contacts.run(evaluate)
        return run_rounds(self._federation, arrays, evaluate=evaluate, first_round=done + 1, on_reply=on_reply)

    def _keep(self, record: RoundRecord, arrays: ArrayRecord, evaluated_in: str) -> None:
        """Writes down a finished round, with all that is needed to go on after it, then shows it."""
        grid, journal = self._federation.grid, self._journal
        journal.keep(record, self._evaluator.chosen(arrays).to_torch_state_dict(), evaluated_in)
        states = grid.states if isinstance(grid, LocalGrid) else ClientStates()
        checkpoint = Checkpoint(
            round=record.round,
            state=dict(arrays.to_torch_state_dict()),
            strategy=self._federation.aggregator.state(),
            clients=states.listing(),
            link=self._federation.server_link.state(),
            records=journal.rounds.mark,
            inputs=self._inputs,
            contacts=held_once(self._contacts.state()) if self._contacts else None,
            timeline=journal.timeline.mark if self._contacts else None,
        )
        save_checkpoint(self._task.run_dir, checkpoint, states.settle)
        journal.show(record)


def _arrays(checkpoint: Checkpoint) -> ArrayRecord:
    return ArrayRecord({name: Array(tensor.numpy()) for name, tensor in checkpoint.state.items()})
