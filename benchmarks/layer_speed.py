"""Where the time of a batch goes in FP32 and in static INT8, layer by layer.

    python benchmarks/layer_speed.py [--repeats 100] [--json FILE] [overrides of fl.train ...]

Runs examples/final_model.pt in both precisions, channels_last, on 32 images of real EuroSAT (EUROSAT_ZIP), and takes
the median of every step. Billions of multiply-adds a second say how much of the hardware a convolution uses: an AVX512
core does four times as many of them in INT8 (VNNI) as in FP32, so no convolution can gain more.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from table import options_of, print_table, write_results

from fl.core.errors import counted, one_line_errors
from fl.core.machine import compute_with
from fl.data.settings import open_data
from fl.experiment.composing import composed
from fl.experiment.settings import settings_from
from fl.models.net import channels_last, to_input
from fl.quantization import precision_of
from fl.quantization.kernels import max_pool
from fl.quantization.model_file import load_fp32
from fl.quantization.numeric import quantize_activation

MODEL = Path(__file__).resolve().parents[1] / "examples" / "final_model.pt"
BATCH_SIZE, CALIBRATION = 32, 512
CONVOLUTIONS, LINEARS = ("conv1", "conv2", "conv3"), ("fc1", "fc2", "fc3")


def timed(step: Callable[[], Any], repeats: int) -> tuple[Any, float]:
    """Returns what a step gives, and its median milliseconds."""
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        result = step()
        taken.append(1000 * (time.perf_counter() - began))
    return result, statistics.median(taken)


def main() -> None:
    """Prints the table."""
    options = options_of(str(__doc__), 100)
    with one_line_errors():
        settings = settings_from(composed(options.overrides))
        compute_with(settings.compute.threads_per_client)
        images, split = open_data(settings.data, settings.rounds.seed)
        model = channels_last(load_fp32(MODEL)[0])
        calibration = to_input(torch.from_numpy(images.images[split.train[:CALIBRATION]]))
        static: Any = precision_of("int8_static").convert(model, calibration)
        batch = torch.from_numpy(images.images[split.test[:BATCH_SIZE]])
        with torch.inference_mode():
            table = layers(model, static, batch, options.repeats)
            whole = [timed(lambda net=net: net(to_input(batch)), options.repeats)[1] for net in (model, static)]
    table.append(["the whole network", "", *(f"{each:.2f}" for each in whole), f"{whole[0] / whole[1]:.2f}x", "", ""])
    columns = ["step", "million multiply-adds", "FP32 ms", "INT8 ms", "ratio", "FP32 billions/s", "INT8 billions/s"]
    print_table(
        f"{BATCH_SIZE} images, {counted(settings.compute.threads_per_client, 'thread')}, median of {options.repeats}",
        columns,
        table,
    )
    write_results(options.json, {"repeats": options.repeats})


def layers(model: Any, static: Any, batch: torch.Tensor, repeats: int) -> list[list[str]]:
    """Returns a row for every step of the network."""
    x, before = timed(lambda: to_input(batch), repeats)
    q, quantizing = timed(lambda: quantize_activation(x, static.conv1.incoming()), repeats)
    rows = [["input", "", f"{before:.2f}", f"{before + quantizing:.2f}", "", "", ""]]
    for name in (*CONVOLUTIONS, *LINEARS):
        ours, theirs = static.get_submodule(name), model.get_submodule(name)
        y, fp32 = timed(lambda x=x, theirs=theirs: theirs(x), repeats)
        z, int8 = timed(lambda q=q, ours=ours: ours(q), repeats)
        count = y.numel() * theirs.weight[0].numel() / 1e6
        speeds = [f"{count / fp32:.0f}", f"{count / int8:.0f}"]
        rows.append([name, f"{count:.0f}", f"{fp32:.2f}", f"{int8:.2f}", f"{fp32 / int8:.2f}x", *speeds])
        if name in CONVOLUTIONS:
            norm = model.get_submodule(name.replace("conv", "bn"))
            x, fp32 = timed(lambda y=y, norm=norm: F.max_pool2d(F.relu(norm(y)), 2), repeats)
            q, int8 = timed(lambda z=z: max_pool(z), repeats)
            rows.append(["  normalize, ReLU, pool", "", f"{fp32:.2f}", f"{int8:.2f}", f"{fp32 / int8:.2f}x", "", ""])
            if name == CONVOLUTIONS[-1]:
                x, q = x.flatten(1), q.flatten(1)
        else:
            x, q = F.relu(y), z
    return rows


if __name__ == "__main__":
    main()
