"""Whatever a command is at, it says so before anybody wonders; on a terminal it draws bars."""

import gc
import json
import os
import pty
import re
import subprocess
import sys
import threading
import time

import pytest

from fl.core import output
from fl.core.console import loading_libraries, progress, say
from fl.core.errors import ConfigError, one_line_errors
from fl.core.output import OutputSettings
from fl.core.steps import OPEN, Step, heartbeat


@pytest.fixture(autouse=True)
def _speaks_as_usual_afterwards():
    yield
    output.speak(OutputSettings())
    output.job = None


def test_a_step_tells_how_far_it_is_and_what_is_left():
    step = Step("training", 10, "round", done=2)
    assert step.told() == "2 of 10 rounds, 0 s"
    step._began -= 30
    step(2.5)
    assert step.told() == "4 of 10 rounds, 30 s, about 66 s left"
    assert [step.to_json()[key] for key in ("step", "done", "total")] == ["training", 4.5, 10]
    assert step.to_json()["left_s"] == pytest.approx(66, abs=1)
    assert Step("exporting").told() == "0 s"
    assert Step("one", 1, "batch").told().startswith("0 of 1 batch,")
    assert Step("more", 2, "batch").told().startswith("0 of 2 batches,")


def test_work_of_others_is_counted_when_somebody_looks():
    finished = [1]
    step = Step("sweep", 4, "job", count=lambda: len(finished))
    finished.append(2)
    assert step.look().told().startswith("2 of 4 jobs")


LONG_CALL = """
import os, time
from fl.core.console import progress
from fl.core.errors import one_line_errors

with one_line_errors(), progress("export", 2, "file") as step, progress("writing model_int8.onnx"):
    step()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    time.sleep(1.5)
"""


def test_one_call_that_takes_long_is_not_silent():
    """What a library does in one call, with stderr silenced as converters need it."""
    environment = os.environ | {"QUANTFL_PROGRESS_S": "0.1"}
    done = subprocess.run(
        [sys.executable, "-c", LONG_CALL], env=environment, capture_output=True, text=True, check=True
    )
    lines = done.stderr.splitlines()
    assert len(lines) >= 6
    told = r"export: 1 of 2 files, \d s(, about \d s left)? > writing model_int8.onnx: \d s"
    assert all(re.fullmatch(told, line) for line in lines), lines
    assert done.stdout == ""


def test_without_a_step_it_says_that_it_is_still_at_work(capfd):
    with heartbeat(0.1):
        time.sleep(0.8)
    assert capfd.readouterr().err.startswith("still at work, 0 s\n")


def test_a_command_that_speaks_needs_no_progress(capfd):
    with heartbeat(1.5), progress("training"):
        for number in range(30):
            say(f"round {number}")
            time.sleep(0.1)
    out, err = capfd.readouterr()
    assert (len(out.splitlines()), err) == (30, "")


def test_progress_is_an_event_in_json_and_nothing_when_quiet(capfd):
    output.speak(OutputSettings(log="json"))
    output.job = 3
    with heartbeat(0.1), progress("training", 4, "round", done=1):
        time.sleep(0.8)
    out, err = capfd.readouterr()
    first = json.loads(out.splitlines()[0])
    assert {first[key] for key in ("level", "event", "job")} == {"info", "progress", 3}
    assert first["message"] == "training: 1 of 4 rounds, 0 s"
    assert [(each["step"], each["done"], each["total"]) for each in first["steps"]] == [("training", 1, 4)]
    output.speak(OutputSettings(quiet=True))
    with heartbeat(0.1), progress("training"):
        time.sleep(0.5)
    assert (err, *capfd.readouterr()) == ("", "", "")


def test_nothing_comes_after_the_end(capfd, monkeypatch):
    monkeypatch.setenv("QUANTFL_PROGRESS_S", "0.1")

    def fail():
        with one_line_errors(), progress("training"):
            time.sleep(0.5)
            raise ConfigError("lr=0: is none")

    with pytest.raises(SystemExit):
        fail()
    time.sleep(0.3)
    assert capfd.readouterr().err.splitlines()[-1] == "error: lr=0: is none"
    assert not [each for each in threading.enumerate() if each.name == "progress"]
    assert not OPEN


def test_seconds_of_silence_are_a_number(capfd, monkeypatch):
    monkeypatch.setenv("QUANTFL_PROGRESS_S", "soon")
    with pytest.raises(SystemExit) as ended, one_line_errors():
        raise AssertionError
    assert ended.value.code == 2
    assert capfd.readouterr().err == "error: QUANTFL_PROGRESS_S=soon: must be seconds, as in 60; 0 for no progress\n"


def test_libraries_and_clients_processes_are_followed_by_nobody(capfd):
    with progress("training a client"):
        time.sleep(0.3)
    assert capfd.readouterr() == ("", "")


STEPS = """
import time
from fl.core.console import loading_libraries, progress, say
from fl.core.errors import one_line_errors

with one_line_errors(), progress("training", 2, "round") as rounds:
    for number in (1, 2):
        with progress(f"round {number}/2", 3, "client") as step:
            for _ in step.over(range(3)):
                time.sleep(0.4)
        say(f"round {number} is done")
        rounds()
"""


def on_terminal(*arguments, **environment):
    """Runs Python on a terminal of its own; returns its exit code and all that came."""
    ours, theirs = pty.openpty()
    place = {"QUANTFL_PROGRESS_S": "4", "TERM": "xterm", "COLUMNS": "120"}
    told = os.environ | place | environment
    with subprocess.Popen(
        [sys.executable, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=told
    ) as process:
        os.close(theirs)
        said = b""
        while True:
            try:
                part = os.read(ours, 1 << 16)
            except OSError:  # its end
                break
            said += part
    os.close(ours)
    return process.returncode, said.decode()


def test_on_a_terminal_nested_bars_are_drawn_and_lines_stay_above_them():
    code, said = on_terminal("-c", STEPS)
    assert code == 0
    seen = re.sub(r"\x1b\[[\d?;]*[a-zA-Z]", "", said)  # without colours and movements
    assert re.search("training +━+ 0 of 2 rounds, .*\r\n  round 1/2 +[━╸╺]+ 1 of 3 clients, . s, about . s left", seen)
    assert re.search("training +[━╸╺]+ 1 of 2 rounds, .*\r\n  round 2/2", seen)
    assert said.count("round 1 is done\r\n") == 1
    assert said.endswith("round 1 is done\r\nround 2 is done\r\n") or "\x1b[2K" in said[-60:], "bars are left behind"
    assert " > " not in seen


def test_on_a_terminal_quiet_and_json_draw_nothing():
    for setting in ("quiet=True", "log='json'"):
        way = f"from fl.core.output import *; speak(OutputSettings({setting}))\n"
        code, said = on_terminal("-c", way + STEPS)
        assert code == 0
        assert "\x1b" not in said
        assert all(json.loads(line)["event"] == "message" for line in said.splitlines())


def test_garbage_is_looked_for_again_when_libraries_are_loaded_or_missing():
    with loading_libraries():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count()
    with pytest.raises(ImportError), loading_libraries():
        raise ImportError
    assert gc.isenabled()
