"""Networks beyond the built-in CNN on real EuroSAT: coded traffic, every precision and format, and training for them.

    python benchmarks/networks.py [--only NAME ...] [--jobs 1] [--report] [--again] [overrides of fl.train ...]

The runs of benchmarks/network_table.py on real EuroSAT (EUROSAT_ZIP): ResNet-18 and MobileNetV3-small with the
published stems, 5 rounds of one local epoch, one seed. Of every finished run it makes `compare_quantizations.py RUN
--precisions all --formats all`, lets the model files take turns (`python -m fl bench`), and asks what each layer loses
by channel and gains in time. Figures are kept in docs/networks.json; it can be stopped at any time; `--again` measures
finished runs anew.
"""

import sys
from pathlib import Path
from typing import Any

import tables
from grid import MODEL, ROOT, THREADS, basic_figures, call, commit_of, fill, options_of
from layer_loss import layer_losses
from network_table import KEPT, PRECISIONS, ROWS, SIZES, table
from traffic_table import traffic_of

from fl.core.console import say
from fl.core.errors import one_line_errors
from fl.core.files import read_json, write_json
from fl.core.machine import compute_with
from fl.core.records import read_rounds
from fl.core.run_folder import COMPARISON

FIELDS = ("file_size_bytes", "accuracy", "loss", "agreement_with_fp32", "inference_ms", "kernels", "float_tensors")
FORMAT_FIELDS = ("file_size_bytes", "accuracy", "loss", "agreement_with_model_file", "inference_ms")
LEFT_OUT, SPEED = "left_out.json", "bench.json"
IMAGES = 1280
"""Test images of a pass of `fl bench`."""


def figures(run_dir: Path, again: bool) -> dict[str, Any]:
    """Returns a run's figures with those of its model in every precision and format, measured if they are not."""
    compute_with(THREADS)
    basic = basic_figures(run_dir)
    path = run_dir / COMPARISON
    kept = read_json(path) if path.exists() and not again else {"model_sha256": None}
    if kept["model_sha256"] != basic["model_sha256"] or "formats" not in kept or not (run_dir / SPEED).exists():
        measure(run_dir)
    report, speed = read_json(path), read_json(run_dir / SPEED)
    moved = [traffic_of(each) for each in read_rounds(run_dir / "rounds.jsonl")]
    return {
        **basic,
        **{key: sum(each[key] for each in moved) for key in moved[0]},
        "num_parameters": report["num_parameters"],
        "precisions": {
            name: {field: each[field] for field in FIELDS if field in each}
            for name, each in report["precisions"].items()
        },
        "formats": {
            name: {precision: {field: each[field] for field in FORMAT_FIELDS} for precision, each in files.items()}
            for name, files in report["formats"].items()
        },
        "left_out": read_json(run_dir / LEFT_OUT),
        "ms_p50": {
            Path(each["model_path"]).stem.removeprefix("model_"): {
                str(result["batch_size"]): result["ms_p50"] for result in each["results"]
            }
            for each in speed["models"]
        },
        "layers": layer_losses(run_dir / MODEL),
        "measured_with": {
            "commit": commit_of(ROOT),
            "threads": report["environment"]["threads"],
            "threads_of_ms_p50": THREADS,
            "versions": report["environment"],
            **report["evaluation"],
        },
    }


def measure(run_dir: Path) -> None:
    """Compares precisions and formats, notes what was left out and why, and takes times in turns."""
    compare = [sys.executable, "compare_quantizations.py", str(run_dir / MODEL), "--precisions", "all"]
    told = call([*compare, "--formats", "all"], run_dir.name)
    write_json(run_dir / LEFT_OUT, [line.strip() for line in told.splitlines() if " left out (" in line])
    files = [str(run_dir / f"model_{name}.pt") for name in PRECISIONS]
    sizes = ["--batch-sizes", ",".join(map(str, SIZES)), "--threads", str(THREADS), "--images", str(IMAGES)]
    call([sys.executable, "-m", "fl", "bench", *files, *sizes, "--output", str(run_dir / SPEED)], run_dir.name)


def main() -> None:
    """Runs what is missing, shows the tables and puts them into the docs."""
    options = options_of(str(__doc__), ROWS, KEPT, ROOT / "outputs" / "networks")
    with one_line_errors():
        runs = fill(options, ROWS, KEPT, lambda run_dir: figures(run_dir.absolute(), options.again))
        say(table(runs))
        tables.write(options.folder)


if __name__ == "__main__":
    main()
