"""A constellation: satellites that are clients, one to one, and the stations that they meet; `conf/constellation/`.

Each class has the same face, `Constellation`. Everything here is modelled (docs/measured-and-modelled.md).
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass

from fl.communication.billing import STRICT, Whole
from fl.communication.contacts import from_file
from fl.communication.link import WINDOWS
from fl.communication.orbits import (
    CLEAR_KM,
    HIGHEST_KM,
    LOWEST_KM,
    OLDEST_ELEMENTS_DAYS,
    Circular,
    Orbits,
    Station,
    TwoLines,
    clearance_km,
    horizon_deg,
    orbit_s,
    read_elements,
    walker,
)
from fl.communication.passes import passes_of, sky
from fl.communication.plan import Antennas, Plan, planned
from fl.core.errors import ConfigError, counted
from fl.core.presets import chosen
from fl.core.targets import Target
from fl.core.units import DAY_S

MOST = 1000
"""Satellites of a constellation."""

POINTS = 97
"""Of a ground track: about one a minute."""

Number = Annotated[int, Field(ge=1, le=MOST, strict=True)]
Day = Annotated[date, Field(ge=date(1990, 1, 1), le=date(2050, 12, 31))]
Days = Annotated[float, Field(ge=0.01, le=366, allow_inf_nan=False, strict=True)]
Stations = Annotated[tuple[Station, ...], Field(min_length=1)]


class Constellation(Protocol):
    """What is asked of a constellation."""

    @property
    def satellites(self) -> int:
        """How many there are: as many as clients."""

    @property
    def orbits(self) -> Orbits:
        """As plain numbers.

        Raises:
            ConfigError: nobody knows them.
        """

    def plan(self, cache_dir: Path, acquisition_s: float) -> Plan:
        """Returns every contact, antennas booked.

        Args:
            cache_dir: where passes are kept, as decoded images are.
            acquisition_s: of the link, that every contact loses before data flows.

        Raises:
            ConfigError: a satellite or a station has no contact; skyfield is missing.
        """

    def rings(self) -> list[range]:
        """Returns the satellites of each plane, in order; each sees the one before and after it, the last the first.

        Raises:
            ConfigError: they do not, or there are no planes.
        """

    def ground_tracks(self, seconds: np.ndarray) -> np.ndarray:
        """Returns latitude and longitude in degrees, float64 [satellites, times, 2], at seconds of the plan.

        Raises:
            ConfigError: nobody knows where they are; skyfield is missing.
        """


@dataclass(frozen=True, config=STRICT)
class Walker:
    """Circular orbits in evenly spaced planes, `total/planes/phasing` in Walker's notation; see `orbits.walker`.

    Attributes:
        pattern: "delta": nodes around the whole equator; "star": around half of it.
        total: satellites of all planes.
        planes: that share them evenly.
        phasing: from 0 to `planes` - 1.
        altitude_km: above the equator.
        inclination_deg: of every plane.
        node_deg: right ascension of the first plane's ascending node.
        start: 00:00 UTC of this day is second 0.
        days: length of the plan, after which it repeats: the ground track does not, and contacts are cut there.
        stations: of different names.
    """

    pattern: Literal["delta", "star"]
    total: Number
    planes: Number
    phasing: Annotated[int, Field(ge=0, strict=True)]
    altitude_km: Annotated[float, Field(ge=LOWEST_KM, le=HIGHEST_KM, allow_inf_nan=False, strict=True)]
    inclination_deg: Annotated[float, Field(ge=0, le=180, allow_inf_nan=False, strict=True)]
    node_deg: Annotated[float, Field(ge=-360, le=360, allow_inf_nan=False, strict=True)]
    start: Day
    days: Days
    stations: Stations

    def __post_init__(self) -> None:
        _check_names(self.stations)
        if self.total % self.planes:
            raise ConfigError(f"constellation.planes={self.planes}: does not divide total={self.total}")
        if self.phasing >= self.planes:
            raise ConfigError(f"constellation.phasing={self.phasing}: must be from 0 to planes - 1, {self.planes - 1}")

    @property
    def satellites(self) -> int:
        """How many there are."""
        return self.total

    @property
    def orbits(self) -> Orbits:
        """As plain numbers."""
        places = walker(self.total, self.planes, self.phasing, 360.0 if self.pattern == "delta" else 180.0)
        shape = (self.altitude_km, self.inclination_deg)
        elements = tuple(Circular(*shape, self.node_deg + node_deg, anomaly_deg) for node_deg, anomaly_deg in places)
        return Orbits(elements, self.stations, self.start, self.days)

    def plan(self, cache_dir: Path, acquisition_s: float) -> Plan:
        return _computed(self.orbits, cache_dir, acquisition_s, TypeAdapter(Walker).dump_python(self, mode="json"))

    def rings(self) -> list[range]:
        each = self.total // self.planes
        clear_km = clearance_km(self.altitude_km, each)
        if clear_km < CLEAR_KM:
            line = "meets the Earth" if clear_km < 0 else f"is {clear_km:.0f} km above ground, not {CLEAR_KM:g}"
            raise ConfigError(
                f"constellation: {counted(each, 'satellite')} in a plane at {self.altitude_km:g} km do not see their "
                f"neighbours (the line between them {line}); take more in a plane, or a higher orbit"
            )
        return [range(plane * each, (plane + 1) * each) for plane in range(self.planes)]

    def ground_tracks(self, seconds: np.ndarray) -> np.ndarray:
        tracks: np.ndarray = sky().ground_tracks(self.orbits, seconds)
        return tracks


@dataclass(frozen=True, config=STRICT)
class Tle:
    """Real satellites, by two-line elements.

    Attributes:
        path: of a file with two lines for each satellite, or three with its name; client k is the k-th of them.
        start: 00:00 UTC of this day is second 0; None for the day of the newest elements.
        days: length of the plan, after which it repeats.
        stations: of different names.
    """

    path: Annotated[str, Field(min_length=1, strict=True)]
    start: Day | None
    days: Days
    stations: Stations

    def __post_init__(self) -> None:
        _check_names(self.stations)
        for element in self.elements:
            if abs((element.epoch - self.orbits.start).days) > OLDEST_ELEMENTS_DAYS:
                raise ConfigError(
                    f"constellation.start={self.orbits.start}: satellite {element.line1[2:7]} of {self.path} has "
                    f"elements of {element.epoch}; they err too much after {OLDEST_ELEMENTS_DAYS} days"
                )

    @cached_property
    def elements(self) -> tuple[TwoLines, ...]:
        """Of each satellite."""
        try:
            found = read_elements(Path(self.path).expanduser())
        except OSError as error:
            raise ConfigError(f"constellation.path={self.path}: cannot be read ({error.strerror})") from error
        except ValueError as error:
            raise ConfigError(f"constellation.path={self.path}: {error}") from error
        if len(found) > MOST:
            raise ConfigError(f"constellation.path={self.path}: holds {len(found)} satellites; must be at most {MOST}")
        return found

    @property
    def satellites(self) -> int:
        """How many there are."""
        return len(self.elements)

    @property
    def orbits(self) -> Orbits:
        """As plain numbers."""
        start = self.start or max(element.epoch for element in self.elements)
        return Orbits(self.elements, self.stations, start, self.days)

    def plan(self, cache_dir: Path, acquisition_s: float) -> Plan:
        return _computed(self.orbits, cache_dir, acquisition_s)

    def rings(self) -> list[range]:
        raise ConfigError(f"constellation.path={self.path}: elements do not say which satellites share a plane")

    def ground_tracks(self, seconds: np.ndarray) -> np.ndarray:
        tracks: np.ndarray = sky().ground_tracks(self.orbits, seconds)
        return tracks


@dataclass(frozen=True, config=STRICT)
class File:
    """Contacts from a file: windows of `scripts/contact_windows.py` over one station, or the plan of another run.

    Attributes:
        path: of it; a bare name is one of those shipped in conf/link/windows/.
        station: how its station is called where the file does not say.
        antennas: of each of its stations; None for as many as the plan says, 1 for windows.
    """

    path: Annotated[str, Field(min_length=1, strict=True)]
    station: Annotated[str, Field(min_length=1, strict=True)]
    antennas: Whole | None

    def __post_init__(self) -> None:
        self.content  # noqa: B018 - a mistake in it is told now

    @cached_property
    def content(self) -> Plan:
        """What the file says."""
        path = WINDOWS / self.path if Path(self.path).name == self.path else Path(self.path).expanduser()
        try:
            return from_file(path, lambda content: Plan.of(content, self.station))
        except ValueError as error:
            raise ConfigError(f"constellation.path={self.path}: {error}") from error

    @property
    def satellites(self) -> int:
        """How many there are."""
        return self.content.satellites

    def plan(self, cache_dir: Path, acquisition_s: float) -> Plan:
        content = self.content
        stations = [each._replace(antennas=self.antennas or each.antennas) for each in content.stations]
        found = planned(content.passes(), self.satellites, stations, content.contacts.period_s, acquisition_s)
        return replace(found, in_view_s=content.in_view_s, orbits=content.orbits)

    @property
    def orbits(self) -> Orbits:
        """As plain numbers."""
        return self._walker.orbits

    def rings(self) -> list[range]:
        return self._walker.rings()

    def ground_tracks(self, seconds: np.ndarray) -> np.ndarray:
        return self._walker.ground_tracks(seconds)

    @cached_property
    def _walker(self) -> Walker:
        """The constellation that the contacts were computed of, where the file says so."""
        told = self.content.orbits
        try:
            if isinstance(told, Mapping) and "satellites" in told:  # of scripts/contact_windows.py: one plane
                station = Station(name=self.station, mask_deg=told["mask_deg"], **told["station"])
                shape = {name: told[name] for name in ("altitude_km", "inclination_deg", "node_deg", "start", "days")}
                found = Walker("delta", told["satellites"], 1, 0, **shape, stations=(station,))
            else:
                found = TypeAdapter(Walker).validate_python(told)
        except (ConfigError, KeyError, TypeError, ValueError):
            found = None
        if found is None or found.total != self.satellites:
            raise ConfigError(f"constellation.path={self.path}: does not say on which orbits its satellites are")
        return found


def load_constellation(choice: str) -> Constellation:
    """Returns a constellation of `conf/constellation/` by its name, or of a YAML file by its path.

    Raises:
        ConfigError: there is none, or a value in it cannot be used.
    """
    target = Target.from_config(f"--constellation {choice}", chosen("constellation", choice))
    target.check()
    found: Constellation = target.build()
    return found


def ground(constellation: Constellation) -> dict[str, Any]:
    """Returns where satellites fly over one orbit, and how far stations see, as JSON knows it: a picture's content.

    Raises:
        ConfigError: nobody knows where they are; skyfield is missing.
    """
    elements, stations, *_ = constellation.orbits
    highest_km = max(each.altitude_km for each in elements)
    seconds = np.linspace(0.0, orbit_s(highest_km), POINTS).round(1)
    nodes = sorted({each.node_deg for each in elements if isinstance(each, Circular)})
    return {
        "seconds": seconds,
        "tracks": constellation.ground_tracks(seconds).round(2),
        "planes": [nodes.index(each.node_deg) if isinstance(each, Circular) else 0 for each in elements],
        "stations": [
            {
                "name": each.name,
                "latitude_deg": each.latitude_deg,
                "longitude_deg": each.longitude_deg,
                "horizon_deg": round(horizon_deg(highest_km, each.mask_deg), 2),
            }
            for each in stations
        ],
    }


def _computed(orbits: Orbits, cache_dir: Path, acquisition_s: float, told: dict[str, Any] | None = None) -> Plan:
    stations = [Antennas(each.name, each.antennas) for each in orbits.stations]
    passes = passes_of(orbits, cache_dir)
    return replace(planned(passes, len(orbits.elements), stations, orbits.days * DAY_S, acquisition_s), orbits=told)


def _check_names(stations: tuple[Station, ...]) -> None:
    names = [station.name for station in stations]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"constellation.stations: two have the name {twice[0]}; give each a name of its own")
