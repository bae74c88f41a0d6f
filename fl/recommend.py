"""`python -m fl.recommend RUN_DIR`: which precision to train, ship and transmit with, from what was measured."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl.errors import ConfigError, one_line_errors

QAT_BITS = {"int8": 8, "int8_static": 8, "int4": 4}
"""Precisions that quantization-aware training exists for, and its bits."""
CODECS = ("fp32", "fp16", "int8", "int4")
"""Precisions that updates can travel in (conf/codec)."""
ROUNDING = 1e-9
"""Points: differences of accuracies are sums of float64."""


@dataclass(frozen=True)
class Recommendation:
    """What to do and why, a line each; None where nothing measured is good enough."""

    train: str
    ship: str | None
    transmit: str | None
    why: tuple[str, str, str]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m fl.recommend", description=__doc__)
    add = parser.add_argument
    add("run_dir", type=Path, help="folder of a run that compare_quantizations.py was run on, or its JSON file")
    add("--max-drop", type=float, default=0.5, metavar="POINTS", help="of accuracy that may be lost against FP32 (0.5)")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where the model will answer (cpu)")
    add("--max-size-kb", type=float, metavar="N", help="largest file, in units of 1024 bytes")
    return parser.parse_args(arguments)


def recommend(
    report: Mapping[str, Any], max_drop: float, max_size_kb: float | None, trained: str = "fp32"
) -> Recommendation:
    """Returns what the figures of a comparison say; nothing here is a rule of thumb.

    Ship: the fastest precision within both limits. Transmit: the smallest within the drop, as long as the run itself
    did not do better. Train: as before, unless no integer precision is within the limits and one is small enough but
    lost too much: then aware of quantization, for the one that lost least.

    Args:
        report: content of `quantization_comparison.json`.
        max_drop: points of accuracy.
        max_size_kb: of a file, in units of 1024 bytes.
        trained: in what the model was trained.
    """
    entries: Mapping[str, Mapping[str, Any]] = report["precisions"]
    if not entries:
        raise KeyError("precisions")
    limit = float("inf") if max_size_kb is None else 1024 * max_size_kb
    fits = [name for name, entry in entries.items() if entry["file_size_bytes"] <= limit]
    keeps = [name for name, entry in entries.items() if -entry["accuracy_drop_percent"] <= max_drop + ROUNDING]
    good = [name for name in fits if name in keeps]
    ship = min(good, key=lambda name: entries[name]["inference_ms"], default=None)
    if ship is None:
        why_ship = _nothing(entries, fits, limit, max_drop)
    else:
        why_ship = f"{_figures(entries[ship])}; fastest of {_names(good)}, which are within the limits"
    transmit, why_transmit = _transmit(report, entries, keeps, max_drop)
    train, why_train = _train(entries, fits, good, max_drop, trained)
    return Recommendation(train, ship, transmit, (why_train, why_ship, why_transmit))


def _train(
    entries: Mapping[str, Mapping[str, Any]], fits: Sequence[str], good: Sequence[str], max_drop: float, trained: str
) -> tuple[str, str]:
    integers = [name for name in fits if name in QAT_BITS]
    within = [name for name in integers if name in good]
    if within:
        return trained, f"as this model was: {_names(within)} made from it are within the limits"
    untrained = [name for name in integers if "trained_with" not in entries[name]]
    if untrained:
        best = max(untrained, key=lambda name: entries[name]["accuracy_drop_percent"])
        bits = QAT_BITS[best]
        lost = -entries[best]["accuracy_drop_percent"]
        return (
            f"qat int{bits}",
            f"{best} lost {lost:.2f} points after training, more than {max_drop:g}; train with training=qat "
            f"training.bits={bits} and compare again",
        )
    if integers:
        return (
            trained,
            f"as this model was: {_names(integers)} lost more than {max_drop:g} points although trained for it",
        )
    return trained, "as this model was: no integer precision that training could help was measured within the size"


def _transmit(
    report: Mapping[str, Any], entries: Mapping[str, Mapping[str, Any]], keeps: Sequence[str], max_drop: float
) -> tuple[str | None, str]:
    smallest = min(
        (name for name in keeps if name in CODECS), key=lambda name: entries[name]["file_size_bytes"], default=None
    )
    told = report["communication"].get("measured", {})
    ratio = told.get("compression_ratio")
    if ratio and ratio > 1 and (smallest is None or ratio >= entries[smallest]["compression_ratio"]):
        return "the codecs of this run", (
            f"{ratio:.2f}x fewer bytes than FP32, measured while the model was trained; the drops here are against "
            "this model in FP32, so what the codecs cost shows only beside a run without them"
        )
    if smallest is None:
        return None, f"every precision lost more than {max_drop:g} points"
    fewer = entries[smallest]["compression_ratio"]
    why = f"{_figures(entries[smallest])}: the smallest within {max_drop:g} points, {fewer:.2f}x fewer bytes than FP32"
    if smallest == "fp32":
        return smallest, why
    command = f"codec@broadcast={smallest} codec@update={smallest}"
    return smallest, f"{why}; measured on the final model, so train once with {command} to see what rounds of it cost"


def _nothing(entries: Mapping[str, Mapping[str, Any]], fits: Sequence[str], limit: float, max_drop: float) -> str:
    if not fits:
        smallest = min(entries, key=lambda name: entries[name]["file_size_bytes"])
        size = entries[smallest]["file_size_bytes"] / 1024
        return f"no file is that small; {smallest}, the smallest, has {size:.1f} kB of {limit / 1024:g}"
    best = max(fits, key=lambda name: entries[name]["accuracy_drop_percent"])
    return (
        f"{_names(fits)} are small enough, but lost more than {max_drop:g} points ({best}: {_figures(entries[best])})"
    )


def _figures(entry: Mapping[str, Any]) -> str:
    return (
        f"{entry['accuracy_percent']:.2f}% ({entry['accuracy_drop_percent']:+.2f}), "
        f"{entry['file_size_bytes'] / 1024:.1f} kB, {entry['inference_ms']:.3f} ms/image"
    )


def _names(names: Sequence[str]) -> str:
    return ", ".join(names)


def main() -> None:
    """Prints the three lines."""
    options = parse()
    with one_line_errors():
        from fl.console import say
        from fl.results import read_json

        place: Path = options.run_dir
        path = place if place.suffix == ".json" else place / "quantization_comparison.json"
        if not path.is_file():
            raise ConfigError(
                f"{path}: nothing was measured yet; run python compare_quantizations.py on the model first"
            )
        for name in ("max_drop", "max_size_kb"):
            value = getattr(options, name)
            if value is not None and not (0 <= value < float("inf")):
                raise ConfigError(f"--{name.replace('_', '-')} {value}: must be a number of at least 0")
        report = read_json(path)
        try:
            device = report["evaluation"]["device"]
            if device != options.device:
                raise ConfigError(
                    f"--device {options.device}: {path} was measured on {device}; run compare_quantizations.py "
                    f"--device {options.device} first"
                )
            summary = path.with_name("summary.json")
            trained = read_json(summary).get("training_precision", "fp32") if summary.is_file() else "fp32"
            found = recommend(report, options.max_drop, options.max_size_kb, trained)
            images = f"{report['test_set']['title']}, {report['test_set']['num_images']:,} test images"
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ConfigError(f"{path}: is no whole report ({error!r})") from error
        limits = f"at most {options.max_drop:g} points lost, on {device}"
        if options.max_size_kb is not None:
            limits += f", at most {options.max_size_kb:g} kB"
        say(f"{path}: {images}; {limits}")
        for what, choice, why in zip(
            ("Train", "Ship", "Transmit"), (found.train, found.ship, found.transmit), found.why, strict=True
        ):
            say(f"{what + ':':<10}{choice or 'nothing measured'}\n          {why}")


if __name__ == "__main__":
    main()
