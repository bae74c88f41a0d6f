"""The link model is what docs/measured-and-modelled.md says: every figure here can be had with a calculator."""

import importlib.util
import json
import math

import pytest
from conftest import REPOSITORY
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from fl.communication.billing import billed_minutes
from fl.communication.contacts import Contacts, Use, transfer
from fl.communication.link import WINDOWS, Framing, Link
from fl.communication.simulation import send, simulate
from fl.communication.trip import Both, Exchange, Trip
from fl.comparison.costs import CostAssumptions, communication_costs
from fl.core.errors import ConfigError
from fl.core.files import read_json
from fl.core.targets import Target
from fl.core.units import MIB

PRESETS = ["cubesat_sband", "flat_rate", "ttc_uhf"]
FP32_FILE, INT8_FILE = 1_750_000, 440_000
TRAIN_S = 1000.0  # longer than a pass: broadcast and update take different ones
TWO_PASSES = Contacts(1000.0, (((100.0, 200.0), (500.0, 560.0)),))


def finish(start_s, *arguments, **settings):
    """Returns the second at which the last bit of a transfer has arrived."""
    uses = transfer(start_s, *arguments, **settings)
    return uses[-1].end_s if uses else start_s


def preset(name, **changes):
    config = OmegaConf.to_container(OmegaConf.load(REPOSITORY / "conf" / "link" / f"{name}.yaml"), resolve=True)
    return Target.from_config("link", {**config, **changes}).build()


def tenfold(size, train_s=TRAIN_S):
    return [[Exchange(client, size, size, train_s) for client in range(10)]] * 10


def bill(link, rounds):
    results = simulate(link, rounds)
    return sum(sum(each.cost_usd) for each in results), sum(each.round_s for each in results)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_and_names_its_price(name):
    link = preset(name)
    assert link.name == name
    assert link.price_source
    assert link.price_as_of


def test_the_flat_rate_gives_the_users_own_figures():
    """1.66 MB, 10 clients, 10 rounds, $5/MB: $1660.00, unchanged to the last digit by the way over the link model."""
    size = int(1.66 * MIB)
    cost, _ = bill(preset("flat_rate"), tenfold(size))
    expected = communication_costs({"fp32": size}, CostAssumptions(10, 10, 10, 5.0, "default"))["fp32"]
    assert cost == pytest.approx(expected["total_cost_usd"], rel=1e-12)
    assert round(cost) == 1660


def test_wire_bytes_by_hand():
    """440,000 bytes: 430 packets add 22 each, 449,460 bytes fill 443 frames of 1,016, which are 1,024 long."""
    telecommand = preset("cubesat_sband").ground_to_sat_framing
    assert telecommand.wire_bytes(440_000) == 443 * 1024 == 453_632
    assert telecommand.wire_bytes(0) == 0
    assert Framing(1024, 1016, 1024, 22, 0.5).wire_bytes(440_000) == 2 * 453_632


def test_overheads_are_those_of_the_frames():
    link = preset("cubesat_sband")
    assert link.ground_to_sat_framing.wire_bytes(10**8) / 10**8 == pytest.approx(1.030, abs=0.001)
    assert link.sat_to_ground_framing.wire_bytes(10**8) / 10**8 == pytest.approx(1.031, abs=0.001)


def test_a_transfer_resumes_in_the_next_contact_and_each_contact_loses_its_acquisition():
    """At 8 bps a byte takes a second; 10 s are lost in each: 90 s of data in the first pass, 30 of 50 in the second."""
    uses = transfer(0.0, 120, 8.0, TWO_PASSES, acquisition_s=10.0)
    assert [(use.contact, use.start_s, use.end_s) for use in uses] == [(0, 110.0, 200.0), (1, 510.0, 540.0)]
    assert finish(0.0, 120, 8.0, TWO_PASSES, acquisition_s=10.0) == 540.0
    assert finish(150.0, 20, 8.0, TWO_PASSES, acquisition_s=10.0) == 170.0  # it is acquired already
    assert finish(0.0, 141, 8.0, TWO_PASSES, acquisition_s=10.0) == 1111.0  # the file repeats after its period
    assert finish(0.0, 0, 8.0, TWO_PASSES) == 0.0
    assert finish(0.0, 1, None, TWO_PASSES) == 100.0  # without a limit of rate one still waits for the pass


def test_satellites_repeat_after_the_last_of_the_file():
    contacts = Contacts(100.0, (((0.0, 10.0),), ((50.0, 60.0),)))
    assert [finish(0.0, 1, None, contacts, satellite) for satellite in range(4)] == [0.0, 50.0, 0.0, 50.0]


@st.composite
def some_contacts(draw):
    edges = draw(st.lists(st.integers(0, 5000), min_size=2, max_size=12, unique=True).map(sorted))
    windows = tuple((float(a), float(b)) for a, b in zip(edges[::2], edges[1::2], strict=False))
    return Contacts(5000.0, (windows,))


@given(
    contacts=some_contacts(),
    start_s=st.integers(0, 20_000),
    first=st.integers(1, 500),
    second=st.integers(1, 500),
    data=st.data(),
)
def test_finish_is_additive_across_contacts_and_never_earlier_for_more_bytes(contacts, start_s, first, second, data):
    """Whole seconds, at 8 bps a byte each: floats are exact, and so is the equality."""
    acquisition_s = data.draw(st.integers(0, int(contacts.longest_s(0)) - 1))
    way = (8.0, contacts, 0, acquisition_s)
    half_way = finish(start_s, first, *way)
    at_once = finish(start_s, first + second, *way)
    assert start_s < half_way < at_once
    assert finish(half_way, second, *way) == at_once
    assert sum(use.length_s for use in transfer(start_s, first + second, *way)) == first + second


@given(start_s=st.floats(0, 1e6), size=st.integers(1, 10**9), rate_bps=st.floats(1, 1e9))
def test_always_connected_takes_the_bits_over_the_rate(start_s, size, rate_bps):
    assert finish(start_s, size, rate_bps) == start_s + 8 * size / rate_bps
    assert finish(start_s, size, None) == start_s


def by_minute(**changes):
    link = preset("cubesat_sband", ground_to_sat_framing=None, sat_to_ground_framing=None, **changes)
    assert link.billing.usd_per_minute == 10.0
    return link


def test_each_contact_is_billed_by_started_minutes_acquisition_included():
    """30 s of acquisition and 30 s of data are one minute, a byte more are two."""
    link = by_minute(ground_to_sat_bps=8.0, sat_to_ground_bps=8.0)
    for size, minutes in ((30, 1), (31, 2), (90, 2), (91, 3)):
        trip = send(link, Exchange(0, size, size, TRAIN_S), 0.0)
        assert billed_minutes(trip, 30.0) == Both(minutes, minutes)


def test_an_antenna_is_held_or_booked_again_whichever_is_cheaper():
    """In one pass: 20 s up, training, 20 s down; held that is ceil((40 + training + 30) / 60), apart 1 + 1."""
    contacts = Contacts(10_000.0, (((0.0, 9000.0),),))
    link = by_minute(ground_to_sat_bps=8.0, sat_to_ground_bps=8.0, windows=contacts)
    for train_s, minutes in ((0.0, 2), (50.0, 2), (51.0, 2), (5000.0, 2)):
        trip = send(link, Exchange(0, 20, 20, train_s), 0.0)
        assert sum(billed_minutes(trip, 30.0)) == minutes
    short = send(link, Exchange(0, 10, 10, 5.0), 0.0)
    assert billed_minutes(short, 30.0) == Both(0.5, 0.5)  # one minute, shared out by seconds of transfer


def test_a_round_ends_with_the_slowest_update():
    """Client 0: up 100-110 s, trains 5 s, down 115-125 s. Client 1 trains 100 s, so it waits for the pass at 500 s."""
    link = by_minute(
        ground_to_sat_bps=8.0, sat_to_ground_bps=8.0, windows=TWO_PASSES, acquisition_s=0.0, tx_w=2.0, rx_w=1.0
    )
    [result] = simulate(link, [[Exchange(0, 10, 10, 5.0), Exchange(1, 10, 10, 100.0)]])
    assert result.round_s == 510.0
    assert result.straggler_partition_id == 1
    assert result.idle_share == pytest.approx(1 - (25 + 120) / (2 * 510))
    assert result.contacts == (2, 2)
    assert result.distinct_contacts == 3
    assert result.wire_bytes == (20, 20)
    assert sum(result.cost_usd) == 30.0
    assert result.energy_j == (20.0, 40.0)  # 1 W for 20 s of receiving, 2 W for 20 s of sending


def test_the_next_round_begins_when_the_last_ended():
    link = by_minute(ground_to_sat_bps=8.0, sat_to_ground_bps=8.0, windows=TWO_PASSES, acquisition_s=0.0)
    first, second = simulate(link, [[Exchange(0, 10, 10, 5.0)]] * 2)
    assert first.round_s == 125.0
    assert second.round_s == 25.0  # still the same pass


def evaluated_before(second):
    """Round 1 ends at 110 s (down 100-110 s); then what client 0 evaluates goes up until 160 s, in the same pass."""
    link = by_minute(ground_to_sat_bps=8.0, sat_to_ground_bps=8.0, windows=TWO_PASSES, acquisition_s=0.0)
    first = [Exchange(0, 0, 10, 5.0), Exchange(0, 50, 0, 0.0, evaluates=True)]
    one, two = simulate(link, [first, [second]])
    assert (one.round_s, one.straggler_partition_id, one.wire_bytes) == (110.0, 0, (50, 10))
    return two


def test_who_trains_on_a_model_that_it_evaluated_waits_for_it():
    assert evaluated_before(Exchange(0, 0, 10, 5.0)).round_s == 65.0  # trains 160-165 s, down until 175 s
    assert evaluated_before(Exchange(1, 0, 10, 5.0)).round_s == 15.0  # another one, which had it before


def test_who_is_sent_the_model_again_does_not_wait_for_evaluation():
    assert evaluated_before(Exchange(0, 10, 10, 5.0)).round_s == 25.0


def test_a_client_that_failed_is_paid_for_but_not_waited_for():
    link = by_minute(ground_to_sat_bps=8.0, sat_to_ground_bps=8.0, windows=TWO_PASSES, acquisition_s=0.0)
    [result] = simulate(link, [[Exchange(0, 10, 10, 5.0), Exchange(1, 90, 0, 0.0)]])
    assert (result.round_s, result.straggler_partition_id) == (125.0, 0)
    assert result.cost_usd.ground_to_sat > 20
    [nobody] = simulate(link, [[Exchange(1, 90, 0, 0.0)]])
    assert nobody.straggler_partition_id is None


def test_credits_are_counted_by_message():
    """Iridium SBD: 600 B to the terminal are 3 messages of at most 270 B, each 6 credits of 50 B."""
    billing = {
        "unit": "credit",
        "ground_to_sat_message_bytes": 270,
        "sat_to_ground_message_bytes": 340,
        "credit_bytes": 50,
        "usd_per_credit": 0.16,
    }
    link = preset("flat_rate", billing=billing)
    [result] = simulate(link, [[Exchange(0, 600, 600, 0.0)]])
    assert result.cost_usd == pytest.approx((3 * 6 * 0.16, 2 * 7 * 0.16))


def test_on_s_band_int8_saves_a_third_of_the_money_and_no_time():
    """FP32: 57.7 s + 30 s are two minutes up, one down; INT8: 14.5 s + 30 s are one each. Rounds wait for passes."""
    link = preset("cubesat_sband")
    (before, hours), (after, then) = bill(link, tenfold(FP32_FILE)), bill(link, tenfold(INT8_FILE))
    print(f"S-band: ${before:.0f} -> ${after:.0f}, {hours / 3600:.2f} h -> {then / 3600:.2f} h")
    assert 1 - after / before == pytest.approx(1 / 3, abs=0.01)
    assert then == pytest.approx(hours, rel=0.001)


def test_with_an_uplink_of_9600_bps_int8_saves_72_percent_and_more_than_half_the_time():
    link = preset("cubesat_sband", ground_to_sat_bps=9600)
    (before, hours), (after, then) = bill(link, tenfold(FP32_FILE)), bill(link, tenfold(INT8_FILE))
    print(f"9.6 kbps up: ${before:.0f} -> ${after:.0f}, {hours / 3600:.2f} h -> {then / 3600:.2f} h")
    assert 1 - after / before == pytest.approx(0.72, abs=0.01)
    assert 1 - then / hours > 0.5


def test_on_the_uplink_the_broadcast_matters_more_than_the_update():
    link = preset("cubesat_sband", ground_to_sat_bps=9600)
    small_broadcast = [[Exchange(client, INT8_FILE, FP32_FILE, TRAIN_S) for client in range(10)]] * 10
    small_update = [[Exchange(client, FP32_FILE, INT8_FILE, TRAIN_S) for client in range(10)]] * 10
    assert bill(link, small_broadcast)[0] < bill(link, small_update)[0] / 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ground_to_sat_bps": -1}, ["link.ground_to_sat_bps=-1", "greater than or equal to 1"]),
        ({"ground_to_sat_bps": "fast"}, ["link.ground_to_sat_bps=fast", "number"]),
        ({"sat_to_ground_bps": math.nan}, ["link.sat_to_ground_bps=nan"]),
        ({"acquisition_s": -3}, ["link.acquisition_s=-3"]),
        ({"acquisition_s": 3600}, ["link.acquisition_s=3600", "no contact longer"]),
        ({"windows": "always"}, ["link.acquisition_s=30", "set it to 0"]),
        ({"windows": "nowhere.json"}, ["link.windows=nowhere.json", "cannot be read", "contact_windows.py"]),
        ({"windows": 5}, ["link.windows=5", "always"]),
        ({"billing": {"unit": "barter", "usd": 1}}, ["link.billing", "barter", "started_minute"]),
        ({"billing": {"unit": "mb", "usd_per_mb": -5}}, ["usd_per_mb=-5"]),
        ({"ground_to_sat_framing": {"frame_bytes": 10}}, ["ground_to_sat_framing.frame_data_bytes", "required"]),
        ({"tx_w": -1}, ["link.tx_w=-1"]),
        ({"price_source": ""}, ["link.price_source"]),
    ],
)
def test_a_link_that_cannot_be_is_refused_in_one_line(changes, words):
    with pytest.raises(ConfigError) as caught:
        preset("cubesat_sband", **changes)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_frame_cannot_hold_more_than_its_length():
    framing = {"frame_bytes": 10, "frame_data_bytes": 11, "pdu_bytes": 10, "pdu_header_bytes": 0}
    with pytest.raises(ConfigError, match="frame_data_bytes=11: is more than frame_bytes=10"):
        preset("cubesat_sband", ground_to_sat_framing=framing)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not valid JSON"),
        ("[]", "no file of contact windows"),
        ('{"period_s": 100}', "no file of contact windows"),
        ('{"period_s": 100, "windows": []}', "holds no satellite"),
        ('{"period_s": 100, "windows": [[]]}', "there is none"),
        ('{"period_s": 100, "windows": [[[50, 40]]]}', "ends before it starts"),
        ('{"period_s": 100, "windows": [[[10, 40], [30, 50]]]}', "overlaps"),
        ('{"period_s": 100, "windows": [[[10, 400]]]}', "leaves"),
        ('{"period_s": 100, "windows": [[["a", 40]]]}', "no pair of seconds"),
        ('{"period_s": 100, "windows": [[[1, 2, 3]]]}', "values to unpack"),
        ('{"period_s": 0, "windows": [[[1, 2]]]}', "period_s=0"),
    ],
)
def test_a_file_of_windows_that_cannot_be_is_refused_in_one_line(content, words, tmp_path):
    path = tmp_path / "w.json"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        preset("cubesat_sband", windows=str(path))
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def contact_windows_script():
    spec = importlib.util.spec_from_file_location("contact_windows", REPOSITORY / "scripts" / "contact_windows.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_shipped_contacts_are_what_the_script_computes():
    """One day, of two satellites; the shipped file has fourteen, of ten."""
    pytest.importorskip("skyfield", reason="skyfield is not installed: pip install -e '.[orbit]'")
    script = contact_windows_script()
    shipped = read_json(WINDOWS / "svalbard_550km.json")
    options = script.parse(["--output", "x.json", "--days", "1"])
    assert {**vars(options), "days": 14.0}.items() >= {**shipped["parameters"]}.items()
    computed = script.contact_windows(options)["windows"]
    for satellite in (0, 9):
        expected = [window for window in shipped["windows"][satellite] if window[1] < 86_400]
        found = [window for window in computed[satellite] if window[1] < 86_400]
        assert len(found) == len(expected) > 8
        for here, there in zip(found, expected, strict=True):
            assert here == pytest.approx(there, abs=1.0)


def test_the_shipped_passes_are_as_many_and_as_long_as_published():
    """Svalbard, 550 km, 97.6 degrees, mask 10 degrees: 11.1 a day of 6.8 minutes."""
    shipped = read_json(WINDOWS / "svalbard_550km.json")
    lengths = [end - start for satellite in shipped["windows"] for start, end in satellite]
    assert len(shipped["windows"]) == 10
    assert len(lengths) / 10 / 14 == pytest.approx(11.1, abs=0.2)
    assert sum(lengths) / len(lengths) / 60 == pytest.approx(6.8, abs=0.2)


def test_the_script_writes_what_a_link_reads(command, tmp_path):
    pytest.importorskip("skyfield", reason="skyfield is not installed: pip install -e '.[orbit]'")
    path = tmp_path / "berlin.json"
    options = ["--station", "berlin", "--satellites", "2", "--days", "1", "--output", path]
    said = command("scripts/contact_windows.py", *options, check=0).stdout
    assert "client k flies on satellite k modulo" in said
    assert "then it repeats" in said
    assert preset("ttc_uhf", windows=str(path)).windows == Contacts.read(path)
    assert json.loads(path.read_text())["parameters"]["station"]["latitude_deg"] == 52.52


@pytest.mark.parametrize(
    ("options", "word"),
    [(["--station", "mars"], "svalbard"), (["--satellites", "0"], "from 1"), (["--start", "today"], "--start today")],
)
def test_the_script_refuses_what_it_cannot_compute(options, word, command):
    pytest.importorskip("skyfield", reason="skyfield is not installed: pip install -e '.[orbit]'")
    done = command("scripts/contact_windows.py", "--output", "x.json", *options)
    assert done.returncode != 0
    assert word in done.stderr
    assert "Traceback" not in done.stderr


def test_a_link_can_be_made_in_python():
    link = Link(**{**vars(preset("flat_rate")), "windows": TWO_PASSES})
    assert link.windows is TWO_PASSES
    assert link.name == "flat_rate"


@pytest.mark.parametrize(
    ("payload", "frames"), [(1, 1), (5, 1), (6, 2), (45, 5), (46, 6), (50, 6), (51, 7), (100, 11), (101, 12)]
)
def test_a_part_of_a_packet_or_of_a_frame_is_a_whole_one(payload, frames):
    """Packets of at most 50 bytes, each 5 longer by its header, in frames of 100 that hold 10."""
    assert Framing(100, 10, 50, 5).wire_bytes(payload) == 100 * frames


def trip_of(broadcast, update):
    """One client's uses of contacts, nothing else."""
    return Trip(0, True, Both(1, 1), 0.0, 0.0, 0.0, broadcast, update)


def test_a_minute_of_rounding_errors_is_not_started():
    [use] = transfer(1585 / 7, 29.7, 8.0)
    assert use.length_s + 30.3 > 60.0, "another example is needed: this one has no rounding error"
    assert billed_minutes(trip_of((use,), ()), 30.3) == Both(1, 0)


def test_a_shared_minute_is_split_by_seconds_of_transfer():
    """10 s up and 20 s down in one pass, held for 40 s: one minute, a third of it up, in 1024ths."""
    minutes = billed_minutes(trip_of((Use(3, 0.0, 10.0),), (Use(3, 20.0, 40.0),)), 5.0)
    assert minutes == pytest.approx((1 / 3, 2 / 3), abs=1e-3)
    assert sum(minutes) == 1.0


def test_who_did_not_answer_is_neither_busy_nor_idle():
    """Client 0 is busy for 25 of 125 s; client 1 was sent 90 bytes and failed."""
    link = by_minute(ground_to_sat_bps=8.0, sat_to_ground_bps=8.0, windows=TWO_PASSES, acquisition_s=0.0)
    [result] = simulate(link, [[Exchange(0, 10, 10, 5.0), Exchange(1, 90, 0, 0.0)]])
    assert result.idle_share == pytest.approx(1 - 25 / 125)


def test_always_connected_each_direction_of_a_round_is_a_contact():
    [result] = simulate(preset("flat_rate"), [[Exchange(0, 10, 10, 5.0), Exchange(1, 90, 0, 0.0)]])
    assert (result.contacts, result.distinct_contacts) == ((2, 1), 3)


def test_each_direction_takes_its_own_power_at_its_own_rate():
    """100 bytes up at 8 bps and 1 W are 100 J, 100 bytes down at 80 bps and 2 W are 20."""
    link = by_minute(ground_to_sat_bps=8.0, sat_to_ground_bps=80.0, tx_w=2.0, rx_w=1.0)
    [result] = simulate(link, [[Exchange(0, 100, 100, 0.0)]])
    assert result.energy_j == (100.0, 20.0)


def test_a_contact_that_is_acquisition_from_end_to_end_is_refused():
    with pytest.raises(ConfigError, match=r"acquisition_s=100\.0: satellite 0 has no contact longer than that"):
        by_minute(windows=TWO_PASSES, acquisition_s=100.0)


def test_the_next_contact_is_the_satellites_own_in_its_own_repetition():
    """Period 100 s: satellite 0 is there at 0-10 and 20-30 s, satellite 1 at 50-60 and 70-80 s."""
    contacts = Contacts(100.0, (((0.0, 10.0), (20.0, 30.0)), ((50.0, 60.0), (70.0, 80.0))))
    assert next(contacts.after(1, 40.0)) == (0, 50.0, 60.0)
    assert next(contacts.after(0, 40.0)) == (2, 100.0, 110.0)
    assert next(contacts.after(1, 765.0)) == (15, 770.0, 780.0)
    assert finish(40.0, 5, 8.0, contacts, 1) == 55.0


def test_a_pass_that_is_acquisition_from_end_to_end_is_not_used():
    contacts = Contacts(100.0, (((0.0, 10.0), (20.0, 60.0)),))
    assert [use.contact for use in transfer(0.0, 5, 8.0, contacts, 0, 10.0)] == [1]


def test_each_direction_is_framed_in_its_own_way():
    """The document's example: 440,000 bytes are 443 frames of 1,024 up and 407 of 1,115 down."""
    trip = send(preset("cubesat_sband"), Exchange(0, 440_000, 440_000, TRAIN_S), 0.0)
    assert trip.wire_bytes == (443 * 1024, 407 * 1115) == (453_632, 453_805)
