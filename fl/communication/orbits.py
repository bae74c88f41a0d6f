"""Orbits and ground stations as plain numbers; what sees what is computed from them (`passes.py`, `sky.py`)."""

import math
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import Field
from pydantic.dataclasses import dataclass

from fl.communication.billing import STRICT, Whole
from fl.core.files import read_regular
from fl.core.units import DAY_S, MIB

EARTH_RADIUS_KM, EARTH_MU_KM3_S2 = 6378.135, 398600.8
"""WGS 72, as SGP4 uses them."""

LOWEST_KM, HIGHEST_KM = 160.0, 2000.0
"""Altitudes of satellites: below, air brings them down within days; above is no low Earth orbit."""

MOST_BYTES = 16 * MIB
"""Of a file of elements: all that is in orbit takes a third."""

CLEAR_KM = 80.0
"""A line of sight between satellites stays above the air."""

OLDEST_ELEMENTS_DAYS = 30
"""SGP4 errs by one to three kilometres a day; a satellite goes 7 km in a second."""


def _degrees(lowest: float, highest: float) -> object:
    return Field(ge=lowest, le=highest, allow_inf_nan=False, strict=True)


@dataclass(frozen=True, config=STRICT)
class Station:
    """A ground station.

    Attributes:
        name: how results call it.
        latitude_deg: geodetic, north.
        longitude_deg: east.
        elevation_m: above the ellipsoid WGS 84.
        mask_deg: elevation above which it sees a satellite.
        antennas: satellites that it serves at once.
    """

    name: Annotated[str, Field(min_length=1, strict=True)]
    latitude_deg: Annotated[float, _degrees(-90, 90)]
    longitude_deg: Annotated[float, _degrees(-180, 180)]
    elevation_m: Annotated[float, _degrees(-500, 9000)]
    mask_deg: Annotated[float, _degrees(0, 89)]
    antennas: Whole = 1


class Circular(NamedTuple):
    """A circular orbit without drag, and how far from its ascending node a satellite is at the start."""

    altitude_km: float
    inclination_deg: float
    node_deg: float
    anomaly_deg: float


class TwoLines(NamedTuple):
    """Two-line elements."""

    line1: str
    line2: str

    @property
    def altitude_km(self) -> float:
        """On average."""
        return sum(self.altitudes_km) / 2

    @property
    def epoch(self) -> date:
        """The day that they are of."""
        year = int(self.line1[18:20])
        return date(year + (2000 if year < 57 else 1900), 1, 1) + timedelta(float(self.line1[20:32]) - 1)

    @property
    def altitudes_km(self) -> tuple[float, float]:
        """The lowest and the highest altitude."""
        radians_per_s = float(self.line2[52:63]) * 2 * math.pi / DAY_S
        axis_km = (EARTH_MU_KM3_S2 / radians_per_s**2) ** (1 / 3)
        apart_km = axis_km * float(f"0.{self.line2[26:33].strip()}")
        return axis_km - apart_km - EARTH_RADIUS_KM, axis_km + apart_km - EARTH_RADIUS_KM


class Orbits(NamedTuple):
    """Satellites that stations look at for some days.

    Attributes:
        elements: of each satellite.
        stations: of different names.
        start: its 00:00 UTC is second 0.
        days: how long.
    """

    elements: tuple[Circular | TwoLines, ...]
    stations: tuple[Station, ...]
    start: date
    days: float


def walker(total: int, planes: int, phasing: int, span_deg: float) -> Iterator[tuple[float, float]]:
    """Yields the ascending node and the angle from it, in degrees, of each satellite of Walker's notation.

    Plane after plane: satellite s of plane p has node `p · span / planes` and angle `360 · (s · planes + p · phasing) /
    total` (J. G. Walker, Satellite constellations, JBIS 37, 1984).

    Args:
        total: of all planes together.
        planes: that share them evenly.
        phasing: from 0 to `planes` - 1; a plane is ahead of the one before it by so many 360 / `total` degrees.
        span_deg: over which the nodes are spread: 360 for a delta, 180 for a star.
    """
    for plane in range(planes):
        for slot in range(total // planes):
            yield span_deg * plane / planes, (360.0 * (slot * planes + plane * phasing) / total) % 360


def orbit_s(altitude_km: float) -> float:
    """Returns how long a satellite takes once around: `2π · sqrt((radius + altitude)³ / µ)`."""
    return 2 * math.pi * math.sqrt((EARTH_RADIUS_KM + altitude_km) ** 3 / EARTH_MU_KM3_S2)


def horizon_deg(altitude_km: float, mask_deg: float) -> float:
    """Returns how far from a station, as an angle at the centre of a spherical Earth, a satellite is as it rises.

    `acos(radius · cos(mask) / (radius + altitude)) - mask`.
    """
    mask = math.radians(mask_deg)
    return math.degrees(math.acos(EARTH_RADIUS_KM * math.cos(mask) / (EARTH_RADIUS_KM + altitude_km)) - mask)


def clearance_km(altitude_km: float, satellites: int) -> float:
    """Returns how far above a spherical Earth the line between neighbours in a plane passes, below 0 if it does not.

    It is nearest to the ground half-way: `(radius + altitude) · cos(180° / satellites) - radius`.
    """
    return (EARTH_RADIUS_KM + altitude_km) * math.cos(math.pi / satellites) - EARTH_RADIUS_KM


def read_elements(path: Path) -> tuple[TwoLines, ...]:
    """Returns the elements of a file, in its order: two lines for each satellite, or three with a name before them.

    Raises:
        ValueError: it is no such file, a checksum is wrong, a satellite comes twice or is not in a low Earth orbit.
    """
    lines = [line.rstrip() for line in read_regular(path, MOST_BYTES).decode().splitlines() if line.strip()]
    found: dict[str, TwoLines] = {}
    while lines:
        name = lines.pop(0) if not lines[0].startswith("1 ") else ""
        pair = TwoLines(*(lines[:2] if len(lines) > 1 else ("", "")))
        del lines[:2]
        _check_lines(pair, name)
        number = pair.line1[2:7]
        if number in found:
            raise ValueError(f"satellite {number} comes twice; give one entry for each")
        found[number] = pair
    if not found:
        raise ValueError("holds no satellite")
    return tuple(found.values())


def _check_lines(pair: TwoLines, name: str) -> None:
    place = pair.line1[2:7] or repr(name)
    for start, line in zip(("1 ", "2 "), pair, strict=True):
        if not (line.startswith(start) and len(line) == 69 and line.isascii() and line[68].isdigit()):
            raise ValueError(f"satellite {place}: has no line of 69 characters that begins with {start[0]}")
        checksum = sum(int(c) if c.isdigit() else c == "-" for c in line[:68]) % 10
        if checksum != int(line[68]):
            raise ValueError(f"satellite {place}: line {start[0]} has checksum {line[68]}, and adds up to {checksum}")
    if pair.line2[2:7] != pair.line1[2:7]:
        raise ValueError(f"satellite {place}: line 2 is of satellite {pair.line2[2:7]}")
    try:
        _, (lowest_km, highest_km) = pair.epoch, pair.altitudes_km
    except (ArithmeticError, ValueError) as error:
        raise ValueError(f"satellite {place}: its elements are no numbers ({error})") from error
    if not LOWEST_KM <= lowest_km <= highest_km <= HIGHEST_KM:
        where = f"from {lowest_km:.0f} to {highest_km:.0f} km"
        raise ValueError(f"satellite {place}: flies {where} above ground; must be {LOWEST_KM:.0f} to {HIGHEST_KM:.0f}")
