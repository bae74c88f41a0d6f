"""What a new user meets: what commands say when something is typed otherwise, stopped early, or may not be written."""

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
from conftest import REPOSITORY, SMALL, composed

from fl.commands.arguments import Parser
from fl.core.errors import ConfigError, counted, did_you_mean
from fl.core.files import read_json, read_jsonl
from fl.core.run_folder import model_in
from fl.experiment.composing import explained, literal, overrides_first

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


TEXTS = [
    "run mit ümlaut",
    "a=b",
    "it's",
    'so "it" goes',
    "a,b",
    "a(b)",
    "1.50",
    "true",
    "[a",
    "a;b & c|d",
    "ends with \\",
    "back\\'slash",
    "$HOME {x} #1",
    "卫星",
    "'quoted' twice",
    " spaces at both ends ",
]


@pytest.mark.parametrize("text", TEXTS)
def test_text_arrives_as_it_was_typed(text):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    (override,) = literal([f"hydra.run.dir={text}"])
    assert OverridesParser.create().parse_override(override).value() == text


def test_what_hydra_can_read_stays_as_it_is():
    kept = ["num_rounds=2,4", "lr=0.1", "data.path='a b'", "strategy=fedavg", "seed=range(1,3)", "+x.y=[1,2]", "~link"]
    assert literal(kept) == kept
    assert literal(["seed=rnge(1,3)"]) == ["seed=rnge(1,3)"]  # to be refused, not taken as a text
    assert literal(["data.path=bilder/März"]) == ["data.path='bilder/März'"]
    assert literal(["hydra.run.dir=${new_folder:outputs/x}"]) == ["hydra.run.dir='${new_folder:outputs/x}'"]


def test_a_path_with_a_comma_that_is_there_is_one_path(tmp_path, monkeypatch):
    (tmp_path / "a,b").mkdir()
    monkeypatch.chdir(tmp_path)
    assert literal(["data.path=a,b", "data.path=c,d"]) == ["data.path='a,b'", "data.path=c,d"]


DASHES = {
    "--num-rounds 3": "num_rounds=3",
    "--num_rounds=3": "num_rounds=3",
    "--rounds=3": "num_rounds=3",
    "--clients 5": "num_clients=5",
    "--lr 0.1": "lr=0.1",
    "--learning-rate 0.1": "lr=0.1",
    "--epochs 2": "local_epochs=2",
    "--data.path x": "data.path=x",
    "--data-path=x": "data.path=x",
    "--update.bits 2": "update.bits=2",
    "--codec int4": "codec@update=int4 codec@broadcast=int4",
    "--strategy fedavg": "strategy=fedavg",
    "--output here": "hydra.run.dir=here",
    "--nonsense": "see python -m fl.train --help",
    "-x": "see python -m fl.train --help",
    "-rounds=3": "num_rounds=3",
    "--cfg nonsense": "job",
}


@pytest.mark.parametrize("typed", DASHES)
def test_a_setting_with_dashes_is_told_how_it_is_given(typed):
    with pytest.raises(ConfigError) as caught:
        overrides_first(["data=synthetic", *typed.split(), "seed=3"])
    told = str(caught.value)
    assert "\n" not in told
    assert DASHES[typed] in told
    assert typed in told or typed.startswith("--cfg")


def test_hydras_own_options_pass_and_may_stand_anywhere():
    assert overrides_first(["a=1", "-m", "b=2,3"]) == ["a=1", "b=2,3", "-m"]
    assert overrides_first(["--cfg", "job", "a=1"]) == ["a=1", "--cfg", "job"]
    for each in (["-h"], ["--help"], ["--multirun"], []):
        assert overrides_first(each) == each


def test_the_command_tells_it_in_one_line(refused, command):
    refused("fl.train", "--num-rounds", "3", words=["--num-rounds 3", "num_rounds=3", "--help"])
    assert command("fl.train", "-h", check=0).stdout == command("fl.train", "--help", check=0).stdout


MEANT = {
    "codec=int4": "codec@update=int4 codec@broadcast=int4",
    "codec@up=int4": "codec@update=int4 codec@broadcast=int4",
    "+codec=int4": "codec@update=int4 codec@broadcast=int4",
    "codec@update=INT4": "codec@update=INT4: there is no such choice; did you mean int4?",
    "strategy=FedAvg": "did you mean fedavg?",
    "engine=inprocess": "did you mean in_process?",
    "precision=int8": "compare_quantizations.py --precisions int8",
    "rounds=3": "did you mean num_rounds?",
    "+rounds=3": "did you mean num_rounds?",
    "learning_rate=3": "did you mean lr?",
    "Num_Rounds=3": "did you mean num_rounds?",
    "link.train=3": "did you mean train_s?",
    "partition.alpha=0.3": "partition=dirichlet has alpha",
    "training.bits=4": "training=qat has bits",
    "+strategy.proximal=1": "FedAvg has no such setting",
    "data=folder": "data.path=DIR is needed",
    "data.num_image=3": "there is no setting data.num_image",
    "model=resnet": "there is no setting model",
    "lr=ä": "lr=ä: input should be a valid number",
    "seed=rnge(1,2)": "Unknown function 'rnge'",
}


@pytest.mark.parametrize("override", MEANT)
def test_a_misspelt_setting_is_told_what_was_meant(override):
    from fl.experiment.settings import settings_from

    with pytest.raises(ConfigError) as caught, explained([override]):
        settings_from(composed(*literal([override])))
    assert MEANT[override] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_word_is_recognised_whatever_its_case():
    assert did_you_mean("FEDAVG", ["fedavg", "fedadam"]) == "fedavg"
    assert did_you_mean("zzz", ["fedavg"]) is None


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


@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGTERM])
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


def test_a_run_folder_is_taken_for_its_model(small_run, tmp_path):
    assert model_in(small_run) == small_run / "final_model.pt"
    assert model_in(small_run / "final_model.pt") == small_run / "final_model.pt"
    (tmp_path / "multirun.yaml").touch()
    with pytest.raises(ConfigError, match=r"is a sweep.*none of them has a final model"):
        model_in(tmp_path)
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "final_model.pt").touch()
    with pytest.raises(ConfigError, match=f"is a sweep.*such as {tmp_path}/3"):
        model_in(tmp_path)
    (tmp_path / "new run").mkdir()
    with pytest.raises(ConfigError, match="is no run folder"):
        model_in(tmp_path / "new run")
    (tmp_path / "new run" / "settings.json").touch()
    with pytest.raises(ConfigError, match=r"no final_model.pt yet.*fl resume .*'"):
        model_in(tmp_path / "new run")


def test_one_word_means_one_thing_in_every_command():
    from fl.commands import bench, communication, compare, export

    assert compare.parse(["m", "--num-clients", "3", "--num-rounds", "4", "--format", "onnx"]) == (
        compare.parse(["m", "--clients", "3", "--rounds", "4", "--formats", "onnx"])
    )
    assert compare.parse(["m", "--precision", "fp16"]).precisions == "fp16"
    assert export.parse(["r", "--formats", "onnx"]) == export.parse(["r", "--format", "onnx"])
    assert bench.parse(["m", "--batch-size", "4"]) == bench.parse(["m", "--batch-sizes", "4"])
    sizes = ["--broadcast-bytes", "1", "--update-bytes", "1"]
    assert communication.parse([*sizes, "--num-clients", "3", "--num-rounds", "4"]) == (
        communication.parse([*sizes, "--clients", "3", "--rounds", "4"])
    )


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["--roundz", "3", "x"], "error: --roundz: there is no such option; did you mean --rounds?; see prog --help"),
        (["--rounds", "three", "x"], "error: --rounds/--num-rounds: invalid int value: 'three'; see prog --help"),
        ([], "error: missing: place; see prog --help"),
    ],
)
def test_a_mistake_in_options_is_one_line(typed, told, capsys):
    parser = Parser(prog="prog")
    parser.add_argument("place")
    parser.add_argument("--rounds", type=int)
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(typed)
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"{told}\n"


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


def test_the_demo_codes_its_traffic_and_fp32_does_not():
    demo, fp32 = composed("experiment=demo"), composed("experiment=[demo,fp32]")
    assert demo["broadcast"]["_target_"] == demo["update"]["_target_"] == "fl.codec.Ecq"
    assert not fp32["broadcast"]
    assert not fp32["update"]


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


def test_sharing_images_among_many_clients_says_so(tmp_path, capsys):
    import numpy as np

    from fl.core.targets import Target
    from fl.data.partition import share_images

    labels = np.arange(600) % 10
    for clients, said in ((2, ""), (200, "Sharing 600 training images among 200 clients...\n")):
        share_images(tmp_path, Target("fl.data.partition.Iid"), labels, np.arange(600), clients, 1)
        assert capsys.readouterr().out == said
