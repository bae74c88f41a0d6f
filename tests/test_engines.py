"""Where clients run makes no difference to what comes out; what happens when their processes die."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cloudpickle
import pytest
from conftest import SMALL, composed

from fl.errors import ConfigError
from fl.experiment import client_app
from fl.results import read_json, read_jsonl, sha256
from fl.settings import settings_from

RAY = [*SMALL, "engine=ray"]
WITH_A_FAILURE = """
import sys
from conftest import composed
from fl.experiment import run
from fl.messages import config_of, number
from pathlib import Path

def fails_once(message, context, call_next):
    if number(config_of(message), "server-round") == 2 and context.node_config["partition-id"] == 3:
        raise ValueError("battery empty")
    return call_next(message, context)

folder, *overrides = sys.argv[1:]
Path(folder).mkdir()
run(composed(*overrides), Path(folder), mods=[fails_once])
"""


def clients_of(run):
    """Returns {pid: title} of the Ray client processes that a run started."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=2) for line in listed.splitlines()[1:]]
    family = {str(run.pid)}
    for _ in range(3):  # the run, its raylet, the raylet's workers
        family |= {pid for pid, parent, _ in rows if parent in family}
    return {int(pid): title for pid, _, title in rows if pid in family and "ray::" in title}


RANDOM_CODECS = ["codec@broadcast=int8", "broadcast.rounding=stochastic", "codec@update=eden", "update.bits=2"]


@pytest.mark.parametrize("codecs", [pytest.param([], marks=pytest.mark.long), RANDOM_CODECS], ids=["plain", "codecs"])
def test_same_bytes_in_process_and_on_ray_with_a_failing_client(tmp_path, codecs):
    hashes = []
    for engine in ("in_process", "ray"):
        overrides = [*SMALL, "num_rounds=3", "data.num_images=200", "fraction_train=0.5", f"engine={engine}", *codecs]
        arguments = [sys.executable, "-c", WITH_A_FAILURE, tmp_path / engine, *overrides]
        tests = {"PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(arguments, env=os.environ | tests, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        records = read_jsonl(tmp_path / engine / "rounds.jsonl")
        assert [record["clients_asked"] for record in records] == [2, 2, 2]
        assert [len(record["clients_failed"]) for record in records] == [0, 1, 0]
        failure = records[1]["clients_failed"][0]
        assert failure["partition_id"] == 3
        assert "battery empty" in failure["reason"]
        hashes.append(sha256((tmp_path / engine / "final_model.pt").read_bytes()))
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize("min_completed", [1, pytest.param(4, marks=pytest.mark.long)])
def test_a_killed_actor_is_a_failed_client(tmp_path, min_completed):
    folder = tmp_path / "run"
    settings = ["num_rounds=3", "data.num_images=800", f"min_completed={min_completed}"]
    command = [sys.executable, "-m", "fl.train", *RAY, *settings, f"hydra.run.dir={folder}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        killed, started = None, {}
        while killed is None and run.poll() is None:
            time.sleep(0.05)
            if (folder / "rounds.jsonl").exists():
                started |= clients_of(run)
                killed = next((pid for pid, title in started.items() if "ClientAppActor.run" in title), None)
        assert killed is not None, run.communicate()[0]
        os.kill(killed, signal.SIGKILL)
        output, _ = run.communicate(timeout=120)
    summary = read_json(folder / "summary.json")
    if min_completed == 4:
        assert run.returncode == 1
        assert summary["state"] == "failed"
        assert "error: round 2: 3 of 4 clients completed, min_completed=4 are needed" in output
        assert not (folder / "final_model.pt").exists()
    else:
        assert run.returncode == 0, output
        failures = [len(record["clients_failed"]) for record in read_jsonl(folder / "rounds.jsonl")]
        assert failures == [0, 1, 0], "the dead process took other clients with it"
        assert "left out: raised: " in output
    _all_end(started)


def _all_end(pids):
    """Waits a little for processes that have been told to end."""
    deadline = time.monotonic() + 30
    while left := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, f"processes are left behind: {left}"
        time.sleep(0.1)


@pytest.mark.parametrize("stop", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_a_stopped_run_ends_in_one_line(tmp_path, stop):
    command = [sys.executable, "-m", "fl.train", *RAY, "num_rounds=500", f"hydra.run.dir={tmp_path / 'run'}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        while not (tmp_path / "run" / "rounds.jsonl").exists() and run.poll() is None:
            time.sleep(0.05)
        started = clients_of(run)
        run.send_signal(stop)
        _, errors = run.communicate(timeout=60)
    assert run.returncode == 130, errors
    assert errors.startswith("interrupted; a run with a finished round continues with: ")
    assert len(errors.splitlines()) == 1, errors
    _all_end(started)


def test_only_settings_cross_to_a_client(cache_dir):
    few, many = (client_app(composed(*RAY, f"num_clients={n}", f"data.cache_dir={cache_dir}")) for n in (4, 100))
    sizes = [len(cloudpickle.dumps(app)) for app in (few, many)]
    assert max(sizes) < 20_000
    assert max(sizes) - min(sizes) < 100


def test_a_gpu_must_be_given_to_clients_on_ray(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(ConfigError, match=r"device=cuda: clients see no GPU with engine.client_gpus=0"):
        settings_from(composed(*RAY, "device=cuda"))
    settings_from(composed(*RAY, "device=cuda", "engine.client_gpus=0.25"))
    settings_from(composed(*SMALL, "device=cuda"))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["engine.client_cpus=0"], ["engine.client_cpus=0", "greater than 0"]),
        (["engine.client_cpus=many"], ["engine.client_cpus=many"]),
        (["engine.colour=red"], ["engine.colour"]),
    ],
)
def test_refused_settings(refused, overrides, words):
    refused("fl.train", *RAY, *overrides, words=words)


def test_resources_that_are_not_there(refused):
    refused("fl.train", *RAY, "engine.client_gpus=64", words=["engine.client_gpus=64", "no client fits"])


def test_a_missing_extra_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"Ray is not installed; install it with: pip install -c constraints.txt -e '.\[ray\]'"
    ):
        settings_from(composed(*RAY))
