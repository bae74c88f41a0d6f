"""Any difference between a stored report and a new one is a line."""

import pytest

from fl.comparison.verify import differences

REPORT = {"a": {"loss": 0.5, "x": 1, "list": [1, {"y": 2.0}]}, "b": None}


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        ({}, []),
        ({"b": 1}, ["b: stored None, recomputed 1"]),
        ({"a": {**REPORT["a"], "loss": 0.5 + 1e-6}}, []),
        ({"a": {**REPORT["a"], "loss": 0.5 + 1e-4}}, ["a.loss: stored 0.5, recomputed 0.5001"]),
        ({"a": {**REPORT["a"], "x": 1.0}}, ["a.x: stored 1, recomputed 1.0"]),
        ({"a": {**REPORT["a"], "x": True}}, ["a.x: stored 1, recomputed True"]),
        ({"a": {**REPORT["a"], "list": [1, {"y": 2.0 + 1e-9}]}}, ["a.list.1.y: stored 2.0, recomputed 2.000000001"]),
        ({"a": {**REPORT["a"], "list": [1]}}, ["a.list: stored [1, {'y': 2.0}], recomputed [1]"]),
        ({"c": 1}, ["c: is missing"]),
    ],
)
def test_any_difference_between_reports_is_a_line(change, lines):
    assert differences(REPORT, {**REPORT, **change}) == lines


def test_a_figure_that_is_not_recomputed_is_told():
    assert differences(REPORT, {"a": REPORT["a"]}) == ["b: is not expected"]
