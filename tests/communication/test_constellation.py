"""Constellations are where Walker says, seen when another library says, and what cannot be is refused in one line."""

import json
import os
import subprocess
import sys
from datetime import date, datetime

import numpy as np
import pytest
from conftest import REPOSITORY
from hypothesis import given
from hypothesis import strategies as st

from fl.communication.constellation import File, Tle, Walker, ground, load_constellation
from fl.communication.link import WINDOWS
from fl.communication.orbits import Circular, Orbits, Station, TwoLines, clearance_km, horizon_deg, orbit_s, walker
from fl.communication.passes import Pass, passes_of
from fl.communication.plan import booked
from fl.core.errors import ConfigError
from fl.core.files import read_json, write_json
from fl.core.presets import choices, preset
from fl.core.targets import Target

pytest.importorskip("skyfield", reason="skyfield is not installed: pip install -e '.[orbit]'")
from sgp4.api import Satrec
from sgp4.exporter import export_tle
from sgp4.io import compute_checksum

from fl.communication import sky

ACQUISITION_S = 30.0
BERLIN = Station("berlin", 52.52, 13.405, 34.0, 10.0)
AWARUA = Station("awarua", -46.5129, 168.376, 0.0, 5.0)
ORBITS = (Circular(550.0, 97.6, 0.0, 36.0), Circular(700.0, 60.0, 40.0, 0.0), Circular(1200.0, 82.0, 200.0, 123.0))
NEW_YEAR = date(2026, 1, 1)


def constellation(name, **changes):
    target = Target.from_config("constellation", {**preset("constellation", name), **changes})
    target.check()
    return target.build()


def lines_of(*orbits):
    """Returns two-line elements of orbits on New Year's day, as (line 1, line 2), numbered from 1."""
    exported = [export_tle(sky.satrec(orbit, NEW_YEAR)) for orbit in orbits]
    return [[summed(f"{line[:2]}{n:05d}{line[7:]}") for line in pair] for n, pair in enumerate(exported, start=1)]


def summed(line):
    """Returns a line of elements with the checksum that it should have."""
    return line[:68] + str(compute_checksum(line))


@pytest.mark.parametrize(
    ("name", "satellites", "stations"),
    [("plane_10", 10, 1), ("walker", 10, 1), ("walker_12_3_1", 12, 1), ("walker_40_4_1", 40, 3)],
)
def test_presets_are_what_their_names_say(name, satellites, stations):
    found = load_constellation(name)
    assert found.satellites == satellites
    if isinstance(found, Walker):
        assert len(found.stations) == stations
        assert (found.altitude_km, found.inclination_deg) == (550.0, 97.6)
    if name.startswith("walker_"):
        assert name == f"walker_{found.total}_{found.planes}_{found.phasing}"


def test_every_kind_is_a_choice():
    kinds = {preset("constellation", name)["_target_"].rpartition(".")[2] for name in choices("constellation")}
    assert kinds == {"Walker", "Tle", "File"}


def test_the_plane_of_ten_has_the_windows_of_the_links_and_loses_none(tmp_path):
    plan = load_constellation("plane_10").plan(tmp_path, ACQUISITION_S)
    shipped = read_json(WINDOWS / "svalbard_550km.json")
    assert [list(map(list, windows)) for windows in plan.contacts.windows] == shipped["windows"]
    assert plan.contacts.period_s == shipped["period_s"]
    assert plan.lost_share == 0
    assert {plan.station(k, 0) for k in range(10)} == {"svalbard"}
    assert not list(tmp_path.iterdir())


def test_the_same_plane_computed_is_the_one_in_the_file(tmp_path):
    """Two days of fourteen; a pass under way at the end is cut there."""
    computed = constellation("walker", days=2.0).plan(tmp_path, ACQUISITION_S)
    for found, shipped in zip(
        computed.contacts.windows, read_json(WINDOWS / "svalbard_550km.json")["windows"], strict=True
    ):
        expected = [(start, min(end, 172_800.0)) for start, end in shipped if start < 172_800]
        assert np.array(found) == pytest.approx(np.array(expected), abs=1.0)


SHAPES = st.integers(1, 12).flatmap(
    lambda planes: st.tuples(
        st.integers(1, 12).map(lambda each: each * planes), st.just(planes), st.integers(0, planes - 1)
    )
)


@given(SHAPES, st.sampled_from([180.0, 360.0]))
def test_walkers_satellites_are_even(shape, span_deg):
    """Nodes are even over the span, satellites even in a plane, and each plane is ahead of the last by the phasing."""
    total, planes, phasing = shape
    places = np.array(list(walker(*shape, span_deg))).reshape(planes, total // planes, 2)
    nodes, angles = places[..., 0], places[..., 1]
    assert np.ptp(nodes, axis=1).max() == 0
    assert np.diff(nodes[:, 0]) == pytest.approx(span_deg / planes)
    assert (angles >= 0).all()
    assert (angles < 360).all()

    def apart(later, earlier):
        return np.exp(1j * np.radians(later - earlier))

    assert apart(np.roll(angles, -1, axis=1), angles) == pytest.approx(apart(360 * planes / total, 0))
    assert apart(angles[1:], angles[:-1]) == pytest.approx(apart(360 * phasing / total, 0))


def test_satellites_fly_where_walker_puts_them():
    """Of 12/3/1 at the start, by their positions in space: 90 degrees apart in a plane, planes 120 degrees apart."""
    orbits = constellation("walker_12_3_1").orbits
    states = [sky.satrec(each, orbits.start).sgp4(*_julian(orbits.start)) for each in orbits.elements]
    assert all(error == 0 for error, *_ in states)
    places, speeds = (np.array([state[n] for state in states]) for n in (1, 2))
    assert np.linalg.norm(places, axis=1) == pytest.approx(6378.135 + 550, abs=15)

    def angle(a, b):
        return np.degrees(np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))

    assert [angle(places[0], places[k]) for k in (1, 2, 3)] == pytest.approx([90, 180, 90], abs=0.5)
    across = np.cross(places, speeds)
    nodes = np.degrees(np.arctan2(across[:, 0], -across[:, 1])) % 360
    assert nodes[[0, 4, 8]] == pytest.approx([0, 120, 240], abs=0.5)
    ahead = angle(places[4], [np.cos(np.radians(120)), np.sin(np.radians(120)), 0])
    assert ahead == pytest.approx(30, abs=0.5)


def _julian(day):
    return 2433281.5 + (day - date(1949, 12, 31)).days, 0.0


@pytest.mark.parametrize("orbit", ORBITS, ids=lambda orbit: f"{orbit.altitude_km:g} km")
def test_satellites_rise_and_set_when_pyorbital_says(orbit):
    """Within a second, over two stations and three days; pyorbital knows no pass that is cut at the end."""
    orbital = pytest.importorskip("pyorbital.orbital", reason="pyorbital is not installed: pip install -e '.[dev]'")
    [(line1, line2)] = lines_of(orbit)
    other, midnight = orbital.Orbital("x", line1=line1, line2=line2), datetime(2026, 1, 1)
    [found] = sky.passes(Orbits((orbit,), (BERLIN, AWARUA), NEW_YEAR, 3.0))
    for station, ours in zip((BERLIN, AWARUA), found, strict=True):
        place = (station.longitude_deg, station.latitude_deg, station.elevation_m / 1000)
        theirs = other.get_next_passes(midnight, 72, *place, horizon=station.mask_deg)
        expected = [[(time - midnight).total_seconds() for time in times[:2]] for times in theirs]
        assert len(expected) > 8
        whole = [pair for pair in ours if pair[0] > 0 and pair[1] < 3 * 86400]
        assert np.array(whole) == pytest.approx(np.array(expected), abs=1.0)


def test_ground_tracks_are_where_pyorbital_says():
    orbital = pytest.importorskip("pyorbital.orbital", reason="pyorbital is not installed: pip install -e '.[dev]'")
    [(line1, line2)] = lines_of(ORBITS[0])
    times = np.array([0.0, 600.0, 3000.0, 200_000.0])
    [track] = sky.ground_tracks(Orbits(ORBITS[:1], (BERLIN,), NEW_YEAR, 3.0), times)
    moments = np.datetime64("2026-01-01") + (times * 1000).astype("timedelta64[ms]")
    longitudes, latitudes, _ = orbital.Orbital("x", line1=line1, line2=line2).get_lonlatalt(moments)
    assert track[:, 0] == pytest.approx(latitudes, abs=0.05)
    assert track[:, 1] == pytest.approx(longitudes, abs=0.05)


def test_a_satellite_rises_and_sets_on_the_circle_of_its_station():
    found = load_constellation("plane_10")
    seconds = np.ravel(found.content.contacts.windows[3])
    [station] = found.orbits.stations
    north, east = np.radians(found.ground_tracks(seconds)[3]).T
    here, there = np.radians([station.latitude_deg, station.longitude_deg])
    away = np.arccos(np.sin(north) * np.sin(here) + np.cos(north) * np.cos(here) * np.cos(east - there))
    assert np.degrees(away) == pytest.approx(np.full(len(seconds), horizon_deg(550.0, 10.0)), abs=0.25)


@pytest.mark.parametrize("name", ["plane_10", "walker_12_3_1"])
def test_what_a_picture_shows_of_a_constellation_is_one_orbit_of_each(name):
    found = load_constellation(name)
    shown = ground(found)
    assert shown["seconds"][-1] == pytest.approx(orbit_s(550.0), abs=0.1)
    assert np.array_equal(shown["tracks"], found.ground_tracks(shown["seconds"]).round(2))
    assert shown["planes"] == ([0] * 10 if name == "plane_10" else [number // 4 for number in range(12)])
    assert [each["name"] for each in shown["stations"]] == ["svalbard"]
    there_again = shown["tracks"][:, -1] - shown["tracks"][:, 0]
    assert np.abs(there_again[:, 0]).max() < 0.5, "one orbit later each is as far north"


def test_elements_have_one_altitude_in_a_picture(tle_file):
    shown = ground(Tle(str(tle_file(*ORBITS)), NEW_YEAR, 1.0, (BERLIN,)))
    assert set(shown["planes"]) == {0}
    assert shown["stations"][0]["horizon_deg"] == pytest.approx(horizon_deg(1200.0, 10.0), abs=0.2)


@pytest.mark.parametrize(("name", "lost"), [("walker_12_3_1", 0.26), ("walker_40_4_1", 0.44)])
def test_one_antenna_a_station_loses_contact_time(name, lost, tmp_path):
    """Three days of thirty."""
    plan = constellation(name, days=3.0).plan(tmp_path, ACQUISITION_S)
    assert plan.lost_share == pytest.approx(lost, abs=0.01)


def test_a_second_antenna_loses_less(tmp_path):
    one = constellation("walker_12_3_1", days=2.0)
    stations = [{**preset("constellation", "walker_12_3_1")["stations"][0], "antennas": 2}]
    two = constellation("walker_12_3_1", days=2.0, stations=stations)
    losses = [each.plan(tmp_path, ACQUISITION_S).lost_share for each in (one, two)]
    assert losses[1] < losses[0] / 4
    assert len(list((tmp_path / "passes").iterdir())) == 1  # antennas do not change when a satellite is in view


@pytest.mark.exhaustive
@pytest.mark.parametrize(("name", "lost"), [("walker_12_3_1", 0.257), ("walker_40_4_1", 0.442)])
def test_what_whole_plans_lose(name, lost, tmp_path):
    plan = load_constellation(name).plan(tmp_path, ACQUISITION_S)
    assert plan.lost_share == pytest.approx(lost, abs=0.001)


SMALL = Orbits((ORBITS[0], ORBITS[1]), (BERLIN, AWARUA), NEW_YEAR, 0.5)


def entry(cache):
    [path] = (cache / "passes").iterdir()
    return path


def test_passes_are_read_from_the_cache(tmp_path):
    first = passes_of(SMALL, tmp_path)
    assert passes_of(SMALL, tmp_path) == first
    with np.load(entry(tmp_path)) as stored:
        table = stored["passes"]
    np.savez(entry(tmp_path), passes=table[1:])
    assert passes_of(SMALL, tmp_path) == first[1:]


def _flip(content):
    middle = len(content) // 3
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [lambda c: c[:-40], _flip, lambda c: b"", lambda c: b"no zip"], ids=range(4))
def test_a_damaged_cache_entry_is_computed_again(damage, tmp_path, capsys):
    first = passes_of(SMALL, tmp_path)
    path, whole = entry(tmp_path), entry(tmp_path).read_bytes()
    path.write_bytes(damage(whole))
    assert passes_of(SMALL, tmp_path) == first
    assert f"note: {path}: is damaged" in capsys.readouterr().out
    assert entry(tmp_path).read_bytes() == whole
    assert passes_of(SMALL, tmp_path) == first
    assert "damaged" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "table",
    [np.zeros((2, 3)), np.zeros(4), np.array([[0, 2, 0, 9.0]]), np.array([[0, 0, 0, 5e4]]), np.full((1, 4), np.nan)],
)
def test_a_table_of_something_else_is_computed_again(table, tmp_path):
    first = passes_of(SMALL, tmp_path)
    np.savez(entry(tmp_path), passes=table)
    assert passes_of(SMALL, tmp_path) == first


@pytest.mark.parametrize(
    "other",
    [
        SMALL._replace(elements=(ORBITS[1], ORBITS[0])),
        SMALL._replace(stations=(BERLIN,)),
        SMALL._replace(stations=(BERLIN, Station("awarua", -46.5129, 168.376, 0.0, 6.0))),
        SMALL._replace(start=date(2026, 1, 2)),
        SMALL._replace(days=0.4),
    ],
    ids=["elements", "stations", "mask", "start", "days"],
)
def test_other_settings_have_another_cache_entry(other, tmp_path):
    first = passes_of(SMALL, tmp_path)
    assert passes_of(other, tmp_path) != first
    assert len(list((tmp_path / "passes").iterdir())) == 2


def test_another_version_of_a_library_has_another_cache_entry(tmp_path, monkeypatch):
    passes_of(SMALL, tmp_path)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "9.9")
    passes_of(SMALL, tmp_path)
    assert len(list((tmp_path / "passes").iterdir())) == 2


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert passes_of(SMALL, tmp_path / "file") == passes_of(SMALL, tmp_path / "other")
    assert "cannot be written" in capsys.readouterr().out


def test_without_skyfield_a_file_works_and_the_rest_says_what_to_install(tmp_path):
    script = tmp_path / "without.py"
    script.write_text(
        "import sys\n"
        "sys.modules['skyfield'] = sys.modules['skyfield.api'] = None\n"
        "from pathlib import Path\n"
        "from fl.communication.constellation import load_constellation\n"
        "from fl.core.errors import one_line_errors\n"
        "print(load_constellation('plane_10').plan(Path('cache'), 30.0).satellites)\n"
        "with one_line_errors():\n"
        "    load_constellation('walker_12_3_1').plan(Path('cache'), 30.0)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.stdout == "10\n"
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert "need skyfield" in line
    assert "'.[orbit]'" in line


@pytest.fixture
def tle_file(tmp_path):
    """Writes elements, three lines for the first satellite and two for the others; returns the path."""

    def write(*orbits, change=lambda text: text):
        rows = [line for pair in lines_of(*orbits) for line in pair]
        (tmp_path / "sats.tle").write_text(change("\n".join(["FIRST", *rows]) + "\n"))
        return tmp_path / "sats.tle"

    return write


def test_two_line_elements_give_the_passes_of_the_orbits_they_are_of(tle_file, tmp_path):
    stations = (BERLIN, AWARUA)
    found = Tle(str(tle_file(*ORBITS[:2])), None, 1.0, stations)
    assert found.satellites == 2
    assert found.orbits.start == NEW_YEAR
    expected = passes_of(Orbits(ORBITS[:2], stations, NEW_YEAR, 1.0), tmp_path)
    assert np.array(passes_of(found.orbits, tmp_path)) == pytest.approx(np.array(expected), abs=0.5)
    assert found.plan(tmp_path, ACQUISITION_S).satellites == 2
    assert found.ground_tracks(np.array([0.0, 60.0])).shape == (2, 2, 2)
    with pytest.raises(ConfigError, match="do not say which satellites share a plane"):
        found.rings()


def test_minus_counts_in_a_checksum(tle_file):
    """As in the drag of real elements: a minus is 1."""
    path = tle_file(ORBITS[0], change=lambda text: "\n".join(map(_with_drag, text.splitlines())))
    assert Tle(str(path), None, 1.0, (BERLIN,)).elements[0].line1[53:61] == "-11606-4"


def _with_drag(line):
    return summed(f"{line[:53]}-11606-4{line[61:]}") if line.startswith("1 ") else line


def test_elements_of_the_last_century_are_of_the_last_century():
    lines = TwoLines("1 00005U 58002B   57001.50000000  .00000000  00000-0  00000-0 0    00", "")
    assert lines.epoch == date(1957, 1, 1)


def test_a_stars_planes_are_around_half_of_the_equator():
    nodes = [each.node_deg for each in constellation("walker_12_3_1", pattern="star", node_deg=10.0).orbits.elements]
    assert nodes[::4] == [10.0, 70.0, 130.0]


def test_passes_under_way_at_an_end_are_cut_there():
    """The first pass of an orbit, seen from its middle on, and until its middle."""
    whole = sky.passes(Orbits(ORBITS[:1], (BERLIN,), NEW_YEAR, 1.0))
    rise, end = next(whole)[0][0]
    until = Orbits(ORBITS[:1], (BERLIN,), NEW_YEAR, (rise + end) / 2 / 86400)
    assert np.array(next(sky.passes(until))[0]) == pytest.approx(np.array([[rise, (rise + end) / 2]]), abs=1.0)
    overhead = constellation("walker", total=1, days=0.1).ground_tracks([0.0])[0, 0]
    below = Station("below", *overhead.tolist(), 0.0, 10.0)
    [pair] = next(sky.passes(Orbits((Circular(550.0, 97.6, 0.0, 0.0),), (below,), NEW_YEAR, 0.05)))[0]
    assert pair[0] == 0.0
    assert 150 < pair[1] < 300


def test_a_high_station_sees_longer():
    """Chimborazo's height: the horizon's dip moves rises by seconds, as pyorbital says too."""
    stations = (BERLIN, Station("tower", 52.52, 13.405, 8000.0, 10.0))
    low, high = next(sky.passes(Orbits(ORBITS[:1], stations, NEW_YEAR, 1.0)))
    assert [end - rise for rise, end in low] > [end - rise for rise, end in high]


def test_a_satellite_that_falls_down_is_named(tle_file, tmp_path):
    """Real elements fall: with that much drag SGP4 gives up within days."""

    def heavy(text):
        lines = text.splitlines()
        return "\n".join([lines[0], summed(f"{lines[1][:53]} 99999+0{lines[1][61:]}"), *lines[2:]])

    falling = Tle(str(tle_file(Circular(250.0, 60.0, 0.0, 0.0), change=heavy)), None, 30.0, (BERLIN,))
    with pytest.raises(ConfigError, match=r"constellation: satellite 0 does not stay in orbit for 30 days; give newer"):
        falling.plan(tmp_path, ACQUISITION_S)


def test_a_plane_is_a_ring_where_neighbours_see_each_other():
    assert load_constellation("walker_40_4_1").rings() == [range(0, 10), range(10, 20), range(20, 30), range(30, 40)]
    assert load_constellation("plane_10").rings() == [range(10)]


@pytest.mark.parametrize(
    ("altitude_km", "satellites", "sees"),
    [(550, 9, True), (550, 8, False), (2000, 6, True), (2000, 4, False), (550, 1, False)],
)
def test_who_sees_its_neighbours(altitude_km, satellites, sees):
    """By positions: what is half-way between two satellites, and how far from the middle of the Earth that is."""
    angle = np.radians(360 / satellites)
    half_way = (
        np.linalg.norm(np.array([1, 0]) + np.array([np.cos(angle), np.sin(angle)])) / 2 * (6378.135 + altitude_km)
    )
    if satellites > 1:
        assert clearance_km(altitude_km, satellites) == pytest.approx(half_way - 6378.135)
    plane = constellation("walker", total=satellites, altitude_km=float(altitude_km))
    if sees:
        assert plane.rings() == [range(satellites)]
    else:
        with pytest.raises(ConfigError, match="do not see their neighbours") as told:
            plane.rings()
        assert "\n" not in str(told.value)


def test_the_air_is_not_clear():
    """Nine at 430 km: the line between them is 19 km up, in the air."""
    assert 0 < clearance_km(430.0, 9) < 80
    with pytest.raises(ConfigError, match=r"is 19 km above ground, not 80"):
        constellation("walker", total=9, altitude_km=430.0).rings()


def test_a_plan_file_remembers_its_orbits(tmp_path):
    made = constellation("walker", total=9, days=0.5, pattern="star")
    write_json(tmp_path / "plan.json", made.plan(tmp_path, 0.0).to_json())
    again = File(str(tmp_path / "plan.json"), "unused", None)
    assert again.plan(tmp_path, 0.0) == made.plan(tmp_path, 0.0)
    assert again.rings() == made.rings()
    assert (again.ground_tracks([5.0]) == made.ground_tracks([5.0])).all()


def test_the_file_of_the_script_remembers_its_orbits():
    shipped, same = load_constellation("plane_10"), constellation("walker")
    assert (shipped.ground_tracks([0.0, 99.0]) == same.ground_tracks([0.0, 99.0])).all()


@pytest.mark.parametrize("parameters", [None, {}, [], {"satellites": 1}, {"total": 3}])
def test_a_file_that_does_not_say_its_orbits_says_so(parameters, tmp_path):
    write_json(tmp_path / "w.json", {"period_s": 100, "windows": [[[1, 90]]], "parameters": parameters})
    found = File(str(tmp_path / "w.json"), "pole", None)
    assert found.plan(tmp_path, ACQUISITION_S).contacts.windows == (((1, 90),),)
    with pytest.raises(ConfigError, match="does not say on which orbits"):
        found.rings()


POLE = {"name": "pole", "latitude_deg": 80.0, "longitude_deg": 0.0, "elevation_m": 0.0, "mask_deg": 10.0}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"altitude_km": -5.0}, ["constellation.altitude_km=-5.0", "greater than or equal to 160"]),
        ({"altitude_km": 100.0}, ["constellation.altitude_km=100.0", "160"]),
        ({"planes": 5}, ["constellation.planes=5", "total=12"]),
        ({"phasing": 3}, ["constellation.phasing=3", "from 0 to planes - 1, 2"]),
        ({"phasing": -1}, ["constellation.phasing=-1"]),
        ({"pattern": "rosette"}, ["constellation.pattern=rosette", "'delta' or 'star'"]),
        ({"days": 0}, ["constellation.days=0", "0.01"]),
        ({"days": 400.0}, ["constellation.days=400.0", "366"]),
        ({"start": "soon"}, ["constellation.start=soon"]),
        ({"start": "1900-01-01"}, ["constellation.start=1900-01-01"]),
        ({"stations": []}, ["constellation.stations=[]"]),
        ({"stations": [{**POLE, "mask_deg": 95.0}]}, ["constellation.stations.0.mask_deg=95.0", "89"]),
        ({"stations": [{**POLE, "antennas": 0}]}, ["constellation.stations.0.antennas=0", "1"]),
        ({"stations": [{**POLE, "latitude_deg": 91.0}]}, ["constellation.stations.0.latitude_deg=91.0"]),
        ({"stations": [POLE, POLE]}, ["constellation.stations", "two have the name pole"]),
        ({"total": 1001, "planes": 1}, ["constellation.total=1001"]),
        ({"altitude": 500.0}, ["constellation.altitude", "did you mean altitude_km"]),
    ],
)
def test_a_walker_constellation_that_cannot_be_is_refused_in_one_line(changes, words):
    with pytest.raises(ConfigError) as told:
        constellation("walker_12_3_1", **changes)
    for word in words:
        assert word in str(told.value)
    assert "\n" not in str(told.value)


def test_satellites_or_stations_that_never_meet_are_named_before_training(tmp_path):
    equator = constellation("walker_12_3_1", days=0.5, inclination_deg=0.0)
    with pytest.raises(ConfigError, match="constellation: station svalbard has no contact in 43200 s"):
        equator.plan(tmp_path, ACQUISITION_S)
    short = constellation("walker_12_3_1", days=0.05)
    with pytest.raises(ConfigError, match=r"constellation: satellite \d+ is in no contact in 4320 s"):
        short.plan(tmp_path, ACQUISITION_S)


def again(old, new):
    return lambda text: text.replace(old, new, 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (again("97.6000", "97.7000"), "satellite 00001: line 2 has checksum 9, and adds up to 0"),
        (again("15.05491974    09", "15.05491974    0"), "no line of 69 characters that begins with 2"),
        (lambda text: text.splitlines()[1], "no line of 69 characters"),
        (lambda text: "", "holds no satellite"),
        (lambda text: text + text, "satellite 00001 comes twice"),
        (lambda text: "FIRST\nSECOND\n" + text, "no line of 69 characters"),
        (lambda text: text.replace("2 00001", "2 00010"), "line 2 is of satellite 00010"),
    ],
)
def test_elements_that_cannot_be_are_refused_in_one_line(change, words, tle_file):
    path = tle_file(ORBITS[0], change=change)
    with pytest.raises(ConfigError) as told:
        Tle(str(path), None, 1.0, (BERLIN,))
    assert words in str(told.value)
    assert str(told.value).startswith(f"constellation.path={path}: ")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("altitude_km", [100.0, 2500.0])
def test_elements_of_no_low_orbit_are_refused(altitude_km, tle_file):
    with pytest.raises(ConfigError, match=rf"satellite 00001: flies from {altitude_km:.0f} to {altitude_km:.0f} km"):
        Tle(str(tle_file(Circular(altitude_km, 60.0, 0.0, 0.0))), None, 1.0, (BERLIN,))


def test_perigee_and_apogee_follow_from_the_elements():
    """The ISS's, of 2008; SGP4 takes the mean motion a little differently."""
    lines = TwoLines(
        "1 25544U 98067A   08264.51782528 -.00002182  00000-0 -11606-4 0  2927",
        "2 25544  51.6416 247.4627 0006703 130.5360 325.0288 15.72125391563537",
    )
    model = Satrec.twoline2rv(*lines)
    assert lines.altitudes_km == pytest.approx((model.altp * 6378.135, model.alta * 6378.135), abs=5)
    assert lines.epoch == date(2008, 9, 20)


def test_elements_far_from_the_start_are_refused(tle_file):
    path = str(tle_file(ORBITS[0]))
    assert Tle(path, date(2026, 1, 31), 1.0, (BERLIN,)).satellites == 1
    with pytest.raises(ConfigError, match=r"constellation.start=2026-02-01: .* has elements of 2026-01-01"):
        Tle(path, date(2026, 2, 1), 1.0, (BERLIN,))


def test_files_that_are_not_there_or_no_files_are_named(tmp_path):
    for name, words in (("tle", "cannot be read"), ("file", "cannot be read")):
        with pytest.raises(ConfigError, match=words) as told:
            constellation(name, path=str(tmp_path / "missing"))
        assert str(told.value).startswith(f"constellation.path={tmp_path / 'missing'}: ")
        with pytest.raises(ConfigError, match=r"constellation\.path=None"):
            constellation(name)


def test_a_constellation_is_chosen_by_name_or_by_a_file(tmp_path):
    (tmp_path / "mine.yaml").write_text(json.dumps({**preset("constellation", "walker"), "total": 3}))
    assert load_constellation(str(tmp_path / "mine.yaml")).satellites == 3
    with pytest.raises(
        ConfigError,
        match=r"--constellation plane_11: there is no such constellation; did you mean plane_10\? valid choic",
    ):
        load_constellation("plane_11")
    (tmp_path / "evil.yaml").write_text("_target_: subprocess.Popen\nargs: [ls]\n")
    with pytest.raises(ConfigError, match="only the classes in conf/constellation"):
        load_constellation(str(tmp_path / "evil.yaml"))


def test_the_documents_examples_are_computed():
    """docs/measured-and-modelled.md, the section on constellations: every row with a value."""
    document = (REPOSITORY / "docs" / "measured-and-modelled.md").read_text()
    section = document.split("## Constellations")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:3] == "| `"]
    rows = [row for row in rows if len(row) == 3]
    values = {name.strip("`"): float(value.replace("−", "-")) for name, _, value in rows}
    places = list(walker(12, 3, 1, 360.0))
    crowd = [Pass(0.0, 0, 0, 300.0), Pass(100.0, 1, 0, 500.0), Pass(200.0, 2, 0, 580.0)]
    contact_s = sum(each.set_s - each.rise_s for each in booked(crowd, [1], ACQUISITION_S))
    found = {
        "lost share": 1 - contact_s / sum(each.set_s - each.rise_s for each in crowd),
        "node of satellite 6": places[6][0],
        "angle of satellite 6": places[6][1],
        "orbit at 550 km": orbit_s(550.0),
        "horizon at 550 km": horizon_deg(550.0, 10.0),
        "clearance of walker_40_4_1": clearance_km(550.0, 10),
        "clearance of walker_12_3_1": clearance_km(550.0, 4),
    }
    assert values == pytest.approx(found, abs=0.005)
