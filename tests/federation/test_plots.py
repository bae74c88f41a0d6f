"""The picture of a run."""

from pathlib import Path

import numpy as np

from fl.core.units import MIB
from fl.federation import plots


def test_a_run_shows_accuracy_over_the_bytes_sent_until_then(drawn):
    records = [
        {
            "round": number, "train_loss": 1.0, "test_loss": 1.0, "test_accuracy": accuracy,
            "broadcast": {"payload_bytes": sent, "message_bytes": 0, "fp32_payload_bytes": 0},
            "update": {"payload_bytes": MIB, "message_bytes": 0, "fp32_payload_bytes": 0},
        }
        for number, accuracy, sent in ((1, 0.5, 0), (2, 0.75, 2 * MIB))
    ]  # fmt: skip
    plots.plot_rounds(Path("x.png"), records, "data")
    over_bytes = drawn[0].axes[2]
    assert over_bytes.get_xlabel() == "payload sent until then, both directions (MB)"
    assert np.allclose(over_bytes.lines[0].get_xydata(), [[1, 50], [4, 75]])
