"""What many clients, large models and many rounds take: memory, start-up, seconds for each message, checkpoints.

    python benchmarks/scale.py [--only NAME ...] [--json FILE]

Every row is a process of its own, with `ecq` at one bit both ways and error feedback, on synthetic images. Memory is
what the process holds beside mapped files (RssAnon of /proc, looked at 50 times a second); seconds for each message are
those of a round's training phase that no client trained in, divided by its clients: both codings, both serializations,
checks, files. Start-up is processor time up to the first step of the first client, with the decoded images in the
cache. Needs Linux.

Rows: clients-10, clients-100, clients-1000, clients-10000 (10 asked in each of 5 rounds), all-1000 (all of 1,000 asked,
2 rounds), 11m and 25m (a model of so many parameters, 10 of 10 clients asked, 2 rounds), long (500 rounds of 20
clients).
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from table import parser_of, print_table, write_results

from fl.core.errors import RunError, one_line_errors
from fl.core.files import read_json, read_jsonl
from fl.core.machine import environment
from fl.core.units import MIB

CODED = ["codec@broadcast=ecq", "codec@update=ecq", "broadcast.bits=1", "update.bits=1"]
FEEDBACK = ["update.error_feedback=true", "local_epochs=1", "threads_per_client=2"]
MANY_IMAGES, FEW_IMAGES = 25_000, 600
EVERY_S = 0.02
ROWS: dict[str, list[str]] = {
    **{
        f"clients-{clients}": [
            f"num_clients={clients}",
            f"fraction_train={10 / clients:g}",
            "num_rounds=5",
            f"data.num_images={MANY_IMAGES}",
        ]
        for clients in (10, 100, 1_000, 10_000)
    },
    "all-1000": ["num_clients=1000", "fraction_train=1", "num_rounds=2", f"data.num_images={MANY_IMAGES}"],
    "long": ["num_clients=20", "fraction_train=1", "num_rounds=500", f"data.num_images={FEW_IMAGES}"],
}
LARGE = {"11m": 11_000_000, "25m": 25_000_000}


def process_state() -> tuple[float, int, int]:
    """Returns MiB beside mapped files, open descriptors and threads of this process."""
    status = Path("/proc/self/status").read_text()
    held, threads = (int(re.search(rf"{key}:\s+(\d+)", status)[1]) for key in ("RssAnon", "Threads"))  # type: ignore[index]
    return held * 1024 / MIB, len(os.listdir("/proc/self/fd")), threads


@contextmanager
def watched() -> Iterator[Callable[[], float]]:
    """Yields what returns the most memory so far, in MiB."""
    most, ended = 0.0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.wait(EVERY_S):
            most = max(most, process_state()[0])

    threading.Thread(target=watch, daemon=True).start()
    yield lambda: most
    ended.set()


def trained(overrides: list[str], folder: Path) -> dict[str, Any]:
    """Trains in this process and returns the figures."""
    from torch.nn.modules.module import register_module_forward_pre_hook

    from fl.experiment.composing import composed
    from fl.experiment.run import run
    from fl.federation.server_app import _Run

    figures: dict[str, Any] = {"states": []}

    def first_step(module: Any, inputs: Any) -> None:
        if module.training and "start_cpu_s" not in figures:
            figures["start_cpu_s"] = time.process_time()

    register_module_forward_pre_hook(first_step)
    keep = _Run._keep

    def kept(self: Any, record: Any, *others: Any) -> None:
        began = time.process_time()
        keep(self, record, *others)
        figures["states"].append([record.round, *process_state(), time.process_time() - began])

    _Run._keep = kept  # type: ignore[method-assign]
    folder.mkdir()
    run(composed([*CODED, *FEEDBACK, "data=synthetic", *overrides]), folder)
    rounds = read_jsonl(folder / "rounds.jsonl")[1:]
    idle = [each["train_s"] - sum(client["train_s"] for client in each["clients"]) for each in rounds]
    asked = sum(each["clients_asked"] for each in rounds)
    return figures | {
        "message_s": sum(idle) / asked,
        "aggregate_s": sum(each["aggregate_s"] for each in rounds) / len(rounds),
        "checkpoint_bytes": (folder / "checkpoint.pt").stat().st_size,
        "client_bytes": sum(each.stat().st_size for each in (folder / "clients").iterdir()),
    }


def large(parameters: int, folder: Path) -> dict[str, Any]:
    """Runs two rounds of a model of so many parameters, in rows of 1,000, which each client moves by noise."""
    from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp

    from fl.codec import Ecq, ServerLink, codec_mod
    from fl.core.records import Score, Scores
    from fl.core.targets import Target
    from fl.federation.checkpoint import Checkpoint, save_checkpoint
    from fl.federation.client_states import ClientStates
    from fl.federation.engine import InProcess
    from fl.federation.rounds import Federation, RoundSettings, run_rounds
    from fl.federation.strategy import Aggregator

    shapes = [(min(1_000, parameters // 1_000 - start), 1_000) for start in range(0, parameters // 1_000, 1_000)]

    def start() -> dict[str, np.ndarray]:
        rng = np.random.default_rng(0)
        return {f"layer{n}.weight": 0.03 * rng.standard_normal(shape, np.float32) for n, shape in enumerate(shapes)}

    broadcast, update = Ecq(1.0), Ecq(1.0, error_feedback=True)
    app = ClientApp(mods=[codec_mod(broadcast=broadcast, update=update, initial=start)])

    @app.train()
    def train(message: Message, context: Any) -> Message:
        rng = np.random.default_rng(int(context.node_config["partition-id"]))
        moved = {}
        for name, array in message.content.array_records["arrays"].items():
            moved[name] = Array(array.numpy() + 1e-3 * rng.standard_normal(array.shape, np.float32))
        metrics = MetricRecord({"num-examples": 1, "train-loss": 1.0, "train-s": 0.0})
        return Message(RecordDict({"arrays": ArrayRecord(moved), "metrics": metrics}), reply_to=message)

    @app.query()
    def query(message: Message, context: Any) -> Message:
        told = ConfigRecord({"partition-id": int(context.node_config["partition-id"])})
        return Message(RecordDict({"config": told}), reply_to=message)

    folder.mkdir()
    settings = RoundSettings(0, 2, 10, 1.0, 0.0, 10, 0.1, "constant", spool_folder=folder)
    link = ServerLink(broadcast, update, initial=start)
    aggregator = Aggregator(Target("flwr.serverapp.strategy.FedAvg"))
    with InProcess().open(app, 10, folder / "clients") as grid:
        arrays = ArrayRecord({name: Array(array) for name, array in start().items()})
        figures: dict[str, Any] = {"start_cpu_s": time.process_time()}
        federation = Federation(grid, aggregator, link, settings)
        for record, model, _ in run_rounds(federation, arrays, evaluate=lambda _: (Scores(Score(1.0, 0.0)), "float32")):
            states: ClientStates = grid.states
            checkpoint = Checkpoint(
                record.round, dict(model.to_torch_state_dict()), aggregator.state(), states.listing(), link.state()
            )
            save_checkpoint(folder, checkpoint, states.settle)
    return figures | {
        "message_s": record.train_s / 10,
        "aggregate_s": record.aggregate_s,
        "checkpoint_bytes": (folder / "checkpoint.pt").stat().st_size,
        "client_bytes": sum(each.stat().st_size for each in (folder / "clients").iterdir()),
    }


def in_this_process(name: str) -> None:
    """Prints a row's figures as JSON in the last line."""
    with tempfile.TemporaryDirectory() as folder, watched() as most:
        run_dir = Path(folder) / "run"
        figures = large(LARGE[name], run_dir) if name in LARGE else trained(ROWS[name], run_dir)
        peak = most()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps(figures | {"peak_mib": peak, "cpu_s": usage.ru_utime + usage.ru_stime}))


def kept(path: Path | None) -> dict[str, Any]:
    """Returns the rows of a file that were measured on this kind of machine with these versions."""
    if path is None or not path.exists():
        return {}
    told = read_json(path)
    here = environment("cpu", torch.get_num_threads())
    same = all(told["environment"].get(key) == here[key] for key in here if key != "commit")
    return dict(told["rows"]) if same else {}


def measured(name: str) -> dict[str, Any]:
    """Returns a row's figures, from a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--row", name], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RunError(f"{name}: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    """Measures and prints."""
    parser = parser_of(str(__doc__), "--only clients-10 clients-100", "--json figures.json")
    parser.add_argument("--only", nargs="+", choices=[*ROWS, *LARGE], default=[*ROWS, *LARGE], help="rows to measure")
    parser.add_argument(
        "--json", type=Path, help="keep figures in this file, as docs/speed/scale.json; measure what it lacks"
    )
    parser.add_argument("--row", choices=[*ROWS, *LARGE], help=argparse.SUPPRESS)
    options = parser.parse_args()
    with one_line_errors():
        if options.row:
            in_this_process(options.row)
            return
        rows = kept(options.json)
        for name in options.only:
            if name not in rows:
                rows[name] = measured(name)
                print(f"{name}: {rows[name]['peak_mib']:.0f} MiB", flush=True)
                write_results(options.json, {"rows": rows})
        rows = {name: rows[name] for name in (*ROWS, *LARGE) if name in rows}
        print_table(
            "Clients, parameters and rounds (`ecq`, 1 bit both ways, error feedback)",
            ["row", "start, CPU s", "s a message", "aggregation, s", "peak MiB", "checkpoint MB", "client files MB"],
            [
                [
                    name,
                    f"{row['start_cpu_s']:.1f}",
                    f"{row['message_s']:.3f}",
                    f"{row['aggregate_s']:.2f}",
                    f"{row['peak_mib']:.0f}",
                    f"{row['checkpoint_bytes'] / MIB:.2f}",
                    f"{row['client_bytes'] / MIB:.1f}",
                ]
                for name, row in rows.items()
            ],
        )
        if "long" in rows:
            wanted = (10, 100, 200, 300, 400, 500)
            print_table(
                "500 rounds of 20 clients: the process after a round",
                ["round", "MiB", "descriptors", "threads", "bookkeeping, CPU s"],
                [
                    [str(number), f"{held:.0f}", str(files), str(threads), f"{kept_s:.3f}"]
                    for number, held, files, threads, kept_s in rows["long"]["states"]
                    if number in wanted
                ],
            )
        write_results(options.json, {"rows": rows})


if __name__ == "__main__":
    main()
