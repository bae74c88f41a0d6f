"""Jobs of a multirun, as its folder tells them: rows, groups over seeds, the front."""

import json
from itertools import product

import pytest

from fl.experiment.sweep import over_seeds, pareto_front, read_jobs, swept_settings
from fl.experiment.sweep_plots import in_order


def test_jobs_that_have_not_started_come_from_the_plan(tmp_path):
    (tmp_path / "multirun.yaml").touch()
    swept = product(["num_rounds=2", "num_rounds=4"], ["num_clients=5", "num_clients=10"])
    (tmp_path / "sweep_plan.json").write_text(json.dumps([[*job, "seed=1"] for job in swept]))
    jobs = read_jobs(tmp_path)
    assert [job.state for job in jobs] == ["not started"] * 4
    assert swept_settings(jobs) == ["num_rounds", "num_clients"]
    assert [job.overrides["num_clients"] for job in jobs] == ["5", "10", "5", "10"]


def test_pareto_front():
    points = {0: (1.0, 0.5), 1: (2.0, 0.5), 2: (2.0, 0.7), 3: (3.0, 0.6), 4: (1.0, 0.4), 5: (2.0, 0.7)}
    assert pareto_front(points) == [0, 2, 5]
    assert pareto_front({}) == []


def test_seeds_alone_are_one_group():
    rows = [
        {"seed": s, "state": "completed", "test_accuracy": a, "broadcast_payload_bytes": 1, "update_payload_bytes": 2}
        for s, a in ((1, 0.5), (2, 0.7))
    ]
    (group,) = over_seeds([*rows, {**rows[0], "state": "failed"}], ["seed"])
    assert group["seeds"] == 2
    assert group["mean_test_accuracy"] == pytest.approx(0.6)
    assert group["std_test_accuracy"] == pytest.approx(0.02**0.5)


def test_values_are_in_order():
    assert in_order(["10", "9", "iid", "0.1", "dirichlet", "10"]) == ["0.1", "9", "10", "dirichlet", "iid"]
