"""Orbits by SGP4 and skyfield, offline. Needs the extra [orbit]: who wants it asks `passes.sky`."""

import math
from collections.abc import Iterator, Sequence
from datetime import date
from typing import Any

import numpy as np
from sgp4.api import WGS72, Satrec
from skyfield.api import EarthSatellite, load, wgs84

from fl.communication.orbits import EARTH_MU_KM3_S2, EARTH_RADIUS_KM, HIGHEST_KM, LOWEST_KM, Circular, Orbits, TwoLines
from fl.core.units import DAY_S

SGP4_EPOCH = date(1949, 12, 31)
"""From which SGP4 counts days."""


def passes(orbits: Orbits) -> Iterator[list[list[list[float]]]]:
    """Yields for each satellite, for each station, the (rise, set) of every pass above its mask.

    Seconds since the start, to 0.1 s; a pass under way at either end is cut there.

    Raises:
        ValueError: a satellite falls down before the end.
    """
    timescale = load.timescale(builtin=True)
    start = timescale.utc(orbits.start.year, orbits.start.month, orbits.start.day)
    end, period_s = timescale.tt_jd(start.tt + orbits.days), orbits.days * DAY_S
    stations = [wgs84.latlon(each.latitude_deg, each.longitude_deg, each.elevation_m) for each in orbits.stations]
    for number, element in enumerate(orbits.elements):
        satellite = EarthSatellite.from_satrec(satrec(element, orbits.start), timescale)
        if not _stays_up(satellite.model, start.tt, orbits.days):
            raise ValueError(f"satellite {number} does not stay in orbit for {orbits.days:g} days")
        of_satellite = []
        for station, place in zip(orbits.stations, stations, strict=True):
            found, events = satellite.find_events(place, start, end, altitude_degrees=station.mask_deg)
            seconds = [min(float(round((time.tt - start.tt) * DAY_S, 1)), period_s) for time in found]
            of_satellite.append(_pairs(seconds, events, period_s))
        yield of_satellite


def _stays_up(model: Satrec, start_jd: float, days: float) -> bool:
    """Returns whether SGP4 can follow a satellite: past the end of an orbit it errs, or gives places far from Earth."""
    times = np.append(np.arange(0.0, days, 0.02), days)
    errors, places, _ = model.sgp4_array(np.full(len(times), start_jd), times)
    altitudes_km = np.linalg.norm(places, axis=1) - EARTH_RADIUS_KM
    return not errors.any() and bool(((altitudes_km > LOWEST_KM - 60) & (altitudes_km < HIGHEST_KM + 60)).all())


def ground_tracks(orbits: Orbits, seconds: Sequence[float]) -> np.ndarray:
    """Returns latitude and longitude in degrees, float64 [satellites, times, 2], at seconds since the start."""
    timescale = load.timescale(builtin=True)
    start = timescale.utc(orbits.start.year, orbits.start.month, orbits.start.day)
    times = timescale.tt_jd(start.tt + np.asarray(seconds, dtype=np.float64) / DAY_S)
    tracks = []
    for element in orbits.elements:
        below = wgs84.subpoint_of(EarthSatellite.from_satrec(satrec(element, orbits.start), timescale).at(times))
        tracks.append(np.stack([below.latitude.degrees, below.longitude.degrees], axis=-1))
    return np.stack(tracks)


def satrec(element: Circular | TwoLines, start: date) -> Satrec:
    """Returns a satellite as SGP4 knows it; where it is on a circular orbit is told of `start`."""
    if isinstance(element, TwoLines):
        return Satrec.twoline2rv(*element, WGS72)
    radians_per_minute = 60 * math.sqrt(EARTH_MU_KM3_S2 / (EARTH_RADIUS_KM + element.altitude_km) ** 3)
    model = Satrec()
    model.sgp4init(
        WGS72,
        "i",
        1,  # catalogue number
        float((start - SGP4_EPOCH).days),
        0.0,  # drag
        0.0,
        0.0,
        0.0,  # eccentricity
        0.0,  # argument of perigee
        math.radians(element.inclination_deg),
        math.radians(element.anomaly_deg),
        radians_per_minute,
        math.radians(element.node_deg),
    )
    return model


def _pairs(seconds: list[float], events: Any, period_s: float) -> list[list[float]]:
    """Returns (rise, set) pairs from the times of rises (0), culminations (1) and sets (2)."""
    pairs, rise = [], 0.0  # a set without a rise: the pass began before the start
    for second, event in zip(seconds, events, strict=True):
        if event == 0:
            rise = second
        elif event == 2:
            pairs.append([rise, second])
    if len(events) and events[-1] != 2:
        pairs.append([rise, period_s])
    return [pair for pair in pairs if pair[0] < pair[1]]
