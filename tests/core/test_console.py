"""Tables cut nothing, however narrow the terminal is."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from fl.communication.tables import short_names
from fl.core.console import show_table
from fl.deployment.bench import COLUMNS as BENCH_COLUMNS
from fl.deployment.files import COLUMNS as FORMAT_COLUMNS
from fl.experiment.sweep import show


def cells_of(said):
    """Returns the cells of all rows of all tables, headings left out, as they stand."""
    rows = [line.strip("│").split("│") for line in said.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in row] for row in rows]


@pytest.fixture
def printed(monkeypatch, capsys):
    """Prints at a width, None for no width, and returns what came."""

    def at(width, work, *arguments, **options):
        monkeypatch.delenv("COLUMNS", raising=False)
        if width:
            monkeypatch.setenv("COLUMNS", str(width))
        capsys.readouterr()
        work(*arguments, **options)
        return capsys.readouterr().out

    return at


def whole(said, width, rows, keys):
    """Holds that every cell but the names is there, and no line is wider than the terminal."""
    assert "…" not in said
    assert width is None or max(map(cell_len, said.splitlines())) <= width
    found = {cell for row in cells_of(said) for cell in row}
    assert {cell for row in rows for cell in row[keys:] if cell} <= found


NUMBERS = st.integers(0, 10**12).map(lambda n: f"${n / 100:,.2f}")


@settings(max_examples=60, deadline=None)
@given(data=st.data(), width=st.sampled_from([None, 80, 100, 140]), keys=st.integers(1, 2))
def test_no_cell_is_cut_at_any_width(data, width, keys):
    import contextlib
    import io
    import os
    from unittest import mock

    count = data.draw(st.integers(keys + 1, 12))
    names = st.text("abcdefgh/-_ 0123", min_size=1, max_size=70).map(lambda text: text.strip() or "x")
    row = st.tuples(*[names] * keys, *[NUMBERS] * (count - keys))
    rows = data.draw(st.lists(row, min_size=1, max_size=4))
    headings = data.draw(st.lists(st.sampled_from(["cost", "time of one byte", "p95"]), min_size=count, max_size=count))
    said = io.StringIO()
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    if width:
        environment["COLUMNS"] = str(width)
    with contextlib.redirect_stdout(said), mock.patch.dict(os.environ, environment, clear=True):
        show_table(headings, rows, keys)
    whole(said.getvalue(), width, rows, keys)
    letters = {letter for line in rows for name in line[:keys] for letter in name if letter != " "}
    assert letters <= set(said.getvalue()), "a name is cut"


@pytest.mark.parametrize("width", [80, 100, 140, None])
@pytest.mark.parametrize("columns", [BENCH_COLUMNS, FORMAT_COLUMNS], ids=["bench", "formats"])
def test_the_widest_tables_are_whole(printed, columns, width):
    rows = [[f"model_int8_static_of_{i}.onnx", str(i), *[f"{i},738,408.25 ms"] * len(columns[2:])] for i in (1, 2)]
    said = printed(width, show_table, columns, rows, keys=2)
    whole(said, width, rows, 2)
    assert said.count("┏") == (1 if width is None else said.count("└"))
    if width == 80:
        assert said.count("┏") > 1


@pytest.mark.parametrize("width", [80, 100, 140, None])
def test_the_table_of_a_sweep_is_whole(printed, width, tmp_path):
    job = {"test_accuracy": 0.91234, "broadcast_payload_bytes": 123456789, "update_payload_bytes": 98765432}
    swept = {"update.bits": "0.51", "data.path": "/a/very/long/path/of/a/data/set/EuroSAT.zip", "seed": "42"}
    jobs = [{"job": n, **swept, **job, "rounds_s": 12345.6, "state": "completed"} for n in range(2)]
    means = {"seeds": 2, "mean_test_accuracy": 0.91234, "std_test_accuracy": 0.01, "mean_payload_bytes": 222222221}
    document = {
        "data": ["synthetic"],
        "swept": list(swept),
        "jobs": jobs,
        "pareto_front": [1],
        "over_seeds": [{**swept, **means}],
        "plots": [],
    }
    said = printed(width, show, tmp_path, document)
    cells = {cell for row in cells_of(said) for cell in row}
    assert "…" not in said
    assert {"91.23 %", "117.74 MB", "94.19 MB", "12345.6", "completed *", "211.93 MB", "1.00 %", "0.51"} <= cells
    assert width is None or max(len(line) for line in said.splitlines() if line[:1] in "│┃") <= width


def test_a_heading_breaks_between_words_and_never_before_a_percent_sign(printed):
    said = printed(30, show_table, ["run", *["70 %"] * 8], [["a", *["–"] * 8]])
    assert said.count("70 %") == 8


def test_a_width_that_is_none_is_not_taken(printed):
    rows = [["x" * 100, "$1.00"]]
    for nonsense in ("0", "wide"):
        assert "x" * 100 in printed(nonsense, show_table, ["run", "cost"], rows)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["run"], ["run"]),
        (["/a/long/way/to/outputs/day/10-00-00"], ["10-00-00"]),
        (["/long/way/to/outputs/day/10-00-00/", "run"], ["10-00-00", "run"]),
        (
            ["outputs/2026-11-24/10-00-00", "outputs/2026-11-25/10-00-00"],
            ["2026-11-24/10-00-00", "2026-11-25/10-00-00"],
        ),
        (["/long/way/to/outputs/a if fp16 files", "/long/way/to/outputs/a"], ["a if fp16 files", "a"]),
    ],
)
def test_tables_call_runs_by_what_tells_them_apart(labels, names):
    assert list(short_names(labels).values()) == names
