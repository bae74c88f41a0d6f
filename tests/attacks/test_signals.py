"""Whenever a signal comes, a command ends in one line and with its exit code, notes it, and leaves nothing behind."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY, SMALL

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
SOME = [signal.SIGUSR1, *(pytest.param(number, marks=pytest.mark.long) for number in SIGNALS[:2])]
LONG_RUN = [*SMALL, "num_rounds=500", "local_epochs=20"]


def left_over(session):
    """Returns the command lines of processes that belong to a session, zombies apart."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            state, _, _, owner = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(owner) == session and state != "Z":
                found.append((folder / "cmdline").read_text().replace("\0", " "))
        except (OSError, ValueError):
            continue
    return found


class Door:
    """A command in a session of its own."""

    def __init__(self, folder, *arguments):
        command = [*arguments]
        if command[0].endswith(".py"):
            command[0] = str(REPOSITORY / command[0])
        else:
            command.insert(0, "-m")
        self.process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def until(self, condition):
        """Waits for something that a working command brings about."""
        while not condition():
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.01)

    def stop(self, number, again=False):
        """Sends a signal to the process alone; returns what it printed on stderr."""
        self.process.send_signal(number)
        if again:
            time.sleep(0.05)
            self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=60)
        allowed = {128 + number, -number} if again else {128 + number}  # Python forgets handlers when it ends
        assert self.process.returncode in allowed, errors
        deadline = time.monotonic() + 10
        while (left := left_over(self.process.pid)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not left
        return errors

    def has_imported(self, name):
        """Tells whether a library has been mapped: how far the imports have come."""
        try:
            return name in Path(f"/proc/{self.process.pid}/maps").read_text()
        except OSError:
            return False


def one_line(errors):
    assert errors.startswith("interrupted")
    assert errors.count("\n") == 1, errors
    return errors


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("library", ["_struct", "_datetime", "torch_python"])
def test_while_a_command_is_being_loaded(library, number, tmp_path):
    door = Door(tmp_path, "fl.train", *LONG_RUN, "hydra.run.dir=run")
    door.until(lambda: door.has_imported(library))
    errors = one_line(door.stop(number))
    if (tmp_path / "run").exists():
        assert "start again" in errors or "fl resume" in errors


SHOWN = [("engine=in_process", signal.SIGUSR1), ("engine=ray", signal.SIGTERM)]


@pytest.mark.parametrize(
    ("engine", "number"),
    [
        pytest.param(engine, number, marks=pytest.mark.long if (engine, number) in SHOWN else pytest.mark.exhaustive)
        for engine in ("engine=in_process", "engine=ray")
        for number in SIGNALS
    ],
)
def test_while_a_run_is_training(engine, number, tmp_path):
    folder = tmp_path / "run"
    door = Door(tmp_path, "fl.train", *LONG_RUN, "local_epochs=1", engine, "hydra.run.dir=run")
    door.until((folder / "checkpoint.pt").exists)
    assert "-m fl resume run" in one_line(door.stop(number))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["state"] == "interrupted"
    assert json.loads((folder / "events.jsonl").read_text().splitlines()[-1])["event"] == "interrupted"
    assert not list(folder.glob(".*.partial"))
    door = Door(tmp_path, "fl", "resume", "run")
    before = len((folder / "rounds.jsonl").read_text().splitlines())
    door.until(lambda: len((folder / "rounds.jsonl").read_text().splitlines()) > before)
    assert "-m fl resume run" in one_line(door.stop(number))


@pytest.mark.parametrize("number", SOME)
@pytest.mark.exhaustive
def test_while_a_sweep_is_training(number, tmp_path):
    """Two jobs side by side, in processes of their own, and one that waits."""
    swept = ["local_epochs=1", "seed=1,2,3", "hydra/launcher=parallel", "hydra.sweep.dir=sweep"]
    door = Door(tmp_path, "fl.train", "-m", *LONG_RUN, *swept)
    door.until(lambda: list(tmp_path.glob("sweep/*/checkpoint.pt")))
    assert door.stop(number).splitlines()[-1].startswith("interrupted; the table of its jobs is drawn again by: ")
    states = [job["state"] for job in json.loads((tmp_path / "sweep" / "sweep.json").read_text())["jobs"]]
    assert len(states) == 3
    assert set(states) <= {"unfinished", "interrupted", "not started"}
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("number", SOME)
def test_a_second_signal_ends_a_command_at_once(number, tmp_path):
    door = Door(tmp_path, "fl.train", *LONG_RUN, "hydra.run.dir=run")
    door.until((tmp_path / "run" / "events.jsonl").exists)
    assert "Traceback" not in door.stop(number, again=True)


@pytest.fixture(scope="module")
def compared(small_run, tmp_path_factory):
    """A run with a comparison."""
    folder = shutil.copytree(small_run, tmp_path_factory.mktemp("compared") / "run")
    command = [sys.executable, REPOSITORY / "compare_quantizations.py", folder, "--precisions", "fp32,int8"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


@pytest.mark.parametrize(
    ("arguments", "library"),
    [
        pytest.param(["compare_quantizations.py", "RUN", "--output", "out"], "torch_python", marks=pytest.mark.long),
        pytest.param(["fl", "export", "RUN", "--output", "out"], "torch_python", marks=pytest.mark.exhaustive),
        pytest.param(["fl", "bench", "RUN", "--output", "out.json"], "torch_python", marks=pytest.mark.exhaustive),
        pytest.param(["fl", "communication", "RUN"], "_struct", marks=pytest.mark.exhaustive),
    ],
)
def test_other_commands(arguments, library, compared, tmp_path):
    door = Door(tmp_path, *[str(compared) if each == "RUN" else each for each in arguments])
    door.until(lambda: door.has_imported(library))
    time.sleep(0.3 if library == "torch_python" else 0)
    one_line(door.stop(signal.SIGTERM))
    assert not list(tmp_path.rglob("*.partial"))


def test_importing_the_package_leaves_signals_alone():
    handlers = "[signal.getsignal(number) for number in (2, 15, 10)]"
    modules = "fl, fl.train, fl.resume, fl.commands.resume, fl.core.errors"
    code = f"import signal; before = {handlers}; import {modules}; assert before == {handlers}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
