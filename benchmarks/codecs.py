"""Quantized communication on real EuroSAT: accuracy against bytes, each codec against FP32 with the same seeds.

    python benchmarks/codecs.py [--only NAME ...] [--jobs 1] [--threads 1] [--report] [--again] [overrides ...]

Runs what is missing of the grid, each as `python -m fl.train` with the default recipe, and adds every finished run to
docs/codecs.json, so that it can be stopped at any time: a run that was cut off continues after its last round, and
`--runs FOLDER --report` adopts finished runs from elsewhere. Then it writes docs/codecs.csv, docs/codecs.png and every
table that is made of them (benchmarks/tables.py). Real EuroSAT (EUROSAT_ZIP); other overrides are for trying the grid
and go with --folder, which keeps such figures out of the docs.
"""

from pathlib import Path
from typing import Any

import tables
from grid import basic_figures, fill, options_of
from traffic_table import DIRECTIONS, KEPT, ROWS, lines_of, table, traffic_of

from fl.core.console import say
from fl.core.errors import one_line_errors
from fl.core.records import read_rounds


def figures(run_dir: Path) -> dict[str, Any]:
    """Returns what the tables need of a finished run."""
    rounds = read_rounds(run_dir / "rounds.jsonl")
    moved = [traffic_of(each) for each in rounds]
    by_round = [f"{way}_payload_bytes" for way in DIRECTIONS]
    return {
        **basic_figures(run_dir),
        "reference_accuracy": rounds[-1].get("reference_accuracy"),
        **{f"{key}_by_round": [each[key] for each in moved] for key in by_round},
        **{key: sum(each[key] for each in moved) for key in moved[0]},
    }


def main() -> None:
    """Runs what is missing and writes the report."""
    options = options_of(str(__doc__), ROWS, KEPT)
    with one_line_errors():
        fill(options, ROWS, KEPT, figures)
        say(table(lines_of(options.folder)))
        tables.write(options.folder)


if __name__ == "__main__":
    main()
