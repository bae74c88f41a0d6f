"""Other people's codecs on given arrays: run by peers.py with the interpreter of an environment that has them.

    python benchmarks/peer_codecs.py ARRAYS.npz FIGURES.json

Needs no part of quantfl: NumPy, torch, and nncodec 2.1.3 (ISO/IEC 15938-17) and bitsandbytes, of which those that are
missing are left out. nncodec codes a whole set at once, with trellis-coded quantization and context-adaptive binary
arithmetic coding. NVFlare's filters (nvflare.app_opt.pt.quantization) move arrays to a GPU and call
bitsandbytes' blockwise functions, which are called here as the filters do, on the CPU, and give the same integers;
their bytes are those of the integers, of the scales and of the code book, as the filter itself counts them.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

Tensors = dict[str, np.ndarray]
Coded = tuple[int, Tensors]
"""Bytes, and what is decoded from them."""


def blockwise(arrays: Tensors, four_bits: str | None) -> Coded:
    """Returns what NVFlare makes of them: its filter `blockwise8`, for "fp4" `float4`, for "nf4" `normfloat4`."""
    from bitsandbytes import functional

    size, decoded = 0, {}
    for name, array in arrays.items():
        values = torch.from_numpy(array)
        if four_bits is None:
            integers, state = functional.quantize_blockwise(values)
            back = functional.dequantize_blockwise(integers, state)
            extra = [state.absmax, state.code]
        else:
            integers, state = functional.quantize_4bit(values, quant_type=four_bits)
            back = functional.dequantize_4bit(integers, state)
            extra = [each for each in state.as_dict().values() if isinstance(each, torch.Tensor)]
        size += integers.nbytes + sum(each.nbytes for each in extra)
        decoded[name] = back.numpy().reshape(array.shape)
    return size, decoded


def nnc(arrays: Tensors, qp: int) -> Coded:
    """Returns what nncodec makes of them with one quantization parameter, everything else as it comes."""
    from nncodec.nn import decode, encode

    with tempfile.TemporaryDirectory() as folder:
        settings = {"qp": qp, "nonweight_qp": qp, "results": folder, "verbose": False}
        stream = encode({name: array.copy() for name, array in arrays.items()}, args=settings)
        return len(stream), dict(decode(stream))


def codecs() -> Iterator[tuple[str, Callable[[Tensors], Coded]]]:
    """Yields all that are installed, by name."""
    if installed("bitsandbytes"):
        yield "NVFlare blockwise8", lambda arrays: blockwise(arrays, None)
        yield "NVFlare float4", lambda arrays: blockwise(arrays, "fp4")
        yield "NVFlare normfloat4", lambda arrays: blockwise(arrays, "nf4")
    if installed("nncodec"):
        for qp in (-38, -30, -27, -25, -24, -23, -22, -21, -20, -19, -18, -17, -16, -15, -14):
            yield f"nncodec qp {qp}", lambda arrays, qp=qp: nnc(arrays, qp)


def installed(package: str) -> str | None:
    """Returns the version of a package, None where there is none."""
    try:
        return version(package)
    except ImportError:
        return None


def main() -> None:
    """Writes bytes and squared errors of each codec for each set of arrays (keys `SET/TENSOR`)."""
    examples = "Examples:\n  python benchmarks/peer_codecs.py arrays.npz figures.json\n  "
    examples += (
        "other/bin/python benchmarks/peer_codecs.py arrays.npz figures.json    # of an environment that has them"
    )
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form, epilog=examples)
    parser.add_argument("arrays", type=Path, help="an .npz of keys SET/TENSOR")
    parser.add_argument("figures", type=Path, help="the JSON file to write")
    options = parser.parse_args()
    sets: dict[str, Tensors] = {}
    with np.load(options.arrays, allow_pickle=False) as stored:
        for key in stored.files:
            name, tensor = key.split("/", 1)
            sets.setdefault(name, {})[tensor] = stored[key]
    figures: dict[str, dict[str, dict[str, object]]] = {}
    for codec, code in codecs():
        for name, arrays in sets.items():
            size, decoded = code(arrays)
            errors = {t: float(np.square(decoded[t].astype(np.float64) - a).sum()) for t, a in arrays.items()}
            figures.setdefault(codec, {})[name] = {"bytes": size, "squared_errors": errors}
        print(codec, file=sys.stderr, flush=True)
    versions = {package: installed(package) for package in ("nncodec", "bitsandbytes", "torch", "numpy")}
    options.figures.write_text(json.dumps({"versions": versions, "codecs": figures}))


if __name__ == "__main__":
    main()
