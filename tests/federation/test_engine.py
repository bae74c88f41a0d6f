"""Where clients run makes no difference to what comes out; what happens when their processes die."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
from conftest import SMALL, composed
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from fl.core.errors import ConfigError
from fl.core.files import read_json, read_jsonl, sha256
from fl.experiment.run import client_app
from fl.experiment.settings import settings_from
from fl.federation.engine import InProcess

RAY = [*SMALL, "engine=ray"]
WITH_A_FAILURE = """
import sys
from conftest import composed
from fl.experiment.run import run
from fl.federation.messages import config_of, number
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
RANDOM_FAULTS = ["faults=noise", "faults.clients=null", "faults.probability=0.5"]


@pytest.mark.parametrize(
    "codecs",
    [
        pytest.param([], marks=pytest.mark.exhaustive, id="plain"),
        pytest.param([*RANDOM_CODECS, *RANDOM_FAULTS], marks=pytest.mark.long, id="codecs"),
    ],
)
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


@pytest.mark.exhaustive
@pytest.mark.parametrize("min_completed", [1, 4])
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


TWO_NODES = """
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
node = cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
print("address", cluster.address, flush=True)
input()
cluster.remove_node(node, allow_graceful=False)
input()
cluster.shutdown()
"""


@pytest.mark.long
def test_a_node_that_dies_in_a_round_costs_one_client_and_the_run_goes_on(tmp_path):
    """Two raylets on this machine, each with one client's process; one of them is killed."""
    folder, pipe = tmp_path / "run", subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", TWO_NODES], stdin=pipe, stdout=pipe, text=True) as cluster:
        address = next(line.split()[1] for line in cluster.stdout if line.startswith("address "))
        settings = ["num_rounds=4", "data.num_images=800", "min_completed=1", f"engine.address={address}"]
        command = [sys.executable, "-m", "fl.train", *RAY, *settings, f"hydra.run.dir={folder}"]
        with subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True) as run:
            while not (folder / "rounds.jsonl").exists() and run.poll() is None:
                time.sleep(0.05)
            cluster.stdin.write("\n")
            cluster.stdin.flush()
            output, _ = run.communicate(timeout=400)
        cluster.communicate("\n", timeout=60)
    assert run.returncode == 0, output
    records = read_jsonl(folder / "rounds.jsonl")
    failed = [[each["reason"] for each in record["clients_failed"]] for record in records]
    assert sorted(map(len, failed)) == [0, 0, 0, 1], failed
    assert "raised: ray.exceptions.Actor" in str(failed), failed
    assert "Traceback" not in output


ENDS_WHILE_ANOTHER_STARTS = """
import os
import threading
import time
import ray
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp
from fl.federation.engine import Ray
from fl.federation.engine.actors import LONGEST_START_S

app = ClientApp()

@app.train()
def dies(message, context):
    os._exit(1)

with Ray(client_cpus=0.5).open(app, 1) as grid:
    grid._pool.client_resources["num_cpus"] = 10**6  # no place is found for it: it starts as long as the run lasts
    [reply] = grid.send_and_receive([Message(RecordDict(), next(iter(grid.get_node_ids())), "train")])
    assert "Actor" in reply.error.reason, reply.error
    starting = [each for each in threading.enumerate() if "_start_another" in each.name]
    assert starting
    ended = time.monotonic()
assert time.monotonic() - ended < LONGEST_START_S / 2, "the run waits for a process that nobody needs"
assert not any(each.is_alive() for each in starting), "a thread is left in a Ray that is shut down"
assert not ray.is_initialized(), "a Ray of nobody's is started"
"""


@pytest.mark.long
def test_a_run_that_ends_while_a_process_is_replaced_leaves_nothing_in_ray():
    done = subprocess.run(
        [sys.executable, "-c", ENDS_WHILE_ANOTHER_STARTS], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr


def _all_end(pids):
    """Waits a little for processes that have been told to end."""
    deadline = time.monotonic() + 30
    while left := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, f"processes are left behind: {left}"
        time.sleep(0.1)


@pytest.mark.exhaustive
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_ends_in_one_line(tmp_path, stop):
    command = [sys.executable, "-m", "fl.train", *RAY, "num_rounds=500", f"hydra.run.dir={tmp_path / 'run'}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        while not (tmp_path / "run" / "checkpoint.pt").exists() and run.poll() is None:
            time.sleep(0.05)
        started = clients_of(run)
        run.send_signal(stop)
        _, errors = run.communicate(timeout=60)
    assert run.returncode == 128 + stop, errors
    assert errors.startswith("interrupted; after round ")
    assert "fl resume" in errors
    assert len(errors.splitlines()) == 1, errors
    _all_end(started)


def counting():
    """A ClientApp that counts its own messages, spoils what it was sent, and raises where it is told to."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        told = message.content["told"]
        before = context.state.config_records.get("count", ConfigRecord({"messages": 0}))["messages"]
        context.state["count"] = ConfigRecord({"messages": before + 1})
        message.content["arrays"]["w"] = Array(np.zeros(1))
        if told["raise"]:
            raise ValueError("battery empty\nand cold")
        answered = {
            **{key: context.node_config[key] for key in ("partition-id", "num-partitions")},
            "messages": before + 1,
        }
        return Message(RecordDict({"answer": ConfigRecord(answered)}), reply_to=message)

    return app


def to(node, arrays=None, fail=False):
    content = {"arrays": arrays or ArrayRecord({"w": Array(np.ones(3))}), "told": ConfigRecord({"raise": fail})}
    return Message(RecordDict(content), node, "train")


def answers(grid, *messages):
    return [
        reply.error.reason if reply.has_error() else dict(reply.content["answer"])
        for reply in grid.send_and_receive(messages)
    ]


def test_a_client_remembers_what_it_did_when_it_answered_and_forgets_when_it_raised(tmp_path):
    with InProcess().open(counting(), 3, tmp_path) as grid:
        nodes = list(grid.get_node_ids())
        assert len(set(nodes)) == 3
        first = answers(grid, *(to(node) for node in nodes))
        assert first == [{"partition-id": n, "num-partitions": 3, "messages": 1} for n in range(3)]
        before = grid.states.listing()
        assert answers(grid, to(nodes[1], fail=True)) == ["ValueError: battery empty\nand cold"]
        assert grid.states.listing() == before
        assert answers(grid, to(nodes[1]))[0]["messages"] == 2
        assert answers(grid, to(nodes[0]))[0]["messages"] == 2, "each has a memory of its own"
        grid.states.restore(before, 2)
        assert answers(grid, to(nodes[1]))[0]["messages"] == 2
    with InProcess().open(counting(), 3, tmp_path) as another:
        another.states.restore(before, 2)
        assert answers(another, to(nodes[2]))[0]["messages"] == 2


def test_a_client_that_raised_is_told_apart_from_one_that_answers_by_flowers_own_code():
    with InProcess().open(counting(), 2) as grid:
        node, other = grid.get_node_ids()
        failed, answered = grid.send_and_receive([to(node, fail=True), to(other)])
    assert failed.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert (failed.metadata.src_node_id, answered.metadata.src_node_id) == (node, other)


def test_clients_get_copies_of_what_is_sent():
    """Strategies put the same record into every message."""
    shared = ArrayRecord({"w": Array(np.ones(3))})
    with InProcess().open(counting(), 2) as grid:
        messages = [to(node, shared) for node in grid.get_node_ids()]
        list(grid.send_and_receive(messages))
    assert all(np.array_equal(message.content["arrays"]["w"].numpy(), np.ones(3)) for message in messages)


def test_pushed_messages_are_pulled_once_by_their_ids():
    with InProcess().open(counting(), 2) as grid:
        first, second = grid.get_node_ids()
        ids = list(grid.push_messages([to(first), to(second), to(first)]))
        assert len(set(ids)) == 3
        (reply,) = grid.pull_messages([ids[2], "another"])
        assert (reply.metadata.src_node_id, reply.content["answer"]["messages"]) == (first, 2)
        rest = list(grid.pull_messages(ids))
        assert [each.metadata.src_node_id for each in rest] == [first, second]
        assert list(grid.pull_messages(ids)) == []


def test_clients_are_started_one_after_another_as_their_answers_are_asked_for():
    with InProcess().open(counting(), 2) as grid:
        first, second = grid.get_node_ids()
        replies = grid.send_and_receive([to(first), to(second)])
        next(replies)
        assert answers(grid, to(second))[0]["messages"] == 1, "the second message has not been delivered yet"


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
