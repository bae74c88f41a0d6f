"""What clients that drop out or flip signs cost, with and without robust aggregation and coded traffic.

    python benchmarks/faults.py [--only NAME ...] [--jobs 1] [--report] [overrides of fl.train ...]

The runs of benchmarks/faults_table.py on real EuroSAT (EUROSAT_ZIP), 5 rounds of one epoch each, one seed. Figures are
kept in docs/faults.json; it can be stopped at any time.
"""

from pathlib import Path
from typing import Any

import tables
from faults_table import KEPT, ROWS, table
from grid import ROOT, basic_figures, fill, options_of

from fl.core.console import say
from fl.core.errors import one_line_errors
from fl.core.files import read_jsonl


def figures(run_dir: Path) -> dict[str, Any]:
    """Returns accuracy, bytes, and how many answers failed."""
    rounds = read_jsonl(run_dir / "rounds.jsonl")
    return basic_figures(run_dir) | {
        "payload_bytes": sum(each[way]["payload_bytes"] for each in rounds for way in ("broadcast", "update")),
        "clients_failed": [len(each["clients_failed"]) for each in rounds],
    }


def main() -> None:
    """Runs what is missing, shows the table and puts it into the docs."""
    options = options_of(str(__doc__), ROWS, KEPT, ROOT / "outputs" / "faults")
    with one_line_errors():
        say(table(fill(options, ROWS, KEPT, figures)))
        tables.write(options.folder)


if __name__ == "__main__":
    main()
