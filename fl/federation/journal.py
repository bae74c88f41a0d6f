"""What is told of a run while it goes on and when it ends: its data, a line for each round, milestones."""

from typing import Any

from fl.core.files import MIB
from fl.core.records import RoundRecord, traffic
from fl.data.images import ImageSet, Split


def data_description(images: ImageSet, split: Split) -> dict[str, Any]:
    """Returns what identifies the images of a run and their split."""
    return {
        "name": images.name,
        "synthetic": images.synthetic,
        "class_names": images.class_names,
        "images_sha256": images.sha256,
        "split_sha256": split.sha256,
        "num_train": len(split.train),
        "num_validation": len(split.validation),
        "num_test": len(split.test),
        "notes": images.notes,
    }


def round_line(record: RoundRecord, num_rounds: int) -> str:
    """Returns what is printed after a round."""
    parts = [f"round {record.round:>{len(str(num_rounds))}}/{num_rounds}"]
    parts += [f"test {100 * record.test.accuracy:.2f}% loss {record.test.loss:.4f}"]
    also = {"validation": record.validation, "exact": record.exact, "reference": record.reference}
    for name, score in (also | {"clients": record.federated}).items():
        parts += [f"{name} {100 * score.accuracy:.2f}%"] if score else []
    parts += [f"train loss {record.train_loss:.4f}", f"clients {record.clients_completed}/{record.clients_asked}"]
    for name in ("broadcast", "update"):
        parts += [f"{name} {traffic(record.to_json(), name)['payload_bytes'] / MIB:.2f} MB"]
    return "  ".join([*parts, f"{record.train_s + record.evaluate_s + record.aggregate_s:.1f} s"])
