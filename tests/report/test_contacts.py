"""A run that contacts drove: its page, its pictures, and the files that they are of say the same."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import SMALL, composed

from fl.communication.constellation import File, load_constellation
from fl.core.figures import picture
from fl.core.files import read_json, read_jsonl, write_json
from fl.core.run_folder import is_complete
from fl.experiment.run import _write_contacts, run
from fl.federation.clock_settings import ClockSettings
from fl.report.contacts import contacts
from fl.report.content import of_run
from fl.report.orbit import (
    Activity,
    activities,
    apart_deg,
    draw_activity,
    draw_contacts_or_say,
    draw_tracks,
    windows_of,
)
from fl.report.plots import draw
from fl.report.records import RunRecords

EVENTS = [
    (0, "sends"), (60, "received"), (80, "trained"), (310, "arrived"), (310, "sends"), (320, "received"),
    (330, "failed"), (400, "sends"), (410, "received"), (420, "trained"), (505, "late"), (505, "sends"),
]  # fmt: skip
"""Of satellite 3; what is on the way when the run ends at 600 s is shown until then."""


@pytest.fixture
def by_hand(tmp_path):
    """Contacts from 0 to 20, 40 to 65, 200 to 340 and 390 to 500 s of every 500, each of which loses 5 s."""
    events = [{"satellite": 3, "time_s": float(time), "event": event, "payload_bytes": 9} for time, event in EVENTS]
    events += [{"satellite": None, "time_s": 600.0, "event": "version"}]
    (tmp_path / "timeline.jsonl").write_text("".join(json.dumps(each) + "\n" for each in events))
    (tmp_path / "settings.json").write_text('{"link": {"acquisition_s": 5.0}}')
    windows = [[[7, 8]], [[0, 20, 0], [40, 65, 1], [200, 340, 0], [390, 500, 0]]]
    (tmp_path / "contacts.json").write_text(json.dumps({"period_s": 500.0, "windows": windows}))
    return tmp_path


def seconds(spans):
    return [tuple(round(3600 * each, 6) for each in span) for span in spans]


def test_what_a_satellite_does_lasts_from_one_event_to_the_next_and_transfers_wait_for_contacts(by_hand):
    found = activities(RunRecords(by_hand))
    assert list(found) == [3]
    assert {kind: seconds(spans) for kind, spans in found[3].done.items()} == {
        "receiving": [(5, 20), (45, 60), (310, 320), (400, 410), (505, 520), (545, 565)],
        "training": [(60, 80), (320, 330), (410, 420)],
        "sending": [(205, 310), (420, 500)],
    }
    assert seconds(found[3].contacts) == [(0, 20), (40, 65), (200, 340), (390, 500), (500, 520), (540, 565)]
    assert seconds([found[3].lost]) == [(330, 505)]


def test_without_a_file_of_contacts_a_satellite_always_is_in_contact(by_hand):
    (by_hand / "contacts.json").unlink()
    found = activities(RunRecords(by_hand))
    assert seconds(found[3].done["receiving"]) == [(0, 60), (310, 320), (400, 410), (505, 600)]
    assert not found[3].contacts


def test_of_a_plane_the_sink_alone_sends_and_who_is_passed_a_model_on_receives_nothing_from_a_station(by_hand):
    told = [(5, 3, "received", 9), (30, 3, "trained", 0), (32, 3, "relayed", 9), (230, 3, "summed", 9)]
    told += [(230, 3, "arrived", 0), (5, 1, "received", 9), (31, 1, "trained", 0), (230, 1, "arrived", 0)]
    events = [
        {"satellite": satellite, "time_s": float(time), "event": event, "payload_bytes": payload}
        for time, satellite, event, payload in told
    ]
    (by_hand / "timeline.jsonl").write_text("".join(json.dumps(each) + "\n" for each in events))
    found = {
        number: {k: seconds(v) for k, v in row.done.items()} for number, row in activities(RunRecords(by_hand)).items()
    }
    assert found == {1: {"training": [(5, 31)]}, 3: {"training": [(5, 30)], "sending": [(45, 65), (205, 230)]}}


def test_contacts_repeat_and_more_clients_than_satellites_share_them(by_hand):
    contacts = read_json(by_hand / "contacts.json")
    assert windows_of(contacts, 2, 1007.5) == [(7, 8), (507, 508), (1007, 1007.5)]
    assert windows_of(contacts, 2, 507.0) == [(7, 8)]
    assert windows_of({}, 2, 507.0) is None


def test_every_bar_is_in_its_satellites_row_and_no_two_kinds_cover_each_other(drawn, tmp_path):
    rows = {
        2: Activity([(0, 1)], {"receiving": [(0.25, 0.5)], "training": [(0.5, 0.75)]}, []),
        5: Activity([(2, 3), (4, 5)], {"sending": [(2.5, 3), (4, 4.25)]}, [4.25]),
    }
    with picture(tmp_path / "a.png", 8, 3) as (_, (axes,)):
        draw_activity(axes, rows)
    (axes,) = drawn[0].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["2", "5"]
    bars = {each.get_label(): each.get_datalim(axes.transData).bounds for each in axes.collections}
    row, height = 1, {kind: bars[f"_{kind}"][1::2] for kind in ("contact", "receiving", "training", "sending")}
    assert bars["_contact"][::2] == (2, 3)
    assert bars["_sending"][::2] == (2.5, 1.75)
    for low, tall in height.values():
        assert row - 0.5 <= low or not tall
    assert bars["receiving"][1] + bars["receiving"][3] <= 0 <= bars["_sending"][1] - row
    assert axes.lines[0].get_xydata().tolist() == [[4.25, 1]]
    told = [text.get_text() for text in drawn[0].legends[0].texts]
    assert told == ["waiting", "contact", "receiving", "training", "sending", "update lost"]


def test_a_track_goes_on_on_the_other_side_of_the_map(drawn, tmp_path):
    station = {"name": "pole", "latitude_deg": 80.0, "longitude_deg": 100.0, "horizon_deg": 15.0}
    track = [[0.0, 170.0], [10.0, -175.0], [20.0, -160.0]]
    with picture(tmp_path / "a.png", 8, 4) as (_, (axes,)):
        draw_tracks(axes, {"planes": [0], "tracks": [track], "stations": [station]})
    (axes,) = drawn[0].axes
    turns = [line.get_xydata() for line in axes.lines if len(line.get_xydata()) == 3]
    assert sorted(turn[0, 0] for turn in turns) == [-190, 170, 530]
    for turn in turns:
        assert np.allclose(np.diff(turn, axis=0), [15, 10])
    edges = np.concatenate([path.vertices for each in axes.collections for path in each.get_paths()])
    inside = edges[(np.abs(edges[:, 0]) < 179) & (np.abs(edges[:, 1]) < 89)]
    assert len(inside) > 100
    assert np.allclose(apart_deg(*inside.T, 100.0, 80.0), 15, atol=0.2)
    assert {text.get_text() for text in axes.texts} == {"pole", "0"}


def test_what_planes_pass_on_and_lose_is_told(tmp_path):
    told = {"hours": 3.0, "cost_usd": 20.0, "updates_used": 6, "versions": 2, "idle_share": 0.5, "contact_share": None}
    told |= {"reached": {}, "never_returned": [], "inter_satellite_bytes": 123456}
    told["coding_error"] = {"mean": 0.0615, "max": 0.07}
    write_json(tmp_path / "summary.json", {"contacts": told})
    (section,) = contacts(RunRecords(tmp_path))
    assert section.texts[1].startswith("Satellites of a plane passed on 123,456 bytes; the second coding")
    assert "by 6.2 % of their length" in section.texts[1]


def test_contacts_are_written_down_as_far_as_anybody_knows_them(tmp_path, capsys):
    write_json(tmp_path / "w.json", {"period_s": 100, "windows": [[[1, 90]]]})
    unknown = File(str(tmp_path / "w.json"), "pole", None)
    plan = unknown.plan(tmp_path, 0.0)
    for clock, constellation, windows in (
        ("rounds", None, plan.contacts),
        ("contacts", None, None),
        ("contacts", None, plan.contacts),
        ("contacts", unknown, plan.contacts),
    ):
        server = SimpleNamespace(link=SimpleNamespace(windows=windows))
        settings = SimpleNamespace(clock=ClockSettings(clock), constellation=constellation, server=server)
        _write_contacts(tmp_path, settings, plan if constellation else None)
        assert (tmp_path / "contacts.json").exists() == (clock == "contacts" and windows is not None)
        assert ("no picture of ground tracks (constellation.path=" in capsys.readouterr().out) == bool(constellation)
        if windows and clock == "contacts":
            assert File(str(tmp_path / "contacts.json"), "pole", None).plan(tmp_path, 0.0).contacts == windows
            (tmp_path / "contacts.json").unlink()


def test_distances_are_angles_at_the_centre():
    found = apart_deg(np.array([0.0, 90.0, 180.0, 13.0]), np.array([0.0, 0.0, 0.0, 90.0]), 0.0, 0.0)
    assert np.allclose(found, [0, 90, 180, 90])


def test_a_run_of_contacts_has_a_section_and_pictures_of_its_own(tmp_path, capsys):
    asked = ("clock=contacts", "policy=fedasync", "link=ttc_uhf", "link.train_s=1000", "report=true")
    run(composed(*SMALL, *asked, "constellation=plane_10", "num_clients=10", "model=linear"), tmp_path)
    told = read_json(tmp_path / "summary.json")["contacts"]
    section = next(each for each in of_run(RunRecords(tmp_path)).sections if each.title == "Simulated time")
    assert f"{told['hours']:,.1f} simulated hours and ${told['cost_usd']:,.2f}" in section.texts[0]
    lines = read_jsonl(tmp_path / "rounds.jsonl")
    assert f"{lines[-1]['simulated_s'] / 3600:,.1f} simulated hours" in section.pictures[0].alternative
    timeline = read_jsonl(tmp_path / "timeline.jsonl")
    arrived = [sum(e["event"] == "arrived" and e["satellite"] == n for e in timeline) for n in range(10)]
    assert told["updates_of_satellites"] == arrived
    assert told["payload_bytes"]["sat_to_ground"] >= sum(
        e["payload_bytes"] for e in timeline if e["event"] == "arrived"
    )
    assert 'id="simulated-time"' in (tmp_path / "report.html").read_text()
    assert len(section.pictures) == 3
    _has_pictures_that_are_drawn_again(tmp_path, capsys)


def _has_pictures_that_are_drawn_again(folder, capsys):
    own = load_constellation("plane_10").plan(folder, 30.0)
    assert File(str(folder / "contacts.json"), "unused", None).plan(folder, 30.0) == own
    (folder / "plots").mkdir()
    again = dict(draw([folder], folder / "plots"))
    for name, source in (
        ("accuracy_over_hours", "rounds.jsonl"),
        ("activity", "timeline.jsonl"),
        ("ground_tracks", "contacts.json"),
    ):
        assert again[folder / "plots" / f"{name}.png"] == source
        assert (folder / f"{name}.png").stat().st_size > 10_000
        assert (folder / f"{name}.svg").read_bytes() == (folder / "plots" / f"{name}.svg").read_bytes()
    assert is_complete(folder)
    (folder / "activity.png").unlink()
    assert not is_complete(folder)
    (folder / "timeline.jsonl").write_text('{"time_s": 1.0, "event": "sends"}\n')
    draw_contacts_or_say(folder)
    assert f"note: {folder}: not all pictures of its contacts could be drawn ('satellite')" in capsys.readouterr().out
