"""Antennas are booked by rule, and a plan is what was booked: every case here can be checked on paper."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl.communication.constellation import File
from fl.communication.contacts import transfer
from fl.communication.passes import Pass
from fl.communication.plan import Antennas, Plan, booked, planned
from fl.core.errors import ConfigError
from fl.core.files import read_json, write_json

ACQUISITION_S = 30.0
ONE = (Antennas("pole", 1),)


def passes(*rows):
    """Returns passes, each given as (satellite, station, rise, set)."""
    return [Pass(float(rise), satellite, station, float(end)) for satellite, station, rise, end in rows]


CASES = {
    "alone, a pass is a contact, however short": ((1,), [(0, 0, 10, 20)], [(0, 0, 10, 20)]),
    "the second begins when the first has set": (
        (1,), [(0, 0, 0, 300), (1, 0, 100, 500)], [(0, 0, 0, 300), (1, 0, 300, 500)],
    ),
    "a minute and acquisition are enough": (
        (1,), [(0, 0, 0, 300), (1, 0, 100, 390)], [(0, 0, 0, 300), (1, 0, 300, 390)],
    ),
    "less is lost": ((1,), [(0, 0, 0, 300), (1, 0, 100, 389)], [(0, 0, 0, 300)]),
    "what is lost holds no antenna": (
        (1,), [(0, 0, 0, 300), (1, 0, 100, 389), (2, 0, 310, 380)], [(0, 0, 0, 300), (2, 0, 310, 380)],
    ),
    "who rises as another sets loses nothing": (
        (1,), [(0, 0, 0, 300), (1, 0, 300, 340)], [(0, 0, 0, 300), (1, 0, 300, 340)],
    ),
    "two antennas serve two, the third waits for the first that is free": (
        (2,),
        [(0, 0, 0, 300), (1, 0, 50, 250), (2, 0, 100, 500)],
        [(0, 0, 0, 300), (1, 0, 50, 250), (2, 0, 250, 500)],
    ),
    "each station has its own antennas": (
        (1, 1), [(0, 0, 0, 300), (1, 1, 100, 500)], [(0, 0, 0, 300), (1, 1, 100, 500)],
    ),
    "of equal rise the lower number is first": (
        (1,), [(1, 0, 0, 300), (0, 0, 0, 200)], [(0, 0, 0, 200), (1, 0, 200, 300)],
    ),
    "a satellite takes the station where it rises first, then the other": (
        (1, 1), [(0, 1, 0, 300), (0, 0, 100, 500)], [(0, 1, 0, 300), (0, 0, 300, 500)],
    ),
    "and leaves the other out if too little is left": ((1, 1), [(0, 1, 0, 300), (0, 0, 100, 380)], [(0, 1, 0, 300)]),
    "rising over both it takes the first": (
        (1, 1), [(0, 1, 0, 300), (0, 0, 0, 200)], [(0, 0, 0, 200), (0, 1, 200, 300)],
    ),
    "an antenna that is booked ahead is kept": (
        (1, 1),
        [(0, 0, 0, 300), (0, 1, 50, 500), (1, 1, 60, 290)],
        [(0, 0, 0, 300), (0, 1, 300, 500)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_passes_are_booked_by_rule(case):
    antennas, given_passes, expected = CASES[case]
    assert booked(passes(*given_passes), antennas, ACQUISITION_S) == passes(*expected)
    assert booked(passes(*given_passes)[::-1], antennas, ACQUISITION_S) == passes(*expected)


@st.composite
def skies(draw):
    """Passes of three satellites over two stations, those of a satellite over a station one after another."""
    rows = []
    for satellite in range(3):
        for station in range(2):
            edges = sorted(draw(st.sets(st.integers(0, 1000), min_size=2, max_size=6)))
            rows += [(satellite, station, *pair) for pair in zip(edges[::2], edges[1::2], strict=False)]
    return passes(*rows)


@given(skies(), st.integers(1, 3), st.sampled_from([0.0, 30.0, 200.0]))
def test_nobody_is_in_two_places_and_no_antenna_serves_two(sky, antennas, acquisition_s):
    contacts = booked(sky, (antennas, 1), acquisition_s)
    for each in contacts:
        (whole,) = [p for p in sky if p[1:] == each[1:] and p.rise_s <= each.rise_s]
        assert each.rise_s == whole.rise_s or each.set_s - each.rise_s >= acquisition_s + 60
        at_once = [other for other in contacts if other.rise_s <= each.rise_s < other.set_s]
        assert sum(other.satellite == each.satellite for other in at_once) == 1
        assert sum(other.station == each.station for other in at_once) <= (antennas, 1)[each.station]
    assert booked(contacts, (antennas, 1), acquisition_s) == sorted(
        contacts
    )  # a plan that is read again is the same plan
    served = {each[1:] for each in contacts}
    for lost in (each for each in sky if each[1:] not in served):
        assert any(o.rise_s < lost.set_s and lost.rise_s < o.set_s for o in contacts)


THREE = passes((0, 0, 0, 300), (1, 0, 100, 500), (0, 1, 600, 900), (1, 1, 650, 1000))
STATIONS = (Antennas("pole", 1), Antennas("harbour", 2))


@pytest.fixture
def plan():
    return planned(THREE, 2, STATIONS, 1000.0, ACQUISITION_S)


def test_a_plan_says_who_is_where_through_its_repetitions(plan):
    assert plan.satellites == 2
    assert plan.contacts.windows == (((0.0, 300.0), (600.0, 900.0)), ((300.0, 500.0), (650.0, 1000.0)))
    assert [plan.station(1, contact) for contact in range(4)] == ["pole", "harbour", "pole", "harbour"]
    contacts = plan.contacts.after(1, 1200.0)
    assert [next(contacts) for _ in range(2)] == [(2, 1300.0, 1500.0), (3, 1650.0, 2000.0)]
    assert plan.lost_share == pytest.approx(200 / 1350)


def test_a_transfer_goes_through_a_plan_as_through_windows(plan):
    """100 s of data for satellite 1, ready at 250: from 330 on, in 170 s of contact it is done."""
    (use,) = transfer(250.0, 100, 8.0, plan.contacts, 1, ACQUISITION_S)
    assert (use.contact, use.start_s, use.end_s, plan.station(1, use.contact)) == (0, 330.0, 430.0, "pole")


def test_a_plan_that_is_written_is_read_as_the_same(plan, tmp_path):
    write_json(tmp_path / "plan.json", plan.to_json())
    again = File(str(tmp_path / "plan.json"), "unused", None)
    assert again.plan(tmp_path, ACQUISITION_S) == plan
    assert again.satellites == 2
    assert read_json(tmp_path / "plan.json")["stations"] == [["pole", 1], ["harbour", 2]]
    fewer = File(str(tmp_path / "plan.json"), "unused", 1).plan(tmp_path, ACQUISITION_S)
    assert fewer.contacts.windows[1][1] == (900.0, 1000.0)


@pytest.mark.parametrize(
    ("rows", "acquisition_s", "words"),
    [
        ([(0, 0, 0, 300)], 0.0, "satellite 1 is in no contact in 1000 s"),
        ([(0, 0, 0, 300), (1, 0, 10, 320)], 30.0, "satellite 1 is in no contact in 1000 s; take more antennas"),
        ([(0, 0, 0, 300), (1, 0, 310, 340)], 30.0, "satellite 1 is in no contact longer than acquisition_s=30"),
        ([], 0.0, "station pole has no contact in 1000 s"),
    ],
)
def test_who_never_meets_anybody_is_named(rows, acquisition_s, words):
    with pytest.raises(ConfigError) as told:
        planned(passes(*rows), 2, ONE, 1000.0, acquisition_s)
    assert words in str(told.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"windows": [[[10, 40, 0], [30, 50, 1]], [[1, 2, 0]]]}, "windows of satellite 0: [30, 50] overlaps"),
        ({"windows": [[[10, 40, 2]]]}, "there is no station 2 among 2"),
        ({"windows": [[[10, 40, 0.0]]]}, "there is no station 0.0"),
        ({"windows": [[[10, 40]]]}, "not enough values"),
        ({"windows": [7]}, "no file of contact windows"),
        ({"stations": [["pole", 0], ["harbour", 1]]}, "['pole', 0] is no name with a number of antennas"),
        ({"stations": [["pole", 1], ["pole", 1]]}, "two have one name"),
        ({"stations": ["pole", "harbour"]}, "too many values"),
        ({"in_view_s": -1}, "in_view_s=-1"),
        ({"in_view_s": "x"}, "no file of contact windows"),
    ],
)
def test_a_plan_file_that_cannot_be_is_refused_in_one_line(change, words, plan, tmp_path):
    write_json(tmp_path / "plan.json", {**plan.to_json(), **change})
    with pytest.raises(ConfigError) as told:
        File(str(tmp_path / "plan.json"), "unused", None)
    assert words in str(told.value)
    assert str(told.value).startswith(f"constellation.path={tmp_path / 'plan.json'}: ")
    assert "\n" not in str(told.value)


def test_a_plan_of_nothing_is_no_plan():
    with pytest.raises(TypeError):
        Plan.of([], "pole")
