"""Computes when satellites of one orbital plane see a ground station, for `windows:` of a link (conf/link/).

The satellites are evenly spaced on one circular orbit, with synthetic elements and no drag (SGP4); a contact lasts from
rise to set above the elevation mask. Nothing is downloaded. Needs the extra [orbit]: pip install -e '.[orbit]'.
"""

import argparse
import json
import sys
from datetime import date
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fl.communication.orbits import Circular, Orbits, Station
from fl.core.targets import first_problem

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
    try:
        _station(options)
    except ValidationError as error:
        parser.error(f"--station: {first_problem(error)}")
    return options


def contact_windows(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the content of the file: parameters, period, and (start, end) of every contact of every satellite.

    Seconds since `start`, to 0.1 s; a contact under way at either end of the period is cut there.
    """
    from fl.communication import sky

    shape, number = (options.altitude_km, options.inclination_deg, options.node_deg), options.satellites
    elements = tuple(Circular(*shape, 360.0 * each / number) for each in range(number))
    orbits = Orbits(elements, (_station(options),), date.fromisoformat(options.start), options.days)
    windows = [of_satellite for [of_satellite] in sky.passes(orbits)]
    names = ("altitude_km", "inclination_deg", "node_deg", "satellites", "days", "start", "mask_deg", "station")
    return {
        "made_by": "scripts/contact_windows.py",
        "parameters": {name: getattr(options, name) for name in names},
        "period_s": options.days * DAY_S,
        "windows": windows,
    }


def _station(options: argparse.Namespace) -> Station:
    return Station(name="station", mask_deg=options.mask_deg, **options.station)


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
