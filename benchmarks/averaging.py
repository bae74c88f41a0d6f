"""How far the mean of coded updates is from that of the exact ones, with even and with uneven clients.

    python benchmarks/averaging.py [--repeats 1] [--json FILE] [overrides of fl.train, as data.path=...]

Trains one round from examples/final_model.pt (lr 0.0015, seeds 1, 2, ... as many as repeats, a tenth of the training
images held out) with IID clients and with Dirichlet 0.3, keeps the updates, and codes each with `ecq` at 0.94 bit: with
the same bits for all, and with bits shared by weight. The error is that of the weighted mean, as a part of its energy.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import mean

import numpy as np
from table import options_of, print_table, write_results

from fl.codec import Ecq, Raw
from fl.codec.payload import Tensors, specs_of
from fl.codec.shares import shared_bits
from fl.codec.tensors import is_value
from fl.core.console import progress
from fl.core.errors import RunError, one_line_errors
from fl.core.files import read_json, read_jsonl

ROOT = Path(__file__).resolve().parents[1]
MODEL, BITS, KEPT = ROOT / "examples" / "final_model.pt", 0.94, "QUANTFL_KEPT_UPDATES"
PARTITIONS = {"IID": (), "Dirichlet 0.3": ("partition=dirichlet", "partition.alpha=0.3")}


class Keeping(Raw):
    """Sends differences exactly, and keeps each in a file that is named by the length of its payload."""

    exact = False

    def encode(self, tensors: Tensors, rng: np.random.Generator, *, base: bytes = b"\0" * 8) -> bytes:
        payload = super().encode(tensors, rng, base=base)
        np.savez(Path(os.environ[KEPT]) / f"{len(payload)}.npz", **tensors)
        return payload


def updates(overrides: list[str], seed: int, folder: Path) -> tuple[list[dict[str, np.ndarray]], list[int]]:
    """Returns what each client learned in one round, and how many images it has."""
    fixed = f"model.weights={MODEL}", "num_rounds=1", "lr=0.0015", "data.validation_fraction=0.1", f"seed={seed}"
    coded = "codec@update=raw", "update._target_=averaging.Keeping", f"hydra.run.dir={folder / 'run'}"
    path = {"PYTHONPATH": os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT)]), KEPT: str(folder)}
    done = subprocess.run(
        [sys.executable, "-m", "fl.train", *fixed, *coded, *overrides],
        env={**os.environ, **path},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RunError(f"fl.train: {done.stderr.strip()}")
    (told,) = read_jsonl(folder / "run" / "rounds.jsonl")
    clients = sorted(told["clients"], key=lambda each: each["partition_id"])
    found = [dict(np.load(folder / f"{each['update_payload_bytes']}.npz")) for each in clients]
    return found, [sum(row) for row in read_json(folder / "run" / "partition.json")["label_distribution"]]


def as_vector(tensors: Tensors) -> np.ndarray:
    """Returns all that is a difference, float64."""
    return np.concatenate([a.ravel() for n, a in tensors.items() if not is_value(n, a.dtype)]).astype(np.float64)


def coded(found: list[dict[str, np.ndarray]], weights: np.ndarray, bits: list[float]) -> Mapping[str, float]:
    """Returns bytes of the payloads and the error of the mean."""
    exact, arrived, size, rng = 0.0, 0.0, 0, np.random.default_rng(0)
    for update, weight, own in zip(found, weights, bits, strict=True):
        codec = Ecq(bits=own)
        payload = codec.encode(update, rng)
        size += len(payload)
        exact = exact + weight * as_vector(update)
        arrived = arrived + weight * as_vector(codec.decode(payload, specs_of(update)))
    return {"payload_bytes": size, "error": float(np.square(arrived - exact).sum() / np.square(exact).sum())}


def main() -> None:
    """Prints a line for each partition and share."""
    options = options_of(str(__doc__), repeats=1)
    results, rows = {}, []
    with one_line_errors(), progress("averaging", len(PARTITIONS) * options.repeats, "run") as advance:
        for title, partition in PARTITIONS.items():
            figures: dict[str, list[Mapping[str, float]]] = {"the same": [], "by weight": []}
            for seed in range(1, options.repeats + 1):
                with tempfile.TemporaryDirectory() as folder:
                    found, images = updates([*partition, *options.overrides], seed, Path(folder))
                weights = np.asarray(images) / sum(images)
                figures["the same"].append(coded(found, weights, [BITS] * len(images)))
                figures["by weight"].append(coded(found, weights, shared_bits(BITS, images)))
                advance(1)
            for share, runs in figures.items():
                size, error = (mean(each[key] for each in runs) for key in ("payload_bytes", "error"))
                rows.append((title, share, f"{size:,.0f}", f"{100 * error:.1f} %"))
            results[title] = figures
    title = f"ecq at {BITS} bit, one round of ten clients, {options.repeats} seeds".replace(" 1 seeds", " one seed")
    print_table(title, ("clients", "bits of each client", "bytes of all updates", "error of their mean"), rows)
    write_results(options.json, {"bits": BITS, "partitions": results})


if __name__ == "__main__":
    main()
