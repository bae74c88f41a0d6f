"""`make mutants`: small faults put into the code one at a time; the test that each of them names must fail.

The faults stand in the `*.toml` beside this file, one a line, under the file that they change:

    ["fl/core/seeds.py"]
    "the index is dropped" = { old = 'text', new = 'text', test = 'federation/test_rounds.py::test_name' }
    "a fault that is none" = { old = 'text', new = 'text', equivalent = 'why no test can tell' }

`old` occurs exactly once in the file. A test counts as failed by an assertion or an error while it runs; a test that is
not found, skipped or cannot be imported counts as an error of this list. Each fault gets a fork of a process that has
the libraries loaded, in a copy of the tree, and before all of them the copies pass every test that is named.
"""

import argparse
import ast
import importlib
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LISTS = sorted(Path(__file__).parent.glob("*.toml"))
WANTED_PERCENT = 97.0
LONGEST_S = 300.0
"""For one test, on a busy machine."""
NOT_COPIED = (".git", ".venv", "outputs", "__pycache__", ".hypothesis", ".*_cache", "*.egg-info")
LIBRARIES = (
    *("numpy", "torch", "scipy.stats", "PIL.Image", "rich.console", "pydantic", "hydra", "omegaconf", "hypothesis"),
    *("flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.serverapp.strategy", "flwr.common.serde", "jsonschema"),
    *("flwr_datasets.partitioner", "datasets", "constriction", "zstandard", "filelock", "matplotlib.pyplot", "pytest"),
)


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        name: what it breaks.
        file: that it changes, from the root of the repository.
        old: text that occurs once in it.
        new: what takes its place.
        test: that must fail, as pytest calls it, from `tests/`; None for an equivalent.
        equivalent: why no test can tell; None for all others.
    """

    name: str
    file: str
    old: str
    new: str
    test: str | None = None
    equivalent: str | None = None

    def __str__(self) -> str:
        return f"{self.file}: {self.name}"


@dataclass
class Task:
    """Tests to run in a copy of the tree, with a fault or without; and what came of it."""

    tests: list[str]
    mutant: Mutant | None = None
    outcomes: dict[str, str] = field(default_factory=dict)
    exit_code: int | None = None
    seconds: float = 0.0
    log: str = ""


def read(paths: Iterable[Path] = LISTS) -> list[Mutant]:
    """Returns all entries of the lists."""
    return [
        Mutant(name, file, **entry)
        for path in paths
        for file, entries in tomllib.loads(path.read_text()).items()
        for name, entry in entries.items()
    ]


def problems(mutants: Iterable[Mutant], root: Path = ROOT) -> Iterator[str]:
    """Yields what is wrong with entries, before any of them is run."""
    for mutant in mutants:
        path = root / mutant.file
        count = path.read_text().count(mutant.old) if path.is_file() else 0
        if count != 1:
            yield f"{mutant}: its text occurs {count} times instead of once: {mutant.old!r}"
        elif (mutant.test is None) == (mutant.equivalent is None):
            yield f"{mutant}: needs either a test or the reason why it is equivalent"


def no_python(mutants: Iterable[Mutant], root: Path = ROOT) -> Iterator[str]:
    """Yields the entries that make a file no Python, which every test would notice."""
    for mutant in mutants:
        try:
            ast.parse(_changed(root / mutant.file, mutant))
        except SyntaxError as error:
            yield f"{mutant}: is no Python any more ({error})"


def _changed(path: Path, mutant: Mutant) -> str:
    return path.read_text().replace(mutant.old, mutant.new)


class _Recorder:
    """A pytest plugin: what became of each test."""

    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.outcomes.setdefault(report.nodeid, report.outcome)
            if report.failed:
                self.outcomes[report.nodeid] = "failed"


def _child(tree: Path, task: Task, answer: Any) -> None:
    """Runs in a fork: pytest on a copy of the tree, whose `fl` has not been imported yet."""
    import pytest

    os.setsid()
    with (tree.parent / "log").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.chdir(tree)
    os.environ["PYTHONPATH"] = str(tree)
    sys.path[0] = str(tree)
    recorder = _Recorder()
    options = ["-q", "-p", "no:cacheprovider", "-o", "addopts=-p no:anyio", f"--basetemp={tree.parent / 'temporary'}"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # plugins that are loaded before the fork
    tests = [f"tests/{test}" for test in task.tests]
    code = int(pytest.main([*tests, *options, *(["-x"] if task.mutant else [])], plugins=[recorder]))
    if not str(getattr(sys.modules.get("fl"), "__file__", tree)).startswith(str(tree)):
        code = -1
    answer.send((code, recorder.outcomes))
    sys.stdout.flush()
    os._exit(0)


def run(tasks: Iterable[Task], trees: list[Path], done: Callable[[Task], None]) -> None:
    """Runs all tasks, one in each tree at a time, and calls `done` after each."""
    fork = multiprocessing.get_context("fork")
    waiting, free, running = deque(tasks), list(trees), {}
    while waiting or running:
        while waiting and free:
            task, tree = waiting.popleft(), free.pop()
            if task.mutant:
                path = tree / task.mutant.file
                shutil.copy2(path, tree.parent / "original")
                path.write_text(_changed(path, task.mutant))
            reader, writer = fork.Pipe(duplex=False)
            process = fork.Process(target=_child, args=(tree, task, writer))
            process.start()
            writer.close()  # so that the death of a child ends what is read
            running[reader] = (task, tree, process, time.monotonic())
        ready = multiprocessing.connection.wait(running, timeout=1.0)
        for reader, (task, tree, process, began) in list(running.items()):
            task.seconds = time.monotonic() - began
            if reader not in ready and task.seconds < LONGEST_S:
                continue
            if reader in ready:
                with suppress(EOFError):
                    task.exit_code, task.outcomes = reader.recv()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # of its own session: what a test has left behind
            process.join()
            task.log = (tree.parent / "log").read_text()
            if task.mutant:
                shutil.copy2(tree.parent / "original", tree / task.mutant.file)
            del running[reader]
            reader.close()
            free.append(tree)
            done(task)


def _copy_tree(target: Path) -> Path:
    """Copies files with their times: bytecode of the original stays valid, and none of a mutant is written."""
    shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(*NOT_COPIED))
    return target


def _belongs(nodeid: str, test: str) -> bool:
    return nodeid == f"tests/{test}" or nodeid.startswith((f"tests/{test}[", f"tests/{test}::"))


def check_unchanged(tests: list[str], trees: list[Path]) -> list[str]:
    """Returns what is wrong with tests where nothing is: each must pass, none may be missing or only skipped."""
    files: dict[str, list[str]] = {}
    for test in tests:
        files.setdefault(test.partition("::")[0], []).append(test)
    wrong = []

    def done(task: Task) -> None:
        _progress(f"without a fault: {task.tests[0].partition('::')[0]} ({task.seconds:.0f} s)")
        absent = [test for test in task.tests if f"/tests/{test}\n" in task.log] if task.exit_code == 4 else []
        for test in absent or task.tests:
            found = [outcome for nodeid, outcome in task.outcomes.items() if _belongs(nodeid, test)]
            if "failed" in found or "passed" not in found or task.exit_code not in (0, 1):
                tail = "\n".join(task.log.splitlines()[-15:])
                wrong.append(f"{test}: does not pass without a fault ({found or 'not run'})\n{tail}")

    run([Task(each) for each in files.values()], trees, done)
    return wrong


def _progress(text: str) -> None:
    print(f"\r\033[K{text}" if sys.stdout.isatty() else text, end="" if sys.stdout.isatty() else "\n", flush=True)


def verdict(task: Task) -> str:
    """Returns "killed", "survived", or what else happened."""
    if task.exit_code is None:
        return "no answer" if task.seconds < LONGEST_S else f"not done after {LONGEST_S:g} s"
    return {0: "survived", 1: "killed"}.get(task.exit_code, f"pytest ended with {task.exit_code}")


def main() -> int:
    """Runs the list and returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="TEXT", help="whose file, name or test contains one of these"
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    options = parser.parse_args()
    everything = read()
    mutants = [each for each in everything if any(text in f"{each} {each.test}" for text in options.only)]
    if not mutants:
        parser.error(f"--only {' '.join(options.only)}: no mutant's file, name or test contains that")
    if broken := list(problems(everything)) or list(no_python(mutants)):
        print("\n".join(broken))
        return 1
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True
    for name in LIBRARIES:
        importlib.import_module(name)
    began, finished = time.monotonic(), []
    tried = [each for each in mutants if each.test]
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        trees = [_copy_tree(Path(scratch) / str(number) / "tree") for number in range(options.jobs)]
        if wrong := check_unchanged(sorted({each.test for each in tried if each.test}), trees):
            print("\n" + "\n".join(wrong))
            return 1

        def done(task: Task) -> None:
            finished.append(task)
            _progress(f"[{len(finished)}/{len(tried)}] {verdict(task)} in {task.seconds:.1f} s  {task.mutant}")

        run([Task([each.test], each) for each in tried if each.test], trees, done)
    return _report(finished, [each for each in mutants if each.equivalent], time.monotonic() - began)


def _report(finished: list[Task], equivalents: list[Mutant], seconds: float) -> int:
    survivors = [task for task in finished if verdict(task) != "killed"]
    killed = len(finished) - len(survivors)
    percent = 100 * killed / len(finished) if finished else 100.0  # where all that were asked for are equivalent
    print("\n\nSlowest: " + ", ".join(f"{t.tests[0]} {t.seconds:.0f} s" for t in _slowest(finished)))
    for mutant in equivalents:
        print(f"equivalent  {mutant}: {mutant.equivalent}")
    for task in sorted(survivors, key=lambda each: str(each.mutant)):
        print(f"{verdict(task):<10}  {task.mutant}  ({task.tests[0]})")
    told = f"{killed} killed, {len(survivors)} survived, {len(equivalents)} equivalent, in {seconds / 60:.1f} minutes"
    print(f"{len(finished) + len(equivalents)} mutants: {told}")
    print(f"{percent:.1f} % of those that are not equivalent are killed; at least {WANTED_PERCENT:g} % are wanted")
    return int(percent < WANTED_PERCENT)


def _slowest(finished: list[Task]) -> list[Task]:
    return sorted(finished, key=lambda task: -task.seconds)[:3]


if __name__ == "__main__":
    sys.exit(main())
