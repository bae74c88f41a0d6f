"""The picture of traffic can be read: labels apart from each other, outliers apart."""

import itertools
import sys
from pathlib import Path

from conftest import REPOSITORY, labels

sys.path.append(str(REPOSITORY / "benchmarks"))

import traffic_plot
import traffic_table


def line(name, mb, change, half=None, baseline="fp32"):
    low, high = (None, None) if half is None else (change - half, change + half)
    points = {"change_points": change, "low_points": low, "high_points": high}
    return {"traffic": name, "baseline": baseline, "total_mb": mb, **points}


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
    lines = traffic_table.lines_of(REPOSITORY / "docs")
    traffic_plot.plot_traffic(Path("x.png"), lines)
    boxes = [text.get_window_extent() for text in labels(drawn[0])]
    assert len(boxes) >= 3
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    frame = drawn[0].axes[0].get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)
    assert "95 % interval" in drawn[0].axes[0].get_title()


def test_what_sends_as_much_as_fp32_is_no_kind_of_traffic(drawn):
    lines = [line("FP32", 332, None), line("iid", 10, -0.6), line("another recipe", 332, 1.0)]
    traffic_plot.plot_traffic(Path("x.png"), lines)
    assert [text.get_text() for text in labels(drawn[0])] == ["FP32", "iid"]


def test_the_front_joins_what_is_compared_with_the_same_baseline(drawn):
    lines = [line("FP32", 332, None), line("iid", 10, -0.6), line("uneven clients", 9, -0.5, baseline="uneven")]
    traffic_plot.plot_traffic(Path("x.png"), lines)
    joined, *_ = drawn[0].axes[0].lines
    assert list(joined.get_xdata()) == [10, 332]


def test_the_front_is_what_no_other_beats():
    places = [(10, 0.0, {}), (5, -1.0, {}), (7, -2.0, {}), (20, 0.0, {}), (30, 0.5, {})]
    assert [x for x, *_ in traffic_plot.front(places)] == [5, 10, 30]
