"""`submit_job.sh` without SLURM: what it refuses, what its job scripts hold, and that they run (`--local`).

`tests/cluster/test_slurm.py` holds it against a real SLURM.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY, SMALL, composed

from fl.core.files import read_json, sha256

TINY = [*SMALL, "data.num_images=100", "num_clients=2"]


@pytest.fixture
def submit(checkout, tmp_path):
    """Runs the copy's `submit_job.sh` from another folder; returns the finished process."""

    def run(*arguments, check=0, environment=None, script=checkout / "submit_job.sh"):
        variables = {name: value for name, value in os.environ.items() if not name.startswith("SBATCH_")}
        done = subprocess.run(
            [script, "--python", sys.executable, *map(str, arguments)],
            cwd=tmp_path,
            env=variables | (environment or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert check in (None, done.returncode), f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


def job_scripts(dry_run):
    """Returns the training's and the comparison's script of what `--dry-run` printed."""
    train, compare = re.split(r"^# .*/(?:train|compare)\.sbatch.*\n", dry_run, flags=re.MULTILINE)[1:]
    return train, compare


def directives(script):
    return dict(
        line.removeprefix("#SBATCH --").partition("=")[::2] for line in script.splitlines() if "#SBATCH" in line
    )


def arguments_in(script):
    """Returns what bash and then Python make of the arguments in a training script."""
    array = script[script.index("arguments=(") : script.index("\n)\n") + 3]
    show = f'{array}exec "$0" -c "import json, sys; print(json.dumps(sys.argv[1:]))" "${{arguments[@]}}"'
    return json.loads(subprocess.check_output(["bash", "-euc", show, sys.executable], text=True))


REFUSED = {
    (): ["precision", "rounds", "fp32 10"],
    ("fp32",): ["precision", "rounds"],
    ("fp23", 10): ["fp23", "valid: fp32"],
    ("../demo", 10): ["../demo", "valid: fp32"],
    ("fp32", 0): ["rounds 0", "at least 1"],
    ("fp32", "ten"): ["rounds ten"],
    ("fp32", "1.5"): ["rounds 1.5"],
    ("fp32", "-3"): ["rounds -3"],
    ("fp32", ""): ["rounds"],
    ("fp32", 10, 0): ["time limit 0", "positive"],
    ("fp32", 10, "0.0"): ["time limit 0.0"],
    ("fp32", 10, "-5"): ["time limit -5", "positive"],
    ("fp32", 10, "soon"): ["time limit soon", "key=value"],
    ("fp32", 10, ""): ["time limit"],
    ("fp32", 10, 5, 6): ["6", "key=value"],
    ("fp32", 10, "num_client=3"): ["num_client=3", "did you mean num_clients?"],
    ("fp32", 10, "strategy=fedavgg"): ["strategy=fedavgg", "nesterov"],
    ("fp32", 10, "lr=0.1,0.2"): ["lr=0.1,0.2"],
    ("fp32", 10, "num_rounds=3"): ["num_rounds=3", "second argument"],
    ("fp32", 10, "++num_rounds=3"): ["++num_rounds=3", "second argument"],
    ("fp32", 10, "time_limit_min=3"): ["time_limit_min=3", "after the rounds"],
    ("fp32", 10, "hydra.run.dir=here"): ["hydra.run.dir=here", "--run-dir"],
    ("fp32", 10, "experiment=int8"): ["experiment=int8", "first argument"],
    ("fp32", 10, "-m", "lr=0.1,0.2"): ["-m", "python -m fl.train -m"],
    ("fp32", 10, "hydra/launcher=slurm"): ["hydra/launcher=slurm", "python -m fl.train -m"],
    ("fp32", 10, "--gups", 1): ["--gups", "--help"],
    ("fp32", 10, "--gpus"): ["--gpus", "value"],
    ("fp32", 10, "--gpus", "--local"): ["--gpus", "value"],
    ("fp32", 10, "--mem="): ["--mem", "value"],
    ("fp32", 10, "--nodes", 0): ["--nodes 0", "at least 1"],
    ("fp32", 10, "--nodes", "two"): ["--nodes two", "whole number"],
    ("fp32", 10, "--nodes", 2): ["--nodes 2", "--local has one node"],
    ("fp32", 10, "--gpus", 1, "--nodes", 2, "engine=in_process"): ["engine=in_process", "--nodes 2", "engine=ray"],
    ("fp32", 10, "--job-name", 'a"b'): ["--job-name", "quote"],
    ("fp32", 10, "--python", "/bin/false"): ["/bin/false", "make install", "--python"],
    ("fp32", 10, "--run-dir", "."): ["exists", "new folder"],
    ("fp32", 10, "--run-dir", "/proc/none"): ["/proc/none", "--run-dir DIR"],
    ("fp32", 10, "--run-dir", "two\nlines"): ["two lines", "line break"],
}


@pytest.mark.parametrize("arguments", REFUSED, ids=lambda arguments: " ".join(map(str, arguments)))
def test_mistakes_are_refused_with_one_line_and_no_folder(arguments, submit, checkout, tmp_path):
    done = submit(*arguments, "--local", check=2) if "--gpus" not in arguments else submit(*arguments, check=2)
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    for word in REFUSED[arguments]:
        assert word in lines[0]
    assert done.stdout == ""
    assert not (checkout / "outputs").exists()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_precision_is_the_experiment_of_its_name(precision, submit):
    train, _ = job_scripts(submit(precision, 10, "--dry-run").stdout)
    assert arguments_in(train)[0] == f"experiment={precision}"


def test_a_dry_run_prints_both_job_scripts_and_leaves_nothing(submit, checkout, tmp_path):
    given = [
        "--partition",
        "gpu",
        "--account=me",
        "--gpus",
        "2",
        "--env",
        "module load cuda",
        "--env",
        "ulimit -n 4096",
    ]
    done = submit("fp32", 7, "2.5", "seed=3", *given, "--dry-run")
    train, compare = job_scripts(done.stdout)
    for script, minutes in ((train, "18"), (compare, "30")):
        found = directives(script)
        assert (found["cpus-per-task"], found["mem"], found["time"]) == ("2", "4G", minutes)
        assert (found["partition"], found["account"], found["gpus"]) == ('"gpu"', '"me"', '"2"')
        assert "%%done" in found["output"]
        assert script.index("module load cuda") < script.index("ulimit -n 4096") < script.index("set -u")
    expected = ["experiment=fp32", "num_rounds=7", "time_limit_min=2.5", "seed=3", "hydra.run.dir=${oc.env:RUN_DIR}"]
    assert arguments_in(train) == expected
    assert "--dependency=afterok" in done.stdout
    assert not (checkout / "outputs").exists()
    assert not list(tmp_path.iterdir())


def test_defaults_yield_to_variables_and_variables_to_options(submit):
    variables = {"SBATCH_CPUS_PER_TASK": "3", "SBATCH_MEM_PER_CPU": "500"}
    found = directives(job_scripts(submit("fp32", 1, "--dry-run", environment=variables).stdout)[0])
    assert found["cpus-per-task"] == "3"
    assert "mem" not in found  # beside --mem, sbatch would not see the variable
    assert found["time"] == "1440"
    for cpus in (["--cpus", 4], ["--cpus-per-task=4"]):
        train, _ = job_scripts(submit("fp32", 1, *cpus, "--time=5", "--dry-run", environment=variables).stdout)
        assert directives(train)["cpus-per-task"] == '"4"'
    assert directives(train)["time"] == '"5"'


def test_arguments_arrive_intact(submit):
    """Spaces, quotes, dollars, line breaks and other alphabets, through two shells and Hydra's own quoting."""
    texts = [
        "a b  c",
        """it's "so" `pwd` $HOME""",
        "two\nlines\t%j %%",
        "Ünïcødé 卫星 *?[x]{a,b}~!#&|;<>()",
        "-1",
        "\\n",
    ]
    keys = ["data.cache_dir", "data.path", "lr_schedule", "augmentation", "device", "optimizer._target_"]
    overrides = ["{}='{}'".format(key, text.replace("'", "\\'")) for key, text in zip(keys, texts, strict=True)]
    for locale in ("C", "C.UTF-8"):
        train, _ = job_scripts(submit("fp32", 1, *overrides, "--dry-run", environment={"LC_ALL": locale}).stdout)
        arrived = arguments_in(train)
        assert arrived == ["experiment=fp32", "num_rounds=1", *overrides, "hydra.run.dir=${oc.env:RUN_DIR}"]
    config = composed(*arrived[:-1])
    data = config["data"]
    found = [data["cache_dir"], data["path"], *(config[key] for key in keys[2:5]), config["optimizer"]["_target_"]]
    assert found == texts


def test_a_training_that_goes_on_speaks_as_it_was_told(submit):
    train, _ = job_scripts(submit("fp32", "2", "--dry-run", "quiet=true", "log=json").stdout)
    assert {"quiet=true", "log=json"} <= set(arguments_in(train))
    assert 'fl resume "$RUN_DIR" --quiet --log=json)' in train
    assert 'fl resume "$RUN_DIR")' in job_scripts(submit("fp32", "2", "--dry-run", "quiet=false").stdout)[0]


def test_further_named_sets_join_the_precisions(submit):
    train, _ = job_scripts(submit("fp32", 1, "experiment=best", "--dry-run").stdout)
    assert arguments_in(train)[0] == "experiment=[best,fp32]"
    assert composed("experiment=[best,fp32]") == composed("experiment=best")
    assert composed("experiment=fp32") == composed()


def test_without_sbatch_the_error_names_local(checkout, tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "env", "dirname", "readlink", "cat"):
        (tools / tool).symlink_to(shutil.which(tool))
    command = [checkout / "submit_job.sh", "fp32", "10", "--python", sys.executable]
    done = subprocess.run(command, env={"PATH": str(tools)}, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: sbatch")
    assert "--local" in done.stderr
    assert not (checkout / "outputs").exists()


@pytest.mark.long
def test_submissions_at_once_get_folders_of_their_own(submit, checkout, tmp_path):
    """Each ends at once, by a line that comes first in its jobs."""
    copy = shutil.copytree(checkout, tmp_path / "copy")
    command = [copy / "submit_job.sh", "fp32", "1", "--local", "--env", "exit 3", "--python", sys.executable]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(5)]
    told = [process.communicate(timeout=60)[0] for process in running]
    assert [process.returncode for process in running] == [3] * 5
    folders = {text.splitlines()[0].removeprefix("Run folder: ") for text in told}
    assert len(folders) == 5
    assert {str(path.parent) for path in copy.glob("outputs/*/*/train.sbatch")} == folders


@pytest.mark.long
def test_local_runs_both_steps_and_the_training_can_start_again(submit, tmp_path):
    folder = tmp_path / "run 100% 'quoted'"
    cache = tmp_path / "a cache"
    overrides = [*(each for each in TINY if "num_rounds" not in each), f"data.cache_dir='{cache}'"]
    done = submit("fp32", 1, 5, "--run-dir", folder.name, "--local", *overrides)
    report = read_json(folder / "quantization_comparison.json")
    assert report["model_sha256"] == sha256((folder / "final_model.pt").read_bytes())
    assert read_json(folder / "settings.json")["time_limit_min"] == 5
    assert list(cache.iterdir())
    for step, words in {"train": "round 1/1", "compare": "Done!"}.items():
        log = (folder / f"{step}-local.log").read_text()
        assert words in log
        assert log in done.stdout

    whole = (folder / "final_model.pt").read_bytes()
    for name in ("final_model.pt", "summary.json", "checkpoint.pt"):  # as if killed before the first round's end
        (folder / name).unlink()
    subprocess.run(["bash", folder / "train.sbatch"], check=True, stdout=subprocess.DEVNULL)
    assert (folder / "final_model.pt").read_bytes() == whole


def test_local_ends_with_the_failing_step(submit, tmp_path):
    done = submit("fp32", 1, "--run-dir", "run", "--local", "data=folder", "data.path=nowhere", check=None)
    assert done.returncode != 0
    assert "nowhere" in (tmp_path / "run" / "train-local.log").read_text()
    assert "nowhere" in done.stdout
    assert not (tmp_path / "run" / "compare-local.log").exists()


@pytest.mark.long
def test_an_interrupted_training_continues_to_the_same_bytes(checkout, small_run, tmp_path):
    """Ctrl-C after the first round; then the job script once more, as a requeued job runs it.

    With a strategy of the user's own, beside which the script was called.
    """
    (tmp_path / "mine.py").write_text("from flwr.serverapp.strategy import FedAvg\n\n\nclass Mine(FedAvg):\n    pass\n")
    overrides = [*(each for each in SMALL if "num_rounds" not in each), "strategy._target_='mine.Mine'"]
    folder = tmp_path / "run"
    command = [checkout / "submit_job.sh", "fp32", "2", "--local", "--run-dir", folder, "--python", sys.executable]
    with subprocess.Popen(
        [*command, *overrides], cwd=tmp_path, start_new_session=True, stdout=subprocess.DEVNULL
    ) as process:
        while not (folder / "checkpoint.pt").exists():
            assert process.poll() is None
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)
    assert process.returncode == 130
    assert "interrupted" in (folder / "train-local.log").read_text()
    assert not (folder / "compare-local.log").exists()

    def train_again():
        return subprocess.check_output(["bash", folder / "train.sbatch"], text=True)

    train_again()
    assert "resumed" in (folder / "events.jsonl").read_text()
    assert (folder / "final_model.pt").read_bytes() == (small_run / "final_model.pt").read_bytes()
    assert "is finished" in train_again()


def test_the_help_names_every_option():
    script = (REPOSITORY / "submit_job.sh").read_text()
    text = subprocess.check_output([REPOSITORY / "submit_job.sh", "--help"], text=True)
    options = set(re.findall(r"--[a-z-]+(?=[ )|])", script[script.index("while [") : script.index("\ndone\n")]))
    assert {"--partition", "--local", "--env"} <= options
    assert not [option for option in options - {"--multirun"} if option not in text]


def test_shellcheck_has_nothing_to_say(submit, tmp_path):
    """About the scripts of the repository and about the jobs they write."""
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert shellcheck, "not installed; it comes with the dev extra (make install)"
    jobs = []
    for nodes in (1, 2):
        made = submit("fp32", 1, 5, "--nodes", nodes, "--env", "ulimit -c 0", "--dry-run").stdout
        for number, text in enumerate(job_scripts(made)):
            jobs.append(tmp_path / f"job{nodes}{number}.sh")
            jobs[-1].write_text(text)
    scripts = [REPOSITORY / "submit_job.sh", *(REPOSITORY / "tests" / "cluster").glob("*.sh")]
    done = subprocess.run([shellcheck, *scripts, *jobs], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
