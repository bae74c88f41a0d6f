"""The loop that trains when contacts allow it: what the clock of `fl.communication.clock` moves is real here."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

from fl.codec import ServerLink
from fl.communication.clock import ContactClock, Event
from fl.communication.link import LONGEST_S, Link
from fl.communication.policies import Synchronous, Update
from fl.communication.replay import shares, spent
from fl.core.errors import RunError, counted
from fl.core.records import ClientFailure, ClientRecord, Planes, RoundRecord, Scores, reached
from fl.core.units import DAY_S, HOUR_S
from fl.federation.buffer import Buffer, Key
from fl.federation.clock_settings import ClockSettings
from fl.federation.exchanges import Exchanges
from fl.federation.messages import ARRAYS, METRICS, NUM_EXAMPLES, TRAIN_S, metrics_of, number, payload_bytes, weight
from fl.federation.replies import shortened
from fl.federation.rounds import (
    Federation,
    drawn,
    node_of_partition,
    refuse_broken,
    refuse_no_score,
    start_bytes,
    total_of,
)
from fl.training.local import learning_rate


@dataclass
class _Line:
    """What has happened since the last line of `rounds.jsonl`.

    Attributes:
        sent: payload and message bytes of every model that began to leave.
        arrived: of every update that began to.
        clients: the same by satellite and version.
        failed: who gave no update that could be used.
        used: of each update that was used: loss, images, staleness.
        aggregate_s: measured.
    """

    sent: list[tuple[int, int]] = field(default_factory=list)
    arrived: list[tuple[int, int]] = field(default_factory=list)
    clients: dict[Key, ClientRecord] = field(default_factory=dict)
    failed: list[ClientFailure] = field(default_factory=list)
    used: list[tuple[float, float, int]] = field(default_factory=list)
    aggregate_s: float = 0.0

    @property
    def says_anything(self) -> bool:
        """Whether anything was sent, arrived or failed."""
        return bool(self.sent or self.arrived or self.failed)

    def book(self, satellite: int, version: int, **figures: Any) -> None:
        """Adds figures to those of an exchange."""
        key = satellite, version
        self.clients[key] = replace(self.clients.get(key, ClientRecord(satellite, 0, 0, 0, 0, 0.0)), **figures)


class ContactLoop:
    """Trains in simulated time; the world of a `ContactClock`.

    Args:
        federation: who takes part; each satellite has a link of its own.
        settings: see `ClockSettings`.
        link: whose windows are the plan of contacts.
        train_s: how long each satellite trains.
        arrays: the first version.
        new_link: makes the server's end for a satellite.

    Attributes:
        clock: when what happens.
        arrays: the newest version.
        shares_start: satellites make the first version from the seed.
        ended: "completed", or "max_days" once these are over.
        on_event: called with everything that happens.
        on_reply: called after every client's reply.
    """

    def __init__(  # six: what a run is made of
        self,
        federation: Federation,
        settings: ClockSettings,
        link: Link,
        train_s: Sequence[float],
        arrays: ArrayRecord,
        new_link: Callable[[], ServerLink],
        *,
        shares_start: bool,
    ) -> None:
        rounds = federation.settings
        self._federation, self._rounds, self._settings = federation, rounds, settings
        self.arrays, self._train_s, self.shares_start = arrays, train_s, shares_start
        self.on_event: Callable[[Event], object] = lambda event: None
        self.on_reply: Callable[[], object] = lambda: None
        self._exchanges = Exchanges(federation, new_link, lambda: self.on_reply())
        self._buffer = Buffer(federation.aggregator, settings.policy, rounds.spool_folder)
        self._waiting: dict[Key, tuple[float, float, int]] = {}  # of each update in the buffer, as in `_Line.used`
        self._returned: set[int] = set()
        self._done, self._line, self.ended = 0, _Line(), "completed"
        self.clock = self._new_clock(link)

    def _new_clock(self, link: Link) -> ContactClock:
        rounds, policy = self._rounds, self._settings.policy
        sample = self._sample if isinstance(policy, Synchronous) else None
        return ContactClock(link, rounds.num_clients, rounds.clients_per_round, policy, self, sample=sample)

    def run(
        self, evaluate: Callable[[ArrayRecord], tuple[Scores, str]]
    ) -> Iterator[tuple[RoundRecord, ArrayRecord, str]]:
        """Yields a record after every `clients_per_round` used updates, the newest version, and its evaluation's type.

        Raises:
            RunError: nothing happens any more, or too little to go on.
        """
        nodes, asked_bytes = node_of_partition(self._federation.grid, self._rounds.num_clients)
        self._exchanges.nodes = nodes
        try:
            yield from self._records(evaluate, 0 if self._done else asked_bytes)
        finally:
            self._buffer.clear()
        if not self._done:
            raise RunError(f"max_days={self._settings.max_days:g}: not one update was used by then; {self._missing()}")

    def _records(
        self, evaluate: Callable[[ArrayRecord], tuple[Scores, str]], control_bytes: int
    ) -> Iterator[tuple[RoundRecord, ArrayRecord, str]]:
        rounds, clock = self._rounds, self.clock
        ends_s = DAY_S * self._settings.max_days if self._settings.max_days else float("inf")
        while clock.used < rounds.num_rounds * rounds.clients_per_round:
            if not clock.queue:
                raise RunError(self._ran_dry())
            if clock.queue[0][0] > ends_s:
                self.ended = "max_days"
                break
            for event in clock.step():
                self.on_event(event)
            if clock.used // rounds.clients_per_round > self._done:
                yield self._record(evaluate, control_bytes)
                control_bytes = 0
        if self.ended == "max_days" and (self._line.used or (self._done and self._line.says_anything)):
            yield self._record(evaluate, control_bytes)

    def _record(
        self, evaluate: Callable[[ArrayRecord], tuple[Scores, str]], control_bytes: int
    ) -> tuple[RoundRecord, ArrayRecord, str]:
        self._done += 1
        line, self._line, rounds = self._line, _Line(), self._rounds
        began, train_s = time.perf_counter(), self._exchanges.train_s
        self._exchanges.train_s = 0.0
        scores, evaluated_in = evaluate(self.arrays)
        refuse_no_score(scores, self._done)
        fp32_bytes = payload_bytes(RecordDict({ARRAYS: self.arrays}))
        images = sum(examples for _, examples, _ in line.used)
        record = RoundRecord(
            round=self._done,
            lr=learning_rate(rounds.lr, rounds.lr_schedule, self._done, rounds.num_rounds),
            test=scores.test,
            validation=scores.validation,
            exact=None,
            reference=None,
            federated=None,
            train_loss=sum(loss * (examples / images) for loss, examples, _ in line.used) if line.used else None,
            fp32_model_bytes=fp32_bytes,
            shared_start_bytes=start_bytes(self._done, line.sent, fp32_bytes),
            clients_asked=len(line.used) + len(line.failed),
            clients_completed=len(line.used),
            clients_failed=tuple(line.failed),
            broadcast=total_of(line.sent, fp32_bytes),
            update=total_of(line.arrived, fp32_bytes),
            control_message_bytes=control_bytes,
            late=(),
            clients=tuple(line.clients[key] for key in sorted(line.clients)),
            evaluated=(),
            evaluation_traffic=None,
            evaluation_failed=(),
            train_s=train_s,
            evaluate_s=time.perf_counter() - began,
            aggregate_s=line.aggregate_s,
            simulated_s=self.clock.time_s,
            staleness_mean=sum(staleness for *_, staleness in line.used) / max(1, len(line.used)),
            staleness_max=max((staleness for *_, staleness in line.used), default=0),
            planes=self._planes(),
        )
        return record, self.arrays, evaluated_in

    def _planes(self) -> Planes | None:
        """Returns what satellites passed on since the last record; None where they do not."""
        return None

    def broadcast_bytes(self, *satellites: int) -> int:
        """Sends the newest version to a satellite; see `fl.communication.clock.World`."""
        rounds, version = self._rounds, self.clock.version
        of_round = self.clock.used // rounds.clients_per_round + 1
        lr = learning_rate(rounds.lr, rounds.lr_schedule, of_round, rounds.num_rounds)
        sent = self._exchanges.send(satellites, version, self.arrays, lr)
        self._line.sent += sent
        for satellite, (payload, message) in zip(satellites, sent, strict=True):
            self._line.book(satellite, version, broadcast_payload_bytes=payload, broadcast_message_bytes=message)
        return max(payload for payload, _ in sent)

    def train_s(self, satellite: int) -> float:
        """Returns how long a satellite trains."""
        return self._train_s[satellite]

    def update_bytes(self, satellite: int) -> int:
        """Has a satellite train, with all others that wait, and returns the length of its payload; 0 if it failed."""
        reply, version = self._exchanges.reply(satellite), self._exchanges.version(satellite)
        payload, message = (0, 0) if reply is None else weight(reply)
        if reply is None or not payload:
            _, problem = self._exchanges.end(satellite, used=False)
            self._failed(satellite, version, problem or "its answer is empty")
            return 0
        self._line.arrived.append((payload, message))
        figures = {"update_payload_bytes": payload, "update_message_bytes": message, "train_s": _measured_s(reply)}
        self._line.book(satellite, version, **figures)
        return payload

    def arrived(self, satellite: int, *, late: bool) -> bool:
        """Decodes an update and keeps it for the next version; returns whether it can be used."""
        exchange, problem = self._exchanges.end(satellite, used=not late)
        if problem is None and not late:
            assert exchange.reply is not None
            staleness = self.clock.version - exchange.version
            key = satellite, exchange.version
            self._buffer.put(key, exchange.reply, exchange.model, self.arrays, staleness)
            metrics = metrics_of(exchange.reply)
            self._waiting[key] = number(metrics, "train-loss"), number(metrics, NUM_EXAMPLES), staleness
            self._returned.add(satellite)
        elif problem is not None:
            self._failed(satellite, exchange.version, problem)
        return problem is None

    def aggregate(self, updates: Sequence[Update]) -> None:
        """Makes the next version of what arrived.

        Raises:
            RunError: too few updates for a synchronous version, or its model is not finite.
        """
        began, before, server_round = time.perf_counter(), self.arrays, self.clock.version + 1
        if not self._settings.policy.takes_stale:
            self._close(server_round, len(updates))
        keys = [(update.satellite, update.version) for update in updates]
        self.arrays = self._next(server_round, keys)
        refuse_broken(before, self.arrays, server_round)
        self._line.used += [self._waiting.pop(key) for key in keys]
        self._line.aggregate_s += time.perf_counter() - began

    def _next(self, server_round: int, keys: Sequence[Key]) -> ArrayRecord:
        return self._buffer.aggregate(server_round, self.arrays, keys)[0]

    def _close(self, server_round: int, valid: int) -> None:
        """Ends a synchronous version: who has neither answered nor failed by now is late."""
        clock, policy, rounds = self.clock, self._settings.policy, self._rounds
        expected = clock.asked if isinstance(policy, Synchronous) and policy.select == "first" else clock.sampled
        for satellite in sorted(expected - clock.done):
            self._line.failed.append(
                ClientFailure(satellite, f"no update within policy.deadline_s={policy.deadline_s:g}")
            )
        if valid < rounds.needed:
            are = "is" if rounds.needed == 1 else "are"
            raise RunError(
                f"round {server_round}: {valid} of {counted(len(expected), 'satellite')} gave an update, "
                f"min_completed={rounds.needed} {are} needed{self._reasons()}; {self._missing()}"
            )

    def _failed(self, satellite: int, version: int, problem: str) -> None:
        """Notes a failure, but for one of a version that was closed without it."""
        if self._settings.policy.takes_stale or version == self.clock.version:
            self._line.failed.append(ClientFailure(satellite, shortened(problem)))

    def never_returned(self) -> list[int]:
        """Returns the satellites of which no update was used so far."""
        return sorted(set(range(self._rounds.num_clients)) - self._returned)

    def _missing(self) -> str:
        missing = ", ".join(map(str, self.never_returned()))
        return f"never returned: satellites {missing}" if missing else "all satellites had returned before"

    def _reasons(self) -> str:
        failed = self._line.failed
        told = "; ".join(f"satellite {each.partition_id}: {each.reason}" for each in failed[:3])
        return f" ({told}{', ...' if len(failed) > 3 else ''})" if failed else ""

    def _ran_dry(self) -> str:
        clock = self.clock
        waits = f"{counted(len(clock.buffer), 'update')} of {getattr(clock.policy, 'buffer_size', self._rounds.needed)}"
        return (
            f"after {clock.time_s / HOUR_S:.2f} simulated hours nothing happens any more: version {clock.version + 1} "
            f"has {waits}{self._reasons()}; {self._missing()}"
        )

    def _sample(self, server_round: int) -> Sequence[int]:
        settings = self._rounds
        everyone = {each: each for each in range(settings.num_clients)}
        return list(drawn(settings, settings.fraction_train, everyone, server_round, "sampling"))

    def summary(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Returns what a run's summary says of its contacts, given the lines of its `rounds.jsonl`."""
        clock = self.clock
        sent, back = clock.updates()
        trained_s, watts = sum(self._train_s[satellite] for satellite in sent), self._settings.computer.watts
        return {
            "hours": clock.time_s / HOUR_S,
            **spent(clock, math.inf),
            "train_energy_j": None if watts is None else watts * trained_s,
            **shares(clock, trained_s, clock.time_s),
            "updates_of_satellites": [back.count(number) for number in range(clock.num_satellites)],
            "reached": {
                goal: each and self._until(float(records[each["rounds"] - 1]["simulated_s"]))
                for goal, each in reached(records).items()
            },
            "max_days": self._settings.max_days,
            "versions": self.clock.version,
            "updates_used": self.clock.used,
            "never_returned": self.never_returned(),
        }

    def _until(self, time_s: float) -> dict[str, Any]:
        """Returns what was spent by then, transfers under way included."""
        return {"hours": time_s / HOUR_S, **spent(self.clock, time_s)}

    def state(self) -> dict[str, Any]:
        """Returns all that a run needs to go on after a record, beside the newest version, as torch saves it."""
        return {"clock": self.clock.state(), "exchanges": self._exchanges.state(), "returned": sorted(self._returned)}

    def load_state(self, state: Mapping[str, Any], arrays: ArrayRecord, done: int) -> None:
        """Goes back to what `state` returned after a record.

        Args:
            state: as it was returned.
            arrays: the newest version then.
            done: the number of the record.
        """
        self.arrays, self._done, self._returned = arrays, done, set(state["returned"])
        self.clock.load_state(state["clock"])
        self._exchanges.load_state(state["exchanges"])


def _measured_s(reply: Message) -> float:
    """Returns the seconds that a client says to have trained, 0 where it says nothing that can be."""
    said = reply.content.metric_records.get(METRICS, MetricRecord()).get(TRAIN_S)
    return float(said) if isinstance(said, int | float) and 0 <= said <= LONGEST_S else 0.0
