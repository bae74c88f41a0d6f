"""`python -m fl.train` as a process: when it ends, what it refuses, what it leaves alone."""

import json
import signal
import subprocess
import sys
import time

from conftest import SMALL

from fl.core.files import read_json
from fl.quantization.model_file import load_model


def test_a_time_limit_ends_after_the_round_in_progress(command, tmp_path):
    done = command(
        "fl.train", *SMALL, "num_rounds=50", "time_limit_min=0.0001", f"hydra.run.dir={tmp_path / 'run'}", check=0
    )
    assert "time_limit_min=0.0001 reached: stopped after round 1 of 50" in done.stdout
    summary = read_json(tmp_path / "run" / "summary.json")
    assert (summary["state"], summary["rounds_completed"]) == ("time_limit", 1)
    assert load_model(tmp_path / "run" / "final_model.pt").quantization_info["precision"] == "fp32"


def test_a_rate_below_the_floor_is_refused_before_anybody_trains(tmp_path, refused):
    for way in ("update", "broadcast"):
        overrides = *SMALL, f"codec@{way}=ecq", f"{way}.bits=0.001", "hydra.run.dir=run"
        refused("fl.train", *overrides, words=[f"{way}: ecq: bits=0.001", "choose at least 0.00"])
        assert not (tmp_path / "run" / "settings.json").exists()


def test_a_run_is_never_written_over(refused, small_run):
    before = (small_run / "final_model.pt").read_bytes()
    refused("fl.train", *SMALL, f"hydra.run.dir={small_run}", words=["hydra.run.dir", "already holds a run"])
    assert (small_run / "final_model.pt").read_bytes() == before


def test_an_interrupt_keeps_the_checkpoint(tmp_path):
    folder = tmp_path / "run"
    arguments = [sys.executable, "-m", "fl.train", *SMALL, "num_rounds=100", f"hydra.run.dir={folder}"]
    process = subprocess.Popen(arguments, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (folder / "checkpoint.pt").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "interrupted" in errors
    assert "fl resume" in errors
    assert not (folder / "final_model.pt").exists()
    assert json.loads((folder / "rounds.jsonl").read_text().splitlines()[0])["round"] == 1
