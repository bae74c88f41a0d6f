"""The files of a run's folder, and whether all of them are there."""

from pathlib import Path

from fl.errors import ConfigError
from fl.results import read_json, sha256

SETTINGS, INDICES, SHARES, PARTITION, PARTITION_PLOT = (
    "settings.json",
    "indices.npz",
    "shares.npz",
    "partition.json",
    "partition.png",
)
MODEL, ROUNDS, EVENTS, SUMMARY, ROUNDS_PLOT, COMMUNICATION = (
    "final_model.pt",
    "rounds.jsonl",
    "events.jsonl",
    "summary.json",
    "rounds.png",
    "communication.json",
)
CLIENTS = "clients"
"""Folder of what clients remember, one file for each record."""
INPUTS = (INDICES, SHARES, PARTITION, PARTITION_PLOT)


def is_complete(run_dir: Path) -> bool:
    """Tells whether a run has ended well and all that it leaves is there, the model as its summary names it."""
    try:
        summary = read_json(run_dir / SUMMARY)
        sha = sha256((run_dir / MODEL).read_bytes())
        read_json(run_dir / COMMUNICATION)
    except (OSError, ConfigError):
        return False
    ended = isinstance(summary, dict) and summary.get("state") in ("completed", "time_limit")
    return (
        ended
        and summary.get("model_sha256") == sha
        and all((run_dir / name).exists() for name in (*INPUTS, ROUNDS, ROUNDS_PLOT, EVENTS))
    )
