"""A run's folder: the name of every file in it, whether all of them are there, and what to do with one that stopped."""

import shlex
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from fl.core.errors import ConfigError, python_command, shell_path
from fl.core.files import read_json, read_jsonl, read_regular, sha256, write_json

SETTINGS, INDICES, SHARES = "settings.json", "indices.npz", "shares.npz"
PARTITION, PARTITION_PLOT = "partition.json", "partition.png"
ROUNDS, EVENTS, ROUNDS_PLOT = "rounds.jsonl", "events.jsonl", "rounds.png"
CONTACTS, TIMELINE = "contacts.json", "timeline.jsonl"
"""Of a run that contacts drive: who can see whom when; what each satellite did, and when."""
HOURS_PLOT, ACTIVITY_PLOT, TRACKS_PLOT = "accuracy_over_hours.png", "activity.png", "ground_tracks.png"
"""Of such a run."""
CHECKPOINT, PREVIOUS_CHECKPOINT = "checkpoint.pt", "checkpoint_previous.pt"
MODEL, SUMMARY, COMMUNICATION = "final_model.pt", "summary.json", "communication.json"
COMPARISON, COMPARISON_PLOT = "quantization_comparison.json", "quantization_comparison.png"
RECOMMENDATION = "recommendation.json"
"""What a comparison says: in what to train, what to ship, what to transmit."""
PREDICTIONS = "predictions.npz"
"""Of a comparison: labels, each precision's answers, and some images whose answers differ."""
REPORT, BENCH = "report.html", "bench.json"
FORMATS_FILE = "formats.json"
"""What `fl export` says of deployment files; a comparison has that in its own JSON."""
CLIENTS = "clients"
"""Folder of what clients remember, one file for each record."""
MODELS = "models"
"""Folder of the models of single rounds."""
HYDRA_FOLDER = ".hydra"
MULTIRUN, SWEEP, SWEEP_TABLE = "multirun.yaml", "sweep.json", "sweep.csv"
"""Of the folder of a sweep."""
TRACKING, TRACKING_LOCK = "tracking.json", ".tracking.lock"
"""How far a run, or a sweep, was sent to its tracker."""
TENSORBOARD = "tensorboard"
"""Folder of TensorBoard's event files."""
ENDED = ("completed", "time_limit", "max_days")
"""How a run can end well."""
INPUTS = (INDICES, SHARES, PARTITION, PARTITION_PLOT)


def is_complete(run_dir: Path) -> bool:
    """Tells whether a run has ended well and all that it leaves is there, the model as its summary names it."""
    try:
        summary = read_json(run_dir / SUMMARY)
        sha = sha256(read_regular(run_dir / MODEL))
        read_json(run_dir / COMMUNICATION)
        settings = read_json(run_dir / SETTINGS)
    except (OSError, ConfigError):
        return False
    ended = isinstance(summary, dict) and summary.get("state") in ENDED
    asked = settings if isinstance(settings, dict) else {}
    also = [REPORT] if asked.get("report") is True else []
    also += [HOURS_PLOT, ACTIVITY_PLOT] if asked.get("clock") == "contacts" else []
    return (
        ended
        and summary.get("model_sha256") == sha
        and all((run_dir / name).exists() for name in (*INPUTS, ROUNDS, ROUNDS_PLOT, EVENTS, *also))
    )


def run_of(model_path: Path, model_sha256: str) -> Path | None:
    """Returns the folder of the run that made a model: where the file lies, or the folder above; None if there is none.

    Args:
        model_path: of the file.
        model_sha256: of its content, or of the file that it was made from.

    Raises:
        ConfigError: the run's own files are damaged.
    """
    here = model_path.absolute().parent
    for folder in (here, here.parent):
        if all((folder / name).is_file() for name in (SUMMARY, SETTINGS, PARTITION)):
            summary = read_json(folder / SUMMARY)
            if not isinstance(summary, dict) or "model_sha256" not in summary:
                raise ConfigError(f"{folder}: {SUMMARY} is damaged, it names no model")
            kept = (folder / MODELS).glob("*.pt")
            if summary["model_sha256"] == model_sha256 or any(sha256(read_regular(p)) == model_sha256 for p in kept):
                return folder
    return None


def model_of_round(run_dir: Path, round_number: int) -> Path:
    """Returns where the model of a round is kept."""
    return run_dir / MODELS / f"round_{round_number:04d}.pt"


def model_in(place: Path) -> Path:
    """Returns the final model of a run's folder; any other path as it is.

    Raises:
        ConfigError: a folder without such a model.
    """
    if not place.is_dir() or (place / MODEL).is_file():
        return place / MODEL if place.is_dir() else place
    jobs = sorted(path.parent.name for path in place.glob(f"*/{MODEL}"))
    if (place / MULTIRUN).is_file():
        one = f", such as {place / jobs[0]}" if jobs else "; none of them has a final model yet"
        raise ConfigError(f"{place}: is a sweep, the folder of several runs; give one of them{one}")
    if (place / SETTINGS).is_file():
        command = f"python -m fl resume {shell_path(place)}"
        raise ConfigError(f"{place}: this run has no {MODEL} yet; it continues with: {command}")
    raise ConfigError(f"{place}: is no run folder, it has no {MODEL}; give the folder of a run, or an FP32 model file")


def stopped(run_dir: Path, trusted: Collection[str] = ()) -> str:
    """Returns how an interrupted run continues, and notes in its folder that it was interrupted.

    Args:
        run_dir: of the run; removed if nothing was written into it.
        trusted: classes of the user's own.
    """
    with suppress(OSError):  # a folder in which nothing was written
        run_dir.rmdir()
    if is_complete(run_dir):
        return f"the run was finished: {shell_path(run_dir)}"
    if (run_dir / SETTINGS).exists() and not (run_dir / SUMMARY).exists():
        write_json(run_dir / SUMMARY, {"state": "interrupted", "error": None, "rounds_completed": 0})
    if not (run_dir / SETTINGS).exists():
        return "nothing had begun; start again"
    done = len(read_jsonl(run_dir / ROUNDS)) if (run_dir / CHECKPOINT).exists() else 0
    how = f"after round {done} it continues with" if done else "no round was finished; it begins again with"
    trust = "".join(f" --trust {shlex.quote(each)}" for each in trusted)
    return f"{how}: {python_command()} -m fl resume {shell_path(run_dir)}{trust}"
