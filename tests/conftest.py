"""What tests share: a small synthetic run, the real images where they are given, and commands as subprocesses."""

import gc
import os
import shutil
import zipfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # tests run side by side, one core each; read when NumPy and torch are imported

import numpy as np
import pytest
from PIL import Image
from preloaded import PATIENCE_S, Preloaded

REPOSITORY = Path(__file__).resolve().parents[1]
SMALL = [
    "data=synthetic",
    "data.num_images=400",
    "num_clients=4",
    "num_rounds=2",
    "local_epochs=1",
    "batch_size=16",
    "threads_per_client=1",  # tests run side by side
    "report=false",
]


LONGEST = ("test_engine.py", "test_kills.py", "test_flower_apps.py", "test_networks.py")
"""Files whose tests take long by themselves."""


def pytest_collection_modifyitems(items):
    """Puts the longest tests first, so that no worker is left alone with one at the end."""
    items.sort(key=lambda item: (item.get_closest_marker("eurosat") is None, item.path.name not in LONGEST))


def pytest_collection_finish():
    """Spares garbage collection what libraries hold: Flower asks for one after each array that it converts."""
    gc.freeze()


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(cache_dir):
    """Tests leave the user's cache alone, whatever starts a command."""
    if os.environ.get("EUROSAT_ZIP"):
        os.environ["EUROSAT_ZIP"] = str(Path(os.environ["EUROSAT_ZIP"]).resolve())  # commands run in other folders
    os.environ.pop("COLUMNS", None)  # tables are as wide as they are off a terminal, which pytest-xdist gives a width
    before = os.environ.get("QUANTFL_CACHE")
    os.environ["QUANTFL_CACHE"] = str(cache_dir)
    os.environ["QUANTFL_PROGRESS_S"] = "0"  # what a command writes does not depend on how busy the machine is
    yield
    if before is None:
        del os.environ["QUANTFL_CACHE"]
    else:
        os.environ["QUANTFL_CACHE"] = before


@pytest.fixture(scope="session")
def eurosat_zip():
    path = os.environ.get("EUROSAT_ZIP")
    if not path:
        pytest.skip("EUROSAT_ZIP is not set: the real images are not here")
    assert Path(path).is_file(), f"EUROSAT_ZIP={path} is no file"
    return Path(path).resolve()


@pytest.fixture(scope="session")
def eurosat_splits():
    path = os.environ.get("EUROSAT_SPLITS")
    if not path:
        pytest.skip("EUROSAT_SPLITS is not set: torchgeo's lists are not here")
    assert Path(path).is_dir(), f"EUROSAT_SPLITS={path} is no folder"
    return Path(path).resolve()


@pytest.fixture(scope="session")
def preloaded():
    process = Preloaded()
    yield process
    process.close()


@pytest.fixture
def command(tmp_path, preloaded):
    """Runs a command of the project from another folder, with this environment; returns the finished process."""

    def run(*arguments, cwd=tmp_path, check=None, timeout=PATIENCE_S):
        arguments = [str(each) for each in arguments]
        if arguments[0].endswith(".py"):
            arguments[0] = str(REPOSITORY / arguments[0])
        else:
            arguments.insert(0, "-m")
        done = preloaded.run(arguments, cwd, timeout)
        if check is not None:
            assert done.returncode == check, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture
def refused(command):
    """Runs a command that must be refused with one clear line holding every given word; returns the line."""

    def run(*arguments, words=(), **options):
        done = command(*arguments, **options)
        assert done.returncode != 0, done.stdout
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        assert len(lines) == 1, f"not one line:\n{done.stderr}"
        assert lines[0].startswith("error: ")
        for word in words:
            assert str(word) in lines[0], f"{word!r} is not in {lines[0]!r}"
        return lines[0]

    return run


def composed(*overrides):
    """Returns the configuration that the command line gives, as plain data."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        return OmegaConf.to_container(compose("config", list(overrides)), resolve=True)


def compared(model, *precisions, formats=(), **changes):
    """Runs a comparison in this process, as the command without options; returns the path of its JSON."""
    from fl.comparison.compare import Options, compare
    from fl.deployment.beside import DeploymentFiles

    usual = {"output": None, "precisions": precisions, "chosen": True, "data": None, "batch_size": 32, "device": "cpu"}
    usual |= {"clients": [], "rounds": [], "cost_per_mb": 5.0}
    return compare(Options(model, **usual | changes), DeploymentFiles(formats) if formats else None)


def train(command, *overrides, cwd, **options):
    """Runs `fl.train` into `cwd / run` and returns that folder."""
    command("fl.train", *overrides, f"hydra.run.dir={cwd / 'run'}", cwd=cwd, check=0, **options)
    return cwd / "run"


def run_small(folder, *overrides, mods=(), resume=False):
    """Runs the small run into a folder, in this process; returns the path of its model."""
    from fl.experiment.run import run

    folder.mkdir(parents=True, exist_ok=True)
    return run(composed(*SMALL, *overrides), folder, mods=mods, resume=resume)


def numbers_only(folder):
    """Returns the records of a run without what may differ between two runs of the same seed."""
    from fl.core.files import read_jsonl

    def without_seconds(value):
        if isinstance(value, dict):
            return {key: without_seconds(each) for key, each in value.items() if not key.endswith("_s")}
        return [without_seconds(each) for each in value] if isinstance(value, list) else value

    return without_seconds(read_jsonl(folder / "rounds.jsonl"))


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved from here on."""
    figures = []
    monkeypatch.setattr("fl.core.figures.save_figure", lambda figure, path: figures.append(figure))
    return figures


def labels(figure):
    """Returns the texts in the axes of a figure."""
    return [text for axes in figure.axes for text in axes.texts]


@pytest.fixture(scope="session")
def small_run(tmp_path_factory, preloaded):
    """A finished small run on synthetic images; read only."""
    folder = tmp_path_factory.mktemp("small")
    done = preloaded.run(["-m", "fl.train", *SMALL, f"hydra.run.dir={folder / 'run'}"], folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "stdout.txt").write_text(done.stdout)
    return folder / "run"


@pytest.fixture(scope="session")
def checkout(tmp_path_factory):
    """A copy of the code in a folder whose name needs quoting."""
    folder = tmp_path_factory.mktemp("copies") / "quantfl's 100%done copy"
    folder.mkdir()
    for name in ("fl", "conf"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("submit_job.sh", "compare_quantizations.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, folder)
    return folder


@pytest.fixture
def image_folder(tmp_path):
    """Makes a folder of class sub-folders with a few tiny images each; returns its path."""

    def make(classes=("a", "b", "c"), per_class=6, size=(64, 64), mode="RGB", suffix="png", name="images"):
        rng = np.random.default_rng(0)
        for label, class_name in enumerate(classes):
            folder = tmp_path / name / class_name
            folder.mkdir(parents=True)
            for number in range(per_class):
                pixels = rng.integers(20 * label, 20 * label + 60, (*size, 3), dtype=np.uint8)
                Image.fromarray(pixels).convert(mode).save(folder / f"{class_name}_{number}.{suffix}")
        return tmp_path / name

    return make


def zipped(folder, target, prefix="2750/"):
    """Packs a folder into a zip file."""
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, prefix + path.relative_to(folder).as_posix())
    return target


def uneven_model(images):
    """Returns a network whose BatchNorm statistics and logits are not those of a fresh one."""
    import torch

    from fl.models.net import initial_model, to_input

    net = initial_model(10, seed=1).train()
    torch.nn.init.normal_(net.fc3.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for _ in range(5):
            net(to_input(images))
    return net.eval()
