"""What it takes to compute that contacts drive a run: wall time beside rounds, and the queue of events alone.

    python benchmarks/clock.py [--repeats 3] [--json FILE] [overrides of fl.train ...]

Replays 30 days of 100 satellites without training, under each policy, over the contacts of `ttc_uhf`. Then trains the
same small run with clock=rounds and with clock=contacts, synchronous and fedbuff, one after the other and again: ten
clients on synthetic images unless told otherwise, `ecq` both ways. Seconds are those of the whole command. A buffer
uses as many updates as rounds do; those that are on the way when it ends were trained besides.
"""

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from table import options_of, print_table, write_results

from fl.communication.policies import FedAsync, FedBuff, Synchronous
from fl.communication.pricing import load_link
from fl.communication.replay import Lengths, replay
from fl.core.console import progress
from fl.core.errors import RunError, one_line_errors
from fl.core.files import read_jsonl
from fl.core.run_folder import ROUNDS, TIMELINE

RUN = ("data=synthetic", "data.num_images=2000", "num_rounds=10", "codec@broadcast=ecq", "codec@update=ecq")
CONTACTS = ("clock=contacts", "constellation=plane_10", "link=ttc_uhf", "link.train_s=1000")
WAYS: dict[str, tuple[str, ...]] = {
    "rounds": (),
    "contacts, synchronous": (*CONTACTS, "policy=synchronous"),
    "contacts, fedbuff K = 5": (*CONTACTS, "policy=fedbuff"),
}
WANTED, WANTED_S = 1.10, 10.0
SATELLITES, DAYS, PAYLOAD_BYTES, TRAIN_S = 100, 30.0, 54_600, 1000.0
POLICIES = {"synchronous": Synchronous(), "fedbuff K = 5": FedBuff(), "fedasync": FedAsync()}


def trained(overrides: Sequence[str]) -> tuple[float, float, int]:
    """Returns the wall and processor seconds of one command, and how many trainings there were.

    Raises:
        RunError: it failed.
    """
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        command = [sys.executable, "-m", "fl.train", *overrides, f"hydra.run.dir={run_dir}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wall_s = time.perf_counter() - began
        if done.returncode:
            raise RunError(f"fl.train: {done.stderr.strip().splitlines()[-1]}")
        if (run_dir / TIMELINE).exists():
            trainings = sum(each["event"] == "trained" for each in read_jsonl(run_dir / TIMELINE))
        else:
            trainings = sum(each["clients_completed"] for each in read_jsonl(run_dir / ROUNDS))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, trainings


def replayed() -> list[dict[str, float | str]]:
    """Returns the seconds of each policy's queue, and what was in it."""
    lengths = Lengths([dict.fromkeys(range(SATELLITES), (PAYLOAD_BYTES, PAYLOAD_BYTES, 0.0))], shares_start=True)
    found: list[dict[str, float | str]] = []
    for name, policy in POLICIES.items():
        began, busy = time.perf_counter(), time.process_time()
        told = replay(
            load_link("ttc_uhf", TRAIN_S), policy, lengths, per_round=SATELLITES, updates=10**9, max_days=DAYS
        )
        seconds, cpu_s = time.perf_counter() - began, time.process_time() - busy
        figures = {"updates": told["used_updates"], "versions": told["versions"]}
        found.append({"policy": name, "seconds": seconds, "cpu_s": cpu_s, **figures})
    return found


def main() -> None:
    """Measures and prints."""
    options = options_of(str(__doc__), 3)
    with one_line_errors():
        queues = replayed()
        print_table(
            f"{DAYS:g} days of {SATELLITES} satellites, replayed (target: below {WANTED_S:g} s)",
            ["Policy", "Seconds", "Processor s", "Updates", "Versions"],
            [
                [
                    f"{e['policy']}",
                    f"{e['seconds']:.1f}",
                    f"{e['cpu_s']:.1f}",
                    f"{e['updates']:,}",
                    f"{e['versions']:,}",
                ]
                for e in queues
            ],
        )
        trained([*RUN, *options.overrides, "num_rounds=1"])  # fills the cache of images
        runs: dict[str, list[tuple[float, float, int]]] = {name: [] for name in WAYS}
        with progress("runs", options.repeats * len(WAYS), "run") as step:
            for _ in range(options.repeats):
                for name, way in WAYS.items():
                    runs[name].append(trained([*RUN, *way, *options.overrides]))
                    step(1)
        wall, cpu = ({name: median(each[kind] for each in found) for name, found in runs.items()} for kind in (0, 1))
        print_table(
            f"The same small run by both clocks, median of {options.repeats} (target: at most {WANTED:.2f} of rounds)",
            ["Clock", "Trainings", "Seconds", "of rounds", "Processor s", "of rounds"],
            [
                [
                    name,
                    str(runs[name][0][2]),
                    f"{wall[name]:.1f}",
                    f"{wall[name] / wall['rounds']:.3f}",
                    f"{cpu[name]:.1f}",
                    f"{cpu[name] / cpu['rounds']:.3f}",
                ]
                for name in WAYS
            ],
        )
        write_results(options.json, {"queues": queues, "wall_s_cpu_s_trainings": runs})


if __name__ == "__main__":
    main()
