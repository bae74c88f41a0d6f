"""From the command to the first training step, with a warm cache.

    python benchmarks/startup.py [--repeats 5] [--json FILE] [overrides of fl.train ...]

Starts `python -m fl.train` in a new process and stops it at the first forward pass of a model in training mode. One
start before the first measured one fills the cache. Real EuroSAT (EUROSAT_ZIP) unless told otherwise.
"""

import statistics
import subprocess
import sys
import tempfile
import time

from table import options_of, print_table, write_results

from fl.core.errors import RunError, one_line_errors

CHILD = """
import os, runpy, sys, time
from torch.nn.modules.module import register_module_forward_pre_hook  # fl.train needs torch as well

def stop(module, inputs):
    if module.training:
        sys.stdout.write(f"\\nfirst step at {time.time()}\\n")
        sys.stdout.flush()
        os._exit(0)

register_module_forward_pre_hook(stop)
sys.argv[0] = "fl.train"
runpy.run_module("fl.train", run_name="__main__")
"""


def start(overrides: list[str]) -> float:
    """Returns the seconds of one start.

    Raises:
        RunError: it did not get as far as a training step.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", CHILD, *overrides, f"hydra.run.dir={folder}/run"]
        began = time.time()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    stamps = [line.removeprefix("first step at ") for line in done.stdout.splitlines() if line.startswith("first step")]
    if not stamps:
        raise RunError(f"fl.train did not start ({(done.stderr or done.stdout).strip()})")
    return float(stamps[0]) - began


def main() -> None:
    """Prints the table."""
    options = options_of(str(__doc__), 5)
    with one_line_errors():
        start(options.overrides)
        seconds = [start(options.overrides) for _ in range(options.repeats)]
        print_table(
            f"Command to first training step, warm cache, {options.repeats} times (target: at most 5 s)",
            ["seconds (median)", "range"],
            [[f"{statistics.median(seconds):.2f}", f"{min(seconds):.2f}-{max(seconds):.2f}"]],
        )
        write_results(options.json, {"seconds": seconds, "median_s": statistics.median(seconds)})


if __name__ == "__main__":
    main()
