"""Pictures can be read: labels apart from each other, outliers apart, and what bars and ± are is said."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY

from fl.core.files import MIB
from fl.experiment import sweep_plots
from fl.experiment.sweep import over_seeds
from fl.federation import plots

sys.path.append(str(REPOSITORY / "benchmarks"))

import traffic_plot
import traffic_table


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved from here on."""
    figures = []
    for module in (plots, sweep_plots, traffic_plot):
        monkeypatch.setattr(module, "save_figure", lambda figure, path: figures.append(figure))
    return figures


def labels(figure):
    return [text for axes in figure.axes for text in axes.texts]


def line(name, mb, change, half=None):
    low, high = (None, None) if half is None else (change - half, change + half)
    return {"traffic": name, "total_mb": mb, "change_points": change, "low_points": low, "high_points": high}


def test_labels_of_close_points_hide_neither_each_other_nor_the_points(drawn):
    lines = [line("FP32", 332, None), line("FP32, Dirichlet", 332, None), line("not run", None, None)]
    lines += [line(f"a long name of traffic, number {n}", 9 + n / 4, 0.1 * n, 0.2 if n else None) for n in range(5)]
    traffic_plot.plot_traffic(Path("x.png"), lines)
    (figure,) = drawn
    (axes,) = figure.axes
    found = labels(figure)
    assert len(found) == 6  # all baselines are one point at 0
    boxes = [text.get_window_extent() for text in found]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    points = axes.transData.transform(
        [(each["total_mb"], each["change_points"] or 0) for each in (*lines[:1], *lines[3:])]
    )
    assert not any(box.contains(*point) for box in boxes for point in points)


def test_an_outlier_is_drawn_apart(drawn):
    lines = [line("FP32", 332, None), line("near", 10, -0.6, 0.3), line("far", 1.4, -49.0)]
    traffic_plot.plot_traffic(Path("x.png"), lines)
    upper, lower = drawn[0].axes
    assert upper.get_ylim()[0] > -3
    assert lower.get_ylim()[0] < -49 < lower.get_ylim()[1] < -40
    assert [text.get_text() for text in lower.texts] == ["far"]
    traffic_plot.plot_traffic(Path("x.png"), lines[:2])
    assert len(drawn[1].axes) == 1


def test_the_stored_figures_can_be_drawn_and_labelled(drawn):
    lines = traffic_table.drawn_lines(REPOSITORY / "docs")
    traffic_plot.plot_traffic(Path("x.png"), lines)
    boxes = [text.get_window_extent() for text in labels(drawn[0])]
    assert len(boxes) >= 3
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert "95 % interval" in drawn[0].axes[0].get_title()


def test_the_front_is_what_no_other_beats():
    places = [(10, 0.0, {}), (5, -1.0, {}), (7, -2.0, {}), (20, 0.0, {}), (30, 0.5, {})]
    assert [x for x, *_ in traffic_plot.front(places)] == [5, 10, 30]


def test_a_run_shows_accuracy_over_the_bytes_sent_until_then(drawn):
    records = [
        {
            "round": number, "train_loss": 1.0, "test_loss": 1.0, "test_accuracy": accuracy,
            "broadcast": {"payload_bytes": sent, "message_bytes": 0, "fp32_payload_bytes": 0},
            "update": {"payload_bytes": MIB, "message_bytes": 0, "fp32_payload_bytes": 0},
        }
        for number, accuracy, sent in ((1, 0.5, 0), (2, 0.75, 2 * MIB))
    ]  # fmt: skip
    plots.plot_rounds(Path("x.png"), records, "data")
    over_bytes = drawn[0].axes[2]
    assert over_bytes.get_xlabel() == "payload sent until then, both directions (MB)"
    assert np.allclose(over_bytes.lines[0].get_xydata(), [[1, 50], [4, 75]])


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
        assert [text.get_text() for text in first.axes[0].get_legend().get_texts()] == ["lr=1 (n = 3)", "lr=2 (n = 3)"]
