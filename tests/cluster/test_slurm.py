"""`submit_job.sh` on a real SLURM: `make test-cluster` starts one on this machine, or uses the one that answers."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import SMALL

from fl.core.files import read_json, read_jsonl, sha256

if not shutil.which("sinfo") or subprocess.run(["sinfo"], capture_output=True, timeout=60, check=False).returncode:
    pytest.skip("no SLURM answers here; make test-cluster starts one", allow_module_level=True)

OVERRIDES = [each for each in SMALL if not each.startswith("num_rounds")]
TINY = [*OVERRIDES, "data.num_images=100", "num_clients=2"]
NUM_ROUNDS = 12
"""Of trainings that are stopped: long enough for a signal to arrive in the middle."""
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}
PATIENCE_S = 240


def slurm(*command, check=True):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 or not check, f"{command}: {done.stderr}"
    return done.stdout


def job(number):
    """Returns what SLURM knows of a job."""
    shown = slurm("scontrol", "show", "job", "--oneliner", number)
    return dict(re.findall(r"(\w+)=(\S*)", shown))


def queued(*numbers):
    """Returns which of these jobs still wait or run."""
    states = {number: job(number)["JobState"] for number in numbers}
    return {number: state for number, state in states.items() if state not in ENDED}


def until(found, submitted, patience_s=PATIENCE_S):
    """Waits until `found()` is true; a failure shows jobs and logs."""
    deadline = time.monotonic() + patience_s
    while not found():
        if time.monotonic() > deadline:
            shown = [slurm("scontrol", "show", "job", each, check=False) for each in submitted.jobs]
            logs = [f"{path}:\n{path.read_text()}" for path in sorted(submitted.folder.glob("*.log"))]
            pytest.fail("\n".join([f"not within {patience_s} s", *shown, slurm("squeue"), *logs]))
        time.sleep(0.1)


def ended(submitted):
    """Waits until both jobs have ended and returns their states."""
    until(lambda: not queued(*submitted.jobs), submitted)
    return [job(number)["JobState"] for number in submitted.jobs]


@pytest.fixture
def submit(checkout, tmp_path):
    """Submits from a folder of its own; whatever is left afterwards is cancelled."""
    started = []

    def run(*arguments, check=0, environment=None):
        small = ["--python", sys.executable, "--cpus", "1", "--mem", "2G"]
        variables = os.environ | (environment or {})
        command = [checkout / "submit_job.sh", *small, *map(str, arguments)]
        done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=120)
        assert done.returncode == check, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        jobs = re.findall(r"^(?:Training|Comparison): +job (\d+)", done.stdout, re.MULTILINE)
        started.extend(jobs)
        folder = re.search(r"^Run folder: +(.*)", done.stdout)
        return SimpleNamespace(jobs=jobs, folder=Path(folder[1]) if folder else None, told=done.stdout + done.stderr)

    yield run
    for number in started:
        slurm("scancel", "--quiet", number, check=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The model of a training that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    arguments = [*OVERRIDES, f"num_rounds={NUM_ROUNDS}", f"hydra.run.dir={folder}"]
    subprocess.run([sys.executable, "-m", "fl.train", *arguments], cwd=folder.parent, check=True, capture_output=True)
    return (folder / "final_model.pt").read_bytes()


def test_two_at_once_each_end_in_their_comparison(submit, tmp_path):
    cache = tmp_path / """it's "100%" $HOME `pwd`"""
    quoted = "data.cache_dir='{}'".format(str(cache).replace("'", "\\'"))
    both = [submit("fp32", 1, 30, *TINY, quoted) for _ in range(2)]
    assert both[0].folder != both[1].folder
    for submitted in both:
        training, comparison = submitted.jobs
        waiting = job(comparison)
        assert waiting["Dependency"].startswith(f"afterok:{training}")
        assert job(training)["TimeLimit"] == "00:45:00"
    for submitted in both:
        assert ended(submitted) == ["COMPLETED", "COMPLETED"], submitted.told
        training, comparison = map(job, submitted.jobs)
        assert training["EndTime"] <= comparison["StartTime"]
        report = read_json(submitted.folder / "quantization_comparison.json")
        assert report["model_sha256"] == sha256((submitted.folder / "final_model.pt").read_bytes())
        assert set(report["precisions"]) == {"fp32", "fp16", "int8", "int8_static"}
        settings = read_json(submitted.folder / "settings.json")
        assert (settings["num_rounds"], settings["time_limit_min"]) == (1, 30)
        assert settings["data"]["cache_dir"] == str(cache)
        for step, number, words in zip(("train", "compare"), submitted.jobs, ("round 1/1", "Done!"), strict=True):
            log = submitted.folder / f"{step}-{number}.log"
            assert str(log) in submitted.told
            assert words in log.read_text()
    models = [(submitted.folder / "final_model.pt").read_bytes() for submitted in both]
    assert models[0] == models[1]


def test_after_a_failing_training_there_is_no_comparison(submit, tmp_path):
    submitted = submit("fp32", 1, "--run-dir", tmp_path / "run", "data=folder", "data.path='no such place'")
    assert ended(submitted) == ["FAILED", "CANCELLED"]
    training, comparison = submitted.jobs
    log = (submitted.folder / f"train-{training}.log").read_text()
    assert "error: data.path=no such place" in log
    assert not (submitted.folder / f"compare-{comparison}.log").exists()
    assert not (submitted.folder / "quantization_comparison.json").exists()
    assert not slurm("squeue", "--noheader", "--jobs", ",".join(submitted.jobs), check=False).strip()


def test_a_cancelled_training_leaves_nothing_running_and_continues(submit, whole, tmp_path):
    submitted = submit("fp32", NUM_ROUNDS, "--run-dir", tmp_path / "run", *OVERRIDES)
    until((submitted.folder / "checkpoint.pt").exists, submitted)
    slurm("scancel", *submitted.jobs)
    assert ended(submitted) == ["CANCELLED", "CANCELLED"]
    until(lambda: "interrupted" in (submitted.folder / f"train-{submitted.jobs[0]}.log").read_text(), submitted)
    assert not (submitted.folder / "final_model.pt").exists()
    submitted.jobs = [slurm("sbatch", "--parsable", submitted.folder / "train.sbatch").strip()]
    assert ended(submitted) == ["COMPLETED"]
    log = (submitted.folder / f"train-{submitted.jobs[0]}.log").read_text()  # where sbatch alone finds it
    assert f"round  1/{NUM_ROUNDS}" not in log
    assert f"round {NUM_ROUNDS}/{NUM_ROUNDS}" in log
    assert (submitted.folder / "final_model.pt").read_bytes() == whole


def test_a_requeued_training_continues_to_the_same_bytes(submit, whole, tmp_path):
    submitted = submit("fp32", NUM_ROUNDS, "--run-dir", tmp_path / "run", *OVERRIDES)
    until((submitted.folder / "checkpoint.pt").exists, submitted)
    slurm("scontrol", "requeue", submitted.jobs[0])
    assert ended(submitted) == ["COMPLETED", "COMPLETED"]
    assert job(submitted.jobs[0])["Restarts"] == "1"
    log = (submitted.folder / f"train-{submitted.jobs[0]}.log").read_text()
    assert log.count(" job ") == 2, log  # once for each start
    assert log.count(f"round {NUM_ROUNDS}/{NUM_ROUNDS}") == 1, log
    events = [line["event"] for line in read_jsonl(submitted.folder / "events.jsonl")]
    assert events in (  # SLURM's signal may come between two rounds or find the process gone before it could note it
        ["started", "resumed", "completed"],
        ["started", "interrupted", "resumed", "completed"],
    )
    assert (submitted.folder / "final_model.pt").read_bytes() == whole
    assert (submitted.folder / "quantization_comparison.json").exists()


def test_a_training_near_its_limit_requeues_itself_and_ends_in_the_same_bytes(submit, whole, tmp_path):
    """The signal that SLURM sends a minute before the limit, sent earlier."""
    submitted = submit("fp32", NUM_ROUNDS, "--run-dir", tmp_path / "run", *OVERRIDES)
    until((submitted.folder / "checkpoint.pt").exists, submitted)
    slurm("scancel", "--signal=USR1", "--batch", submitted.jobs[0])
    assert ended(submitted) == ["COMPLETED", "COMPLETED"]
    assert job(submitted.jobs[0])["Restarts"] == "1"
    log = (submitted.folder / f"train-{submitted.jobs[0]}.log").read_text()
    assert len(re.findall(r"time is nearly over after round \d+: requeued, to go on from there", log)) == 1, log
    events = [line["event"] for line in read_jsonl(submitted.folder / "events.jsonl")]
    assert events == ["started", "interrupted", "resumed", "completed"]
    assert (submitted.folder / "final_model.pt").read_bytes() == whole
    assert (submitted.folder / "quantization_comparison.json").exists()


@pytest.mark.exhaustive
def test_slurms_own_signal_before_a_limit_of_three_minutes_is_lived_through(submit, tmp_path):
    """Nobody sends it but SLURM, 60 to 120 s before the limit; each start is asleep for 45 s of them."""
    rounds = 80
    here = tmp_path / "here"
    command = [sys.executable, "-m", "fl.train", *OVERRIDES, f"num_rounds={rounds}", f"hydra.run.dir={here}"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL) as beside:
        submitted = submit("fp32", rounds, "--time", 3, "--env", "sleep 45", "--run-dir", tmp_path / "run", *OVERRIDES)
        until(lambda: not queued(*submitted.jobs), submitted, 4 * PATIENCE_S)
        assert beside.wait(PATIENCE_S) == 0
    assert [job(number)["JobState"] for number in submitted.jobs] == ["COMPLETED", "COMPLETED"]
    starts = int(job(submitted.jobs[0])["Restarts"])
    log = (submitted.folder / f"train-{submitted.jobs[0]}.log").read_text()
    told = re.findall(r"time is nearly over after round \d+: requeued, to go on from there", log)
    assert len(told) == starts >= 1, log
    events = [line["event"] for line in read_jsonl(submitted.folder / "events.jsonl")]
    assert events == ["started", *["interrupted", "resumed"] * starts, "completed"]
    assert (submitted.folder / "final_model.pt").read_bytes() == (here / "final_model.pt").read_bytes()


def test_a_training_whose_round_does_not_fit_is_not_requeued_for_ever(submit, tmp_path):
    long = [each for each in OVERRIDES if not each.startswith("local_epochs")]
    submitted = submit("fp32", 1, "--run-dir", tmp_path / "run", *long, "local_epochs=500")
    until((submitted.folder / "events.jsonl").exists, submitted)
    slurm("scancel", "--signal=USR1", "--batch", submitted.jobs[0])
    assert ended(submitted) == ["FAILED", "CANCELLED"]
    log = (submitted.folder / f"train-{submitted.jobs[0]}.log").read_text()
    assert "error: time was over before a round was finished; submit again with a longer --time" in log
    assert read_jsonl(submitted.folder / "events.jsonl")[-1]["event"] == "interrupted"


def test_over_two_nodes_ray_trains_to_the_same_bytes(submit, tmp_path):
    if int(slurm("sinfo", "--noheader", "--format=%D").split()[0]) < 2:
        pytest.skip("this SLURM has one node")
    submitted = submit("fp32", 1, "--nodes", 2, "--run-dir", tmp_path / "run", *TINY)
    assert ended(submitted) == ["COMPLETED", "COMPLETED"], submitted.told
    log = (submitted.folder / f"train-{submitted.jobs[0]}.log").read_text()
    assert "Ray over 2 nodes: " in log
    here = tmp_path / "here"
    command = [sys.executable, "-m", "fl.train", *TINY, "num_rounds=1", f"hydra.run.dir={here}"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert (submitted.folder / "final_model.pt").read_bytes() == (here / "final_model.pt").read_bytes()
    left = subprocess.run(["pgrep", "-f", f"{submitted.folder}|raylet"], capture_output=True, text=True, check=False)
    assert not left.stdout, "processes are left behind"


def test_sbatch_variables_win_over_defaults_and_options_over_variables(submit, tmp_path):
    variables = {"SBATCH_JOB_NAME": "mine", "SBATCH_TIMELIMIT": "7", "SBATCH_OUTPUT": str(tmp_path / "elsewhere")}
    asleep = ["--env", "sleep 600"]  # in the place of work; cancelled when the test ends
    first = submit("fp32", 1, *asleep, "--run-dir", "first %j run", environment=variables)
    second = submit(
        "fp32", 1, *asleep, "--run-dir", "second", "--time", 9, "--job-name", "my job", environment=variables
    )
    for submitted, name, limit in ((first, "mine", "00:07:00"), (second, "my", "00:09:00")):
        for number in submitted.jobs:
            shown = job(number)
            assert (shown["JobName"], shown["TimeLimit"], shown["MinMemoryNode"]) == (name, limit, "2G")
    until((first.folder / f"train-{first.jobs[0]}.log").exists, first)
    assert not (tmp_path / "elsewhere").exists()


def test_a_sweep_on_slurm_ends_in_its_table(tmp_path):
    folder = tmp_path / "a sweep"
    limits = ["hydra.launcher.mem_gb=2", "hydra.launcher.cpus_per_task=1", "hydra.launcher.timeout_min=5"]
    swept = ["num_rounds=1", "num_clients=2,100000", f"hydra.sweep.dir={folder}", "hydra/launcher=slurm", *limits]
    tiny = [each for each in TINY if not each.startswith("num_clients")]
    command = [sys.executable, "-m", "fl.train", "-m", *tiny, *swept]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "error: 1 of 2 jobs did not complete" in done.stderr
    rows = read_json(folder / "sweep.json")["jobs"]
    assert [(row["num_clients"], row["state"]) for row in rows] == [("2", "completed"), ("100000", "failed")]
    assert rows[0]["update_payload_bytes"] > 0
    assert "only 80 training images" in rows[1]["error"]


def test_what_sbatch_refuses_leaves_no_folder(submit, tmp_path):
    refused = submit("fp32", 1, "--partition", "nowhere", "--run-dir", "deep/run", check=2)
    assert "invalid partition specified: nowhere" in refused.told
    assert "error: sbatch refused the training" in refused.told
    assert not list(tmp_path.iterdir())


def test_when_the_comparison_is_refused_the_training_is_cancelled(submit, tmp_path):
    """The real sbatch, behind one that refuses every job with a dependency."""
    front = tmp_path / "bin" / "sbatch"
    front.parent.mkdir()
    real = shutil.which("sbatch")
    front.write_text(
        f'#!/bin/sh\ncase "$*" in *--dependency*) echo "too many jobs" >&2; exit 1;; esac\nexec {real} "$@"\n'
    )
    front.chmod(0o755)
    path = f"{front.parent}:{os.environ['PATH']}"
    refused = submit("fp32", 1, "--env", "sleep 600", "--run-dir", "run", environment={"PATH": path}, check=2)
    assert "too many jobs" in refused.told
    training = re.search(r"error: sbatch refused the comparison .* job (\d+), was cancelled", refused.told)[1]
    assert job(training)["JobState"] == "CANCELLED"
