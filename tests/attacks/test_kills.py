"""A run that is killed, wherever and how often, is resumed to the bytes of one that was not."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import composed

from fl.core.files import write_json

KILL = Path(__file__).with_name("kill_at_writes.py")
RUN = [
    "data=synthetic",
    "data.num_images=120",
    "data.validation_fraction=0.2",
    "num_clients=4",
    "fraction_train=0.5",
    "num_rounds=3",
    "local_epochs=1",
    "threads_per_client=1",
    "strategy=fedadam",
    "codec@broadcast=int8",
    "codec@update=int4",
    "update.rounding=stochastic",
    "update.error_feedback=true",
    "checkpoint.keep=1",
]
"""Everything that has a memory: a server optimizer, stochastic rounding, error feedback, clients that miss rounds."""
QUICK = ["model=linear"]
"""Where some kills stand for all; every one of them is also tried on the default network."""


@pytest.fixture
def killed(tmp_path):
    """Kills runs at writes; returns what was told of the run that was not killed, and of the others."""

    def killed(*numbers, settings=RUN):
        write_json(tmp_path / "config.json", composed(*settings))
        command = [sys.executable, str(KILL), str(tmp_path), *map(str, numbers)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return killed


def check(whole, runs):
    """Every run was killed, was resumed, and is in all but seconds the run that was not."""
    same = ("model", "rounds", "measured", "state", "files")
    for each in runs:
        assert each["killed"][0] == -signal.SIGKILL
        assert each["killed"][-1] == 0, each["told"]
        assert {key: each[key] for key in same} == {key: whole[key] for key in same}, each["told"]


@pytest.mark.long
def test_a_run_is_killed_at_some_of_its_writes(killed):
    whole, *runs = killed(1, 9, 18, 27, 33, 40, 48, 57, 66, 71, settings=[*RUN, *QUICK])
    assert whole["writes"] >= 71
    assert not [name for name in whole["files"] if name.endswith(".partial")]
    check(whole, runs)


@pytest.mark.exhaustive
def test_a_run_is_killed_at_each_of_its_writes(killed):
    (whole,) = killed()
    _, *runs = killed(*range(1, whole["writes"] + 1))
    assert len(runs) == whole["writes"]
    check(whole, runs)


@pytest.mark.parametrize(
    ("kills", "settings"), [(5, [*RUN, *QUICK]), pytest.param(20, RUN, marks=pytest.mark.exhaustive)], ids=["5", "20"]
)
@pytest.mark.long
def test_a_run_is_killed_at_random_moments(kills, settings, tmp_path, killed):
    """Again and again, until it is finished: real processes, and the command that users have."""
    killed(settings=settings)
    rng, folder = random.Random(kills), tmp_path / "run"
    for number in range(kills):
        begun = (folder / "settings.json").exists()
        door = ["fl", "resume", str(folder)] if begun else ["fl.train", *settings, f"hydra.run.dir={folder}"]
        with subprocess.Popen(
            [sys.executable, "-m", *door], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        ) as process:
            moment = time.monotonic() + rng.uniform(0, 20 if number else 2)
            while process.poll() is None and time.monotonic() < moment:
                time.sleep(0.01)
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
    door = (
        ["fl", "resume", str(folder)]
        if (folder / "settings.json").exists()
        else ["fl.train", *settings, f"hydra.run.dir={folder}"]
    )
    done = subprocess.run([sys.executable, "-m", *door], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert (folder / "final_model.pt").read_bytes() == (tmp_path / "whole" / "final_model.pt").read_bytes()
