"""Converts a trained FP32 model to FP16 and INT8, evaluates each on the test set, measures files, prices traffic."""

import argparse
from pathlib import Path

from fl.commands.arguments import Parser, counts, names, renew_report
from fl.core.errors import ConfigError, one_line_errors
from fl.core.run_folder import model_in

DEFAULT_PRECISIONS = "fp32,fp16,int8,int8_static"


def parser() -> Parser:
    """Returns what reads the command line."""
    made = Parser(
        prog="python compare_quantizations.py",
        description=__doc__,
        examples=[
            "python compare_quantizations.py outputs/DATE/TIME --rounds 10,50 --formats onnx",
            "python compare_quantizations.py outputs/DATE/TIME --verify    # recompute every figure of the JSON",
        ],
    )
    add = made.add_argument
    add("model", type=Path, help="folder of a run, or an FP32 model: any state dict of the network, or a model_fp32.pt")
    add("--output", type=Path, help="folder for the files, or the path of the JSON file; beside the model by default")
    add("--precisions", default=DEFAULT_PRECISIONS, help=f"comma list of conf/precision, or all ({DEFAULT_PRECISIONS})")
    add("--data", help="test images: zip or folder, 'eurosat' or 'synthetic'; the run's own test set by default")
    add("--batch-size", type=int, default=32, help="images per forward pass (32); dynamic ranges depend on it")
    add("--device", choices=("auto", "cpu", "cuda"), default="cpu", help="cpu (default) has the INT8 kernels")
    add("--clients", default="", help="comma list of clients to compute costs for, as in 10,100")
    add("--rounds", default="", help="comma list of rounds to compute costs for, as in 10,20,50")
    add("--cost-per-mb", type=float, default=5.0, metavar="USD", help="price of 1024² bytes, either way (5)")
    add(
        "--model",
        dest="network",
        metavar="NAME",
        help="of the network, where neither file nor run tell it or it is your own: resnet18, my_module.MyNet, ...",
    )
    add("--formats", default="", help="deployment formats too: onnx, torchexport, torchscript, litert, or all")
    add(
        "--verify",
        action="store_true",
        help="recompute an existing JSON from the files beside it; any difference fails",
    )
    return made


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    return parser().parse_args(arguments)


def main() -> None:
    """Runs the comparison, or verifies one."""
    options = parse()
    with one_line_errors():
        clients, rounds = counts("--clients", options.clients), counts("--rounds", options.rounds)
        if options.batch_size < 1:
            raise ConfigError(f"--batch-size {options.batch_size}: must be at least 1")
        if not 0 <= options.cost_per_mb < float("inf"):
            raise ConfigError(f"--cost-per-mb {options.cost_per_mb}: must be a number of at least 0")
        from fl.comparison.compare import Options, compare
        from fl.comparison.verify import verify
        from fl.deployment.beside import DeploymentFiles

        if options.verify:
            verify(options.model, options.output, options.data, DeploymentFiles([]), options.network)
        else:
            chosen = Options(
                model=model_in(options.model),
                output=options.output,
                precisions=names("--precisions", options.precisions),
                chosen=options.precisions not in (DEFAULT_PRECISIONS, "all"),
                data=options.data,
                batch_size=options.batch_size,
                device=options.device,
                clients=clients,
                rounds=rounds,
                cost_per_mb=options.cost_per_mb,
                network=options.network,
            )
            wanted = names("--formats", options.formats)
            compare(chosen, DeploymentFiles(wanted) if wanted else None)
            if options.output is None:
                renew_report(chosen.model)
