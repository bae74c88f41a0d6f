"""Simulated time in which the satellites of a plane pass models and updates on along a ring, each to its neighbours.

A version goes up to the satellite of each plane that will have it first, and from there both ways around the ring. When
all have trained, the sink is chosen: the satellite whose contacts bring the sum of updates down first. Updates go to it
unchanged, each the shorter way round; it adds them up, and sends the sum when a station sees it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from fl.communication.clock import ContactClock, Event, Kind, Satellite, World
from fl.communication.link import Link
from fl.communication.policies import Update
from fl.core.errors import ConfigError

Rings = Sequence[Sequence[int]]
"""The satellites of each plane, in order; each sees the one before and after it, the last the first."""


def check_planes(link: Link, rings: Rings) -> None:
    """Refuses a link without a rate between satellites, and satellites of which nobody knows the planes.

    Raises:
        ConfigError: says what to give.
    """
    if not rings:
        raise ConfigError(
            "policy=intraplane: nobody knows which satellites share a plane; give a constellation that says so, as in "
            "constellation=plane_10 (--constellation plane_10)"
        )
    if link.inter_satellite_bps is None:
        raise ConfigError(
            f"link.inter_satellite_bps=null: link={link.name} has nothing between satellites, and policy=intraplane "
            "passes models on there; give bits per second, as in link.inter_satellite_bps=1000000, or another link"
        )


class PlaneWorld(World, Protocol):
    """What is sent, trained, added up and aggregated."""

    def sum_bytes(self, *satellites: int) -> tuple[list[int], int]:
        """Adds up what satellites of a plane trained; returns whose updates can be used, and the sum's length."""


@dataclass(frozen=True)
class Hop:
    """A payload on its way from a satellite to its neighbour on the ring, which is the one that is named."""

    satellite: int
    payload_bytes: int
    start_s: float
    end_s: float


@dataclass
class PlaneClock(ContactClock):
    """The queue of `policies.IntraPlane`; see `ContactClock`. A satellite is busy while its plane awaits its training,
    then while its update is on the way in the plane's sum.

    Args:
        world: see `PlaneWorld`.
        rings: see `Rings`; they hold every satellite once.

    Attributes:
        hops: of the whole run.
        back: the satellite of every update that came back in a sum.
    """

    stored: ClassVar[tuple[str, ...]] = (*ContactClock.stored, "hops", "back")
    world: PlaneWorld
    rings: Rings = ()
    hops: list[Hop] = field(default_factory=list)
    back: list[int] = field(default_factory=list)

    def updates(self) -> tuple[list[int], list[int]]:
        return self.back, self.back

    def relayed_bytes(self, until_s: float) -> int:
        return sum(hop.payload_bytes for hop in self.hops if hop.start_s <= until_s)

    def _ring(self, number: int) -> Sequence[int]:
        return next(ring for ring in self.rings if number in ring)

    def _come(self, number: int) -> None:
        """Calls a plane, by its first satellite."""
        if number == self._ring(number)[0]:
            self._push(self.time_s, Kind.CALLS, number)

    def _calls(self, first: int) -> Iterator[Event]:
        """Freezes the version for a plane, and chooses who receives it."""
        ring = self._ring(first)
        payload_bytes = self.world.broadcast_bytes(*ring)
        self.asked |= set(ring)
        for number in ring:
            self.satellites[number] = Satellite(self.version, busy=True, payload_bytes=payload_bytes)
        entry, begins_s = self._soonest(dict.fromkeys(ring, self.time_s), True, payload_bytes)
        self._push(begins_s, Kind.SENDS, entry)
        yield from ()

    def _soonest(self, ready_s: Mapping[int, float], to_satellite: bool, payload_bytes: int) -> tuple[int, float]:
        """Returns the satellite whose contacts carry a payload first, and when its first byte leaves.

        Args:
            ready_s: from when on each could; of equals the one with the lower number is taken.
            to_satellite: which way.
            payload_bytes: of the payload.
        """
        ways = {number: self._transfer(number, to_satellite, payload_bytes, at_s) for number, at_s in ready_s.items()}
        best = min(ways, key=lambda number: (ways[number].end_s(ready_s[number]), number))
        return best, ways[best].uses[0].start_s if ways[best].uses else ready_s[best]

    def _sends(self, entry: int) -> Iterator[Event]:
        payload_bytes = self.satellites[entry].payload_bytes
        yield self._event("sends", entry, payload_bytes)
        received_s = self._carry(entry, True, payload_bytes)
        self._push(received_s, Kind.RECEIVED, entry)
        for side in sides(self._ring(entry), entry):
            at_s = received_s
            for number in side:
                hop = self._hop(number, payload_bytes, at_s)
                self.hops.append(hop)
                self._push(at_s := hop.end_s, Kind.RECEIVED, number)

    def _hop(self, number: int, payload_bytes: int, start_s: float) -> Hop:
        assert self.link.inter_satellite_bps is not None
        return Hop(number, payload_bytes, start_s, start_s + 8 * payload_bytes / self.link.inter_satellite_bps)

    def _trained(self, number: int) -> Iterator[Event]:
        satellite, ring = self.satellites[number], self._ring(number)
        satellite.busy, satellite.payload_bytes = False, self.world.update_bytes(number)
        yield self._event("trained" if satellite.payload_bytes else "failed", number, 0)
        if not any(self.satellites[each].busy for each in ring):
            yield from self._gather(ring)

    def _gather(self, ring: Sequence[int]) -> Iterator[Event]:
        """Chooses the sink of a plane that has trained, and sends all updates there."""
        lengths = {number: length for number in ring if (length := self.satellites[number].payload_bytes)}
        usable, sum_bytes = self.world.sum_bytes(*lengths) if lengths else ([], 0)
        for number in lengths:
            self.satellites[number].busy = number in usable
            if number not in usable:
                yield self._event("failed", number, 0)
        if not usable:
            yield from self._close(ring)
            return
        ways = {sink: self._to_sink(ring, sink, lengths) for sink in ring}
        ready_s = {sink: max([self.time_s, *(hop.end_s for hop in hops)]) for sink, hops in ways.items()}
        sink, _ = self._soonest(ready_s, False, sum_bytes)
        for hop in ways[sink]:
            self._push(hop.end_s, Kind.RELAYED, len(self.hops))
            self.hops.append(hop)
        self.satellites[sink].payload_bytes = sum_bytes
        self._push(ready_s[sink], Kind.SUMS, sink)

    def _to_sink(self, ring: Sequence[int], sink: int, lengths: Mapping[int, int]) -> list[Hop]:
        """Returns the hops of all updates: a satellite sends its own first, then what comes to it, one at a time."""
        hops = []
        for side in sides(ring, sink):
            path, free_s = [sink, *side], dict.fromkeys(side, self.time_s)
            for place, sender in enumerate(side, start=1):
                at_s = self.time_s
                for over, to in zip(path[place:0:-1], path[place - 1 :: -1], strict=True) if sender in lengths else ():
                    hops.append(self._hop(to, lengths[sender], max(at_s, free_s[over])))
                    at_s = free_s[over] = hops[-1].end_s
        return hops

    def _relayed(self, place: int) -> Iterator[Event]:
        hop = self.hops[place]
        yield self._event("relayed", hop.satellite, hop.payload_bytes)

    def _sums(self, sink: int) -> Iterator[Event]:
        self._push(self._carry(sink, False, self.satellites[sink].payload_bytes), Kind.ARRIVED, sink)
        yield from ()

    def _arrived(self, sink: int) -> Iterator[Event]:
        ring = self._ring(sink)
        yield self._event("summed", sink, self.satellites[sink].payload_bytes)
        for number in ring:
            if self.satellites[number].busy:
                self.satellites[number].busy = False
                self.world.arrived(number, late=False)
                yield self._event("arrived", number, 0)
                self.buffer.append(Update(number, self.version, 0, self.time_s - self.made_s[self.version]))
                self.back.append(number)
        yield from self._close(ring)

    def _close(self, ring: Sequence[int]) -> Iterator[Event]:
        """Notes that a plane is done with the version."""
        self.done |= set(ring)
        if self.policy.is_complete(self):
            yield from self._make()


def sides(ring: Sequence[int], number: int) -> tuple[list[int], list[int]]:
    """Returns those after and before one on its ring, nearest first; the one opposite, if there is, is after it."""
    place, size = list(ring).index(number), len(ring)
    after = [ring[(place + step) % size] for step in range(1, size // 2 + 1)]
    return after, [ring[place - step] for step in range(1, (size + 1) // 2)]
