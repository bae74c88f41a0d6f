"""Computes when satellites of one orbital plane see a ground station, for `windows:` of a link (conf/link/).

The satellites are evenly spaced on one circular orbit, with synthetic elements and no drag (SGP4); a contact lasts from
rise to set above the elevation mask. Nothing is downloaded. Needs the extra [orbit]: pip install -e '.[orbit]'.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

EARTH_RADIUS_KM, EARTH_MU_KM3_S2 = 6378.135, 398600.8  # WGS 72, as SGP4 uses them
SGP4_EPOCH_JD = 2433281.5  # 1949-12-31, from which SGP4 counts days
STATIONS = {  # degrees north, degrees east, metres
    "svalbard": (78.2298, 15.4078, 458.0),
    "berlin": (52.52, 13.405, 34.0),
    "singapore": (1.3521, 103.8198, 15.0),
}
DAY_S = 86400


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Examples:\n"
        "  python scripts/contact_windows.py --output svalbard.json\n"
        "  python scripts/contact_windows.py --station 52.52 13.405 34 --output berlin.json",
    )
    add = parser.add_argument
    add("--output", type=Path, required=True, help="the JSON file to write, for a link's windows=")
    add("--altitude-km", type=float, default=550.0, help="of the circular orbit (550)")
    add("--inclination-deg", type=float, default=97.6, help="of the orbit (97.6, sun-synchronous at 550 km)")
    add("--node-deg", type=float, default=0.0, help="right ascension of the ascending node (0)")
    add("--satellites", type=int, default=10, help="evenly spaced in the plane (10)")
    add("--days", type=float, default=14.0, help="length of the file, after which it repeats (14)")
    add("--start", default="2026-01-01", metavar="YYYY-MM-DD", help="00:00 UTC of this day is second 0 (2026-01-01)")
    add("--mask-deg", type=float, default=10.0, help="a contact is above this elevation (10)")
    add(
        "--station",
        nargs="+",
        default=["svalbard"],
        metavar="NAME | LATITUDE LONGITUDE METRES",
        help=f"{', '.join(STATIONS)}, or degrees north, degrees east and height (svalbard)",
    )
    options = parser.parse_args(arguments)
    try:
        named = [STATIONS[options.station[0].lower()]] if len(options.station) == 1 else []
        latitude, longitude, elevation = named[0] if named else map(float, options.station)
    except (KeyError, ValueError):
        parser.error(f"--station {' '.join(options.station)}: give {', '.join(STATIONS)}, or three numbers")
    options.station = {"latitude_deg": latitude, "longitude_deg": longitude, "elevation_m": elevation}
    for name, smallest, largest in (
        ("altitude_km", 160, 2000),
        ("inclination_deg", 0, 180),
        ("satellites", 1, 1000),
        ("days", 0.01, 366),
        ("mask_deg", 0, 89),
    ):
        value = getattr(options, name)
        if not smallest <= value <= largest:
            parser.error(f"--{name.replace('_', '-')} {value}: must be from {smallest} to {largest}")
    return options


def contact_windows(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the content of the file: parameters, period, and (start, end) of every contact of every satellite.

    Seconds since `start`, to 0.1 s; a contact under way at either end of the period is cut there.
    """
    from skyfield.api import load, wgs84

    timescale = load.timescale(builtin=True)
    start = timescale.utc(*map(int, options.start.split("-")))
    end = timescale.tt_jd(start.tt + options.days)
    place = options.station
    station = wgs84.latlon(place["latitude_deg"], place["longitude_deg"], place["elevation_m"])
    windows = []
    for number in range(options.satellites):
        satellite = _satellite(options, 360.0 * number / options.satellites, timescale, start)
        times, events = satellite.find_events(station, start, end, altitude_degrees=options.mask_deg)
        seconds = [round((time.tt - start.tt) * DAY_S, 1) for time in times]
        windows.append(_pairs(seconds, events, options.days * DAY_S))
    names = ("altitude_km", "inclination_deg", "node_deg", "satellites", "days", "start", "mask_deg", "station")
    return {
        "made_by": "scripts/contact_windows.py",
        "parameters": {name: getattr(options, name) for name in names},
        "period_s": options.days * DAY_S,
        "windows": windows,
    }


def _satellite(options: argparse.Namespace, anomaly_deg: float, timescale: Any, epoch: Any) -> Any:
    """Returns a satellite on a circular orbit, `anomaly_deg` after the ascending node at `epoch`."""
    from sgp4.api import WGS72, Satrec
    from skyfield.api import EarthSatellite

    semi_major_axis_km = EARTH_RADIUS_KM + options.altitude_km
    radians_per_minute = 60 * math.sqrt(EARTH_MU_KM3_S2 / semi_major_axis_km**3)
    elements = Satrec()
    elements.sgp4init(
        WGS72,
        "i",
        1,  # catalogue number
        epoch.utc_datetime().timestamp() / DAY_S + 2440587.5 - SGP4_EPOCH_JD,
        0.0,  # drag
        0.0,
        0.0,
        0.0,  # eccentricity
        0.0,  # argument of perigee
        math.radians(options.inclination_deg),
        math.radians(anomaly_deg),
        radians_per_minute,
        math.radians(options.node_deg),
    )
    return EarthSatellite.from_satrec(elements, timescale)


def _pairs(seconds: list[float], events: Any, period_s: float) -> list[list[float]]:
    """Returns (rise, set) pairs from the times of rises (0), culminations (1) and sets (2)."""
    pairs, rise = [], 0.0  # a set without a rise: the contact began before the start
    for second, event in zip(seconds, events, strict=True):
        if event == 0:
            rise = second
        elif event == 2:
            pairs.append([rise, second])
    if len(events) and events[-1] != 2:
        pairs.append([rise, period_s])
    return pairs


def main() -> None:
    """Writes the file and says what is in it."""
    options = parse()
    try:
        content = contact_windows(options)
    except ImportError as error:
        sys.exit(f"error: {error.name}: is not installed; install it with: pip install -e '.[orbit]'")
    except ValueError as error:
        sys.exit(f"error: --start {options.start}: {error}")
    windows = ",\n".join(f"  {json.dumps(each)}" for each in content.pop("windows"))
    head = json.dumps(content, indent=1).removesuffix("\n}")
    options.output.write_text(f'{head},\n "windows": [\n{windows}\n ]\n}}\n')
    each = [window for satellite in json.loads(f"[{windows}]") for window in satellite]
    minutes = sum(end - start for start, end in each) / 60
    a_day = len(each) / options.days / options.satellites
    print(f"{options.output}: {options.satellites} satellites, {options.days:g} days, then it repeats")
    print(f"{a_day:.1f} contacts a day for each satellite, of {minutes / max(1, len(each)):.1f} minutes")
    print("In a run, client k flies on satellite k modulo the number of satellites in the file.")


if __name__ == "__main__":
    main()
