"""Payloads of known lengths over contacts, without training: hours, money and energy under each policy."""

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fl.communication.billing import PerStartedMinute, started_minutes
from fl.communication.clock import ContactClock, Event, Transfer
from fl.communication.contacts import Use, transfer
from fl.communication.link import Link
from fl.communication.planes import PlaneClock, Rings, check_planes
from fl.communication.policies import FedBuff, IntraPlane, Policy, Update
from fl.communication.simulation import energy_j
from fl.communication.trip import Both, Exchange, Trip
from fl.core.errors import ConfigError, counted
from fl.core.units import DAY_S, MIB

MOST_IMAGE_BYTES = 2**50
"""Of a satellite, where it is looked for what takes as long as training."""


@dataclass(frozen=True)
class Lengths:
    """The payloads of every version, as a run recorded them or somebody supposes them.

    Attributes:
        rounds: of version 0, 1, ...: (broadcast bytes, update bytes, seconds of training) by client; later versions are
            as the last one. No update: the client failed.
        shares_start: the first version needs no contact: clients have it from the seed.
        clients: how many there are; 0: as many as those that took part tell.
    """

    rounds: Sequence[Mapping[int, tuple[int, int, float]]]
    shares_start: bool
    clients: int = 0

    @property
    def num_clients(self) -> int:
        """How many there are."""
        return max(self.clients, 1 + max(client for each in self.rounds for client in each))

    def of(self, version: int, client: int) -> tuple[int, int, float]:
        """Returns what one client receives, sends and trains.

        As the average of those that answered where it did not take part, and where it failed in the last version that
        is known: it does not fail for ever.
        """
        known = version < len(self.rounds)
        recorded = self.rounds[version if known else -1]
        answered = {number: told for number, told in recorded.items() if told[1]} or recorded
        if client in (recorded if known else answered):
            return recorded[client]
        up, down, train_s = np.mean(list(answered.values()), axis=0)
        return round(up), round(down), float(train_s)


def lengths_of(rounds: Sequence[Sequence[Exchange]], shares_start: bool, clients: int = 0) -> Lengths:
    """Returns the lengths that a run of rounds recorded."""
    told = [
        {each.partition_id: (each.broadcast_bytes, each.update_bytes, each.train_s) for each in exchanges}
        for exchanges in ([each for each in exchanges if not each.evaluates] for exchanges in rounds)
    ]
    return Lengths(told, shares_start, clients)


class _World:
    """Sends those lengths; nothing is trained."""

    def __init__(self, lengths: Lengths, train_s: float | None) -> None:
        self._lengths, self._train_s = lengths, train_s
        self._version: dict[int, int] = {}
        self.clock: ContactClock
        self.used: list[Update] = []
        self.returned, self.trained_s = [0] * lengths.num_clients, 0.0
        self.shares_start = lengths.shares_start

    def broadcast_bytes(self, *satellites: int) -> int:
        self._version |= dict.fromkeys(satellites, self.clock.version)
        return max(self._lengths.of(self.clock.version, satellite)[0] for satellite in satellites)

    def train_s(self, satellite: int) -> float:
        recorded = self._lengths.of(self._version[satellite], satellite)[2]
        return recorded if self._train_s is None else self._train_s

    def update_bytes(self, satellite: int) -> int:
        return self._lengths.of(self._version[satellite], satellite)[1]

    def arrived(self, satellite: int, *, late: bool) -> bool:
        return True

    def sum_bytes(self, *satellites: int) -> tuple[list[int], int]:
        return list(satellites), max(map(self.update_bytes, satellites))

    def aggregate(self, updates: Sequence[Update]) -> None:
        self.used.extend(updates)

    def note(self, event: Event) -> None:
        """Counts what the satellites do."""
        if event.event == "trained" and event.satellite is not None:
            self.trained_s += self.train_s(event.satellite)
        if event.event == "arrived" and event.satellite is not None:
            self.returned[event.satellite] += 1


def replay(  # seven: the last is of one policy alone
    link: Link,
    policy: Policy,
    lengths: Lengths,
    *,
    per_round: int,
    updates: int,
    max_days: float | None = None,
    rings: Rings = (),
) -> dict[str, Any]:
    """Returns what so many used updates take, and how the satellites spend the time.

    Args:
        link: the way.
        policy: when a version is made.
        lengths: of the payloads.
        per_round: updates of a round.
        updates: after which it ends.
        max_days: after which it ends anyway.
        rings: of `IntraPlane`; a plane's sum is taken to be as long as its longest update.

    Raises:
        ConfigError: the policy waits for more updates than there are satellites, or cannot reach them along a ring.
    """
    if isinstance(policy, FedBuff) and policy.buffer_size > lengths.num_clients:
        raise ConfigError(
            f"policy.buffer_size={policy.buffer_size}: is more than {counted(lengths.num_clients, 'satellite')}, "
            "each of which sends one update for a version"
        )
    world = _World(lengths, link.train_s)
    clock = _clock(link, policy, lengths, per_round, rings, world)
    world.clock = clock
    limit_s = math.inf if max_days is None else DAY_S * max_days
    rounds, bill = list[dict[str, float]](), Bill(link)
    while clock.queue and clock.used < updates and (next_s := clock.queue[0][0]) <= limit_s:
        for event in clock.step():
            world.note(event)
        while clock.used >= (len(rounds) + 1) * per_round:
            so_far = bill.until(next_s, clock.transfers)
            rounds.append({"updates": clock.used, "elapsed_s": next_s, "cost_usd": so_far})
    enough = clock.used >= updates
    state = "completed" if enough else "max_days" if clock.queue else "nobody is left who would send an update"
    ends_s = limit_s if state == "max_days" else clock.time_s
    staleness, ages = [each.staleness for each in world.used], [each.age_s for each in world.used]
    return {
        "state": state,
        "used_updates": clock.used,
        "versions": clock.version,
        "elapsed_s": ends_s,
        **spent(clock, ends_s),
        "staleness": {"mean": _mean(staleness), "max": max(staleness, default=0)},
        "age_s": {"mean": _mean(ages), "max": max(ages, default=0.0)},
        **shares(clock, world.trained_s, ends_s),
        "updates_of_satellites": world.returned,
        "never_returned": [number for number, times in enumerate(world.returned) if not times],
        "rounds": rounds,
    }


def _clock(  # six: those of both kinds of clock
    link: Link, policy: Policy, lengths: Lengths, per_round: int, rings: Rings, world: _World
) -> ContactClock:
    """Returns the clock of a policy, which asks whom the rounds asked."""
    of_all = (link, lengths.num_clients, per_round, policy, world)
    if isinstance(policy, IntraPlane):
        check_planes(link, rings)
        return PlaneClock(*of_all, rings=rings)
    asked = [sorted(each) for each in lengths.rounds]
    return ContactClock(*of_all, lambda number: asked[min(number, len(asked)) - 1])


def spent(clock: ContactClock, until_s: float) -> dict[str, Any]:
    """Returns sums over all transfers that had begun by then, those under way included."""
    link, transfers = clock.link, [each for each in clock.transfers if each.uses and each.uses[0].start_s <= until_s]
    relayed_bytes = clock.relayed_bytes(until_s)
    wire = Both(*(sum(each.wire_bytes for each in transfers if each.to_satellite is up) for up in (True, False)))
    energy = energy_j(link, wire)
    payload = Both(*(sum(each.payload_bytes for each in transfers if each.to_satellite is up) for up in (True, False)))
    return {
        "payload_bytes": payload.to_json(),
        "wire_bytes": wire.to_json(),
        "cost_usd": cost_usd(link, transfers),
        "energy_j": energy and energy.to_json(),
        **({} if relayed_bytes is None else {"inter_satellite_bytes": relayed_bytes}),
    }


def cost_usd(link: Link, transfers: Sequence[Transfer]) -> float:
    """Returns the money for transfers, see `Bill`."""
    return Bill(link).until(math.inf, transfers)


class Bill:
    """The money for transfers as ever more of them begin: by volume, or by contact, in which the antenna is held
    between two of them or given back and booked again, whichever is cheaper.
    """

    def __init__(self, link: Link) -> None:
        self._link, self._known, self._usd, self._started_minutes = link, 0, 0.0, 0
        self._waiting: list[tuple[int, Transfer]] = []
        self._uses, self._minutes = defaultdict[Any, list[Use]](list), defaultdict[Any, int](int)

    def until(self, now_s: float, transfers: Sequence[Transfer]) -> float:
        """Returns the money for the transfers that have begun by now, which is no earlier than the last time.

        Args:
            now_s: simulated seconds.
            transfers: all that are known, those that were known the last time first.
        """
        billing, acquisition_s = self._link.billing, self._link.acquisition_s
        known = [*self._waiting, *enumerate(transfers[self._known :], self._known)]
        self._known, self._waiting = len(transfers), []
        for number, each in known:
            if not each.uses or each.uses[0].start_s > now_s:
                self._waiting.append((number, each))
                continue
            if not isinstance(billing, PerStartedMinute):
                wire = Both(*(each.wire_bytes * (each.to_satellite is up) for up in (True, False)))
                self._usd += sum(billing.cost(Trip(each.satellite, True, wire, 0, 0, 0, (), ()), acquisition_s))
                continue
            for use in each.uses:
                contact = each.satellite, number if use.contact is None else use.contact, use.contact is None
                self._uses[contact].append(use)
                minutes = _minutes(self._uses[contact], acquisition_s)
                self._started_minutes += minutes - self._minutes[contact]
                self._minutes[contact] = minutes
        if isinstance(billing, PerStartedMinute):
            return billing.usd_per_minute * self._started_minutes
        return self._usd


def _minutes(uses: Sequence[Use], acquisition_s: float) -> int:
    """Returns the fewest started minutes of one contact: those of its first n uses, the last held since one of them."""
    uses = sorted(uses, key=lambda use: use.start_s)
    best = [0]
    for last, use in enumerate(uses):
        held = (
            best[first] + started_minutes(use.end_s - uses[first].start_s, acquisition_s) for first in range(last + 1)
        )
        best.append(min(held))
    return best[-1]


def shares(clock: ContactClock, trained_s: float, ends_s: float) -> dict[str, float | None]:
    """Returns how much of the satellites' time they neither transfer nor train, and of their contacts they use."""
    transferred_s = sum(max(0.0, min(use.end_s, ends_s) - use.start_s) for each in clock.transfers for use in each.uses)
    whole_s = clock.num_satellites * ends_s
    contact_s = 0.0
    windows = clock.link.windows
    for satellite in range(clock.num_satellites):
        for _, opens_s, closes_s in windows.after(satellite, 0.0) if windows is not None else ():
            if opens_s >= ends_s:
                break
            contact_s += min(closes_s, ends_s) - opens_s
    return {
        "idle_share": max(0.0, 1 - (transferred_s + trained_s) / whole_s) if whole_s else 0.0,
        "contact_share": transferred_s / contact_s if contact_s else None,
    }


def images_down(link: Link, image_bytes: int, num_satellites: int) -> dict[str, float]:
    """Returns what it takes that every satellite sends its images instead, all of them from second 0 on."""
    framing = link.sat_to_ground_framing
    wire = framing.wire_bytes(image_bytes) if framing else float(image_bytes)
    transfers = [
        Transfer(
            number,
            False,
            image_bytes,
            wire,
            transfer(0.0, wire, link.sat_to_ground_bps, link.windows, number, link.acquisition_s),
        )
        for number in range(num_satellites)
    ]
    elapsed_s = max(each.uses[-1].end_s for each in transfers if each.uses)
    return {"elapsed_s": elapsed_s, "cost_usd": cost_usd(link, transfers)}


def break_even_mb(link: Link, elapsed_s: float, num_satellites: int) -> float | None:
    """Returns the megabytes of images of a satellite that take as long as training did; None where no number does."""

    def taken_s(thousandths: int) -> float:
        seconds: float = images_down(link, max(1, round(thousandths * MIB / 1000)), num_satellites)["elapsed_s"]
        return seconds

    top = 1000
    while taken_s(top) < elapsed_s:
        if (top := 2 * top) * MIB / 1000 > MOST_IMAGE_BYTES:
            return None
    return bisect_left(range(top), elapsed_s, key=taken_s) / 1000


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
