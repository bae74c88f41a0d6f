"""Other codecs on the same updates: bytes and squared error of each, beside ours at the same bytes.

    python benchmarks/peers.py --python PYTHON [--json FILE] [overrides of fl.train ...]

Trains two rounds of the default recipe with seed 1, takes the updates of clients 0 and 1 in both, and codes the weights
of convolutions and linear layers (433,768 elements, the same for every codec; all else is left out). Error
is the squared error over the squared length, the mean over the four updates: 0 for a copy, 1 for sending nothing.
Ours are then asked for the bytes that each peer took. PYTHON is the interpreter of an environment that has NVFlare's
bitsandbytes and nncodec (benchmarks/peer_codecs.py says which and how). Real EuroSAT (EUROSAT_ZIP).
"""

import json
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable
from screening_table import BASE
from table import parser_of, print_table, write_results
from traffic_table import ONE

from fl.codec import Codec, Ecq, Eden, Stc, Tcq, Uniform
from fl.codec.base import TINY
from fl.codec.payload import Tensors, specs_of
from fl.core.errors import RunError, one_line_errors
from fl.experiment.composing import composed
from fl.experiment.run import run
from fl.federation.messages import arrays_of

CLIENTS, ROUNDS, SEED = (0, 1), (1, 2), 1
STEPS = 10
"""Of the search for the setting that takes the bytes which were asked for."""
ERRORS = ("error", "ecq_error", "tcq_error", "stc_error")
Updates = dict[str, Tensors]


def updates(overrides: list[str]) -> Updates:
    """Returns the weights' changes by client and round."""
    found: Updates = {}

    def keep(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        client = int(context.node_config["partition-id"])
        before = {name: array.numpy().copy() for name, array in arrays_of(message).items()}
        reply = call_next(message, context)
        if client in CLIENTS:
            number = sum(key.endswith(f"client {client}") for key in found) + 1
            after = {name: array.numpy() for name, array in arrays_of(reply).items()}
            changes = {n: a - before[n] for n, a in after.items() if a.ndim > 1 and a.size >= TINY}
            found[f"round {number} client {client}"] = changes
        return reply

    with tempfile.TemporaryDirectory() as folder:
        run(composed([f"num_rounds={len(ROUNDS)}", f"seed={SEED}", *overrides]), Path(folder), mods=[keep])
    return found


def foreign(python: Path, sets: Updates) -> dict[str, Any]:
    """Returns what benchmarks/peer_codecs.py measures in another environment.

    Raises:
        RunError: it failed there.
    """
    with tempfile.TemporaryDirectory() as folder:
        arrays, figures = Path(folder) / "arrays.npz", Path(folder) / "figures.json"
        np.savez(arrays, **{f"{key}/{name}": array for key, each in sets.items() for name, array in each.items()})
        command = [python, Path(__file__).with_name("peer_codecs.py"), arrays, figures]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode:
            raise RunError(f"--python {python}: {done.stdout.strip().splitlines()[-1]}")
        return dict(json.loads(figures.read_text()))


def ours(codec: Codec, sets: Updates) -> tuple[float, float]:
    """Returns bytes of a payload and relative squared error, the means over all sets."""
    sizes, errors = [], []
    for arrays in sets.values():
        payload = codec.encode(arrays, np.random.default_rng(0))
        sizes.append(len(payload))
        errors.append(relative_error(arrays, codec.decode(payload, specs_of(arrays))))
    return float(np.mean(sizes)), float(np.mean(errors))


def relative_error(arrays: Tensors, decoded: Tensors) -> float:
    """Returns the squared error over the squared length."""
    lost = sum(float(np.square(decoded[name].astype(np.float64) - array).sum()) for name, array in arrays.items())
    return lost / squared_length(arrays)


def squared_length(arrays: Tensors) -> float:
    """Returns the sum of all squares."""
    return sum(float(np.square(array, dtype=np.float64).sum()) for array in arrays.values())


def at_bytes(make: Callable[[float], Codec], low: float, high: float, sets: Updates, wanted: float) -> float:
    """Returns the error of a codec whose setting, between two values, takes as many bytes as wanted, or just fewer."""
    error = 1.0  # of sending nothing
    for _ in range(STEPS):
        middle = (low + high) / 2
        size, found = ours(make(middle), sets)
        low, high = (middle, high) if size <= wanted else (low, middle)
        error = found if size <= wanted else error
    return error


def row(name: str, size: float, error: float, sets: Updates, elements: int) -> dict[str, Any]:
    """Returns a peer's figures, and those of ours at its bytes (None where a codec cannot take so many)."""
    bits = 8 * size / elements
    return {
        "codec": name,
        "bytes": size,
        "bits_per_element": bits,
        "error": error,
        "ecq_error": at_bytes(lambda b: Ecq(bits=b, error_feedback=True), 0.1, 12, sets, size),
        "tcq_error": at_bytes(lambda b: Tcq(bits=b, error_feedback=True), 0.1, 2, sets, size) if bits < 2 else None,
        "stc_error": at_bytes(lambda f: Stc(fraction=f), 1e-3, 0.5, sets, size) if bits < 2 else None,
    }


def peers(python: Path, sets: Updates) -> tuple[list[tuple[str, float, float]], Mapping[str, str]]:
    """Returns name, bytes and error of every foreign codec, and the versions of their packages."""
    told = foreign(python, sets)
    rows = []
    for name, by_set in told["codecs"].items():
        sizes = [each["bytes"] for each in by_set.values()]
        errors = [sum(each["squared_errors"].values()) / squared_length(sets[key]) for key, each in by_set.items()]
        rows.append((name, float(np.mean(sizes)), float(np.mean(errors))))
    return rows, told["versions"]


def main() -> None:
    """Prints the table."""
    other = "--python other/bin/python"
    parser = parser_of(str(__doc__), other, f"{other} --json figures.json data.path=EuroSAT.zip")
    parser.add_argument("--python", type=Path, required=True, help="of an environment with the other codecs")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("overrides", nargs="*", help="of fl.train")
    options = parser.parse_args()
    with one_line_errors():
        sets = updates(options.overrides)
        elements = sum(array.size for array in next(iter(sets.values())).values())
        found, versions = peers(options.python, sets)
        own: dict[str, Codec] = {
            f"ecq, {ONE:g} bit": Ecq(bits=ONE, error_feedback=True),
            f"ecq, {BASE[1]:g} bit": Ecq(bits=BASE[1], error_feedback=True),
            "int8 per tensor": Uniform(bits=8, scales="tensor"),
            "int4 per tensor": Uniform(bits=4, scales="tensor"),
            "eden, 1 bit": Eden(bits=1, error_feedback=True),
            "eden, 2 bits": Eden(bits=2, error_feedback=True),
        }
        found += [(name, *ours(codec, sets)) for name, codec in own.items()]
        rows = [row(*each, sets, elements) for each in found]
        print_table(
            f"Squared error of an update of {elements:,} elements, mean of {len(sets)}",
            ["codec", "bytes", "bits/element", "error", "ecq at these bytes", "tcq", "stc"],
            [
                [
                    each["codec"],
                    f"{each['bytes']:,.0f}",
                    f"{each['bits_per_element']:.3f}",
                    *(
                        "" if each[k] is None else f"{each[k]:.4f}"
                        for k in ("error", "ecq_error", "tcq_error", "stc_error")
                    ),
                ]
                for each in rows
            ],
        )
        write_results(options.json, {"elements": elements, "updates": list(sets), "versions": versions, "rows": rows})


if __name__ == "__main__":
    main()
