"""The page of a run that contacts drove: its hours, money and activity are those of its files."""

from types import SimpleNamespace

from conftest import SMALL, composed

from fl.core.files import read_json, read_jsonl
from fl.experiment.run import run
from fl.report.contacts import activity, contacts
from fl.report.content import of_run
from fl.report.records import RunRecords


def test_what_a_satellite_does_lasts_from_one_event_to_the_next():
    told = [
        (0, "sends"),
        (10, "received"),
        (30, "trained"),
        (45, "arrived"),
        (45, "sends"),
        (50, "received"),
        (55, "failed"),
    ]
    timeline = [{"satellite": 3, "time_s": 3600.0 * time, "event": event} for time, event in told]
    timeline.insert(4, {"satellite": None, "time_s": 0.0, "event": "version"})
    assert activity(timeline) == {
        3: [
            ("receives", 0, 10), ("trains", 10, 30), ("waits and sends", 30, 45),
            ("receives", 45, 50), ("trains", 50, 55),
        ]
    }  # fmt: skip


def test_who_is_passed_a_model_on_does_nothing_before_and_waits_for_its_planes_sum():
    told = [(5, "received"), (9, "trained"), (10, "relayed"), (20, "arrived"), (50, "received"), (60, "failed")]
    timeline = [{"satellite": 1, "time_s": 3600.0 * time, "event": event} for time, event in told]
    waits = [("waits and sends", 9, 10), ("waits and sends", 10, 20)]
    assert activity(timeline) == {1: [("trains", 5, 9), *waits, ("trains", 50, 60)]}


def test_what_planes_pass_on_and_lose_is_told():
    told = {"hours": 3.0, "cost_usd": 20.0, "updates_used": 6, "versions": 2, "idle_share": 0.5, "contact_share": None}
    told |= {"reached": {}, "never_returned": [], "inter_satellite_bytes": 123456}
    told["coding_error"] = {"mean": 0.0615, "max": 0.07}
    run = SimpleNamespace(summary={"contacts": told}, rounds=[], timeline=[])
    (section,) = contacts(run)
    assert section.texts[1].startswith("Satellites of a plane passed on 123,456 bytes; the second coding")
    assert "by 6.2 % of their length" in section.texts[1]


def test_a_run_of_contacts_has_a_section_of_its_own(tmp_path):
    asked = ("clock=contacts", "policy=fedasync", "link=ttc_uhf", "link.train_s=1000", "report=true")
    run(composed(*SMALL, *asked), tmp_path)
    told = read_json(tmp_path / "summary.json")["contacts"]
    section = next(each for each in of_run(RunRecords(tmp_path)).sections if each.title == "Simulated time")
    assert f"{told['hours']:,.1f} simulated hours and ${told['cost_usd']:,.2f}" in section.texts[0]
    lines = read_jsonl(tmp_path / "rounds.jsonl")
    assert f"{lines[-1]['simulated_s'] / 3600:,.1f} simulated hours" in section.pictures[0].alternative
    timeline = read_jsonl(tmp_path / "timeline.jsonl")
    arrived = [sum(e["event"] == "arrived" and e["satellite"] == n for e in timeline) for n in range(4)]
    assert told["updates_of_satellites"] == arrived
    assert told["payload_bytes"]["sat_to_ground"] >= sum(
        e["payload_bytes"] for e in timeline if e["event"] == "arrived"
    )
    assert 'id="simulated-time"' in (tmp_path / "report.html").read_text()
