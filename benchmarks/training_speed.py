"""How fast a client trains in each precision, side by side in one process.

    python benchmarks/training_speed.py [--repeats 5] [--json FILE] [overrides of fl.train ...]

Every precision trains a model of its own on the same images of real EuroSAT (EUROSAT_ZIP) with the default recipe;
they take turns of 1,024 images, so that all meet the same load. Images per second: the median of the turns. Target:
mixed precision at least 1.8 times FP32 on a CPU with AMX.
"""

import statistics
import time
from dataclasses import replace
from typing import Any

import torch
from table import options_of, print_table, write_results

from fl.core.errors import one_line_errors
from fl.core.machine import compute_with
from fl.core.seeds import torch_generator
from fl.data.settings import open_data
from fl.experiment.composing import composed
from fl.experiment.settings import settings_from
from fl.models.net import Net, channels_last, initial_model
from fl.training.arithmetic import Amp, Arithmetic, Fp32, Qat
from fl.training.local import train_locally

IMAGES = 1024
PRECISIONS: tuple[Arithmetic, ...] = (Fp32(), Amp("bfloat16"), Qat(8), Qat(4))


def main() -> None:
    """Prints the table."""
    options = options_of(str(__doc__), 5)
    with one_line_errors():
        settings = settings_from(composed(options.overrides))
        threads = settings.compute.threads_per_client
        compute_with(threads)
        images, split = open_data(settings.data, settings.rounds.seed)
        chosen = split.train[torch.randperm(len(split.train), generator=torch_generator(0, "bench"))[:IMAGES].numpy()]
        pixels, labels = torch.from_numpy(images.images[chosen]), torch.from_numpy(images.labels[chosen])
        state = initial_model(len(images.class_names), settings.rounds.seed).state_dict()
        models: list[Any] = [channels_last(each.prepared(Net(len(images.class_names)))) for each in PRECISIONS]
        for model in models:
            model.load_state_dict(state)
        rates: list[list[float]] = [[] for _ in PRECISIONS]
        for turn in range(options.repeats + 1):
            for precision, model, own in zip(PRECISIONS, models, rates, strict=True):
                training = replace(settings.training, local_epochs=1, arithmetic=precision)
                generator = torch_generator(settings.rounds.seed, "local", turn)
                began = time.perf_counter()
                train_locally(
                    model, pixels, labels, training, lr=settings.rounds.lr, proximal_mu=0.0, generator=generator
                )
                if turn:  # the first one warms up
                    own.append(len(labels) / (time.perf_counter() - began))
        capabilities = torch.cpu.get_capabilities()
        there = [name for name in ("avx512_bf16", "amx_bf16") if capabilities.get(name)]
        rows, base = [], statistics.median(rates[0])
        for precision, own in zip(PRECISIONS, rates, strict=True):
            middle = statistics.median(own)
            span = f"{min(own):.0f}-{max(own):.0f}"
            rows.append([precision.describe("cpu"), f"{middle:.0f}", span, f"{middle / base:.2f}x"])
        print_table(
            f"{IMAGES} images of {images.title} in {options.repeats} turns, {threads} threads; "
            f"bfloat16 instructions of this CPU: {', '.join(there) or 'none'}",
            ["training", "images/s (median)", "range", "of FP32"],
            rows,
        )
        names = [precision.describe("cpu") for precision in PRECISIONS]
        write_results(options.json, {"images_per_s": dict(zip(names, rates, strict=True)), "instructions": there})


if __name__ == "__main__":
    main()
