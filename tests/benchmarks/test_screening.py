"""Settings are chosen by validation images, among candidates that send no more bytes, on seeds that do not count."""

import json
import sys

import pytest
from conftest import REPOSITORY

from fl.core.errors import ConfigError

sys.path.append(str(REPOSITORY / "benchmarks"))

import grid
import screen
import screening_table
import traffic_table
from screening_table import CANDIDATES, chosen, finalists, table


def run(name, seed, accuracy, payload=1000, loss=0.3):
    own = {
        "row": name,
        "seed": seed,
        "validation_accuracy": accuracy,
        "validation_loss": loss,
        "payload_bytes": payload,
    }
    return {(name, seed): own}


@pytest.fixture
def first_stage():
    """The base at 0.70, all others at 0.60, but two better ones, and the best of all with too many bytes."""
    better = {"bits-61-42": (0.75, 1010), "size-50": (0.74, 990), "size-0": (0.9, 1030), "base": (0.7, 1000)}
    found = {}
    for row in CANDIDATES:
        found |= run(row.name, 1, *better.get(row.name, (0.6, 1000)))
    return found


def test_the_best_two_that_keep_to_the_bytes_go_on(first_stage):
    assert [row.name for row in finalists(first_stage)] == ["bits-61-42", "size-50"]
    assert all(row.seeds == (1, 2, 3) for row in finalists(first_stage))
    assert chosen(first_stage) is None
    assert "nothing is chosen" in table(first_stage)
    del first_stage["feedback-update", 1]
    assert finalists(first_stage) == []
    assert f"{len(CANDIDATES) - 1} of {len(CANDIDATES)} candidates were run" in table(first_stage)


def test_the_mean_over_all_seeds_chooses(first_stage):
    second = {("bits-61-42", 2): 0.70, ("bits-61-42", 3): 0.70, ("size-50", 2): 0.74, ("size-50", 3): 0.72}
    for (name, seed), accuracy in second.items():
        first_stage |= run(name, seed, accuracy)
    assert chosen(first_stage).name == "size-50"
    assert "| chosen |" in (text := table(first_stage))
    assert "Chosen: step by size ** 0.5; against 0.61 / 0.42 bit +1.67 [" in text
    assert "n = 3" in text


def test_equal_accuracies_are_settled_by_the_loss():
    assert screening_table.score(run("a", 1, 0.7, loss=0.2).values()) > screening_table.score(run("b", 1, 0.7).values())


def test_candidates_differ_from_the_base_and_see_no_reported_seed():
    assert not set(screening_table.ALL) & set(grid.REPORTED)
    assert len({row.overrides for row in CANDIDATES}) == len(CANDIDATES)
    changed = {row.name: grid.composed(list(row.overrides)) for row in CANDIDATES}
    for config in changed.values():
        assert config["data"]["validation_fraction"] == 0.1
        assert config["num_rounds"] == 5
        most = 9 * config["broadcast"]["bits"] + 10 * config["update"]["bits"]  # what ten rounds send
        assert most == pytest.approx(19 * 0.51, rel=0.001)
    assert changed["size-50"]["broadcast"]["size_power"] == changed["size-50"]["update"]["size_power"] == 0.5
    assert not changed["feedback-update"]["broadcast"]["error_feedback"]
    assert changed["feedback-update"]["update"]["error_feedback"]


def test_accuracy_on_test_images_is_not_recorded(tmp_path):
    way = {"payload_bytes": 100}
    scores = {"validation_accuracy": 0.7, "validation_loss": 0.9, "test_accuracy": 0.123456, "test_loss": 0.2}
    record = {"round": 1, "broadcast": way, "update": way, **scores}
    (tmp_path / "rounds.jsonl").write_text(json.dumps(record) + "\n")
    summary = {
        "data": {"name": "x", "num_train": 8, "num_validation": 1, "num_test": 2}, "totals": {"train_s": 1.0},
        "model_sha256": "", "config": {"threads_per_client": 1}, "environment": {}, "final": scores,
    }  # fmt: skip
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    found = screen.figures(tmp_path)
    assert (found["validation_accuracy"], found["payload_bytes"]) == (0.7, 200)
    assert "test_accuracy" not in json.dumps(found)
    assert "0.123456" not in json.dumps(found)
    kept = REPOSITORY / "docs" / "screening.json"
    assert "test_accuracy" not in kept.read_text()


def test_what_is_reported_is_what_was_chosen():
    """As soon as screening is complete; a candidate of another codec's rate is an error."""
    winner = chosen(grid.stored(REPOSITORY / "docs" / "screening.json"))
    row = next(row for row in traffic_table.ROWS if row.name == "half")
    reported = grid.composed(list(row.overrides))
    wanted = grid.composed(list((winner or CANDIDATES[0]).overrides))
    for way in ("broadcast", "update"):
        assert reported[way] == wanted[way]


def test_a_setting_that_is_none_is_refused():
    with pytest.raises(ConfigError):
        grid.composed(list(screening_table.candidate("x", "x", 0.6, 0.51, no_such=1).overrides))
