"""`python -m fl resume`: a run that was stopped ends as one that was not, or it is said why not."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import SMALL, composed, numbers_only, run_small, train

from fl.core.files import read_jsonl
from fl.experiment.run import run


@pytest.mark.exhaustive
def test_a_run_that_was_stopped_before_its_first_round_begins_again(tmp_path, refused):
    whole = run_small(tmp_path / "run").read_bytes()
    for name in ("final_model.pt", "summary.json", "checkpoint.pt", "checkpoint_previous.pt"):
        (tmp_path / "run" / name).unlink()
    refused("fl", "resume", tmp_path / "run", words=["holds no checkpoint.pt, though rounds were recorded"])
    lines = (tmp_path / "run" / "rounds.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "run" / "rounds.jsonl").write_text(lines[0])  # which comes just before the first checkpoint
    assert run(composed(*SMALL), tmp_path / "run", resume=True).read_bytes() == whole
    assert len(read_jsonl(tmp_path / "run" / "rounds.jsonl")) == 2


FEEDBACK = "codec@broadcast=ecq codec@update=int4 update.rounding=stochastic update.error_feedback=true"


MORE = [pytest.param(f"strategy={name}", marks=pytest.mark.exhaustive) for name in ("fedadam", "fedavgm")]


@pytest.mark.parametrize("kind", [*MORE, f"strategy=nesterov {FEEDBACK}"])
def test_a_killed_run_resumes_to_the_same_bytes(kind, tmp_path, command):
    overrides = [*SMALL, "num_rounds=4", "data.num_images=200", *kind.split()]
    whole = run_small(tmp_path / "whole", *overrides[len(SMALL) :])
    killed = tmp_path / "killed"
    arguments = [sys.executable, "-m", "fl.train", *overrides, f"hydra.run.dir={killed}"]
    process = subprocess.Popen(arguments, cwd=tmp_path, stdout=subprocess.DEVNULL, start_new_session=True)
    records = killed / "rounds.jsonl"
    while not (killed / "checkpoint.pt").exists() and process.poll() is None:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "final_model.pt").exists(), "killed too late to show anything"
    assert 1 <= len(read_jsonl(records)) < 4
    command("fl", "resume", killed, check=0)
    assert (killed / "final_model.pt").read_bytes() == whole.read_bytes()
    assert numbers_only(killed) == numbers_only(tmp_path / "whole")


def test_a_run_is_not_continued_on_other_images(image_folder, tmp_path, command):
    images = image_folder(per_class=10)
    overrides = ["data=folder", f"data.path={images}", "num_clients=2", "num_rounds=2", "threads_per_client=1"]
    folder = train(command, *overrides, cwd=tmp_path)
    (folder / "final_model.pt").unlink()
    (images / "a" / "a_0.png").unlink()
    done = command("fl", "resume", folder)
    assert done.returncode == 2
    assert "the data has changed" in done.stderr


def test_a_finished_run_is_left_as_it_is(command, small_run):
    before = {path: path.read_bytes() for path in small_run.iterdir() if path.is_file()}
    done = command("fl", "resume", small_run, check=0)
    assert done.stdout == f"{small_run}: is finished, nothing is left to do\n"
    assert {path: path.read_bytes() for path in small_run.iterdir() if path.is_file()} == before


def test_what_cannot_be_resumed_says_so(refused, tmp_path):
    refused("fl", "resume", tmp_path, words=["settings.json"])
