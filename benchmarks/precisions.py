"""Precisions on real EuroSAT: what quantizing costs after training, and models that were trained for it.

    python benchmarks/precisions.py [--only NAME ...] [--jobs 1] [--threads 1] [--report] [--again] [overrides ...]

Runs what is missing of the grid, each as `python -m fl.train` with the default recipe and then
`python compare_quantizations.py --precisions all`, and adds every finished run to docs/precisions.json, so that it can
be stopped at any time. The FP32 runs are those of benchmarks/codecs.py; `--runs FOLDER --report` takes finished ones
from elsewhere and trains nothing, `--again` converts and measures their models anew. Comparisons stand in
outputs/precisions. Then it writes every table that is made of the figures (benchmarks/tables.py). Real EuroSAT
(EUROSAT_ZIP); other overrides are for trying the grid and go with --folder.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tables
from grid import MODEL, ROOT, basic_figures, call, commit_of, fill, options_of
from precision_table import AFTER, KEPT, SHOWN, TRAINED, after_table, trained_table

from fl.core.console import say
from fl.core.errors import one_line_errors
from fl.core.files import read_json

FIELDS = ("accuracy", "loss", "agreement_with_fp32", "file_size_bytes", "inference_ms", "kernels")


def figures(run_dir: Path, again: bool) -> dict[str, Any]:
    """Returns a run's figures with those of its model in every precision, which are measured if they are not."""
    basic, folder = basic_figures(run_dir), ROOT / "outputs" / "precisions" / run_dir.name
    path = folder / "quantization_comparison.json"
    kept = read_json(path) if path.exists() and not again else {"precisions": {}, "model_sha256": None}
    if not set(SHOWN) <= set(kept["precisions"]) or kept["model_sha256"] != basic["model_sha256"]:
        command = [sys.executable, "compare_quantizations.py", str(run_dir / MODEL), "--precisions", "all"]
        call([*command, "--output", str(folder)], run_dir.name)
    report: Mapping[str, Any] = read_json(path)
    return basic | {
        **{field: {name: entry[field] for name, entry in report["precisions"].items()} for field in FIELDS},
        "measured_with": {
            "commit": commit_of(ROOT),
            "threads": report["environment"]["threads"],
            **report["evaluation"],
        },
    }


def main() -> None:
    """Runs what is missing and writes the report."""
    rows = *AFTER, *TRAINED
    options = options_of(str(__doc__), rows, KEPT)
    with one_line_errors():
        runs = fill(options, rows, KEPT, lambda run_dir: figures(run_dir.absolute(), options.again))
        say(f"{after_table(runs)}\n{trained_table(runs)}")
        tables.write(options.folder)


if __name__ == "__main__":
    main()
