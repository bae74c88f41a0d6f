"""The grid of runs that contacts drive: its rows can be composed, and its tables say what its figures are."""

import sys

import pytest
from conftest import REPOSITORY, composed

from fl.core.files import write_json

sys.path.append(str(REPOSITORY / "benchmarks"))

import contacts_table
import orbit
import orbit_table
import tables
import traffic_table
from grid import VERSION
from orbit_table import CHOSEN_ROWS, ROWS

NAMED = {row.name: row for row in (*CHOSEN_ROWS, *ROWS)}


def figures(accuracy, hours=20.0, reached=None):
    return {
        "test_accuracy": accuracy,
        "validation_accuracy": accuracy,
        "staleness_mean": 1.5,
        "contacts": {
            "hours": hours,
            "cost_usd": 1234.5,
            "payload_bytes": {"total": 10 * 2**20},
            "reached": {"85": reached, "90": None},
        },
    }


def test_a_row_for_each_question_and_every_setting_is_one():
    assert len(NAMED) == len(ROWS) + len(CHOSEN_ROWS) == 22
    assert sum(len(row.seeds) for row in ROWS) == 6 + 4 + 2 + 2 + 4 + 6
    for row in NAMED.values():
        if "policy=intraplane" not in row.overrides:
            found = composed(*row.overrides)
            assert (found["clock"], found["link"]["train_s"]) == ("contacts", 1000)
    stored_runs = {row.name: row.seeds for row in traffic_table.ROWS}
    for row in ROWS:
        assert (
            not row.baseline or row.name.startswith("fedbuff-int8") or set(row.seeds) <= set(stored_runs[row.baseline])
        )
    assert {row.seeds for row in CHOSEN_ROWS} == {(1,)}
    assert all("data.validation_fraction=0.1" in row.overrides for row in CHOSEN_ROWS)


def test_accuracy_is_compared_with_the_same_seeds_in_rounds():
    runs = {("fedbuff-ecq-uhf", seed): figures(0.90, reached={"hours": 5.25, "cost_usd": 99.6}) for seed in (101, 102)}
    rounds = {("ecq-1", 101): {"test_accuracy": 0.92}, ("fp32", 102): {"test_accuracy": 0.99}}
    table = orbit_table.table(runs, rounds)
    cells = "| 2 of 3 | 5.2 h, $100 | never | 20.0 h, $1,234 | 90.00 % | -2.00 | 1.50 | 10.0 |"
    assert f"| FedBuff, K = 5, ecq, 0.94 bit, plane_10, ttc_uhf {cells}" in table
    assert "Not finished: 2 of 24 runs." in table
    assert "ends -2.00 points of test accuracy" in orbit_table.staleness(runs, rounds)
    assert "not measured yet" in orbit_table.staleness({}, rounds)
    assert orbit_table.table({}, rounds) is orbit_table.choice_table({}) is None


def test_what_is_chosen_is_chosen_on_validation_images():
    table = orbit_table.choice_table({("choice-lr-0.5", 1): figures(0.875)})
    assert "| FedBuff, K = 5, η = 0.5 | 87.50 % | 20.0 |" in table
    assert "| FedAsync, a = 0.9 |  |  |" in table


def test_docs_show_runs_once_they_are_stored(tmp_path):
    text = "<!-- made by make tables: orbit -->\n\nby hand\n\n<!-- end: orbit -->\n"
    assert tables.render(text, tmp_path, "x.md") == text
    runs = [{"row": "fedasync-ecq-uhf", "seed": 101, "overrides": [], **figures(0.8)}]
    write_json(tmp_path / "orbit.json", {"version": VERSION, "runs": runs})
    assert "FedAsync, ecq, 0.94 bit, plane_10, ttc_uhf" in tables.render(text, tmp_path, "x.md")


def test_figures_of_a_run_are_those_of_its_files():
    found = orbit.figures(REPOSITORY / "examples" / "orbit")
    assert found["contacts"]["updates_used"] == 100
    assert found["simulated_s_by_round"][-1] == pytest.approx(3600 * found["contacts"]["hours"])
    assert found["rounds"] == len(found["accuracy_by_round"]) == 10
    assert found["staleness_max"] >= found["staleness_mean"] > 0


def test_sentences_follow_from_what_is_stored():
    first, second, slow, images = contacts_table.sentences(tables.DOCS)
    assert "`ttc_uhf`" in first
    assert "beyond int8 both ways, fewer bits change no hour" in second
    columns, rows = contacts_table.bits_table(tables.DOCS)
    hours = {row[0]: row[columns.index("1,200 bps")].split(",")[0] for row in rows}
    assert f"takes {hours['0.5']} and 4 bits {hours['4']}:" in slow
    for link, each in (("ttc_uhf", "4.0 MB"), ("cubesat_sband", "2,003.4 MB")):
        assert f"below {each} over `{link}`" in images
