"""Codec and settings at about half a bit, chosen by validation images on seeds that are not reported.

    python benchmarks/screen.py [--only NAME ...] [--jobs 1] [--report] [overrides of fl.train ...]

Every candidate of benchmarks/screening_table.py is trained for 5 rounds with seed 1 and a tenth of the training images
held out; the two best that send no more bytes than the base run again, 5 rounds as well, with seeds 2 and 3, and the
better mean over all three is chosen. Figures are kept in docs/screening.json: validation images only, accuracy on test
images is not recorded there. It can be stopped at any time; runs are in outputs/screening. Real EuroSAT (EUROSAT_ZIP);
other overrides are for trying it and go with --folder.
"""

from pathlib import Path
from typing import Any

import tables
from grid import ROOT, basic_figures, fill, options_of
from screening_table import CANDIDATES, KEPT, finalists, table

from fl.core.console import say
from fl.core.errors import one_line_errors
from fl.core.files import read_jsonl

SHARED = ("images", "split", "rounds", "train_s", "model_sha256", "threads", "versions", "commit")


def figures(run_dir: Path) -> dict[str, Any]:
    """Returns what is chosen by: validation scores and bytes, nothing of test images."""
    rounds, basic = read_jsonl(run_dir / "rounds.jsonl"), basic_figures(run_dir)
    return {key: basic[key] for key in SHARED} | {
        "validation_accuracy": rounds[-1]["validation_accuracy"],
        "validation_loss": rounds[-1]["validation_loss"],
        "validation_accuracy_by_round": [each["validation_accuracy"] for each in rounds],
        "payload_bytes": sum(each[way]["payload_bytes"] for each in rounds for way in ("broadcast", "update")),
    }


def main() -> None:
    """Runs what is missing of both stages and writes the table."""
    options = options_of(str(__doc__), CANDIDATES, KEPT, ROOT / "outputs" / "screening")
    with one_line_errors():
        runs = fill(options, CANDIDATES, KEPT, figures)
        if best := finalists(runs):
            options.only = None
            runs |= fill(options, best, KEPT, figures, keep=CANDIDATES)
        say(table(runs))
        tables.write(options.folder)


if __name__ == "__main__":
    main()
