"""Flower's deployment runtime on this machine, by scripts/deployment.sh: same bytes, refusals, kills and hangs."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from fl.core.files import read_json, read_jsonl

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

    def group(self, name):
        """Returns the process group of what was started under a name."""
        return int((self.folder / f"{name}.pid").read_text())


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    ground = Ground(tmp_path_factory.mktemp("ground"))
    ground("start", 2)
    yield ground
    ground("stop")
    assert not ground.processes("flower-super"), "processes are left behind"


def until(condition, seconds=240):
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


def rounds_of(folder):
    return read_jsonl(folder / "rounds.jsonl") if (folder / "rounds.jsonl").exists() else []


PATIENT = ["num_rounds=4", "reply_timeout_s=60", "min_completed=1"]


def test_a_hung_client_is_left_out_and_comes_back(ground, tmp_path):
    run = tmp_path / "run"
    with ground.begin(*RUN, *PATIENT, f"hydra.run.dir={run}") as client:
        until(lambda: len(rounds_of(run)) == 1)
        os.killpg(ground.group("node1"), signal.SIGSTOP)
        try:
            until(lambda: any(record["clients_failed"] for record in rounds_of(run)))
        finally:
            os.killpg(ground.group("node1"), signal.SIGCONT)
        assert client.wait(300) == 0
    failed = [[failure["reason"] for failure in record["clients_failed"]] for record in rounds_of(run)]
    assert len(failed) == 4
    assert failed[0] == []
    assert {reason for reasons in failed for reason in reasons} == {"no reply in time"}
    assert read_json(run / "summary.json")["state"] == "completed"
    late = [each for record in rounds_of(run) for each in record.get("late", ())]
    assert all(each["partition_id"] == 1 and each["update_payload_bytes"] > 1_000_000 for each in late)


def test_a_supernode_that_was_killed_and_started_again_is_the_same_client(ground, tmp_path):
    run = tmp_path / "run"
    with ground.begin(*RUN, *PATIENT, "num_rounds=6", f"hydra.run.dir={run}") as client:
        until(lambda: len(rounds_of(run)) == 1)
        os.killpg(ground.group("node1"), signal.SIGKILL)
        until(lambda: any(record["clients_failed"] for record in rounds_of(run)))
        ground("node", 1)
        assert client.wait(300) == 0
    completed = [record["clients_completed"] for record in rounds_of(run)]
    assert (completed[0], min(completed), completed[-1]) == (2, 1, 2), completed
    assert {each["partition_id"] for each in rounds_of(run)[-1]["clients"]} == {0, 1}


class Proxy:
    """Passes on what a SuperNode and the SuperLink say to each other, and counts it."""

    def __init__(self, port):
        self.server, self.target = socket.create_server(("127.0.0.1", 0)), port
        self.port, self.up, self.down = self.server.getsockname()[1], 0, 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with suppress(OSError), self.server:
            while True:
                near, _ = self.server.accept()
                far = socket.create_connection(("127.0.0.1", self.target))
                ways = ((near, far, "up"), (far, near, "down"))
                carry = [threading.Thread(target=self._carry, args=way, daemon=True) for way in ways]
                threading.Thread(target=self._connect, args=(near, far, carry), daemon=True).start()

    def _connect(self, near, far, carry):
        with near, far:
            for each in carry:
                each.start()
            for each in carry:
                each.join()

    def _carry(self, source, sink, way):
        with suppress(OSError):
            while content := source.recv(2**16):
                setattr(self, way, getattr(self, way) + len(content))
                sink.sendall(content)
            sink.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("codecs", [[], CODED], ids=["plain", "coded"])
def test_bytes_on_the_socket_are_ours_and_little_more(ground, tmp_path, codecs):
    """`message_bytes` of one client's messages against what its connection carried, TLS, heartbeats and all."""
    proxy, run = Proxy(ground.port), tmp_path / "run"
    command = [BIN / "flower-supernode", "--superlink", f"127.0.0.1:{proxy.port}", "--port", str(ground.port + 8)]
    command += ["--root-certificates", ground.folder / "tls" / "ca.pem"]
    command += ["--auth-supernode-private-key", ground.folder / "keys" / "node1"]
    command += ["--node-config", "partition-id=1 num-partitions=2"]
    os.killpg(ground.group("node1"), signal.SIGTERM)  # which says goodbye
    until(lambda: not ground.processes(f"--port {ground.port + 2} "))
    with (tmp_path / "log").open("w") as log:
        node = subprocess.Popen(command, env=ground.environment, stdout=log, stderr=log, start_new_session=True)
    try:
        until(lambda: proxy.down > 1000)
        ground("run", *RUN, "num_rounds=3", *codecs, f"hydra.run.dir={run}")
    finally:
        os.killpg(node.pid, signal.SIGTERM)
        node.wait()
        proxy.server.shutdown(socket.SHUT_RDWR)  # ends its thread
        ground("node", 1)
    own = [next(each for each in record["clients"] if each["partition_id"] == 1) for record in rounds_of(run)]
    sent = sum(each["broadcast_message_bytes"] for each in own)
    answered = sum(each["update_message_bytes"] for each in own)
    print(f"to the client {proxy.down:,} of which ours {sent:,}; from it {proxy.up:,} of which ours {answered:,}")
    assert sent < proxy.down < 1.1 * sent + 1_500_000, "Flower's app bundle comes on top"
    assert answered < proxy.up < 1.1 * answered + 200_000
