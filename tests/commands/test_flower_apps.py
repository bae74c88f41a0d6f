"""`flwr run`: the apps that it starts train as `fl.train` does, to the same bytes."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import SMALL, composed
from preloaded import PATIENCE_S

from fl.core.errors import ConfigError, RunError
from fl.core.files import read_json
from fl.experiment.run import client_app, run
from fl.federation.engine import InProcess
from fl.flower_apps import configured, overrides_in


class Flower:
    """Flower's command line with a SuperLink of its own, on a copy of the code."""

    def __init__(self, checkout, folder):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = str(probe.getsockname()[1])
        self.checkout, self.folder = checkout, folder
        self.environment = os.environ | {
            "FLWR_HOME": str(folder / "flwr"),
            "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": self.port,
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_TELEMETRY_ENABLED": "0",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }

    def start(self, num_supernodes, *overrides):
        command = ["flwr", "run", self.checkout, "--stream", "--federation-config", f"num-supernodes={num_supernodes}"]
        command += ["--run-config", f'overrides="{" ".join(overrides)}"']
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, env=self.environment, cwd=self.folder, **pipes)

    def processes(self):
        """Returns the process ids of the SuperLink, and of what it started."""
        listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
        lines = [line.split(maxsplit=2) for line in listed.splitlines()[1:]]
        links = [pid for pid, _, args in lines if self.port in args.split() or f":{self.port}" in args]
        return [int(pid) for pid in links], [int(pid) for pid, parent, _ in lines if parent in links]


@pytest.fixture
def flower(checkout, tmp_path):
    flower = Flower(checkout, tmp_path)
    yield flower
    for process in flower.processes()[0]:
        os.kill(process, signal.SIGTERM)


@pytest.fixture
def flwr_run(flower):
    """Runs `flwr run`; returns what it printed."""
    return lambda *arguments: flower.start(*arguments).communicate(timeout=PATIENCE_S)[0]


def test_flwr_run_gives_the_same_bytes(flwr_run, small_run, tmp_path):
    folder = tmp_path / "run"
    printed = flwr_run(4, *SMALL, f"hydra.run.dir={folder}")
    assert (folder / "final_model.pt").exists(), printed
    assert (folder / "final_model.pt").read_bytes() == (small_run / "final_model.pt").read_bytes()
    counted = [read_json(each / "summary.json")["totals"]["update"] for each in (folder, small_run)]
    assert counted[0] == counted[1]
    assert f"Run folder: {folder}" in printed
    assert "round 2/2" in printed


@pytest.mark.long
def test_a_run_that_is_stopped_says_so_and_goes_on_to_the_same_bytes(flower, flwr_run, tmp_path):
    folder, overrides = tmp_path / "run", [*SMALL, "num_rounds=40"]
    began = flower.start(4, *overrides, f"hydra.run.dir={folder}")
    while not (folder / "rounds.jsonl").exists() and began.poll() is None:
        time.sleep(0.1)
    (_, (simulation,)) = flower.processes()
    os.kill(simulation, signal.SIGTERM)
    told = began.communicate(timeout=PATIENCE_S)[0]
    assert read_json(folder / "summary.json")["state"] == "interrupted", told
    assert not (folder / "final_model.pt").exists()
    printed = flwr_run(4, *overrides, f"hydra.run.dir={folder}", "resume=true")
    (tmp_path / "other").mkdir()
    expected = run(composed(*overrides), tmp_path / "other")
    assert (folder / "final_model.pt").read_bytes() == expected.read_bytes(), printed


def test_too_few_nodes_are_an_error_not_a_hang(tmp_path, monkeypatch):
    monkeypatch.setattr("fl.federation.rounds.LONGEST_WAIT_S", 0.2)
    config = composed(*SMALL)
    few = r"num_clients=4: 2 nodes are connected, 2 answered, with partitions \[0, 1\]"
    with InProcess().open(client_app(config), 2) as grid, pytest.raises(RunError, match=few):
        run(config, tmp_path, grid=grid)
    assert read_json(tmp_path / "summary.json")["state"] == "failed"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lr='0.1", "No closing quotation"),
        ("num_client=4", "did you mean num_clients"),
        ("data.path=EuroSAT.zip", "data.path=EuroSAT.zip: must be an absolute path"),
    ],
)
def test_bad_overrides_are_one_clear_error(text, words):
    with pytest.raises(ConfigError, match=words):
        configured(overrides_in(text))


def test_overrides_are_split_as_in_a_shell():
    assert overrides_in("lr=0.1 'data.path=/a b/c' data=folder") == ["lr=0.1", "data.path=/a b/c", "data=folder"]
    config = configured(overrides_in("num_clients=4 hydra.run.dir=/x data=synthetic"))
    assert config["num_clients"] == 4
