"""The pictures of a sweep say what bars and ± are."""

import itertools

import pytest
from conftest import labels

from fl.core.units import MIB
from fl.experiment import sweep_plots
from fl.experiment.sweep import over_seeds


@pytest.mark.parametrize("settings", [["lr"], ["lr", "num_rounds"]])
def test_a_sweep_over_seeds_says_what_its_spread_is(settings, drawn, tmp_path):
    jobs = [
        {
            "job": number, "lr": lr, "num_rounds": "2", "seed": seed, "state": "completed",
            "test_accuracy": 0.5 + 0.1 * float(lr) + 0.01 * int(seed),
            "broadcast_payload_bytes": MIB, "update_payload_bytes": MIB,
        }
        for number, (lr, seed) in enumerate(itertools.product("12", "123"))
    ]  # fmt: skip
    swept = [*settings, "seed"]
    document = {
        "data": ["images"], "swept": swept, "jobs": jobs, "over_seeds": over_seeds(jobs, swept), "pareto_front": [5],
    }  # fmt: skip
    records = {job["job"]: [{"test_accuracy": job["test_accuracy"]}] for job in jobs}
    sweep_plots.plot_sweep(tmp_path, document, records)
    first, pareto = drawn
    said = first.get_suptitle() or first.axes[0].get_title()
    assert "mean ± standard deviation over n seeds" in said
    assert "diamonds: mean ± standard deviation over n seeds" in pareto.axes[0].get_title()
    assert len(labels(pareto)) == 2  # one for each value, not for each job
    if len(settings) == 2:
        assert [text.get_text() for text in first.axes[0].texts] == ["62.00 %\n± 1.00, n = 3", "72.00 %\n± 1.00, n = 3"]
    else:
        assert {text.get_text() for text in first.axes[0].texts} == {"lr=1 (n = 3)", "lr=2 (n = 3)"}
