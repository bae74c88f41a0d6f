"""Names and messages from elsewhere are shown, never obeyed."""

import pytest

from fl.core.console import console, say, show_table
from fl.core.errors import printable
from fl.experiment.sweep import _no_formula

HOSTILE = "\x1b[2J\x1b]0;owned\x07\u202e\u200b\x9b31m\ttext\r"


def harmless(text):
    return all(line.isprintable() for line in text.split("\n"))


def test_what_is_said_has_no_control_characters(capsys):
    say(f"first {HOSTILE}\nsecond")
    show_table(["name", "value"], [[HOSTILE, "1"], ["usual", HOSTILE]])
    said = capsys.readouterr().out
    assert harmless(said)
    assert "\\x1b[2J" in said
    assert said.splitlines()[1] == "second"
    assert console.is_terminal is False


@pytest.mark.parametrize("text", ["usual text, 12 µm, Größe, 道", "a'b\"c\\d [red] {x}", ""])
def test_usual_text_stays_as_it_is(text):
    assert printable(text) == text


@pytest.mark.parametrize(
    "arguments",
    [
        ["fl.train", "data=folder", f"data.path='{HOSTILE}'"],
        ["fl", "resume", HOSTILE],
        ["fl", "export", HOSTILE],
        ["fl", "communication", HOSTILE],
        ["fl", "sweep", HOSTILE],
    ],
)
def test_errors_show_names_escaped(arguments, command):
    done = command(*arguments, check=2)
    lines = done.stderr.split("\n")
    assert len(lines) == 2
    assert harmless(lines[0])


@pytest.mark.parametrize("cell", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "-nan(x)"])
def test_no_cell_is_a_formula(cell):
    assert _no_formula(cell) == f"'{cell}"


@pytest.mark.parametrize("cell", ["-1", "+0.5", "-1e-3", "text", "", 3, -2.5, None, "a=1"])
def test_figures_and_usual_text_are_cells_as_they_are(cell):
    assert _no_formula(cell) == cell
