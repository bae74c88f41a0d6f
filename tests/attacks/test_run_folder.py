"""Two writers in one folder, disks that are full, file systems without locks."""

import errno
import fcntl
import os
import re
import resource
import socket
import subprocess
import sys
import time

import pytest
from conftest import SMALL, composed

from fl.core.errors import RunError
from fl.core.files import read_json, read_jsonl
from fl.core.lines import Lines
from fl.core.run_lock import LOCK, sole_writer
from fl.experiment.run import run

LONG_RUN = [*SMALL, "num_rounds=500", "local_epochs=5"]
TINY = [
    *(*SMALL, "data.num_images=100", "num_clients=2"),
    *("codec@broadcast=int8", "codec@update=int4", "update.error_feedback=true"),
]


@pytest.fixture
def training(tmp_path):
    """A training that goes on in `run`; stopped in the end."""
    command = [sys.executable, "-m", "fl.train", *LONG_RUN, "hydra.run.dir=run"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not (tmp_path / "run" / "checkpoint.pt").exists():
            assert process.poll() is None
            time.sleep(0.02)
        yield process
        assert process.poll() is None, "the first writer is not disturbed"
        process.kill()


@pytest.mark.parametrize(
    "door",
    [["fl.train", *LONG_RUN, "hydra.run.dir=run"], pytest.param(["fl", "resume", "run"], marks=pytest.mark.exhaustive)],
)
def test_a_second_writer_is_refused_at_once(door, training, tmp_path, refused):
    before = len(read_jsonl(tmp_path / "run" / "rounds.jsonl"))
    line = refused(*door, cwd=tmp_path, words=[f"process {training.pid} on {socket.gethostname()} is writing"])
    assert "wait for it, or stop it" in line
    assert len(read_jsonl(tmp_path / "run" / "rounds.jsonl")) >= before
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.long
def test_a_lock_ends_with_its_process(training, tmp_path):
    with pytest.raises(RunError, match="is writing into this folder"), sole_writer(tmp_path / "run"):
        pass
    training.kill()
    training.wait()
    with sole_writer(tmp_path / "run"):
        assert str(os.getpid()) in (tmp_path / "run" / LOCK).read_text()
    training.poll = lambda: None


def test_what_a_lock_file_says_is_data(tmp_path):
    with sole_writer(tmp_path):
        (tmp_path / LOCK).write_bytes(b"\x1b[2J\xff evil\n" * 1000)
        with pytest.raises(RunError) as told, sole_writer(tmp_path):
            pass
    assert str(told.value).isprintable()
    assert len(str(told.value)) < 500


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_is_named(number, tmp_path, monkeypatch, capsys):
    def flock(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with sole_writer(tmp_path):
        pass
    assert "this file system has no locks; a second run in this folder would not be noticed" in capsys.readouterr().out


def test_a_folder_in_which_nothing_began_stays_empty(tmp_path):
    with sole_writer(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def limited(size):
    """Returns what lets files of a process grow to `size` bytes: as a full disk, it fails in the middle of a file."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The final model of a run that had room."""
    folder = tmp_path_factory.mktemp("whole")
    return run(composed(*TINY), folder).read_bytes()


def names_a_file(stderr, folder, why):
    """Returns which file of a run an error names."""
    found = re.fullmatch(
        rf"error: {re.escape(str(folder))}/(checkpoint\.pt|clients/\d{{5}}-[0-9a-f]{{64}}): {why}\n", stderr
    )
    assert found, stderr
    return found[1]


@pytest.mark.parametrize("size", [1_000_000, pytest.param(3_000_000, marks=pytest.mark.long)])
@pytest.mark.long
def test_a_file_that_does_not_fit_is_named_and_the_run_goes_on_later(size, tmp_path, whole, command):
    folder = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-m", "fl.train", *TINY, f"hydra.run.dir={folder}"],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limited(size),
    )
    assert done.returncode == 1, done.stderr
    name = names_a_file(done.stderr, folder, "File too large")
    assert (name == "checkpoint.pt") == (size > 2_000_000)
    summary = read_json(folder / "summary.json")
    assert summary["state"] == "failed"
    assert name in summary["error"]
    assert read_jsonl(folder / "events.jsonl")[-1]["event"] == "failed"
    assert not list(folder.glob(".*.partial"))
    command("fl", "resume", folder, check=0)
    assert (folder / "final_model.pt").read_bytes() == whole


@pytest.mark.parametrize("name", ["rounds.jsonl", "events.jsonl"])
def test_a_line_that_does_not_fit_is_taken_back(name, tmp_path, monkeypatch):
    journal = Lines(tmp_path / name)
    journal.append({"round": 1})
    real = os.fsync

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as told:
        journal.append({"round": 2})
    assert told.value.filename == str(tmp_path / name)
    monkeypatch.setattr(os, "fsync", real)
    assert read_jsonl(tmp_path / name) == [{"round": 1}]
    journal.append({"round": 2})
    assert read_jsonl(tmp_path / name) == [{"round": 1}, {"round": 2}]


@pytest.mark.long
def test_on_a_full_disk_the_run_says_so_and_goes_on_elsewhere(tmp_path, whole, command):
    """A real file system with too little room for the second checkpoint."""
    (tmp_path / "small").mkdir()
    script = 'mount -t tmpfs -o size=12m none small && { "$@"; code=$?; cp -r small/run run; exit $code; }'
    train = [sys.executable, "-m", "fl.train", *TINY, "hydra.run.dir=small/run"]
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", *train], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    assert done.returncode == 1, done.stderr
    names_a_file(done.stderr, tmp_path / "small" / "run", "No space left on device")
    folder = tmp_path / "run"
    assert read_json(folder / "summary.json")["state"] == "failed"
    assert list(folder.glob("checkpoint*.pt"))
    command("fl", "resume", folder, check=0)
    assert (folder / "final_model.pt").read_bytes() == whole
