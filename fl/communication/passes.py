"""Passes: when satellites are above the masks of stations; computed once, then read from the cache."""

import importlib
import importlib.metadata
import io
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fl.communication.orbits import Orbits
from fl.core.console import progress, say
from fl.core.errors import ConfigError, counted
from fl.core.files import read_regular, sha256, write_npz
from fl.core.units import DAY_S

FORMAT = 1
"""Part of every cache key: raise it when passes are computed or stored in another way."""

MANY = 2000
"""Days of satellites over stations that take a while."""


class Pass(NamedTuple):
    """A satellite above the mask of a station; in the order in which they are booked."""

    rise_s: float
    satellite: int
    station: int
    set_s: float


def passes_of(orbits: Orbits, cache_dir: Path) -> list[Pass]:
    """Returns all passes in order, from the cache where they are there.

    An entry's name is a hash of all that decides its content, versions of libraries among it; it appears whole or not
    at all. A damaged one is computed again, and a line says so. Where the cache cannot be written they are not kept.

    Args:
        orbits: of what, over what, for how long.
        cache_dir: where decoded images are too.

    Raises:
        ConfigError: skyfield is missing, or a satellite falls down before the end.
    """
    computing = sky()
    path = cache_dir.expanduser().absolute() / "passes" / f"{_key(orbits)}.npz"
    try:
        return _read(read_regular(path), orbits)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        say(f"note: {path}: is damaged ({error}); computing passes again")
    if len(orbits.elements) * len(orbits.stations) * orbits.days >= MANY:
        over = counted(len(orbits.stations), "station")
        say(f"Computing passes of {counted(len(orbits.elements), 'satellite')} over {over} for {orbits.days:g} days...")
    found = []
    try:
        with progress("computing passes", len(orbits.elements)) as advance:
            for satellite, of_satellite in enumerate(computing.passes(orbits)):
                for station, pairs in enumerate(of_satellite):
                    found += [Pass(rise, satellite, station, end) for rise, end in pairs]
                advance(1)
    except ValueError as error:
        raise ConfigError(f"constellation: {error}; give newer elements, or fewer days") from error
    found.sort()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_npz(path, {"passes": np.array(found, dtype=np.float64).reshape(-1, len(Pass._fields))})
    except OSError as error:
        say(f"note: {path.parent}: cannot be written ({error.strerror or error}); passes are not kept")
    return found


def sky() -> Any:
    """Returns `fl.communication.sky`.

    Raises:
        ConfigError: skyfield, which it is made of, is missing.
    """
    try:
        return importlib.import_module("fl.communication.sky")
    except ImportError as error:
        raise ConfigError(
            f"constellation: orbits need skyfield ({error}); install it with: "
            "pip install -c constraints.txt -e '.[orbit]'"
        ) from error


def _key(orbits: Orbits) -> str:
    places = [(each.latitude_deg, each.longitude_deg, each.elevation_m, each.mask_deg) for each in orbits.stations]
    versions = [importlib.metadata.version(name) for name in ("skyfield", "sgp4")]
    decides = [FORMAT, versions, orbits.elements, places, orbits.start.isoformat(), orbits.days]
    return sha256(json.dumps(decides).encode())[:32]


def _read(content: bytes, orbits: Orbits) -> list[Pass]:
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        table = stored["passes"]
    limits = [orbits.days * DAY_S, len(orbits.elements) - 1, len(orbits.stations) - 1, orbits.days * DAY_S]
    if table.dtype != np.float64 or table.ndim != 2 or table.shape[1] != len(limits):
        raise ValueError("is no table of passes")
    if not ((table >= 0) & (table <= limits)).all():
        raise ValueError("has passes of other satellites, stations or days")
    return [Pass(rise, int(satellite), int(station), end) for rise, satellite, station, end in table.tolist()]
