"""Simulated time that contacts drive: a queue of events in which satellites receive, train and send.

In contact a satellite sends its finished update, then receives the newest model, unless it has trained on that one
already. A model is frozen when its first byte leaves. Transfers go on in the next contact, one direction at a time.
"""

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, ClassVar, NamedTuple, Protocol, get_type_hints

from pydantic import TypeAdapter

from fl.communication.contacts import Contacts, Use, transfer
from fl.communication.link import Link
from fl.communication.policies import Policy, Update


class Kind(IntEnum):
    """What happens; at one moment in this order, and then by the satellites' numbers."""

    ARRIVED = 0
    DEADLINE = 1
    RECEIVED = 2
    TRAINED = 3
    SENDS = 4
    CALLS = 5
    RELAYED = 6
    SUMS = 7


class Event(NamedTuple):
    """A line of the timeline.

    Attributes:
        time_s: since second 0 of the contacts.
        satellite: its number; None for what happens on the ground alone.
        event: "sends" (a model's first byte leaves), "received", "trained", "arrived", "late" (an update that nobody
            waits for any more), "failed" (in training, or with an update that cannot be used), "version"; of planes
            also "relayed" (the satellite has another's update now) and "summed" (its plane's sum has arrived).
        payload_bytes: that were on the way.
        version: that it is about.
        age_s: of that version.
        contact: the number of the satellite's contact in which it happened; None where there is none.
    """

    time_s: float
    satellite: int | None
    event: str
    payload_bytes: int
    version: int
    age_s: float
    contact: int | None = None

    def to_json(self, station: str | None = None) -> dict[str, Any]:
        """Returns the line as written, with the station that it was in contact with, where that is known."""
        before, after = self[:2], self[2:]
        return dict(zip(("time_s", "satellite", "station", *self._fields[2:]), (*before, station, *after), strict=True))


class World(Protocol):
    """What is sent, trained and aggregated; the clock says when.

    Attributes:
        shares_start: satellites have the first version from the seed; they need no contact for it.
    """

    shares_start: bool

    def broadcast_bytes(self, *satellites: int) -> int:
        """Freezes the newest version for a satellite, and returns its payload's length; 0 where it has it already.

        Of several, which pass it on, the length of the longest payload that one of them needs.
        """

    def train_s(self, satellite: int) -> float:
        """Returns how long a satellite will train on what it has received now."""

    def update_bytes(self, satellite: int) -> int:
        """Returns the length of the payload of what it trained; 0 where it failed."""

    def arrived(self, satellite: int, *, late: bool) -> bool:
        """Takes a satellite's update, which is not wanted if it is late; returns whether it can be used otherwise."""

    def aggregate(self, updates: Sequence[Update]) -> None:
        """Makes the next version of updates, in the order of satellites."""


@dataclass
class Satellite:
    """What one is doing.

    Attributes:
        version: that it received last; None before the first.
        busy: from the first byte of a model to the last of the update.
        coming: for the newest version, at its next moment in contact.
        payload_bytes: of what is on the way.
    """

    version: int | None = None
    busy: bool = False
    coming: bool = False
    payload_bytes: int = 0


@dataclass
class Transfer:
    """A payload over the link: when, and how long it is, with its framing too."""

    satellite: int
    to_satellite: bool
    payload_bytes: int
    wire_bytes: float
    uses: tuple[Use, ...]

    def end_s(self, ready_s: float) -> float:
        """Returns when it is there; at once where there is nothing to carry."""
        return self.uses[-1].end_s if self.uses else ready_s


@dataclass
class ContactClock:
    """The queue. Everything that it knows is in its attributes, so that it can be stored between two events.

    Args:
        link: rates, framing, acquisition and power.
        num_satellites: numbered from 0.
        per_round: updates of a round: a synchronous version, and a record of the run.
        policy: see `policies`.
        world: see `World`.
        sample: returns the satellites that a version asks, given its number + 1; None: all.

    Attributes:
        time_s: now.
        version: aggregations so far.
        used: updates that went into them.
        made_s: when each version was made.
        sampled: whom the newest version asks.
        asked: who has been sent the newest version.
        done: of those, who has answered or failed.
        buffer: updates that wait for the next version.
        transfers: of the whole run, in the order in which they began.
        stored: names of the attributes that are stored.
    """

    stored: ClassVar[tuple[str, ...]] = (
        *("time_s", "version", "used", "made_s", "sampled", "asked", "done", "buffer", "transfers", "satellites"),
        "queue",
    )
    link: Link
    num_satellites: int
    per_round: int
    policy: Policy
    world: World
    sample: Callable[[int], Sequence[int]] | None = None
    time_s: float = 0.0
    version: int = 0
    used: int = 0
    made_s: list[float] = field(default_factory=lambda: [0.0])
    sampled: set[int] = field(default_factory=set)
    asked: set[int] = field(default_factory=set)
    done: set[int] = field(default_factory=set)
    buffer: list[Update] = field(default_factory=list)
    transfers: list[Transfer] = field(default_factory=list)
    satellites: list[Satellite] = field(default_factory=list)
    queue: list[tuple[float, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.satellites = [Satellite() for _ in range(self.num_satellites)]
        self._ask()

    def step(self) -> list[Event]:
        """Does what is next, and returns what happened; between two steps all attributes are settled."""
        self.time_s, kind, number = heapq.heappop(self.queue)
        return list(getattr(self, f"_{Kind(kind).name.lower()}")(number))

    def state(self) -> dict[str, Any]:
        """Returns all that it knows between two steps, as numbers, lists and dicts of them."""
        return {name: kind.dump_python(getattr(self, name)) for name, kind in self._known()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restores what `state` returned."""
        for name, kind in self._known():
            setattr(self, name, kind.validate_python(state[name]))

    def _known(self) -> Iterator[tuple[str, TypeAdapter[Any]]]:
        hints = get_type_hints(type(self))
        return ((name, TypeAdapter(hints[name])) for name in self.stored)

    def updates(self) -> tuple[list[int], list[int]]:
        """Returns the satellite of every update that began to be sent, and of those that are back."""
        sent = [each for each in self.transfers if not each.to_satellite]
        back = [each.satellite for each in sent if not each.uses or each.uses[-1].end_s <= self.time_s]
        return [each.satellite for each in sent], back

    def relayed_bytes(self, until_s: float) -> int | None:
        """Returns the payload bytes that began to pass between satellites by then; None where nothing does."""
        return None

    def _ask(self) -> None:
        """Opens a version: says who is asked, and has everyone who is free and asked come for it."""
        self.sampled = set(range(self.num_satellites) if self.sample is None else self.sample(self.version + 1))
        self.asked, self.done = set(), set()
        if self.policy.deadline_s is not None:
            self._push(self.time_s + self.policy.deadline_s, Kind.DEADLINE, self.version)
        for number, satellite in enumerate(self.satellites):
            if not satellite.busy:
                self._come(number)

    def _come(self, number: int) -> None:
        """Has a free satellite receive the newest version at its first moment in contact, if it lacks that."""
        satellite = self.satellites[number]
        if satellite.version != self.version and not satellite.coming and self.policy.asks(self, number):
            satellite.coming = True
            at_once = self.version == 0 and self.world.shares_start
            self._push(self.time_s if at_once else self._in_contact(number), Kind.SENDS, number)

    def _in_contact(self, number: int) -> float:
        """Returns the first moment from now on at which data can flow."""
        return transfer(self.time_s, 1.0, None, self.link.windows, number, self.link.acquisition_s)[0].start_s

    def _push(self, time_s: float, kind: Kind, number: int) -> None:
        heapq.heappush(self.queue, (time_s, int(kind), number))

    def _sends(self, number: int) -> Iterator[Event]:
        satellite = self.satellites[number]
        satellite.coming = False
        if not self.policy.asks(self, number):
            return  # it came for a version that is not the newest any more, or others were quicker
        satellite.busy, satellite.version = True, self.version
        self.asked.add(number)
        satellite.payload_bytes = self.world.broadcast_bytes(number)
        ends_s = self._carry(number, True, satellite.payload_bytes)
        yield self._event("sends", number, satellite.payload_bytes)
        self._push(ends_s, Kind.RECEIVED, number)

    def _carry(self, number: int, to_satellite: bool, payload_bytes: int) -> float:
        """Returns when a payload is there that is ready now."""
        self.transfers.append(self._transfer(number, to_satellite, payload_bytes, self.time_s))
        return self.transfers[-1].end_s(self.time_s)

    def _transfer(self, number: int, to_satellite: bool, payload_bytes: int, ready_s: float) -> Transfer:
        link = self.link
        framing, rate = (
            (link.ground_to_sat_framing, link.ground_to_sat_bps)
            if to_satellite
            else (link.sat_to_ground_framing, link.sat_to_ground_bps)
        )
        wire = framing.wire_bytes(payload_bytes) if framing else float(payload_bytes)
        uses = transfer(ready_s, wire, rate, link.windows, number, link.acquisition_s)
        return Transfer(number, to_satellite, payload_bytes, wire, uses)

    def _received(self, number: int) -> Iterator[Event]:
        yield self._event("received", number, self.satellites[number].payload_bytes)
        self._push(self.time_s + self.world.train_s(number), Kind.TRAINED, number)

    def _trained(self, number: int) -> Iterator[Event]:
        satellite = self.satellites[number]
        satellite.payload_bytes = self.world.update_bytes(number)
        yield self._event("trained" if satellite.payload_bytes else "failed", number, 0)
        if satellite.payload_bytes:
            self._push(self._carry(number, False, satellite.payload_bytes), Kind.ARRIVED, number)
        else:
            satellite.busy = False
            yield from self._settle(number)

    def _arrived(self, number: int) -> Iterator[Event]:
        satellite = self.satellites[number]
        satellite.busy = False
        assert satellite.version is not None
        staleness = self.version - satellite.version
        late = staleness > 0 and not self.policy.takes_stale
        usable = self.world.arrived(number, late=late)
        yield self._event("late" if late else "arrived" if usable else "failed", number, satellite.payload_bytes)
        if usable and not late:
            age_s = self.time_s - self.made_s[satellite.version]
            self.buffer.append(Update(number, satellite.version, staleness, age_s))
        yield from self._settle(number)

    def _settle(self, number: int) -> Iterator[Event]:
        """Notes that a satellite is free again, and makes a version if there is all that it takes."""
        if self.satellites[number].version == self.version:
            self.done.add(number)
        before = self.version
        if self.policy.is_complete(self):
            yield from self._make()
        if self.version == before:
            self._come(number)

    def _deadline(self, version: int) -> Iterator[Event]:
        if version == self.version:
            yield from self._make()

    def _make(self) -> Iterator[Event]:
        """Makes a version of what is there, and opens it."""
        updates = sorted(self.buffer, key=lambda update: update.satellite)
        self.world.aggregate(updates)
        self.buffer = []
        self.used += len(updates)
        self.version += 1
        self.made_s.append(self.time_s)
        yield Event(self.time_s, None, "version", 0, self.version, 0.0)
        self._ask()

    def _event(self, event: str, number: int, payload_bytes: int) -> Event:
        version = self.satellites[number].version
        assert version is not None
        windows: Contacts | None = self.link.windows
        contacts = windows.at(number, self.time_s) if windows else []
        where = contacts[-1 if event == "sends" else 0] if contacts else None
        return Event(self.time_s, number, event, payload_bytes, version, self.time_s - self.made_s[version], where)
