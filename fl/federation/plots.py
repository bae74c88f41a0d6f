"""The pictures of a run: its rounds, and who holds which images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fl.core.errors import printable
from fl.core.figures import look, name_lines, picture, whole_numbers
from fl.core.records import traffic
from fl.core.units import MIB

DIRECTIONS = ("broadcast", "update")


def plot_rounds(path: Path, records: Sequence[Mapping[str, Any]], data_title: str) -> None:
    """Draws accuracy and loss over rounds, and accuracy over what was sent, from the lines of `rounds.jsonl`."""
    each_round = [sum(traffic(record, way)["payload_bytes"] for way in DIRECTIONS) for record in records]
    so_far = {record["round"]: mb for record, mb in zip(records, np.cumsum(each_round) / MIB, strict=True)}
    with picture(path, 15, 4, columns=3) as (figure, (accuracy, loss, sent)):
        for number, name in enumerate(("test", "validation", "federated")):
            scored = [record for record in records if f"{name}_loss" in record]
            if scored:
                rounds, drawn = [record["round"] for record in scored], {**look(number), "label": name}
                percent = [100 * record[f"{name}_accuracy"] for record in scored]
                accuracy.plot(rounds, percent, **drawn)
                loss.plot(rounds, [record[f"{name}_loss"] for record in scored], **drawn)
                sent.plot([so_far[number] for number in rounds], percent, **drawn)
        trained = {record["round"]: record["train_loss"] for record in records if record["train_loss"] is not None}
        loss.plot(list(trained), list(trained.values()), **look(3), label="local training")
        accuracy.set(xlabel="round", ylabel="accuracy (%)")
        loss.set(xlabel="round", ylabel="cross-entropy (nats)")
        sent.set(xlabel="payload sent until then, both directions (MB)", ylabel="accuracy (%)")
        sent.set_xlim(left=0)
        for axes in (accuracy, loss):
            whole_numbers(axes.xaxis)
        figure.suptitle(f"Global model on {printable(data_title)}")
        for axes in (accuracy, loss, sent):
            name_lines(axes)


def plot_label_distribution(path: Path, counts: np.ndarray, class_names: Sequence[str], data_title: str) -> None:
    """Draws how many images of each class each client holds, from int [clients, classes]."""
    with picture(path, 1.5 + 0.5 * len(class_names), 1.5 + 0.3 * min(len(counts), 60)) as (figure, (axes,)):
        image = axes.imshow(counts, aspect="auto", cmap="Blues", vmin=0)
        axes.grid(visible=False)
        axes.set_xticks(range(len(class_names)), list(map(printable, class_names)), rotation=45, ha="right")
        axes.set(ylabel="client", title=f"Training images per client, {printable(data_title)}")
        whole_numbers(axes.yaxis)
        if len(counts) <= 20:
            for (client, label), count in np.ndenumerate(counts):
                shade = "white" if count > 0.6 * counts.max() else "black"
                axes.text(label, client, str(count), ha="center", va="center", fontsize="x-small", color=shade)
        figure.colorbar(image, label="images")
