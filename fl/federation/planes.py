"""Training where satellites of a plane pass models and updates on: what a sink adds up and codes again is real here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

from fl.codec import Codec, fingerprint
from fl.codec.changes import applied, difference
from fl.codec.payload import Tensors
from fl.codec.tensors import not_finite
from fl.communication.clock import ContactClock
from fl.communication.link import Link
from fl.communication.planes import PlaneClock, Rings
from fl.core.records import Planes, over_planes
from fl.core.seeds import numpy_generator
from fl.core.targets import Target
from fl.federation.buffer import Key
from fl.federation.contacts import ContactLoop
from fl.federation.messages import (
    ARRAYS,
    NUM_EXAMPLES,
    Content,
    metrics_of,
    number,
    payload_bytes,
    with_content,
)
from fl.federation.strategy import Aggregator


@dataclass(frozen=True)
class Sum:
    """What a sink sends down for its plane.

    Attributes:
        model: that the updates are changes of.
        reply: that model plus the mean change by images, as the server decodes it; BatchNorm's statistics are means.
        payload_bytes: of it.
        coding_error: see `coding_error`.
    """

    model: ArrayRecord
    reply: Message
    payload_bytes: int
    coding_error: float


def summed(
    fedavg: Aggregator,
    codec: Codec | None,
    model: ArrayRecord,
    replies: Sequence[Message],
    rng: np.random.Generator,
) -> Sum:
    """Returns the mean of decoded answers to one model, weighted by their images, and coded without feedback.

    Args:
        fedavg: makes the mean.
        codec: of updates; None for plain arrays, which lose nothing.
        model: that all of them trained.
        replies: in the order in which they are to be summed.
        rng: for rounding and rotation.
    """
    mean, metrics = fedavg.aggregate_train(1, model, replies)
    images = sum(int(number(metrics_of(reply), NUM_EXAMPLES)) for reply in replies)
    size, error = payload_bytes(RecordDict({ARRAYS: mean})), 0.0
    if codec is not None:
        base, exact = ({name: array.numpy() for name, array in each.items()} for each in (model, mean))
        payload = codec.encode(difference(codec, exact, base), rng, base=fingerprint(base))
        decoded = applied(codec, payload, base)
        size, error = len(payload), coding_error(codec, base, exact, decoded)
        mean = ArrayRecord({name: Array(array) for name, array in decoded.items()})
    told = MetricRecord({**metrics, NUM_EXAMPLES: images})
    return Sum(model, with_content(replies[0], Content(mean, told)), size, error)


def coding_error(codec: Codec, base: Tensors, exact: Tensors, decoded: Tensors) -> float:
    """Returns ‖decoded − exact‖ / ‖exact − base‖ over all tensors that travel as differences; 0 where none moved."""
    missed = moved = 0.0
    for name, array in base.items():
        if not codec.travels_as_value(name, array.dtype) and not_finite(array) is None:
            missed += float(np.square(decoded[name].astype(np.float64) - exact[name]).sum())
            moved += float(np.square(exact[name].astype(np.float64) - array).sum())
    return (missed / moved) ** 0.5 if moved else 0.0


class PlaneLoop(ContactLoop):
    """Trains planes in simulated time; the world of a `PlaneClock`.

    All satellites of a plane hold one reference, so they share a chain of frames, and `new_link` makes links that serve
    several. See `ContactLoop`.

    Args:
        rings: see `fl.communication.planes.Rings`.
        update: the codec of updates, by which sums travel too.
    """

    def __init__(self, *arguments: Any, rings: Rings, update: Codec | None, **options: Any) -> None:
        self._rings, self._update = rings, update
        self._mean = Aggregator(Target("flwr.serverapp.strategy.FedAvg"))
        self._sums: dict[Key, Sum] = {}
        self._recorded = 0, 0  # transfers and hops
        self._errors: list[float] = []
        super().__init__(*arguments, **options)

    def _new_clock(self, link: Link) -> ContactClock:
        rounds = self._rounds
        return PlaneClock(
            link, rounds.num_clients, rounds.clients_per_round, self._settings.policy, self, rings=self._rings
        )

    def sum_bytes(self, *satellites: int) -> tuple[list[int], int]:
        """Decodes updates and adds up those that can be used; see `fl.communication.planes.PlaneWorld`."""
        version, usable = self.clock.version, {}
        for satellite in satellites:
            exchange, problem = self._exchanges.end(satellite, used=True)
            if problem is not None:
                self._failed(satellite, version, problem)
                continue
            assert exchange.reply is not None
            metrics = metrics_of(exchange.reply)
            self._waiting[satellite, version] = number(metrics, "train-loss"), number(metrics, NUM_EXAMPLES), 0
            usable[satellite] = exchange.reply
        if not usable:
            return [], 0
        rng = numpy_generator(self._rounds.seed, "sum", version, satellites[0])
        update = self._update and self._update.in_round(version + 1)
        made = summed(self._mean, update, exchange.model, list(usable.values()), rng)
        self._sums[satellites[0], version] = made
        self._errors.append(made.coding_error)
        return list(usable), made.payload_bytes

    def arrived(self, satellite: int, *, late: bool) -> bool:
        """Notes that a satellite's update has come down in its plane's sum."""
        self._returned.add(satellite)
        return True

    def _next(self, server_round: int, keys: Sequence[Key]) -> ArrayRecord:
        sums, self._sums = self._sums, {}
        for key in sorted(sums):
            self._buffer.put(key, sums[key].reply, sums[key].model, self.arrays, 0)
        return super()._next(server_round, sorted(sums))

    def _planes(self) -> Planes:
        clock, (transfers, hops), errors = self.clock, self._recorded, self._errors
        assert isinstance(clock, PlaneClock)
        new, self._errors = clock.transfers[transfers:], []
        self._recorded = len(clock.transfers), len(clock.hops)
        up, down = (sum(each.payload_bytes for each in new if each.to_satellite is way) for way in (True, False))
        return Planes(up, sum(hop.payload_bytes for hop in clock.hops[hops:]), down, tuple(errors))

    def summary(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        told = over_planes(records)
        return {**super().summary(records), "coding_error": told and told["coding_error"]}

    def load_state(self, state: Any, arrays: ArrayRecord, done: int) -> None:
        super().load_state(state, arrays, done)
        assert isinstance(self.clock, PlaneClock)
        self._recorded = len(self.clock.transfers), len(self.clock.hops)
