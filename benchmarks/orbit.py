"""Federated learning in simulated orbit time on real EuroSAT: hours, dollars, bytes and accuracy by policy.

    python benchmarks/orbit.py [--only NAME ...] [--jobs 1] [--report] [overrides of fl.train ...]

The runs of benchmarks/orbit_table.py (EUROSAT_ZIP), the default recipe with clock=contacts and 1,000 s of training on
board; about eight hours. Figures are kept in docs/orbit.json; it can be stopped at any time: a run that was cut off
continues after its last record. Other overrides are for trying the grid and go with --folder, which keeps such figures
out of the docs.
"""

from pathlib import Path
from statistics import fmean
from typing import Any

import tables
from grid import ROOT, basic_figures, fill, options_of
from orbit_table import CHOSEN_ROWS, KEPT, ROWS

from fl.core.console import say
from fl.core.errors import one_line_errors
from fl.core.files import read_json, read_jsonl


def figures(run_dir: Path) -> dict[str, Any]:
    """Returns what the tables need of a finished run."""
    rounds, summary = read_jsonl(run_dir / "rounds.jsonl"), read_json(run_dir / "summary.json")
    return basic_figures(run_dir) | {
        "contacts": summary["contacts"],
        "simulated_s_by_round": [each["simulated_s"] for each in rounds],
        "staleness_mean": fmean(each["staleness_mean"] for each in rounds),
        "staleness_max": max(each["staleness_max"] for each in rounds),
        "validation_accuracy": rounds[-1].get("validation_accuracy"),
    }


def main() -> None:
    """Runs what is missing, shows the table and puts it into the docs."""
    rows = (*CHOSEN_ROWS, *ROWS)
    options = options_of(str(__doc__), rows, KEPT, ROOT / "outputs" / "orbit_grid")
    with one_line_errors():
        fill(options, rows, KEPT, figures)
        say(tables.orbit(options.folder) or "No run is finished yet.")
        tables.write(options.folder)


if __name__ == "__main__":
    main()
