"""Who may import whom (docs/architecture.md), and that imports stay cheap."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY

LAYERS = [
    {
        "train",
        "flower_apps",
        "overrides",
        "resume",
        "sweep",
        "compare",
        "communication",
        "compare_quantizations",
        "export",
        "bench",
        "recommend",
    },
    {"experiment", "settings", "comparison_inputs"},
    {"engine", "server_app", "client_app", "comparison", "deployment", "candidates"},
    {"rounds", "replies", "spool", "strategy", "robust", "faults", "messages", "codec"},
    {
        "training",
        "inference",
        "selection",
        "formats",
        "optimizers",
        "evaluation",
        "data",
        "checkpoint",
        "client_states",
        "run_summary",
        "model_file",
        "file_content",
        "state_dicts",
        "plots",
        "sweep_plots",
        "report",
        "link_report",
    },
    {
        "quantization",
        "partition",
        "model",
        "costs",
        "contacts",
        "link",
        "ledger",
        "results",
        "seeds",
        "errors",
        "stop",
        "journal",
        "run_lock",
        "run_folder",
        "arguments",
        "console",
        "targets",
        "environment",
    },
]
LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}
FILES = [*sorted((REPOSITORY / "fl").rglob("*.py")), REPOSITORY / "compare_quantizations.py"]


def module(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return parts[1] if parts[0] == "fl" else parts[0]


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_imports_point_down(path):
    here = module(path)
    if here == "__init__":
        return
    assert here in LAYER_OF, f"{here} has no layer: add it to this test and to docs/architecture.md"
    ours = {name.split(".")[1] for name in imported(path) if name.startswith("fl.")} - {"__version__", here}
    above = [name for name in ours if LAYER_OF[name] < LAYER_OF[here]]
    assert not above, f"{here} imports {above} from a higher layer"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_frameworks_stay_where_they_belong(path):
    roots = {name.split(".")[0] for name in imported(path)}
    here = module(path)
    if roots & {"hydra", "omegaconf"}:
        assert LAYER_OF[here] <= 1
    if "flwr" in roots:
        assert here in {
            "flower_apps",
            "experiment",
            "engine",
            "server_app",
            "client_app",
            "rounds",
            "replies",
            "spool",
            "client_states",
            "strategy",
            "robust",
            "faults",
            "messages",
            "codec",
        }


def test_modules_stay_readable():
    long = {path.name: lines for path in FILES if (lines := len(path.read_text().splitlines())) > 400}
    assert not long


def test_importing_the_package_loads_nothing_heavy():
    loaded = "import sys, fl; print([m for m in ('torch', 'flwr', 'hydra', 'numpy') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", loaded], text=True, cwd=REPOSITORY).strip() == "[]"


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "fl.train"],
        ["compare_quantizations.py"],
        ["-m", "fl.resume"],
        ["-m", "fl.sweep"],
        ["-m", "fl.communication"],
        ["-m", "fl.export"],
        ["-m", "fl.bench"],
        ["-m", "fl.recommend"],
    ],
)
def test_help_loads_no_torch(command):
    script = (
        "import runpy, sys\n"
        f"sys.argv = {[*command[-1:], '--help']!r}\n"
        "try:\n"
        f"    runpy.{'run_module' if command[0] == '-m' else 'run_path'}({command[-1]!r}, run_name='__main__')\n"
        "except SystemExit:\n"
        "    pass\n"
        "assert 'torch' not in sys.modules and 'flwr' not in sys.modules, 'heavy imports'\n"
    )
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    print(f"{command}: {time.perf_counter() - began:.2f} s")
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout or "Groups" in done.stdout
