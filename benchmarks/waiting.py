"""What two threads that wait for each other cost: torch's OpenMP with its own patience, with ours, with none.

    python benchmarks/waiting.py [--repeats 6] [--json FILE]

The same steps in a process of its own each time, in turns. On a machine with other work this is the busy case; as root,
`chrt -r 1 python benchmarks/waiting.py` puts other work aside and measures the idle one.
"""

import json
import os
import statistics
import subprocess
import sys

from table import options_of, print_table, write_results

from fl.core.errors import one_line_errors

WAYS = {
    "OpenMP's own": {},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
}
STEPS = {"training, batch 32": 12, "training, batch 16": 14, "FP32, batch 32": 12, "FP32, batch 1": 120}
STEPS |= {"INT8 static, batch 32": 12, "INT8 static, batch 1": 120}
CHILD = """
import json, statistics, sys, time
import torch
from fl.core.machine import compute_with
from fl.models.net import channels_last, initial_model, to_input
from fl.quantization import precision_of

compute_with(2)
images = torch.randint(0, 256, (512, 64, 64, 3), dtype=torch.uint8)
labels = torch.randint(0, 10, (512,))
net = channels_last(initial_model(10, 0))
optimizer = torch.optim.Adam(net.parameters(), 1e-3)

def train(batch):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(net(to_input(images[:batch])), labels[:batch]).backward()
    optimizer.step()

found = {}
for name, steps in json.loads(sys.argv[1]).items():
    kind, batch = name.split(", batch ")
    if kind == "training":
        step = lambda: train(int(batch))
    else:
        net.eval()
        model = precision_of("fp32" if kind == "FP32" else "int8_static").convert(net, to_input(images[:64]))
        step = lambda: model(to_input(images[: int(batch)]))
    with torch.set_grad_enabled(kind == "training"):
        step()
        seconds = []
        for _ in range(steps):
            began = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - began)
        found[name] = 1000 * statistics.median(seconds)
print(json.dumps(found))
"""


def measured(way: dict[str, str]) -> dict[str, float]:
    """Returns the median milliseconds of the steps of each kind, with these variables."""
    clean = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    clean |= way or {"GOMP_SPINCOUNT": "300000"}  # OpenMP's own, which fl would replace if it were not named
    command = [sys.executable, "-c", CHILD, json.dumps(STEPS)]
    done = subprocess.run(command, env=clean, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def main() -> None:
    """Prints the table."""
    options = options_of(str(__doc__), 6)
    with one_line_errors():
        turns = [{name: measured(way) for name, way in WAYS.items()} for _ in range(options.repeats)]
        medians = {
            kind: {name: statistics.median(turn[name][kind] for turn in turns) for name in WAYS} for kind in STEPS
        }
        first = next(iter(WAYS))
        rows = [
            [kind, *(f"{value:.2f} ({value / each[first]:.2f})" for value in each.values())]
            for kind, each in medians.items()
        ]
        columns = ["ms per step (of the first column)", *WAYS]
        print_table(f"Two threads, median of {options.repeats} turns, load {os.getloadavg()[0]:.1f}", columns, rows)
        write_results(options.json, {"milliseconds": medians, "turns": turns, "load": os.getloadavg()[0]})


if __name__ == "__main__":
    main()
