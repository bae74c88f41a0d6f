"""The clock that contacts drive: the order of events, what is frozen when, and time and money as worked out by hand."""

import dataclasses
import itertools
import shutil

import numpy as np
import pytest
from conftest import REPOSITORY

from fl.communication.clock import ContactClock
from fl.communication.contacts import Contacts
from fl.communication.policies import FedAsync, FedBuff, Synchronous
from fl.communication.pricing import load_link, load_policy
from fl.communication.replay import Bill, Lengths, break_even_mb, cost_usd, images_down, lengths_of, replay
from fl.communication.simulation import simulate
from fl.communication.trip import Exchange
from fl.core.errors import ConfigError
from fl.core.files import read_json, write_json
from fl.core.presets import choices


def link(*windows, period_s=1000.0, up_bps=8.0, down_bps=8.0, **changes):
    """Returns a link of one byte a second both ways, without framing, over windows of each satellite."""
    contacts = Contacts(period_s, tuple(tuple(each) for each in windows)) if windows else "always"
    plain = {"ground_to_sat_framing": None, "sat_to_ground_framing": None, "acquisition_s": 0.0, "train_s": None}
    rates = {"ground_to_sat_bps": up_bps, "sat_to_ground_bps": down_bps}
    return dataclasses.replace(load_link("ttc_uhf"), windows=contacts, **plain | rates | changes)


class World:
    """Sends numbers of bytes, and remembers which version was frozen for whom, and what was aggregated."""

    shares_start = False

    def __init__(self, up=10, down=10, train_s=20.0):
        self.up, self.down, self.seconds = up, down, train_s
        self.frozen, self.made = [], []

    def broadcast_bytes(self, satellite):
        self.frozen.append((satellite, self.clock.version))
        return self.up

    def train_s(self, satellite):
        return self.seconds[satellite] if isinstance(self.seconds, list) else self.seconds

    def update_bytes(self, satellite):
        return self.down[satellite] if isinstance(self.down, list) else self.down

    def arrived(self, satellite, *, late):
        return True

    def aggregate(self, updates):
        self.made.append([(each.satellite, each.version, each.staleness) for each in updates])


def run(over, policy, world, satellites, per_round=None, used=12, **options):
    """Returns the events until so many updates were used, or nothing happens any more."""
    clock = world.clock = ContactClock(over, satellites, per_round or satellites, policy, world, **options)
    found = []
    while clock.queue and clock.used < used:
        found += clock.step()
    return found


def told(events, *kinds):
    return [(event.time_s, event.satellite, event.event) for event in events if event.event in kinds]


def test_a_satellite_receives_trains_sends_and_only_then_receives_again():
    """One contact of 60 s: up 0-10, trained at 30, down 30-40, then the next version up 40-50, down in contact 2."""
    world = World()
    events = run(link([(0.0, 60.0), (500.0, 600.0)]), FedAsync(), world, 1, used=2)
    assert [(event.time_s, event.event, event.version) for event in events] == [
        (0, "sends", 0), (10, "received", 0), (30, "trained", 0), (40, "arrived", 0), (40, "version", 1),
        (40, "sends", 1), (50, "received", 1), (70, "trained", 1), (510, "arrived", 1), (510, "version", 2),
    ]  # fmt: skip
    assert events[-2].age_s == 510 - 40
    assert [event.contact for event in events if event.satellite is not None] == [0, 0, 0, 0, 0, 0, None, 1]


@pytest.mark.parametrize("period_s", [100.0, 0.1 + 0.2 + 99.4])
def test_what_ends_with_a_contact_happened_in_it_and_what_begins_then_in_the_one_that_opens(period_s):
    """Up 0-10, trained at 30, down 30-40: the last byte comes when the contact closes and the next one opens."""
    over = link([(0.0, 40.0), (40.0, 50.0), (90.0, 95.0)], period_s=period_s)
    events = run(over, FedAsync(), World(), 1, used=2)
    assert [(event.event, event.contact) for event in events if event.satellite is not None] == [
        ("sends", 0), ("received", 0), ("trained", 0), ("arrived", 0), ("sends", 1), ("received", 1),
        ("trained", None), ("arrived", 3),
    ]  # fmt: skip
    assert over.windows.at(0, 0.0) == [0]
    for number, opens_s, closes_s in itertools.islice(over.windows.after(0, 1e6 * period_s), 3):
        assert number in over.windows.at(0, opens_s)
        assert number in over.windows.at(0, closes_s)


def test_a_model_is_frozen_when_its_first_byte_leaves_and_goes_on_in_the_next_contact():
    """Satellite 0 makes version 1 while the transfer to satellite 1 is interrupted: it still is of version 0."""
    windows = [[(0.0, 60.0)], [(0.0, 5.0), (100.0, 300.0)]]
    world = World()
    events = run(link(*windows), FedAsync(), world, 2, used=2)
    assert world.frozen[:2] == [(0, 0), (1, 0)]
    assert told(events, "received")[-1] == (105, 1, "received")
    assert world.made == [[(0, 0, 0)], [(1, 0, 1)]]
    late = World()
    run(link([(0.0, 60.0)], [(45.0, 300.0)]), FedAsync(), late, 2, used=2)
    assert late.frozen == [(0, 0), (0, 1), (1, 1)]


def test_nobody_trains_twice_on_one_version():
    world = World(train_s=[1.0, 200.0])
    events = run(link(), FedBuff(buffer_size=2), world, 2, used=4)
    trained = [(event.satellite, event.version) for event in events if event.event == "received"]
    assert len(trained) == len(set(trained)) == 4
    assert world.made == [[(0, 0, 0), (1, 0, 0)], [(0, 1, 0), (1, 1, 0)]]


def test_ties_go_by_kind_then_by_satellite():
    """Without a rate all happens at one moment: every update arrives before the next model leaves."""
    world = World(train_s=7.0)
    events = run(link(up_bps=None, down_bps=None), Synchronous(), world, 3, used=6)
    order = [(event.time_s, event.satellite, event.event) for event in events]
    arrived = [order.index((7.0, number, "arrived")) for number in range(3)]
    assert arrived == sorted(arrived)
    assert max(arrived) < order.index((7.0, None, "version")) < order.index((7.0, 0, "sends"))
    assert world.made == [[(0, v, 0), (1, v, 0), (2, v, 0)] for v in (0, 1)]


def test_a_model_that_leaves_has_every_update_of_that_moment():
    world = World(train_s=7.0)
    run(link(up_bps=None, down_bps=None), FedAsync(), world, 3, used=6)
    assert world.frozen[3:6] == [(0, 3), (1, 3), (2, 3)]


@pytest.mark.parametrize("name", choices("link"))
@pytest.mark.parametrize("seed", range(3))
def test_synchronous_takes_the_seconds_of_rounds(name, seed):
    """Those of `simulate`, with other payloads and seconds for every client and a first model that nobody sends."""
    rng, over = np.random.default_rng(seed), load_link(name)
    rounds = [
        [
            Exchange(
                n,
                int(rng.integers(1, 2e6)) * (number > 0 or seed == 0),
                int(rng.integers(1, 2e6)),
                rng.uniform(0, 3000),
            )
            for n in range(10)
        ]
        for number in range(4)
    ]
    expected = [each.round_s for each in simulate(over, rounds)]
    found = replay(over, Synchronous(), lengths_of(rounds, shares_start=seed > 0), per_round=10, updates=40)
    ends = [0.0, *(each["elapsed_s"] for each in found["rounds"])]
    assert np.allclose([b - a for a, b in itertools.pairwise(ends)], expected, rtol=0, atol=1e-6)
    full = replay(over, FedBuff(buffer_size=10), lengths_of(rounds, shares_start=seed > 0), per_round=10, updates=40)
    assert full | {"versions": 4} == found | {"versions": 4}


@pytest.mark.parametrize("name", choices("link"))
def test_a_bill_that_grows_is_that_of_all_transfers(name):
    lengths = Lengths([dict.fromkeys(range(10), (3_000, 5_000, 0.0))], False)
    found = replay(load_link(name, 100.0), FedAsync(), lengths, per_round=7, updates=70)
    assert len(found["rounds"]) == 10
    assert found["rounds"][-1]["cost_usd"] == found["cost_usd"]


def test_a_buffer_and_none_wait_less_and_get_staler():
    """1,000 s of training, ten satellites, one station: figures that a first prototype of this queue gave."""
    over, lengths = load_link("ttc_uhf", 1000.0), Lengths([dict.fromkeys(range(10), (54_600, 54_600, 0.0))], False)
    hours = {}
    for policy in (Synchronous(), FedBuff(buffer_size=5), FedAsync()):
        found = replay(over, policy, lengths, per_round=10, updates=100)
        hours[type(policy).__name__] = round(found["elapsed_s"] / 3600, 1), found["staleness"]["max"]
        assert found["used_updates"] == sum(len(each) for each in [range(10)] * 10)
    assert hours == {"Synchronous": (39.1, 0), "FedBuff": (26.3, 2), "FedAsync": (25.7, 9)}


def test_who_is_late_has_spent_its_bytes_for_nothing():
    world = World(train_s=[5.0, 500.0])
    events = run(link(), Synchronous(deadline_s=100.0), world, 2, used=3)
    assert world.made == [[(0, 0, 0)], [(0, 1, 0)], [(0, 2, 0)]]
    assert told(events, "version") == [(100.0, None, "version"), (200.0, None, "version"), (300.0, None, "version")]
    events = run(link(), Synchronous(deadline_s=100.0), world, 2, used=7)
    assert told(events, "late") == [(520.0, 1, "late")]
    assert (520.0, 1, "sends") in told(events, "sends"), "then it receives the newest"


def test_a_deadline_ends_with_its_version():
    world = World(train_s=60.0)
    events = run(link(), Synchronous(deadline_s=100.0), world, 2, used=4)
    assert told(events, "version") == [(80.0, None, "version"), (160.0, None, "version")]
    assert world.made == [[(0, 0, 0), (1, 0, 0)], [(0, 1, 0), (1, 1, 0)]]


def test_who_is_in_contact_first_is_asked():
    windows = [[(15.0, 400.0)], [(0.0, 400.0)], [(10.0, 400.0)]]
    world = World(train_s=1.0)
    run(link(*windows), Synchronous(select="first"), world, 3, per_round=2, used=2)
    assert world.made == [[(1, 0, 0), (2, 0, 0)]]
    assert world.frozen == [(1, 0), (2, 0)], "satellite 0 comes while both are under way"


def test_a_failed_client_waits_for_the_next_version():
    world = World(down=[10, 0])
    events = run(link(), Synchronous(), world, 2, used=2)
    assert world.made == [[(0, 0, 0)], [(0, 1, 0)]]
    assert [event.satellite for event in events if event.event == "failed"] == [1, 1]
    stuck = run(link(), FedBuff(buffer_size=2), World(down=[10, 0]), 2)
    assert not told(stuck, "version")


def test_money_is_of_contacts_in_which_the_antenna_is_held_where_that_is_cheaper():
    """Up 0-10 and down 30-40 and up 40-50 in one contact are one started minute; by volume it is all bytes."""
    windows = [(0.0, 60.0), (500.0, 600.0)]
    by_minute = load_link("ttc_uhf").billing
    rate = by_minute.usd_per_minute
    lengths = Lengths([{0: (10, 10, 20.0)}], False)
    found = replay(link(windows), FedAsync(), lengths, per_round=1, updates=2)
    assert found["cost_usd"] == 2 * rate
    apart = replay(link([(0.0, 900.0)]), FedAsync(), Lengths([{0: (10, 10, 300.0)}], False), per_round=1, updates=1)
    assert apart["cost_usd"] == 2 * rate, "booked twice: holding it would be 6 minutes"
    volume = dataclasses.replace(link(), windows="always", billing=load_link("flat_rate").billing)
    found = replay(volume, FedAsync(), lengths, per_round=1, updates=2)
    sent = found["payload_bytes"]["total"]
    assert sent == 10 + 10 + 10 + 10
    assert found["cost_usd"] == pytest.approx(5 * sent / 1024**2)


def test_what_has_not_begun_when_it_ends_costs_nothing():
    """Satellite 1 has trained at 30 s and sees a station again at 500 s, when satellite 0's update was the last."""
    windows = [(0.0, 60.0)], [(0.0, 25.0), (500.0, 600.0)]
    lengths = Lengths([dict.fromkeys(range(2), (10, 10, 20.0))], False)
    found = replay(link(*windows), FedAsync(), lengths, per_round=1, updates=1)
    assert found["elapsed_s"] == 40
    assert found["payload_bytes"]["sat_to_ground"] == 10
    (line,) = found["rounds"]
    assert line["cost_usd"] == found["cost_usd"] > 0
    volume = dataclasses.replace(link(*windows), billing=load_link("flat_rate").billing)
    found = replay(volume, FedAsync(), lengths, per_round=1, updates=1)
    assert found["cost_usd"] == pytest.approx(5 * found["payload_bytes"]["total"] / 1024**2)


@pytest.mark.parametrize("name", choices("link"))
def test_a_bill_so_far_is_that_of_what_has_begun(name):
    over = load_link(name, 600.0)
    clock = replayed(over)
    bill = Bill(over)
    for now_s in np.linspace(0, clock.time_s, 7):
        begun = [each for each in clock.transfers if each.uses and each.uses[0].start_s <= now_s]
        assert bill.until(now_s, clock.transfers) == pytest.approx(cost_usd(over, begun))


def replayed(over):
    """Returns the clock of ten satellites that have sent fifty updates."""
    world = World(50_000, 50_000, 600.0)
    world.clock = clock = ContactClock(over, 10, 10, FedAsync(), world)
    while clock.used < 50:
        clock.step()
    return clock


def test_who_failed_in_the_last_round_does_not_fail_for_ever():
    lengths = Lengths(
        [{0: (10, 20, 5.0), 1: (10, 0, 0.0)}, {0: (12, 22, 6.0), 1: (12, 0, 0.0), 2: (14, 24, 8.0)}], False
    )
    assert lengths.of(0, 1) == (10, 0, 0.0)
    assert lengths.of(1, 1) == (12, 0, 0.0)
    assert lengths.of(2, 1) == lengths.of(9, 7) == (13, 23, 7.0)
    assert lengths.of(2, 0) == (12, 22, 6.0)


def test_clients_that_nobody_asked_are_satellites_all_the_same():
    assert Lengths([{0: (1, 1, 1.0)}], False).num_clients == 1
    assert Lengths([{0: (1, 1, 1.0)}], False, clients=50).num_clients == 50


def test_a_run_says_how_many_clients_it_has(command, tmp_path):
    folder = shutil.copytree(REPOSITORY / "examples" / "run", tmp_path / "run")
    settings = read_json(folder / "settings.json")
    write_json(folder / "settings.json", {**settings, "num_clients": 50})
    (folder / "partition.json").unlink()
    contacts = ("--clock", "contacts", "--link", "flat_rate", "--policy", "fedasync", "--train-s", "10")
    command("fl", "communication", folder, *contacts, "--json", "out.json", check=0)
    (entry,) = read_json(tmp_path / "out.json").values()
    assert entry["num_clients"] == 50


def test_lines_that_are_no_rounds_are_not_replayed(refused):
    words = ["examples/orbit: contacts drove this run", "--broadcast-bytes"]
    refused("fl", "communication", REPOSITORY / "examples" / "orbit", "--clock", "contacts", words=words)


def test_the_example_of_the_document():
    """docs/measured-and-modelled.md, "When contacts drive the run"."""
    told = (REPOSITORY / "docs" / "measured-and-modelled.md").read_text().split("## When contacts drive the run")[1]
    told = " ".join(told.split("\n## ")[0].split())
    windows = [(0.0, 60.0), (500.0, 600.0)]
    found = replay(link(windows), FedAsync(), Lengths([{0: (10, 10, 20.0)}], False), per_round=1, updates=2)
    assert found["elapsed_s"] == 510
    assert "Two updates take 510 s and, by started minutes, 2 of them" in told
    assert found["cost_usd"] == 2 * load_link("ttc_uhf").billing.usd_per_minute
    assert f"`idle_share` is {found['idle_share']:.3f}" in told
    assert f"`contact_share` is {found['contact_share']:.3f}" in told
    for key in (*found, "images", "break_even_mb"):
        assert f"`{key}`" in told or key == "state"


def test_shares_of_time_and_contacts():
    """One satellite: up 10, train 20, down 10 in a contact of 60 s, then nothing."""
    found = replay(link([(0.0, 60.0)]), FedAsync(), Lengths([{0: (10, 10, 20.0)}], False), per_round=1, updates=1)
    assert found["elapsed_s"] == 40
    assert found["idle_share"] == pytest.approx(0.0)
    assert found["contact_share"] == pytest.approx(20 / 40)


def test_images_instead_and_the_size_at_which_both_take_as_long():
    over = link([(0.0, 100.0)], [(200.0, 300.0)])
    assert images_down(over, 50, 2)["elapsed_s"] == 250
    assert images_down(over, 150, 2)["elapsed_s"] == 1000 + 250
    assert break_even_mb(over, 1250.0, 2) * 1024**2 == pytest.approx(150, abs=1100)
    fast = load_link("cubesat_sband")
    size = break_even_mb(fast, 40_000.0, 10)
    below, above = (images_down(fast, int((size + off) * 1024**2), 10)["elapsed_s"] for off in (-0.1, 0.1))
    assert below < 40_000 < above


def test_it_ends_at_a_day_and_says_so():
    lengths = Lengths([dict.fromkeys(range(10), (54_600, 54_600, 1000.0))], False)
    found = replay(load_link("ttc_uhf"), FedAsync(), lengths, per_round=10, updates=1000, max_days=0.5)
    assert found["state"] == "max_days"
    assert found["elapsed_s"] == 43_200
    assert 0 < found["used_updates"] < 1000


@pytest.mark.parametrize("name", choices("policy"))
def test_every_policy_of_conf_can_be_loaded(name):
    assert load_policy(name)[0] == name


def test_what_cannot_be_is_refused():
    lengths = Lengths([dict.fromkeys(range(3), (1, 1, 1.0))], False)
    with pytest.raises(ConfigError, match=r"policy.buffer_size=4: is more than 3 satellites"):
        replay(link(), FedBuff(buffer_size=4), lengths, per_round=3, updates=3)
    with pytest.raises(ConfigError, match=r"--policy fedbuf: there is no such policy; did you mean fedbuff\?"):
        load_policy("fedbuf")


def test_the_command_takes_the_satellites_of_a_constellation(command, refused, tmp_path):
    sizes = ("--broadcast-bytes", "54600", "--update-bytes", "54600", "--train-s", "1000", "--link", "ttc_uhf")
    contacts = (*sizes, "--clock", "contacts", "--policy", "synchronous", "--json", "out.json")
    command("fl", "communication", *contacts, check=0)
    own = read_json(tmp_path / "out.json")["given sizes"]["links"]
    command("fl", "communication", *contacts, "--constellation", "plane_10", check=0)
    same = read_json(tmp_path / "out.json")["given sizes"]
    assert same["links"] == own, "it is the plane that the links' windows are of"
    refused(
        *("fl", "communication", *contacts, "--constellation", "plane_10", "--clients", "7"),
        words=["--constellation plane_10", "10 satellites", "7 clients"],
    )
    refused("fl", "communication", *contacts, "--constellation", "plane_11", words=["did you mean plane_10?"])


def test_the_command_replays_a_run_and_says_what_was_asked(small_run, command, refused, tmp_path):
    done = command(
        *("fl", "communication", small_run, "--clock", "contacts", "--link", "ttc_uhf", "--train-s", "100"),
        *("--image-bytes", "1000000", "--policy", "fedasync", "--json", "out.json"),
        check=0,
    )
    (entry,) = read_json(tmp_path / "out.json").values()
    told = entry["links"]["ttc_uhf"]
    assert list(told["policies"]) == ["fedasync"]
    assert f"{told['policies']['fedasync']['elapsed_s'] / 3600:.2f} h" in done.stdout
    assert "of images from each satellite instead take" in done.stdout
    refused("fl", "communication", small_run, "--policy", "fedasync", words=["--policy", "--clock contacts"])
    refused(
        *("fl", "communication", small_run, "--clock", "contacts", "--max-days", "-1"),
        words=["--max-days -1", "number above 0"],
    )
