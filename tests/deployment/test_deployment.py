"""Flower's deployment runtime on this machine, by scripts/deployment.sh: same bytes, refusals, kills and hangs."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fl.results import read_json, read_jsonl

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "scripts" / "deployment.sh"
BIN = Path(sys.executable).parent
RUN = ["data=synthetic", "data.num_images=200", "local_epochs=1", "batch_size=16", "threads_per_client=1"]
CODED = ["codec@update=int4", "codec@broadcast=int8", "update.error_feedback=true"]


def free_port():
    """Returns a port that is free, with some after it."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1] - 20


class Ground:
    """A SuperLink and two SuperNodes."""

    def __init__(self, folder):
        self.folder, self.port = folder, free_port()
        own = {"QUANTFL_DEPLOYMENT": str(folder), "QUANTFL_PORT": str(self.port), "QUANTFL_BIN": str(BIN)}
        flower = {"FLWR_TELEMETRY_ENABLED": "0", "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
        self.environment = {**os.environ, **own, **flower, "OMP_NUM_THREADS": "1"}

    def __call__(self, *arguments, timeout=300, check=True):
        done = subprocess.run(
            [SCRIPT, *map(str, arguments)],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def begin(self, *overrides):
        """Starts a run and goes on."""
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen([SCRIPT, "run", *map(str, overrides)], env=self.environment, **quiet)

    def processes(self, word):
        """Returns the processes of this ground segment whose command line has a word."""
        listed = subprocess.run(["ps", "-ewwo", "pid,args"], capture_output=True, text=True, check=True).stdout
        ports = [str(self.port + each) for each in range(4)]
        rows = [line.split(maxsplit=1) for line in listed.splitlines()]
        return [int(pid) for pid, args in rows if word in args and any(f":{port}" in args for port in ports)]


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    ground = Ground(tmp_path_factory.mktemp("ground"))
    ground("start", 2)
    yield ground
    ground("stop")
    assert not ground.processes("flower-super"), "processes are left behind"


def until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture(scope="module")
def in_process(tmp_path_factory):
    """Returns the bytes of the model that the same run gives in one process."""
    folder = tmp_path_factory.mktemp("in_process")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def model(*overrides):
        run = folder / str(abs(hash(overrides)))
        command = [sys.executable, "-m", "fl.train", *RUN, "num_clients=2", *overrides, f"hydra.run.dir={run}"]
        subprocess.run(command, env=environment, capture_output=True, check=True)
        return (run / "final_model.pt").read_bytes()

    return model


@pytest.mark.parametrize("codecs", [[], CODED], ids=["plain", "coded"])
def test_the_same_bytes_as_in_one_process(ground, in_process, tmp_path, codecs):
    told = ground("run", *RUN, "num_rounds=2", *codecs, f"hydra.run.dir={tmp_path / 'run'}")
    assert "round 2/2" in told
    assert (tmp_path / "run" / "final_model.pt").read_bytes() == in_process("num_rounds=2", *codecs)


REFUSED = {
    "plain text": (["--insecure"], "could not establish a connection"),
    "no key": (["--root-certificates", "{folder}/tls/ca.pem"], "[code: 2001]"),
    "an unregistered key": (
        ["--root-certificates", "{folder}/tls/ca.pem", "--auth-supernode-private-key", "{own}/key"],
        "[code: 2004]",
    ),
}


@pytest.mark.parametrize("who", REFUSED)
def test_who_is_not_known_is_refused(ground, tmp_path, who):
    options, words = REFUSED[who]
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", tmp_path / "key"], check=True)
    command = [BIN / "flower-supernode", "--superlink", f"127.0.0.1:{ground.port}", "--port", str(ground.port + 9)]
    command += [each.format(folder=ground.folder, own=tmp_path) for each in options]
    command += ["--max-retries", "1", "--node-config", "partition-id=0 num-partitions=2"]
    with (tmp_path / "log").open("w") as log:  # no pipe: what it starts keeps that open
        done = subprocess.run(command, env=ground.environment, stdout=log, stderr=log, timeout=120, check=False)
    assert done.returncode != 0
    assert words in (tmp_path / "log").read_text()


def test_a_killed_run_goes_on_to_the_same_bytes(ground, in_process, tmp_path):
    wanted = [*RUN, "num_rounds=3", f"hydra.run.dir={tmp_path / 'run'}"]
    with ground.begin(*wanted) as client:
        until((tmp_path / "run" / "checkpoint.pt").exists)
        for process in ground.processes("flwr-serverapp"):
            os.kill(process, signal.SIGKILL)
        client.terminate()
    assert not (tmp_path / "run" / "final_model.pt").exists()
    told = ground("run", *wanted, "resume=true")
    assert "round 3/3" in told, told
    assert (tmp_path / "run" / "final_model.pt").read_bytes() == in_process("num_rounds=3")
    assert "is finished, nothing is left to do" in ground("run", *wanted, "resume=true")


def test_a_killed_run_with_codecs_says_what_is_lost(ground, tmp_path):
    wanted = [*RUN, *CODED, "num_rounds=3", f"hydra.run.dir={tmp_path / 'run'}"]
    with ground.begin(*wanted) as client:
        until((tmp_path / "run" / "checkpoint.pt").exists)
        for process in ground.processes("flwr-serverapp"):
            os.kill(process, signal.SIGKILL)
        client.terminate()
    told = ground("run", *wanted, "resume=true")
    assert "what error feedback kept is lost" in told, told
    assert [len(record["clients_failed"]) for record in read_jsonl(tmp_path / "run" / "rounds.jsonl")] == [0, 0, 0]
    assert read_json(tmp_path / "run" / "summary.json")["state"] == "completed"
