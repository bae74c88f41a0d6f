"""What is installed elsewhere is whole: the wheel has the configuration and the template, and works from any folder."""

import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest
from conftest import REPOSITORY

import fl


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder, source = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("source")
    for name in ("fl", "conf"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    return path


def test_it_holds_the_code_the_configuration_and_nothing_else(wheel):
    assert wheel.name == f"quantfl-{fl.__version__}-py3-none-any.whl"
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, inside in (("fl", "fl"), ("conf", "fl/conf")):
        for path in (REPOSITORY / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert f"{inside}/{path.relative_to(REPOSITORY / folder)}" in names
    assert {name.split("/")[0] for name in names} == {"fl", f"quantfl-{fl.__version__}.dist-info"}


def test_every_package_is_named():
    named = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {".".join(path.parent.relative_to(REPOSITORY).parts) for path in (REPOSITORY / "fl").rglob("__init__.py")}
    assert set(named) == {*found, "fl.conf"}


def test_it_trains_and_compares_from_any_folder(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    here = tmp_path / "elsewhere"
    here.mkdir()
    small = ["experiment=demo", "num_rounds=1", "data.num_images=60", "num_clients=2", "local_epochs=1"]
    small += ["threads_per_client=1", "hydra.run.dir=run", f"data.cache_dir={tmp_path / 'cache'}"]

    def runs(*arguments):
        code = f"import sys, runpy; sys.path[:0] = [{str(tmp_path / 'site')!r}]; sys.argv = ['fl', *sys.argv[1:]]"
        code += "; from fl.core import presets; assert 'site' in presets.__file__"
        code += "; runpy.run_module('fl', run_name='__main__')"
        command = [sys.executable, "-P", "-c", code, *arguments]
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    told = runs("train", *small)
    assert "-m fl compare run/final_model.pt" in told
    assert (here / "run" / "report.html").stat().st_size > 10_000
    runs("compare", "run", "--precisions", "fp16")
    assert (here / "run" / "quantization_comparison.json").is_file()
