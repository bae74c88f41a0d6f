"""The contact plan: antennas booked for passes before training, and who is where when."""

import heapq
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fl.communication.contacts import Contacts
from fl.communication.passes import Pass
from fl.core.errors import ConfigError, counted
from fl.core.units import DAY_S

SHORTEST_S = 60.0
"""Beyond acquisition, a contact that begins late is worth its antenna if it has that long."""


class Antennas(NamedTuple):
    """What is booked of a station: its name, and how many satellites it serves at once."""

    station: str
    antennas: int


@dataclass(frozen=True)
class Plan:
    """Every contact of every satellite, for a period that repeats.

    Attributes:
        contacts: their times; `transfer` takes them as it takes the windows of a link.
        numbers: for each satellite the station of each of its contacts, as a position in `stations`.
        stations: their names and antennas.
        in_view_s: seconds of all passes, whether an antenna was free or not.
        orbits: that it was computed of, as JSON knows it; None where nobody knows.
    """

    contacts: Contacts
    numbers: tuple[tuple[int, ...], ...]
    stations: tuple[Antennas, ...]
    in_view_s: float
    orbits: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, content: Any, station: str) -> "Plan":
        """Returns the plan of a file's content: `to_json`'s, or contact windows over one station.

        Args:
            content: as JSON knows it.
            station: how the station of contact windows is called.

        Raises:
            KeyError, TypeError, ValueError: it is no such content.
        """
        windows = content["windows"]
        if "stations" not in content:
            windows = [[[*window, 0] for window in each] for each in windows]
        stations = tuple(Antennas(name, number) for name, number in content.get("stations", [(station, 1)]))
        contacts = Contacts.of({**content, "windows": [[(start, end) for start, end, _ in each] for each in windows]})
        numbers = tuple(tuple(number for _, _, number in each) for each in windows)
        for number in itertools.chain(*numbers):
            if type(number) is not int or number not in range(len(stations)):
                raise ValueError(f"there is no station {number!r:.20} among {len(stations)}")
        for each in stations:
            if type(each.station) is not str or type(each.antennas) is not int or each.antennas < 1:
                raise ValueError(f"stations: {list(each)!r:.50} is no name with a number of antennas")
        if len(dict(stations)) < len(stations):
            raise ValueError("stations: two have one name")
        if not 0 <= (in_view_s := content.get("in_view_s", 0.0)) < math.inf:
            raise ValueError(f"in_view_s={in_view_s}: must be a number of seconds")
        return cls(contacts, numbers, stations, max(contacts.total_s, in_view_s), content.get("parameters"))

    @property
    def satellites(self) -> int:
        """How many there are."""
        return len(self.contacts.windows)

    @property
    def lost_share(self) -> float:
        """The part of all passes for which no antenna was free, or their satellite was busy, in [0, 1]."""
        return max(0.0, 1 - self.contacts.total_s / self.in_view_s)

    def station(self, satellite: int, contact: int) -> str:
        """Returns the station of a contact by its number, which goes on through repetitions (`Use.contact`)."""
        numbers = self.numbers[satellite]
        return self.stations[numbers[contact % len(numbers)]].station

    def passes(self) -> list[Pass]:
        """Returns its contacts as if they were passes."""
        return [
            Pass(start, satellite, number, end)
            for satellite, (windows, numbers) in enumerate(zip(self.contacts.windows, self.numbers, strict=True))
            for (start, end), number in zip(windows, numbers, strict=True)
        ]

    def to_json(self) -> dict[str, Any]:
        """Returns what `constellation=file` reads: as a file of contact windows, each with its station."""
        windows: list[list[tuple[float, float, int]]] = [[] for _ in range(self.satellites)]
        for start, satellite, number, end in self.passes():
            windows[satellite].append((start, end, number))
        return {
            "stations": self.stations,
            "period_s": self.contacts.period_s,
            "in_view_s": self.in_view_s,
            "parameters": self.orbits,
            "windows": windows,
        }


def booked(passes: Iterable[Pass], antennas: Sequence[int], acquisition_s: float) -> list[Pass]:
    """Returns the contacts: of each pass that got an antenna, the part that it got it for, in the order of booking.

    Passes are booked in order of rise; of equal rise the satellite of the lower number first, then the station. Each
    begins as soon as it has risen, its satellite has left other stations and its station has an antenna free, and lasts
    until it sets. One that would begin late is lost if less than `acquisition_s` and a minute are left.

    Args:
        passes: in any order.
        antennas: of each station.
        acquisition_s: that every contact loses before data flows.
    """
    free = [[0.0] * number for number in antennas]  # of each station a heap: when each antenna is
    left, contacts = dict[int, float](), []
    for each in sorted(passes):
        begins_s = max(each.rise_s, free[each.station][0], left.get(each.satellite, 0.0))
        if begins_s > each.rise_s and each.set_s - begins_s < acquisition_s + SHORTEST_S:
            continue
        heapq.heapreplace(free[each.station], each.set_s)
        left[each.satellite] = each.set_s
        contacts.append(each._replace(rise_s=begins_s))
    return contacts


def planned(
    passes: Sequence[Pass], satellites: int, stations: Sequence[Antennas], period_s: float, acquisition_s: float
) -> Plan:
    """Returns the plan that `booked` makes of passes.

    Raises:
        ConfigError: a satellite or a station has no contact, or a satellite none longer than acquisition.
    """
    contacts = booked(passes, [each.antennas for each in stations], acquisition_s)
    days = f"in {counted(round(period_s / DAY_S), 'day')}" if period_s >= DAY_S else f"in {period_s:g} s"
    if idle := set(range(len(stations))) - {each.station for each in contacts}:
        name = stations[min(idle)].station
        raise ConfigError(f"constellation: station {name} has no contact {days}; leave it out, or take another orbit")
    rows: list[list[Pass]] = [[] for _ in range(satellites)]
    for each in contacts:
        rows[each.satellite].append(each)
    for number, row in enumerate(rows):
        longest_s = max((each.set_s - each.rise_s for each in row), default=0.0)
        if longest_s <= acquisition_s:
            told = "is in no contact" if not row else f"is in no contact longer than acquisition_s={acquisition_s:g}"
            raise ConfigError(
                f"constellation: satellite {number} {told} {days}; take more antennas, other stations or another orbit"
            )
    return Plan(
        Contacts(period_s, tuple(tuple((each.rise_s, each.set_s) for each in row) for row in rows)),
        tuple(tuple(each.station for each in row) for row in rows),
        tuple(stations),
        math.fsum(each.set_s - each.rise_s for each in passes),
    )
