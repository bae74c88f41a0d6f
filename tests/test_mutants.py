"""The list of mutants (`make mutants`) is of the code as it is, and what is wrong with an entry is said."""

import importlib.util
import shutil
import subprocess
import sys

import pytest
from conftest import REPOSITORY

SCRIPT = REPOSITORY / "tests" / "mutants" / "run.py"


@pytest.fixture(scope="module")
def mutants():
    spec = importlib.util.spec_from_file_location("mutants", SCRIPT)
    module = sys.modules["mutants"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_entry_is_of_the_code_as_it_is(mutants):
    """Reword an entry with the code it is of, or take another one."""
    entries = mutants.read()
    assert list(mutants.problems(entries)) == []
    assert len(entries) >= 150
    areas = ("codec", "quantization", "rounds", "strategy", "ledger", "link", "training", "data", "comparison")
    assert [area for area in areas if not any(area in entry.file for entry in entries)] == []
    for test in {entry.test.partition("[")[0] for entry in entries if entry.test}:
        file, _, name = test.partition("::")
        assert f"def {name}(" in (REPOSITORY / "tests" / file).read_text(), test


def test_what_is_wrong_with_an_entry_is_said(mutants, tmp_path):
    (tmp_path / "x.py").write_text("a = 1\nb = 1\n")

    def problems(**changes):
        entry = {"name": "n", "file": "x.py", "old": "a = 1", "new": "a = 2", "test": "test_x.py::test_y"} | changes
        return " ".join(mutants.problems([mutants.Mutant(**entry)], tmp_path))

    assert problems() == ""
    assert "occurs 2 times instead of once: '= 1'" in problems(old="= 1")
    assert "occurs 0 times" in problems(old="c")
    assert "occurs 0 times" in problems(file="y.py")
    unfinished = mutants.Mutant("n", "x.py", "a = 1", "a = (", "test_x.py::test_y")
    assert "no Python any more" in " ".join(mutants.no_python([unfinished], tmp_path))
    assert "either a test or the reason" in problems(test=None)
    assert "either a test or the reason" in problems(equivalent="the same")
    assert problems(test=None, equivalent="the same") == ""


def test_only_a_test_that_failed_has_killed(mutants):
    def verdict(**found):
        return mutants.verdict(mutants.Task(["test"], **found))

    assert verdict(exit_code=1) == "killed"
    assert verdict(exit_code=0) == "survived"
    assert verdict(exit_code=2) == "pytest ended with 2"  # could not be imported
    assert verdict(exit_code=4) == "pytest ended with 4"  # not found
    assert verdict() == "no answer"
    assert verdict(seconds=1e9).startswith("not done after")


@pytest.mark.long
def test_a_mutant_is_killed_by_its_test_and_not_by_another(tmp_path):
    copy = tmp_path / "copy"
    for name in ("fl", "conf", "tests"):
        shutil.copytree(REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.toml"))
    shutil.copy(REPOSITORY / "pyproject.toml", copy)
    lines = ['["fl/core/seeds.py"]']
    for name, test in (
        ("one", "streams_are_those_of_earlier_releases"),
        ("other", "generators_begin_with_what_is_derived"),
    ):
        lines += [f"{name} = {{ old = '>> 1)', new = '>> 2)', test = 'core/test_seeds.py::test_{test}' }}"]
    (copy / "tests" / "mutants" / "some.toml").write_text("\n".join(lines))
    command = [sys.executable, copy / "tests" / "mutants" / "run.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "2 mutants: 1 killed, 1 survived, 0 equivalent" in done.stdout
    assert "survived    fl/core/seeds.py: other  (core/test_seeds.py::test_generators" in done.stdout


def test_a_choice_of_no_mutants_is_refused():
    done = subprocess.run([sys.executable, SCRIPT, "--only", "nosuch"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "--only nosuch: no mutant's file, name or test contains that" in done.stderr
