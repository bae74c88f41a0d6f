"""`python scripts/same_as.py COMMIT`: whether this tree does, byte for byte, what another commit does.

Both make six small fixed runs on synthetic images: codecs with feedback, Ray, training aware of quantization, partial
participation with a server optimizer, a run that is stopped and resumed, and a plain one with its comparison. Compared
are models, what clients remember (payloads among it), and records and JSON without times and environment. Bits hold for
one kind of CPU: both run here.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
SMALL = (
    "data=synthetic data.num_images=240 num_clients=4 num_rounds=2 local_epochs=1 batch_size=16 threads_per_client=1"
)
CODED = "codec@broadcast=ecq codec@update=ecq update.error_feedback=true"
RUNS = {
    "codecs": f"{CODED} update.bits=2 partition=dirichlet",
    "ray": "codec@update=int8 update.rounding=stochastic engine=ray engine.client_cpus=1",
    "qat": "training=qat training.bits=4 codec@broadcast=tcq codec@update=eden optimizer=adam",
    "partial": "strategy=fedadam fraction_train=0.5 fraction_evaluate=0.5 codec@broadcast=int8 num_rounds=4",
    "resumed": f"{CODED} strategy=median checkpoint.keep=all num_rounds=3",
    "plain": "",
}
TIMES = ("_s", "_ms", "ms_per_image")
NOT_COMPARED = ("environment", "config", "settings.json", "run_dir", "model_path", "versions")


def python(tree: Path, *arguments: str) -> None:
    """Runs a command of a tree; its output is shown if it fails."""
    environment = {**os.environ, "PYTHONPATH": str(tree)}  # for Ray's processes
    done = subprocess.run(
        [sys.executable, *arguments], cwd=tree, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{tree}: {' '.join(arguments)}\n{done.stdout}{done.stderr}")


def work(tree: Path, runs: Path) -> None:
    """Makes all runs of a tree."""
    for name, overrides in RUNS.items():
        folder = runs / name
        arguments = [*SMALL.split(), *overrides.split(), f"hydra.run.dir={folder}"]
        if name == "resumed":
            python(tree, "-m", "fl.train", *arguments, "time_limit_min=1e-9")
            settings = json.loads((folder / "settings.json").read_text())
            (folder / "settings.json").write_text(json.dumps({**settings, "time_limit_min": None}))
            (folder / "summary.json").unlink()
            (folder / "events.jsonl").unlink()
            python(tree, "-m", "fl.resume", str(folder))
        else:
            python(tree, "-m", "fl.train", *arguments)
    python(tree, "compare_quantizations.py", str(runs / "plain"), "--precisions", "all", "--rounds", "10,20")


def without_times(value: object) -> object:
    """Returns JSON without what cannot be the same twice."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if not k.endswith(TIMES) and k not in NOT_COMPARED and v != {}}
        return {key: without_times(each) for key, each in kept.items()}
    return [without_times(each) for each in value] if isinstance(value, list) else value


def contents(runs: Path) -> dict[str, object]:
    """Returns what is compared, by path."""
    found: dict[str, object] = {}
    for path in sorted(path for path in runs.rglob("*") if path.is_file()):
        name = str(path.relative_to(runs))
        if path.name == "rounds.jsonl":
            found[name] = [without_times(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.name in ("communication.json", "partition.json", "quantization_comparison.json"):
            told = json.loads(path.read_text())
            found[name] = without_times({**told, "modelled": None} if path.name == "communication.json" else told)
        elif (
            path.suffix in (".pt", ".npz") and not path.name.startswith("checkpoint")
        ) or path.parent.name == "clients":
            found[name] = path.read_bytes()
    return found


def main() -> None:
    """Runs both trees and says what differs."""
    examples = "Examples:\n  python scripts/same_as.py HEAD         # what is not committed yet\n  "
    examples += "python scripts/same_as.py origin/main  # what is not pushed yet"
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form, epilog=examples)
    parser.add_argument("commit", help="to compare with")
    commit = parser.parse_args().commit
    with tempfile.TemporaryDirectory() as scratch:
        other = Path(scratch) / "tree"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", other, commit], cwd=HERE, check=True)
        try:
            results = []
            for number, tree in enumerate((other, HERE)):
                runs = Path(scratch) / f"runs-{number}" / "runs"
                runs.mkdir(parents=True)
                work(tree, runs)
                results.append(contents(runs))
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", other], cwd=HERE, check=True)
    theirs, ours = results
    differing = [name for name in sorted({*theirs, *ours}) if theirs.get(name) != ours.get(name)]
    for name in differing:
        print(f"DIFFERS  {name}")
    if differing:
        sys.exit(1)
    print(f"the same: {len(ours)} files of {len(RUNS)} runs")


if __name__ == "__main__":
    main()
