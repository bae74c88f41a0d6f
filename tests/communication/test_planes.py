"""A plane's satellites pass on what one of them receives and sends: times and bytes as worked out by hand."""

import json

import pytest
from communication.test_clock import World, link, told
from conftest import REPOSITORY

from fl.commands.communication import parse
from fl.communication.planes import Hop, PlaneClock, sides
from fl.communication.policies import IntraPlane
from fl.communication.pricing import load_links, over_contacts
from fl.communication.replay import Lengths, replay
from fl.communication.tables import show_policies
from fl.core.errors import ConfigError

THREE = [(0.0, 8.0), (400.0, 460.0)], [(5.0, 30.0)], [(50.0, 100.0)]
"""Contacts of three satellites; the first of satellite 0 is too short for 10 bytes at one a second."""


class Planes(World):
    """Also adds up; the sum is as long as is said, and some updates cannot be used."""

    sum_length, unusable = 10, ()

    def broadcast_bytes(self, *satellites):
        return max(super(Planes, self).broadcast_bytes(each) for each in satellites)

    def sum_bytes(self, *satellites):
        usable = [each for each in satellites if each not in self.unusable]
        return usable, self.sum_length if usable else 0


def clock_of(world, windows=(), rings=((0, 1, 2),), **changes):
    """Returns a clock over one byte a second with the ground, and ten between satellites."""
    over, count = link(*windows, **{"inter_satellite_bps": 80.0} | changes), sum(map(len, rings))
    world.clock = PlaneClock(over, count, count, IntraPlane(), world, rings=rings)
    return world.clock


def run(clock, used):
    found = []
    while clock.used < used:
        found += clock.step()
    return found


def test_three_satellites_of_a_plane_by_hand():
    """Up to satellite 1, which has it at 15, satellite 0 only at 402; the sink is 2, whose contact is the next."""
    clock = clock_of(Planes(train_s=[20.0, 20.0, 30.0]), THREE)
    events = [(each.time_s, each.satellite, each.event, each.payload_bytes) for each in run(clock, 3)]
    assert events == [
        (5, 1, "sends", 10), (15, 1, "received", 10), (16, 0, "received", 10), (16, 2, "received", 10),
        (35, 1, "trained", 0), (36, 0, "trained", 0), (46, 2, "trained", 0),
        (47, 2, "relayed", 10), (47, 2, "relayed", 10),
        (60, 2, "summed", 10), (60, 0, "arrived", 0), (60, 1, "arrived", 0), (60, 2, "arrived", 0),
        (60, None, "version", 0),
    ]  # fmt: skip
    assert [(each.satellite, each.to_satellite, each.payload_bytes) for each in clock.transfers] == [
        (1, True, 10),
        (2, False, 10),
    ]
    assert clock.hops == [Hop(2, 10, 15, 16), Hop(0, 10, 15, 16), Hop(2, 10, 46, 47), Hop(2, 10, 46, 47)]
    assert clock.world.made == [[(0, 0, 0), (1, 0, 0), (2, 0, 0)]]


def test_the_example_of_the_document_is_replayed():
    document = (REPOSITORY / "docs" / "measured-and-modelled.md").read_text().split("### Along a plane")[1]
    lines = [line for line in document.split("\n## ")[0].splitlines() if line.startswith("| `")]
    rows = {cells[1].strip(" `"): cells[3].strip() for cells in (line.split("|") for line in lines) if len(cells) == 5}
    lengths = Lengths([{0: (10, 10, 20.0), 1: (10, 10, 20.0), 2: (10, 10, 30.0)}], False)
    over = link(*THREE, inter_satellite_bps=80.0)
    found = replay(over, IntraPlane(), lengths, per_round=3, updates=3, rings=[range(3)])
    up, down = (found["payload_bytes"][way] for way in ("ground_to_sat", "sat_to_ground"))
    assert rows.pop("elapsed_s") == f"{found['elapsed_s']:g}"
    assert rows.pop("payload_bytes") == f"{up} + {down}"
    for name in ("inter_satellite_bytes", "idle_share", "contact_share", "cost_usd"):
        assert float(rows.pop(name)) == pytest.approx(found[name], abs=0.0005), name
    ten, over = range(10), link(inter_satellite_bps=1e6)
    world = Planes(up=54_600, down=54_600)
    clock = world.clock = PlaneClock(over, 10, 10, IntraPlane(), world, rings=[ten])
    run(clock, 10)
    model, updates = clock.hops[:9], clock.hops[9:]
    assert rows.pop("hops in a plane of 10") == f"{len(model)} + {len(updates)}"
    for hops in (model, updates):
        assert rows["seconds around it"] == f"{max(h.end_s for h in hops) - min(h.start_s for h in hops):.3f}"
    del rows["seconds around it"]
    assert list(rows) == ["coding_error"], "which tests/federation/test_planes.py computes"


def test_a_ring_has_two_sides():
    assert sides([5, 6, 7, 8], 6) == ([7, 8], [5])
    assert sides(range(5), 0) == ([1, 2], [4, 3])
    assert sides([3], 3) == ([], [])


def test_updates_wait_for_each_other_on_the_way_to_the_sink():
    """Satellite 1 is busy with its own 50 bytes until 5, so those of 2, there since 3, arrive at 8; 3's pass 4."""
    clock = clock_of(Planes(), rings=[range(5)])
    hops = clock._to_sink(range(5), 0, {1: 50, 2: 30, 3: 20, 4: 10})
    assert hops == [
        Hop(0, 50, 0, 5), Hop(1, 30, 0, 3), Hop(0, 30, 5, 8), Hop(0, 10, 0, 1), Hop(4, 20, 0, 2), Hop(0, 20, 2, 4),
    ]  # fmt: skip


def test_a_version_waits_for_every_plane():
    world = Planes(train_s=[1.0, 1.0, 1.0, 500.0])
    events = run(clock_of(world, rings=((0, 1), (2, 3))), 4)
    assert world.made == [[(number, 0, 0) for number in range(4)]]
    assert [each.time_s for each in events if each.event == "summed"] == [22.0 + 1, 10 + 1 + 500 + 10 + 1]


def test_who_fails_passes_on_and_its_planes_sum_goes_without_it():
    world = Planes(down=[10, 0, 10])
    world.unusable = (2,)
    clock = clock_of(world, THREE)
    events = run(clock, 1)
    assert [each.satellite for each in events if each.event == "failed"] == [1, 2]
    assert world.made == [[(0, 0, 0)]]
    assert clock.updates() == ([0], [0])
    assert [each[:2] for each in told(events, "relayed")] == [(47.0 - 10, 2)], "satellite 2 can still be the sink"


def test_a_plane_without_an_update_does_not_hold_the_others_up():
    world = Planes(down=[10, 10, 0, 0])
    run(clock_of(world, rings=((0, 1), (2, 3))), 2)
    assert world.made == [[(0, 0, 0), (1, 0, 0)]]


def test_a_first_model_from_the_seed_goes_over_no_link():
    world = Planes(up=0)
    world.shares_start = True
    clock = clock_of(world, THREE)
    events = run(clock, 3)
    assert told(events, "sends", "received") == [(0, 0, "sends"), *((0, number, "received") for number in range(3))]
    assert [each.payload_bytes for each in clock.hops] == [0, 0, 10, 10]


def test_it_goes_on_from_every_step():
    world = Planes(train_s=[20.0, 25.0, 30.0, 7.0])
    rings = ((0, 1, 2), (3,))
    windows = (*THREE, [(0.0, 500.0)])
    clock, states, events = clock_of(world, windows, rings), [], []
    while clock.used < 8:
        states.append((json.loads(json.dumps(clock.state(), default=list)), len(events)))
        events += clock.step()
    for state, before in states:
        again = clock_of(world, windows, rings)
        again.load_state(state)
        assert run(again, 8) == events[before:]
        assert again.state() == clock.state()


SIZES = ("--broadcast-bytes", "54600", "--update-bytes", "54600", "--train-s", "1000", "--clock", "contacts")


def replayed(*options):
    options = parse([*SIZES, "--rounds", "2", *options])
    documents = over_contacts(options, load_links(options.link, options.train_s))
    show_policies(documents)
    return documents["given sizes"]["links"]


def test_the_command_takes_the_planes_of_a_constellation(tmp_path, capsys):
    policies = ("--policy", "intraplane", "--policy", "synchronous", "--constellation", "plane_10")
    for name, entry in replayed("--link", "ttc_uhf", "--link", "cubesat_sband", *policies).items():
        found = entry["policies"]
        assert found["intraplane"]["inter_satellite_bytes"] == 2 * (9 + 25) * 54_600, name
        assert found["intraplane"]["payload_bytes"]["total"] == 2 * 2 * 54_600
        assert found["intraplane"]["elapsed_s"] < found["synchronous"]["elapsed_s"] / 3
        assert "inter_satellite_bytes" not in found["synchronous"]
    shown = capsys.readouterr().out
    assert "given sizes over ttc_uhf, intraplane: 3.54 MB between satellites" in shown
    assert "intraplane" not in replayed("--link", "flat_rate")["flat_rate"]["policies"], "it is left out"
    assert "note: intraplane is left out: policy=intraplane: nobody knows" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--link", "ttc_uhf"), "nobody knows which satellites share a plane.*--constellation plane_10"),
        (("--link", "flat_rate", "--constellation", "plane_10"), r"link\.inter_satellite_bps=null: link=flat_rate has"),
        (("--link", "ttc_uhf", "--constellation", "walker_12_3_1"), "do not see their neighbours .*meets the Earth"),
    ],
)
def test_what_has_no_ring_is_refused_in_a_line(options, words):
    if "walker_12_3_1" in options:
        pytest.importorskip("skyfield", reason="skyfield is not installed: pip install -e '.[orbit]'")
    with pytest.raises(ConfigError, match=words) as refused:
        replayed("--policy", "intraplane", *options)
    assert "\n" not in str(refused.value)
