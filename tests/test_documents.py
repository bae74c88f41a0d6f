"""What documents say can be done can be done: commands are taken and run by their own text, links lead somewhere."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import documents
import numpy as np
import pytest
from conftest import REPOSITORY, SMALL
from PIL import Image

from fl.core.errors import ConfigError

NAMES = {path: path.relative_to(REPOSITORY).as_posix() for path in documents.DOCUMENTS}
BLOCKS = [block for path in NAMES for block in documents.blocks(path)]
RUNS = ("outputs/DATE/TIME", "outputs/DATE/ONE", "outputs/DATE/OTHER", "outputs/multirun/DATE/TIME")
IN_CI = ("satellites",)
"""Documents whose commands take seconds."""
RUN = [path for path in NAMES if any(each.language == "bash" and not each.run_by for each in documents.blocks(path))]


@pytest.fixture(scope="session")
def shown(tmp_path_factory):
    """A folder with conf/ and the files that documents show under a title."""
    folder = tmp_path_factory.mktemp("shown")
    shutil.copytree(REPOSITORY / "conf", folder / "conf")
    titled = [block for block in BLOCKS if block.title]
    assert len(titled) >= 3
    for block in titled:
        (folder / block.title).write_text(block.text)
    return folder


@pytest.mark.parametrize("path", NAMES, ids=NAMES.get)
def test_every_command_is_taken(path, shown, monkeypatch):
    monkeypatch.syspath_prepend(shown)
    monkeypatch.setattr("fl.experiment.composing.CONF", shown / "conf")
    for block in documents.blocks(path):
        for line in block.commands():
            for words in documents.simple_commands(line):
                assert block.run_by or words[0] in ("python", "quantfl", "cd"), line  # which a test may start
                documents.check(words, monkeypatch)
        if block.language == "python":
            compile(block.text, NAMES[path], "exec")
    for line in documents.inline(path):
        for words in documents.simple_commands(line):
            documents.check(words, monkeypatch)


@pytest.mark.parametrize(
    "line",
    [
        "python -m fl.train num_round=3",
        "python -m fl.train lr=fast",
        "python -m fl.train -m seed=1,2 codec@update=int8,int9",
        "python -m fl.trains",
        "python -m fl export outputs/DATE/TIME --formt onnx",
        "quantfl exports outputs/DATE/TIME",
        "python compare_quantizations.py outputs/DATE/TIME --batch-size many",
        "python compare_quantizations.py examples/no_model.pt",
        "python benchmarks/screen.py --sonly x",
        "EUROSAT_ZIP=EuroSAT.zip make eurosta",
        "cd docs && make test && unheard of it",
        "./submit_job.sh fp31 10",
        "./submit_job.sh fp32 10 --gpu 1",
        "flwr run . --steam",
        "flwr run . --run-config 'overrides=\"num_round=3\"'",
        "pip install -c constraints.txt -e '.[rays]'",
        "scripts/deployment.sh begin 2",
    ],
)
def test_a_command_that_would_be_refused_is_noticed(line, monkeypatch):
    *_, words = documents.simple_commands(line)
    with pytest.raises((AssertionError, ConfigError, ImportError, OSError, SystemExit)):
        documents.check(words, monkeypatch)


def test_what_cannot_run_here_names_what_runs_it():
    marked = [block for block in BLOCKS if block.run_by]
    assert sum(len(re.findall("^<!-- run by:", path.read_text(), re.MULTILINE)) for path in NAMES) == len(marked)
    for block in marked:
        target, test = re.fullmatch(r"make ([a-z-]+)(?: \((\S+)\))?", block.run_by).groups()
        assert target in documents.RUNNERS
        assert target in documents.targets()
        assert test is None or (REPOSITORY / test).is_file()
    assert all(block.run_by for block in BLOCKS if block.language == "console" and block.commands())


def slug(heading: str) -> str:
    """Returns the anchor of a heading, as GitHub makes it."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
    return re.sub(r"[^\w\- ]", "", plain).strip().replace(" ", "-")


@pytest.mark.parametrize("path", [*NAMES, REPOSITORY / "CHANGELOG.md"], ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for link in re.findall(r"\]\(([^()\s]+)\)", documents.BLOCK.sub("", path.read_text())):
        if re.match(r"https?:", link):
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.is_file(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", documents.BLOCK.sub("", target.read_text()), re.MULTILINE)
            assert anchor in map(slug, headings), link


@pytest.fixture(scope="session")
def workplace(tmp_path_factory, shown):
    """A checkout with the files that documents show, and images by the names that they use."""
    folder = tmp_path_factory.mktemp("workplace") / "quantfl"
    kept = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    for name in kept.splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, folder / name)
    shutil.copytree(shown, folder, dirs_exist_ok=True)
    images(folder / "scenes", ["forest", "sea", "city"])
    classes = (
        "AnnualCrop Forest HerbaceousVegetation Highway Industrial Pasture PermanentCrop Residential River SeaLake"
    )
    images(folder / "EuroSAT" / "2750", classes.split())
    shutil.make_archive(str(folder / "EuroSAT"), "zip", folder / "EuroSAT")
    return folder


@pytest.fixture
def stand_in(preloaded, tmp_path):
    """Makes the folder of a run, or of a sweep, that a document names; one run is compared as well."""

    def make(name):
        many = ["-m", "num_rounds=1,2"] if "multirun" in name else ["checkpoint.keep=best"]
        where = f"hydra.{'sweep' if '-m' in many else 'run'}.dir={tmp_path / name}"
        small = [*SMALL, "data.validation_fraction=0.1", "report=true", *many, where]
        compare = [str(REPOSITORY / "compare_quantizations.py"), tmp_path / name, "--formats", "onnx"]
        for arguments in [["-m", "fl.train", *small]] + [compare] * (name.endswith(RUNS[0]) and "multirun" not in name):
            done = preloaded.run(arguments, tmp_path)
            assert done.returncode == 0, done.stderr

    return make


def images(folder: Path, classes: list[str]) -> None:
    """Makes a folder of a few images for each class."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for each in range(20):
            pixels = rng.integers(20 * number, 20 * number + 60, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{name}_{each + 1}.jpg")


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=pytest.mark.long if path.stem in IN_CI else pytest.mark.exhaustive) for path in RUN],
    ids=NAMES.get,
)
def test_every_command_does_what_it_says(path, workplace, stand_in, tmp_path):
    folder = shutil.copytree(workplace, tmp_path / "quantfl", symlinks=True)
    text = "".join(each.text for each in documents.blocks(path) if each.language == "bash" and not each.run_by)
    for name in RUNS:
        if name in text:
            stand_in(f"quantfl/{name}")
    environment = {**os.environ, "EUROSAT_ZIP": str(folder / "EuroSAT.zip"), "PYTHONPATH": ""}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", "-exuo", "pipefail", "-c", text]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
