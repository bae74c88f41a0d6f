"""`flwr run`: the apps that it starts train as `fl.train` does, to the same bytes."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SMALL, composed
from tracked import scalars_of

from fl.core.errors import ConfigError, RunError
from fl.core.files import read_json
from fl.experiment.run import client_app, run
from fl.federation.engine import InProcess
from fl.flower_apps import configured, overrides_in


@pytest.fixture
def flwr_run(checkout, tmp_path):
    """Runs `flwr run` on a copy of the code with a SuperLink of its own; returns what it printed."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    flower = {
        "FLWR_HOME": str(tmp_path / "flwr"),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": port,
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }

    def run(num_supernodes, *overrides):
        command = ["flwr", "run", checkout, "--stream", "--federation-config", f"num-supernodes={num_supernodes}"]
        command += ["--run-config", f'overrides="{" ".join(overrides)}"']
        done = subprocess.run(
            command, env=os.environ | flower, capture_output=True, text=True, timeout=200, cwd=tmp_path, check=False
        )
        return done.stdout + done.stderr

    yield run
    listed = subprocess.run(["ps", "-ww", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    for line in listed.splitlines():
        if port in line.split() or f":{port}" in line:
            os.kill(int(line.split()[0]), signal.SIGTERM)


@pytest.mark.long
def test_flwr_run_gives_the_same_bytes(flwr_run, small_run, tmp_path):
    folder = tmp_path / "run"
    printed = flwr_run(4, *SMALL, "tracking=tensorboard", f"hydra.run.dir={folder}")
    assert (folder / "final_model.pt").exists(), printed
    assert (folder / "final_model.pt").read_bytes() == (small_run / "final_model.pt").read_bytes()
    counted = [read_json(each / "summary.json")["totals"]["update"] for each in (folder, small_run)]
    assert counted[0] == counted[1]
    assert f"Run folder: {folder}" in printed
    assert "round 2/2" in printed
    assert "Tracked: tensorboard run" in printed
    assert [step for step, _ in scalars_of(folder)["test_accuracy"]] == [1, 2]


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
