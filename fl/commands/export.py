"""`python -m fl export RUN_DIR`: the model of the best round, ready to ship, with what it was chosen by."""

import argparse
from pathlib import Path

from fl.commands.arguments import Parser, names, renew_report
from fl.core.errors import one_line_errors


def parser() -> Parser:
    """Returns what reads the command line."""
    made = Parser(
        prog="python -m fl export",
        description=__doc__,
        note="The run's checkpoint.keep (last, best, all, N) says which rounds there are to choose from.",
        examples=[
            "python -m fl export outputs/DATE/TIME",
            "python -m fl export outputs/DATE/TIME --metric loss --quantize none --format onnx",
        ],
    )
    add = made.add_argument
    add("run_dir", type=Path, help="folder of a finished run, as in outputs/DATE/TIME")
    add("--metric", choices=("accuracy", "loss"), default="accuracy", help="of the validation images (accuracy)")
    add("--round", type=int, metavar="N", help="take this round, whatever its metric")
    add("--quantize", choices=("fp16", "none"), default="fp16", help="cast float32 tensors to FP16, or none (fp16)")
    add("--keep-batchnorm-fp32", action="store_true", help="leave BatchNorm's weights and statistics in FP32")
    add("--plot", action="store_true", help="draw the metric over rounds, with the choice marked (selection.png)")
    add("--output", type=Path, help="folder for the files (RUN_DIR/export)")
    add("--format", default="", help="comma list of deployment formats to write too: onnx, torchexport, ..., or all")
    add("--model", metavar="NAME", help="the network, if it is a class of your own: my_module.MyNet")
    add("--data", help="test images for --format: zip or folder, 'eurosat' or 'synthetic'; the run's own by default")
    return made


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    return parser().parse_args(arguments)


def main() -> None:
    """Exports as the command line says."""
    options = parse()
    with one_line_errors():
        options.format = names("--format", options.format)
        from fl.deployment.export import export

        export(options)
        renew_report(options.run_dir)
