"""How fast codecs encode and decode: this network's model, and others of 25 and 53 million parameters, on one core.

    python benchmarks/codec_speed.py [--repeats 5] [--json FILE]

Megabytes of FP32 per second (10^6 bytes), the best of the repeats: whole payloads, checks and checksum included. Beside
them, on the same elements in the same run: a copy in memory, and torch's own per-channel quantization and its inverse,
which pack and check nothing. "of a round": what both ends of the link compute for one client in a round of ten with the
codec in both directions, as a part of that client's training (2,160 images, the default recipe, one core), measured in
the same run. Targets: int8 without entropy coding at least 1,000 MB/s each way; at most 5 % of a round.

The 53 million are one matrix, and 50: million elements per second of the processor's time, so that other processes on
the machine do not count, the best of the repeats; and the most memory that was taken meanwhile, results included, in
multiples of the model (tracemalloc, in a pass of its own). Targets: ecq at 1 bit at least 20 million elements per
second each way, and at most twice the model.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before NumPy and torch are imported

import time
import tracemalloc
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from table import options_of, print_table, write_results

from fl.codec import Codec
from fl.codec.payload import Tensors, specs_of
from fl.core.console import say
from fl.core.errors import one_line_errors
from fl.experiment.composing import composed
from fl.experiment.settings import settings_from
from fl.models.net import channels_last, initial_model
from fl.training.local import train_locally

TARGET_MB_PER_S, TARGET_SHARE, TARGET_ELEMENTS_PER_S, TARGET_MEMORY = 1000, 0.05, 20e6, 2
CLIENTS, IMAGES_PER_CLIENT = 10, 2160
PRESETS = Path(__file__).resolve().parents[1] / "conf" / "codec"


def codecs() -> dict[str, Codec]:
    """Returns every preset, and those with entropy coding without it as well."""
    found: dict[str, Codec] = {}
    for path in sorted(PRESETS.glob("*.yaml")):
        codec = instantiate(composed([f"codec@update={path.stem}"])["update"])
        if isinstance(codec, Codec):
            found[path.stem] = codec
            if getattr(codec, "entropy", "none") != "none":
                more = {"bits": 2.5} if path.stem == "ecq" else {}  # plain packing takes 2 bits at least
                found[f"{path.stem} entropy=none"] = replace(codec, entropy="none", **more)  # type: ignore[type-var]
    return found


def models() -> dict[str, dict[str, np.ndarray]]:
    """Returns changes of a model: Laplace distributed weights in the shapes of the network, and of 20 large layers."""
    rng = np.random.default_rng(0)
    network = {name: tensor.numpy() for name, tensor in initial_model(10, 0).state_dict().items()}
    changed = {n: _laplace(rng, a.shape) if n.endswith("weight") else a for n, a in network.items()}
    return {"network": changed, "25 million": {f"layer{n}.weight": _laplace(rng, (1000, 1250)) for n in range(20)}}


def _laplace(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.laplace(scale=0.01, size=shape).astype(np.float32)


def seconds(work: Callable[[], Any], repeats: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Returns the shortest time that `work` took."""
    times = []
    for _ in range(repeats):
        began = clock()
        work()
        times.append(clock() - began)
    return min(times)


def measured(
    codec: Codec, model: Tensors, repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Returns seconds each way, and bits for each element of the model."""
    specs = specs_of(model)
    payload = codec.encode(model, np.random.default_rng(0))
    return {
        "encode_s": seconds(lambda: codec.encode(model, np.random.default_rng(0)), repeats, clock),
        "decode_s": seconds(lambda: codec.decode(payload, specs), repeats, clock),
        "bits": 8 * len(payload) / sum(array.size for array in model.values()),
    }


def large_models() -> dict[str, dict[str, np.ndarray]]:
    """Returns changes of 53 million elements, with columns of different size."""
    rng = np.random.default_rng(0)

    def matrix(rows: int, columns: int) -> np.ndarray:
        signs = rng.integers(0, 2, (rows, columns), np.int8) * np.float32(2) - np.float32(1)
        spread = np.exp(rng.normal(0, 0.4, columns)).astype(np.float32)
        return rng.standard_exponential((rows, columns), np.float32) * signs * spread / 100

    return {
        "one matrix": {"layer.weight": matrix(7280, 7280)},
        "50 matrices": {f"layer{n}.weight": matrix(1000, 1060) for n in range(50)},
    }


def peak_bytes(work: Callable[[], Any]) -> int:
    """Returns how much more memory than before `work` took at once."""
    tracemalloc.start()
    work()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


def large(repeats: int) -> dict[str, dict[str, dict[str, float]]]:
    """Returns and prints speed and memory of codecs with 53 million elements."""
    chosen = {name: codec for name, codec in codecs().items() if name in ("ecq", "int8", "int4", "eden", "stc")}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for shape, model in large_models().items():
        found[shape], rows = {}, []
        elements, specs = sum(array.size for array in model.values()), specs_of(model)
        for name, codec in chosen.items():
            each = measured(codec, model, repeats, time.process_time)
            payload = codec.encode(model, np.random.default_rng(0))
            works = {
                "encode": partial(codec.encode, model, np.random.default_rng(0)),
                "decode": partial(codec.decode, payload, specs),
            }
            for way, work in works.items():
                each[f"{way}_elements_per_s"] = elements / each[f"{way}_s"]
                each[f"{way}_memory"] = peak_bytes(work) / (4 * elements)
            found[shape][name] = each
            speeds = [f"{each[f'{way}_elements_per_s'] / 1e6:.1f}" for way in works]
            rows.append([name, *speeds, *(f"{each[f'{way}_memory']:.2f}" for way in works), f"{each['bits']:.3f}"])
        columns = ["codec", "encode, M/s", "decode, M/s", "memory, encode", "decode", "bits per element"]
        print_table(f"53 million elements, {shape}: best of {repeats}, memory in models", columns, rows)
    return found


def training_s() -> float:
    """Returns the seconds that a client of the default configuration trains in a round."""
    settings = settings_from(composed([]))
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (IMAGES_PER_CLIENT, 64, 64, 3), dtype=torch.uint8, generator=generator)
    labels, model = torch.arange(IMAGES_PER_CLIENT) % 10, channels_last(initial_model(10, 0))
    train = partial(train_locally, model, images, labels, settings.training, lr=settings.rounds.lr, proximal_mu=0.0)
    return seconds(lambda: train(generator=generator), 1)


def share_of_round(each: dict[str, float], round_s: float) -> float:
    """Returns the part of a client's round: broadcast decoded, update encoded and decoded, its part of encoding."""
    return (each["encode_s"] * (1 + 1 / CLIENTS) + 2 * each["decode_s"]) / round_s


def references(model: Tensors, repeats: int) -> dict[str, dict[str, float]]:
    """Returns the same for a copy, and for torch's quantization of all tensors with two axes or more."""
    tensors = [torch.from_numpy(array) for array in model.values() if array.ndim > 1]
    scales = [tensor.flatten(1).abs().amax(1).double() / 127 for tensor in tensors]

    def quantized() -> list[torch.Tensor]:
        zeros = [torch.zeros(len(scale), dtype=torch.int64) for scale in scales]
        several = zip(tensors, scales, zeros, strict=True)
        return [torch.quantize_per_channel(each, scale, zero, 0, torch.qint8) for each, scale, zero in several]

    integers = quantized()
    copy_s = seconds(lambda: [array.copy() for array in model.values()], repeats)
    torch_s = seconds(quantized, repeats), seconds(lambda: [each.dequantize() for each in integers], repeats)
    return {
        "(copy in memory)": {"encode_s": copy_s, "decode_s": copy_s, "bits": 32},
        "(torch, per channel)": {"encode_s": torch_s[0], "decode_s": torch_s[1], "bits": 8},
    }


def main() -> None:
    """Prints a table for each model."""
    options = options_of(str(__doc__), 5)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "torch.quantize_per_tensor", UserWarning)  # deprecated; here to compare with
    with one_line_errors():
        result: dict[str, Any] = {}
        round_s = training_s()
        for size, model in models().items():
            figures = references(model, options.repeats)
            figures |= {name: measured(codec, model, options.repeats) for name, codec in codecs().items()}
            fp32_bytes, rows = sum(array.nbytes for array in model.values()), []
            for name, each in figures.items():
                each["encode_mb_per_s"], each["decode_mb_per_s"] = (
                    fp32_bytes / each[f"{way}_s"] / 1e6 for way in ("encode", "decode")
                )
                both_ms = 1e3 * (each["encode_s"] + each["decode_s"])
                each["share_of_round"] = share_of_round(each, round_s)
                speeds = [f"{each[f'{way}_mb_per_s']:,.0f}" for way in ("encode", "decode")]
                share = f"{100 * each['share_of_round']:.2f} %" if size == "network" else "–"
                rows.append([name, *speeds, f"{both_ms:,.1f}", f"{each['bits']:.2f}", share])
            columns = ["codec", "encode, MB/s", "decode, MB/s", "both, ms", "bits per element", "of a round"]
            print_table(f"{size}: {fp32_bytes / 1e6:.1f} MB of FP32, best of {options.repeats}", columns, rows)
            result[size] = figures
        plain = result["25 million"]["int8 entropy=none"]
        speeds = [plain["encode_mb_per_s"], plain["decode_mb_per_s"]]
        met = "met" if min(speeds) >= TARGET_MB_PER_S else "missed"
        say(
            f"int8 entropy=none: {speeds[0]:,.0f} and {speeds[1]:,.0f} MB/s; target {TARGET_MB_PER_S:,} each way: {met}"
        )
        most, name = max((each["share_of_round"], name) for name, each in result["network"].items())
        met = "met" if most <= TARGET_SHARE else "missed"
        say(f"most of a round of {round_s:.1f} s: {name}, {100 * most:.2f} %; target {100 * TARGET_SHARE:g} %: {met}")
        big = large(min(options.repeats, 3))
        ecq = [each["ecq"] for each in big.values()]
        slowest = min(each[f"{way}_elements_per_s"] for each in ecq for way in ("encode", "decode"))
        most_memory = max(each[f"{way}_memory"] for each in ecq for way in ("encode", "decode"))
        met = "met" if slowest >= TARGET_ELEMENTS_PER_S and most_memory <= TARGET_MEMORY else "missed"
        say(
            f"ecq, 53 million elements: at least {slowest / 1e6:.1f} million a second, {most_memory:.2f} models of "
            f"memory; target {TARGET_ELEMENTS_PER_S / 1e6:g} and {TARGET_MEMORY}: {met}"
        )
        fewer = min(options.repeats, 3)
        statistic = f"wall seconds, best of {options.repeats}; 53 million elements: CPU seconds, best of {fewer}"
        figures = {"statistic": statistic, "models": result, "53 million": big, "training_s": round_s}
        write_results(options.json, figures)


if __name__ == "__main__":
    main()
