"""`python -m fl bench MODEL...`: speed, memory and answers of model files, batch size by batch size, side by side."""

import argparse
from pathlib import Path

from fl.commands.arguments import Parser, counts, renew_report
from fl.core.errors import ConfigError, one_line_errors
from fl.core.run_folder import BENCH

BATCH_SIZES = "1,4,8,32,128"


def parser() -> Parser:
    """Returns what reads the command line."""
    made = Parser(
        prog="python -m fl bench",
        description=__doc__,
        note="Every model sees all test images at every batch size, in turns, so that all meet the same load.",
        examples=[
            "python -m fl bench outputs/DATE/TIME --batch-sizes 1,32",
            "python -m fl bench outputs/DATE/TIME/model_*.pt outputs/DATE/TIME/export/model_int8_static.onnx",
        ],
    )
    add = made.add_argument
    add(
        "models",
        nargs="+",
        type=Path,
        metavar="MODEL",
        help="model_*.pt, .onnx, .pt2, .ts, .tflite, or a folder of such; one must be FP32",
    )
    add("--batch-sizes", default=BATCH_SIZES, help=f"comma list ({BATCH_SIZES})")
    add("--data", help="test images: zip or folder, 'eurosat' or 'synthetic'; those of the models' run by default")
    add(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="cpu",
        help="of model_*.pt; other formats run on the CPU (cpu)",
    )
    add(
        "--model",
        metavar="NAME",
        help="of the network, where neither file nor run tell it or it is your own: resnet18, my_module.MyNet, ...",
    )
    add("--threads", type=int, help="of every runtime (all cores)")
    add(
        "--plain-memory",
        action="store_true",
        help="let glibc give freed memory back to the system, as processes do that do not call compute_with",
    )
    add("--images", type=int, metavar="N", help="no more test images than this, evenly spaced")
    add("--output", type=Path, help=f"path of the JSON, the plot goes beside it ({BENCH} beside the first model)")
    return made


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    return parser().parse_args(arguments)


def checked(options: argparse.Namespace) -> argparse.Namespace:
    """Returns the options with their lists as numbers.

    Raises:
        ConfigError: one is none.
    """
    sizes = counts("--batch-sizes", options.batch_sizes)
    if not sizes:
        raise ConfigError(f"--batch-sizes {options.batch_sizes}: must be a comma list of whole numbers, as in 1,32")
    options.batch_sizes = sizes
    return options


def main() -> None:
    """Measures, prints and writes."""
    options = parse()
    with one_line_errors():
        checked(options)
        from fl.deployment.bench import bench

        path = bench(options)
        renew_report(path)
