"""Small runs to track, trackers that misbehave, and readers of what trackers keep."""

import struct
import time
from pathlib import Path

from conftest import SMALL, composed
from pydantic.dataclasses import dataclass

from fl.core.files import read_json, read_jsonl
from fl.core.groups import STRICT
from fl.tracking import Tracker
from fl.tracking.base import figures

TINY = [*SMALL, "model=linear", "data.num_images=100", "num_clients=2"]


def run_tiny(folder, *overrides, resume=False, trusted=(), **tracking):
    """Runs two rounds of a network of one layer, in this process; `tracking` is a group of somebody's own."""
    from fl.experiment.run import run

    folder.mkdir(parents=True, exist_ok=True)
    config = composed(*TINY, *overrides)
    return run(config | ({"tracking": tracking} if tracking else {}), folder, resume=resume, trusted=trusted)


@dataclass(config=STRICT, kw_only=True)
class Hanging(Tracker):
    """Never comes back from its first round."""

    package = "json"

    def open(self, run, name, rounds):
        return rounds

    def round(self, number, figures):
        time.sleep(3600)

    result = artifact = close = round


class Crashing(Hanging):
    """Takes its whole process with it."""

    def round(self, number, figures):
        import os

        os.abort()


class Missing(Hanging):
    """Its library is not there."""

    package = "no_library_has_this_name"


def events_of(folder):
    """Returns TensorBoard's own reading of the event files of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    return found.Reload()


def scalars_of(folder):
    """Returns {tag: [(step, value), ...]} of the event files of a run."""
    found = events_of(folder)
    return {tag: [(each.step, each.value) for each in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def wandb_records(path: Path):
    """Returns the records in a `.wandb` file: a LevelDB log, blocks of 32 KiB with fragments, of protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, records, whole = path.read_bytes(), 7, [], b""
    assert content[:4] == b":W&B"
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:  # a block's end is padded
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last of several
            records.append(Record.FromString(whole))
            whole = b""
    return records


def told(folder):
    """Returns what a tracker is to hold of the rounds: {name: [(round, figure), ...]}."""
    found = {}
    for record in read_jsonl(folder / "rounds.jsonl"):
        for name, value in figures(record).items():
            found.setdefault(name, []).append((record["round"], value))
    return {name: values for name, values in found.items() if name not in ("version", "round")}


def until(folder, rounds):
    """Waits until so many rounds were sent."""
    for _ in range(1200):
        if read_json(folder / "tracking.json")["rounds"] == rounds:
            return
        time.sleep(0.05)
    raise AssertionError((folder / "tracking.json").read_text())
