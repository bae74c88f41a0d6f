"""Who may import whom (docs/architecture.md), and that imports stay cheap."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY

BELOW = {
    "core": set(),
    "models": {"core"},
    "data": {"core"},
    "codec": {"core"},
    "communication": {"core"},
    "quantization": {"core", "models"},
    "training": {"core", "models", "data", "quantization"},
    "comparison": {"core", "models", "data", "quantization", "communication", "training"},
    "deployment": {"core", "models", "data", "quantization", "training"},
    "report": {"core"},
    "tracking": {"core"},
    "federation": {"core", "models", "data", "codec", "communication", "quantization", "training"},
}
BELOW["experiment"] = {*BELOW, "experiment"} - {"comparison", "deployment"}
BELOW["doors"] = {*BELOW}
"""Of each room, the rooms that it may import."""
OF_TRAINING = {"comparison": {"fl.training.evaluation"}, "deployment": {"fl.training.evaluation"}}
HOMES = {
    "hydra": {"doors/train.py", "doors/flower_apps.py", "experiment", "core/presets.py"},
    "omegaconf": {"doors/train.py", "doors/flower_apps.py", "experiment", "core/presets.py"},
    "flwr": {"doors/flower_apps.py", "experiment/run.py", "federation", "codec"},
}
"""Where a framework may be imported: rooms and files."""
FILES = [*sorted((REPOSITORY / "fl").rglob("*.py")), REPOSITORY / "compare_quantizations.py"]
OLD_DOORS = ("resume", "sweep", "export", "bench", "recommend", "communication")


def room(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).parts
    return "doors" if len(parts) < 3 or parts[1] == "commands" or path.stem == "__main__" else parts[1]


def imported(path: Path) -> set[str]:
    """Returns the modules that a file imports, at its top or in a function."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_imports_point_down(path):
    here = room(path)
    for name in imported(path):
        if not name.startswith("fl."):
            continue
        there = name.split(".")[1]
        if there in (here, "__main__", "commands", "train") and here == "doors":
            continue
        assert there == here or there in BELOW[here], f"{here} imports {name}, of a room that is not below it"
        if there == "training" and here in OF_TRAINING:
            assert name in OF_TRAINING[here]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_frameworks_stay_where_they_belong(path):
    for name in {name.split(".")[0] for name in imported(path)} & HOMES.keys():
        assert {room(path), f"{room(path)}/{path.name}"} & HOMES[name], name


def test_few_things_lie_at_the_top():
    entries = [path for path in (REPOSITORY / "fl").iterdir() if path.name != "__pycache__"]
    doors = [path for path in entries if path.suffix == ".py" and "# old door" in path.read_text()]
    assert len(entries) - len(doors) <= 18
    doors.append(REPOSITORY / "fl" / "communication" / "__main__.py")  # what `python -m fl.communication` starts
    assert sorted(path.parent.name if path.stem == "__main__" else path.stem for path in doors) == sorted(OLD_DOORS)
    assert all(len(path.read_text().splitlines()) <= 5 for path in doors)


def test_modules_stay_readable():
    long = {path.name: lines for path in FILES if (lines := len(path.read_text().splitlines())) > 400}
    assert not long


LONGEST_FUNCTION, MOST_PARAMETERS, MOST_LATE_IMPORTS = 60, 6, 36


def test_functions_fit_a_screen_and_ask_for_little_or_say_why():
    """A reason is a comment between `def` and the docstring."""
    for path in FILES:
        lines = path.read_text().splitlines()
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef):
                continue
            names = [each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            parameters = len([name for name in names if name not in ("self", "cls")])
            if len(lines[node.lineno - 1 : node.end_lineno]) > LONGEST_FUNCTION or parameters > MOST_PARAMETERS:
                assert "#" in "".join(lines[node.lineno - 1 : node.body[0].lineno - 1]), f"{path}: {node.name}"


def test_few_imports_are_late():
    late = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                late += [each for each in ast.walk(node) if isinstance(each, ast.Import | ast.ImportFrom)]
    assert len(set(late)) <= MOST_LATE_IMPORTS


def test_importing_the_package_loads_nothing_heavy():
    loaded = "import sys, fl; print([m for m in ('torch', 'flwr', 'hydra', 'numpy') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", loaded], text=True, cwd=REPOSITORY).strip() == "[]"


NOT_TO_TRAIN = ("scipy.optimize", "scipy.stats", "skyfield", "sklearn", "onnx", "mlflow", "pandas")


def test_training_loads_nothing_that_others_need():
    loaded = f"import sys, fl.experiment.run; print([m for m in {NOT_TO_TRAIN} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", loaded], text=True, cwd=REPOSITORY).strip() == "[]"


COMMANDS = [
    ["-m", "fl.train"],
    ["compare_quantizations.py"],
    ["-m", "fl"],
    *(["-m", "fl", verb] for verb in ("train", "compare", *OLD_DOORS)),
    *(["-m", f"fl.{verb}"] for verb in OLD_DOORS),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_loads_no_torch(command):
    name = command[1] if command[0] == "-m" else command[0]
    arguments = command[2:] if command[0] == "-m" else []
    script = (
        "import runpy, sys\n"
        f"sys.argv = {[name, *arguments, '--help']!r}\n"
        "try:\n"
        f"    runpy.{'run_module' if command[0] == '-m' else 'run_path'}({name!r}, run_name='__main__')\n"
        "except SystemExit:\n"
        "    pass\n"
        "assert 'torch' not in sys.modules and 'flwr' not in sys.modules, 'heavy imports'\n"
    )
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    print(f"{command}: {time.perf_counter() - began:.2f} s")
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout or "Groups" in done.stdout


def test_a_misspelt_verb_is_one_line(refused):
    refused("fl", "exprt", words=["exprt", "did you mean export?", "recommend"])
