"""What a new user meets: what commands say, print as the next one, and do when they are stopped or may not write."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import REPOSITORY, SMALL

from fl.core.errors import counted
from fl.core.files import read_json, read_jsonl

ODD = """run mit ümlaut = it's "so" $HOME, 100% #1"""
ONE = [*SMALL, "data.num_images=100", "num_clients=1", "num_rounds=1"]


def shell(line, cwd):
    """Runs a printed command as a user would paste it, with `python` being this one."""
    python = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-c", line], cwd=cwd, capture_output=True, text=True, check=True, env={**os.environ, "PATH": python}
    )


@pytest.fixture(scope="module")
def odd_run(tmp_path_factory, preloaded):
    """A run of one client and one round in a folder of an odd name; returns the folder above, and what it said."""
    folder = tmp_path_factory.mktemp("user")
    done = preloaded.run(["-m", "fl.train", *ONE, "codec@update=int8", f"hydra.run.dir={ODD}"], folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.fixture(scope="module")
def odd_comparison(odd_run):
    """What the command said that the run printed as the next one."""
    folder, said = odd_run
    (line,) = re.findall("^Next: +(.*)$", said, re.MULTILINE)
    return shell(line, folder).stdout


def test_a_folder_may_have_any_name_and_the_printed_command_works(odd_run, odd_comparison):
    folder, said = odd_run
    assert [path.name for path in folder.iterdir()] == [ODD]
    assert f"Model:   {ODD}/final_model.pt" in said
    assert (folder / ODD / "quantization_comparison.json").is_file()
    assert f"Input model: {ODD}/final_model.pt" in odd_comparison


def test_a_run_ends_with_its_traffic_beside_fp32(odd_run):
    folder, said = odd_run
    total = read_json(folder / ODD / "communication.json")["measured"]["total"]
    ratio = total["fp32_payload_bytes"] / total["payload_bytes"]
    assert re.search(rf"^Traffic: \d+\.\d\d MB of payload .* as FP32: {ratio:.2f}x fewer bytes$", said, re.MULTILINE)


def test_one_of_a_thing_is_said_in_the_singular(odd_run, odd_comparison):
    said = odd_run[1] + odd_comparison
    for words in ("1 round, 1 of 1 client per round", "1 client (satellite) per round", "1 FL round (", "(1 round)"):
        assert words in said
    assert "sent once to 1 satellite:" in said
    assert "Sent in 1 round:" in said
    assert not re.search(r"(?<![\d.,])1 (FL )?(rounds|clients|images|satellites|jobs|threads)\b", said)
    assert (counted(1, "image"), counted(0, "image"), counted(1200, "image")) == ("1 image", "0 images", "1,200 images")


def test_the_table_says_what_a_drop_is(odd_comparison):
    table = odd_comparison[odd_comparison.index("COMPARISON SUMMARY") : odd_comparison.index("COMMUNICATION COST")]
    rows = table.splitlines()
    (place,) = (number for number, row in enumerate(rows) if row.startswith("Drop: accuracy minus FP32's, in points"))
    assert rows[place - 1].startswith("INT8 static")


def test_the_command_tells_it_in_one_line(refused, command):
    refused("fl.train", "--num-rounds", "3", words=["--num-rounds 3", "num_rounds=3", "--help"])
    assert command("fl.train", "-h", check=0).stdout == command("fl.train", "--help", check=0).stdout


@pytest.mark.parametrize(("way", "setting"), [([], "hydra.run.dir"), (["-m", "seed=1,2"], "hydra.sweep.dir")])
def test_where_no_run_folder_can_be_made_it_says_so_and_what_to_give(way, setting, refused, tmp_path):
    """`outputs` is a file, which not even root can make a folder in."""
    (tmp_path / "outputs").touch()
    refused("fl.train", *ONE, *way, words=["outputs", "cannot be made", f"{setting}=/tmp/run"])
    refused("fl.train", *ONE, *way, f"{setting}=outputs/x", words=["outputs", "cannot be made", f"{setting}=/tmp/run"])


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_named(refused, tmp_path):
    tmp_path.chmod(0o555)
    refused("fl.train", *ONE, words=["outputs", "Permission denied", "hydra.run.dir="])
    tmp_path.chmod(0o755)


def test_results_that_cannot_be_written_are_told_which_option_helps(odd_run, refused, tmp_path):
    folder = odd_run[0] / ODD
    (tmp_path / "file").touch()
    for arguments, option in (
        (["compare_quantizations.py", folder, "--output", tmp_path / "file" / "x"], "--output DIR"),
        (["fl", "export", folder, "--output", tmp_path / "file" / "x"], "--output DIR"),
    ):
        refused(*arguments, words=["cannot be written", "Not a directory", option])


def wait_for(path, process):
    """Waits until a file is there or the process has ended."""
    deadline = time.time() + 240
    while not path.exists() and process.poll() is None and time.time() < deadline:
        time.sleep(0.01)
    assert path.exists()


@pytest.mark.parametrize(
    "way",
    [
        pytest.param(signal.SIGINT, marks=pytest.mark.long),
        pytest.param(signal.SIGTERM, marks=pytest.mark.exhaustive),
    ],
)
def test_a_stopped_run_says_how_it_continues_and_that_works(way, tmp_path):
    """The second time before a round has ended, after which nothing is left to continue."""
    folder = tmp_path / "it's stopped"
    rounds = "num_rounds=4" if way == signal.SIGINT else "local_epochs=500"
    arguments = [
        sys.executable,
        "-m",
        "fl.train",
        *SMALL,
        "data.num_images=200",
        rounds,
        f"hydra.run.dir={folder.name}",
    ]
    with subprocess.Popen(
        arguments, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_for(folder / ("checkpoint.pt" if way == signal.SIGINT else "settings.json"), process)
        process.send_signal(way)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + way
    assert len(errors.splitlines()) == 1, errors
    assert "RUN_DIR" not in errors
    assert not (folder / "final_model.pt").exists()
    summary = read_json(folder / "summary.json")
    assert summary["state"] == "interrupted"
    if way == signal.SIGTERM:
        assert errors.startswith("interrupted; no round was finished; it begins again with: ")
        assert f"fl resume {shlex.quote(folder.name)}" in errors
        return
    done = len(read_jsonl(folder / "rounds.jsonl"))
    assert errors.startswith(f"interrupted; after round {done} it continues with: ")
    assert (summary["rounds_completed"], summary["num_rounds"]) == (done, 4)
    assert "interrupted" in [event["event"] for event in read_jsonl(folder / "events.jsonl")]
    shell(errors.partition(" with: ")[2], tmp_path)
    assert read_json(folder / "summary.json")["state"] == "completed"
    assert (folder / "final_model.pt").exists()


def test_a_stopped_sweep_shows_its_table_and_the_job_that_can_go_on(tmp_path):
    command = [sys.executable, "-m", "fl.train", "-m", *SMALL, "data.num_images=200", "num_rounds=50", "seed=1,2"]
    with subprocess.Popen(
        [*command, "hydra.sweep.dir=a sweep"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_for(tmp_path / "a sweep" / "0" / "checkpoint.pt", process)
        process.send_signal(signal.SIGINT)
        said, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "interrupted" in said
    assert "not started" in said
    assert "fl resume 'a sweep/0'" in errors
    assert "fl sweep 'a sweep'" in errors
    assert "Traceback" not in errors
    assert [row["state"] for row in json.loads((tmp_path / "a sweep" / "sweep.json").read_text())["jobs"]] == [
        "interrupted",
        "not started",
    ]


@pytest.mark.parametrize(
    ("given", "found"), [({}, "10000"), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")]
)
@pytest.mark.skipif(sys.platform != "linux", reason="torch brings another OpenMP there")
def test_threads_sleep_soon_unless_the_user_says_otherwise(given, found):
    """As torch's OpenMP itself tells when it is loaded."""
    (library,) = (Path(find_spec("torch").origin).parent / "lib").glob("libgomp*.so*")
    code = f"import ctypes, fl; ctypes.CDLL({str(library)!r})"
    environment = {
        name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    }
    environment |= {**given, "OMP_DISPLAY_ENV": "VERBOSE"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert re.search(rf"GOMP_SPINCOUNT = '{found}'", done.stderr), done.stderr


def test_make_ends_with_what_to_look_at_next(tmp_path):
    (tmp_path / "log").write_text("Model:   outputs/demo-3/final_model.pt\nTraffic: 1 MB: 30x fewer bytes\n")
    (tmp_path / "Makefile").write_text(f"include {REPOSITORY}/Makefile\nend:\n\t@$(call look,log)\n")
    command = ["make", "--no-print-directory", "end"]  # of which these tests may be a part
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "Traffic while it trained: 1 MB: 30x fewer bytes" in done.stdout
    for name in re.findall(r"^  (\S+\.(?:png|json)) ", done.stdout, re.MULTILINE):
        assert f"`{Path(name).stem}." in (REPOSITORY / "outputs" / "README.md").read_text()
    commands = re.findall(r"python (-m fl \w+|\S+\.py) (\S+)", done.stdout)
    assert ("-m fl communication", "outputs/demo-3") in commands
    assert ("-m fl recommend", "outputs/demo-3") in commands
    assert shlex.split(done.stdout.splitlines()[-1].partition("#")[0])[1:3] == ["-m", "fl.train"]
