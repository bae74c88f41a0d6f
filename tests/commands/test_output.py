"""What real commands write with `quiet` and `log=json`; neither is a matter of what they do."""

import json
import shutil
from datetime import datetime
from itertools import pairwise

import pytest
from conftest import SMALL, numbers_only

from fl.core.files import read_json, read_jsonl

TINY = [*SMALL, "data.num_images=100", "num_clients=2", "num_rounds=1"]


def objects(text):
    """Returns the objects of a text in which each line is one, with what all of them have."""
    found = [json.loads(line) for line in text.splitlines()]
    assert all({"time", "level", "event", "message"} <= each.keys() for each in found)
    return found


def same_run(one, other):
    """Holds that nothing of how a process spoke is in what it wrote."""
    for name in ("final_model.pt", "settings.json", "partition.json", ".hydra/config.yaml", ".hydra/overrides.yaml"):
        ours, theirs = ((folder / name).read_bytes() for folder in (one, other))
        assert ours.replace(str(one).encode(), b"") == theirs.replace(str(other).encode(), b""), name
    assert numbers_only(one) == numbers_only(other)
    assert read_json(one / "summary.json")["config"] == read_json(other / "summary.json")["config"]


def test_a_run_in_json_tells_all_and_is_never_silent(command, small_run, tmp_path, monkeypatch):
    monkeypatch.setenv("QUANTFL_PROGRESS_S", "0.3")
    folder = tmp_path / "run"
    done = command("fl.train", *SMALL, "log=json", f"hydra.run.dir={folder}", check=0)
    assert done.stderr == ""
    said = objects(done.stdout)
    fields = [{k: v for k, v in each.items() if k not in ("time", "level", "event", "message")} for each in said]
    assert [f for f, each in zip(fields, said, strict=True) if each["event"] == "round"] == read_jsonl(
        folder / "rounds.jsonl"
    )
    assert [each["message"].split()[0] for each in said if each["event"] == "result"] == ["Model:", "Summary:"]
    steps = [[step["step"] for step in each["steps"]] for each in said if each["event"] == "progress"]
    assert ["training", "round 1/2", "training a client"] in steps
    times = [datetime.fromisoformat(each["time"]) for each in said]
    assert max((b - a).total_seconds() for a, b in pairwise(times)) < 5
    same_run(folder, small_run)


@pytest.mark.long
def test_a_quiet_run_says_where_its_results_lie(command, small_run, tmp_path, monkeypatch):
    monkeypatch.setenv("QUANTFL_PROGRESS_S", "0.1")
    done = command("fl.train", *SMALL, "quiet=true", "hydra.run.dir=run", check=0)
    assert done.stdout == "Model:   run/final_model.pt\nSummary: run/summary.json\n"
    assert done.stderr == ""
    assert (tmp_path / "run" / "final_model.pt").read_bytes() == (small_run / "final_model.pt").read_bytes()


def test_a_run_goes_on_in_another_form(command, small_run, tmp_path):
    """As it was left by a process that was killed before it had written the model."""
    run = shutil.copytree(small_run, tmp_path / "run")
    for name in ("final_model.pt", "summary.json"):
        (run / name).unlink()
    done = command("fl", "resume", run, "--quiet", "--log", "json", check=0)
    assert [(each["event"], each["message"]) for each in objects(done.stdout)] == [
        ("result", f"Model: {run / 'final_model.pt'}")
    ]
    same_run(run, small_run)


@pytest.mark.long
def test_warnings_are_said_when_quiet_and_failed_clients_are(command, tmp_path):
    overrides = "faults=dropout", "faults.probability=0.5", "min_completed=1", "seed=1", "num_clients=3"
    done = command("fl.train", *TINY, *overrides, "quiet=true", "hydra.run.dir=run")
    lines = done.stdout.splitlines()
    assert len(lines) > 2
    assert all(" left out: " in line for line in lines[:-2])


def test_mistakes_are_objects_on_stderr(command, tmp_path):
    for arguments, code in (
        (["fl.train", "strategy=fedagv", "log=json"], 2),
        (["fl", "trian", "--log", "json"], 2),
        (["fl", "sweep", "nowhere", "--log=json", "--lgo"], 2),
    ):
        done = command(*arguments)
        assert (done.returncode, done.stdout) == (code, "")
        (told,) = objects(done.stderr)
        assert (told["level"], told["event"]) == ("error", "error")
        assert not told["message"].startswith("error")


def test_a_comparison_in_json(command, small_run, tmp_path):
    options = "--precisions", "fp32,int8", "--output", tmp_path / "out", "--log", "json"
    said = objects(command("compare_quantizations.py", small_run, *options, check=0).stdout)
    assert "1. FP32 (Baseline)" in [each["message"] for each in said if each["event"] == "heading"]
    assert [each["message"].split(":")[0] for each in said if each["event"] == "result"] == [
        "Results saved to",
        "Picture",
    ]


SIZES = ["fl", "communication", "--broadcast-bytes", "440000", "--update-bytes", "440000"]


def test_tables_are_objects_with_columns_and_rows(command, refused, tmp_path):
    said = objects(command(*SIZES, "--log", "json", check=0).stdout)
    tables = [each for each in said if each["event"] == "table"]
    assert tables
    assert all(len(row) == len(each["columns"]) for each in tables for row in each["rows"])
    refused(*SIZES, "--quiet", words=["--quiet", "--json FILE"])
    assert command(*SIZES, "--quiet", "--json", "x.json", check=0).stdout == "JSON: x.json\n"


@pytest.mark.long
def test_other_commands_are_quiet_too(command, small_run, tmp_path):
    run = shutil.copytree(small_run, tmp_path / "run")
    command("compare_quantizations.py", run, "--precisions", "fp32,int8", check=0)
    for arguments, expected in (
        (["fl", "export", run], ["model_fp16.pt:", "Why:"]),
        (["fl", "report", run], ["Report:"]),
        (["fl", "bench", run, "--batch-sizes", "16"], ["Results saved to:", "Picture:"]),
        (["fl", "recommend", run], ["Train:", "Ship:", "Transmit:"]),
    ):
        lines = command(*arguments, "--quiet", check=0).stdout.splitlines()
        assert len(lines) == len(expected)
        assert all(word in line for word, line in zip(expected, lines, strict=True)), lines
        objects(command(*arguments, "--log", "json", check=0).stdout)


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["basic", "parallel"])
def test_a_sweep_in_json_is_whole_whoever_writes(launcher, command, monkeypatch):
    monkeypatch.setenv("QUANTFL_PROGRESS_S", "0.3")
    where = f"hydra/launcher={launcher}", "hydra.sweep.dir=sweep"
    done = command("fl.train", "-m", *TINY, "seed=1,2", "log=json", *where, check=0)
    said = objects(done.stdout)
    assert done.stderr == ""
    rounds = [each for each in said if each["event"] == "round"]
    assert sorted(each.get("job", 0) for each in rounds) == ([0, 1] if launcher == "parallel" else [0, 0])
    assert "sweep" in {step["step"] for each in said if each["event"] == "progress" for step in each["steps"]}
    assert [each["message"].split()[0] for each in said if each["event"] == "result"][-4:-2] == ["CSV", "JSON:"]


@pytest.mark.long
def test_with_ray_too(command, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("QUANTFL_PROGRESS_S", "0.3")
    said = objects(command("fl.train", *TINY, "engine=ray", "log=json", "hydra.run.dir=run", check=0).stdout)
    steps = [[step["step"] for step in each["steps"]] for each in said if each["event"] == "progress"]
    assert ["training", "round 1/1"] in steps
