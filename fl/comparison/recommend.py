"""What a comparison's figures say: in what to train, what to ship, what to transmit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fl.core.errors import counted
from fl.core.intervals import paired_interval

BASELINE = "fp32"

QAT_BITS = {"int8": 8, "int8_static": 8, "int4": 4}
"""Precisions that quantization-aware training exists for, and its bits."""

CODECS = ("fp32", "fp16", "int8", "int4")
"""Precisions that updates can travel in (conf/codec)."""

ROUNDING = 1e-9
"""Points: differences of accuracies are sums of float64."""

DISAGREES = 1e-3
"""Points: figures of one accuracy differ by less."""

MOST_IMAGES, LARGEST = 2**40, 2.0**53

MAX_DROP = 0.5
"""Points of accuracy that may be lost, where nobody says otherwise."""

KEPT, LOST, NOISE = "kept", "lost", "within noise"


@dataclass(frozen=True)
class Recommendation:
    """What to do and why, a line each; None where nothing measured is good enough."""

    train: str
    ship: str | None
    transmit: str | None
    why: tuple[str, str, str]


@dataclass(frozen=True)
class Evidence:
    """What the answers to the same images say of one precision against FP32.

    Attributes:
        accuracy_percent: of this precision.
        change: of the accuracy, in points.
        low: lower end of the 95 % interval of the change.
        high: its upper end.
        agreement: share of images with the FP32 model's answer.
    """

    accuracy_percent: float
    change: float
    low: float
    high: float
    agreement: float

    def judged(self, max_drop: float) -> str:
        """Returns whether it is shown to lose at most so many points, shown to lose more, or neither."""
        if self.low >= -max_drop - ROUNDING:
            return KEPT
        return LOST if self.high < -max_drop - ROUNDING else NOISE

    def __str__(self) -> str:
        """Returns all figures."""
        spread = f"{self.low:+.2f} to {self.high:+.2f}"
        return (
            f"{self.accuracy_percent:.2f}% ({self.change:+.2f} points, {spread}; agreement {100 * self.agreement:.2f}%)"
        )


def evidence(report: Mapping[str, Any]) -> tuple[dict[str, Evidence], int, bool]:
    """Returns the evidence for each precision, the number of images, and whether they are validation images.

    A report of before answers were compared image by image says only how many differ; then all of those count as one
    model right and the other wrong, which makes the interval wider, never narrower.

    Raises:
        ValueError: a figure can be none, or contradicts another. `KeyError`, `TypeError`: it is missing.
    """
    held_out = report.get("validation_set")
    images = _figure("images", held_out or report["test_set"], "num_images", 1, MOST_IMAGES)
    if type(images) is not int:
        raise ValueError(f"images: num_images is {images!r:.30}, no whole number")
    found = {}
    fp32 = _accuracies(BASELINE, report["precisions"][BASELINE], bool(held_out))[0]
    for name, entry in report["precisions"].items():
        own = entry["validation"] if held_out else entry
        accuracy, change = _accuracies(name, entry, bool(held_out))
        if abs(accuracy - fp32 - change) > DISAGREES:
            raise ValueError(f"{name}: {accuracy:g} % are no {change:+g} points from the {fp32:g} % of {BASELINE}")
        for key, least in (("file_size_bytes", 1), ("inference_ms", 0), ("compression_ratio", 0)):
            _figure(name, entry, key, least, LARGEST)
        agreement = _figure(name, own, "agreement_with_fp32", 0, 1)
        net = change / 100 * images
        differing = max(images * (1 - agreement), abs(net))
        ours, theirs = (
            _figure(name, {key: supposed, **own}, key, -ROUNDING * images, images * (1 + ROUNDING))
            for key, supposed in (
                ("only_this_right", (differing + net) / 2),
                ("only_fp32_right", (differing - net) / 2),
            )
        )
        if ours + theirs > differing + ROUNDING * images or abs(ours - theirs - net) > DISAGREES * images / 100:
            raise ValueError(f"{name}: {ours:g} images less {theirs:g}, of {differing:g}, are no {change:+g} points")
        low, high = (0.0, 0.0) if name == BASELINE else paired_interval(ours, theirs, images)
        found[name] = Evidence(accuracy, change, 100 * low, 100 * high, agreement)
    return found, images, bool(held_out)


def _accuracies(name: str, entry: Mapping[str, Any], held_out: bool) -> tuple[float, float]:
    """Returns a precision's accuracy in percent, on the images to choose by, and its change against FP32 in points."""
    own = entry["validation"] if held_out else entry
    told = _figure(name, own, "accuracy", 0, 1) if "accuracy" in own else None
    accuracy = 100 * told if held_out and told is not None else _figure(name, own, "accuracy_percent", 0, 100)
    if told is not None and abs(accuracy - 100 * told) > DISAGREES:
        raise ValueError(f"{name}: an accuracy of {told:g} is no {accuracy:g} %")
    return accuracy, _figure(name, own, "accuracy_change_points" if held_out else "accuracy_drop_percent", -100, 100)


def _figure(name: str, record: Mapping[str, Any], key: str, least: float, most: float) -> Any:
    """Returns a number between two others (`ValueError`: it is none)."""
    value = record[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ValueError(f"{name}: {key} is {value!r:.30}, no number from {least:g} to {most:g}")
    return value


def recommendation(
    report: Mapping[str, Any], trained: str = "fp32", max_drop: float = MAX_DROP, max_size_kb: float | None = None
) -> dict[str, Any]:
    """Returns the content of `recommendation.json`: the three answers with their reasons, and what they rest on.

    Args:
        report: see `recommend`.
        trained: see `recommend`.
        max_drop: see `recommend`.
        max_size_kb: see `recommend`.
    """
    found, (told, images, held_out) = recommend(report, max_drop, max_size_kb, trained), evidence(report)
    answers = zip(("train", "ship", "transmit"), (found.train, found.ship, found.transmit), found.why, strict=True)
    return {
        "images": f"{report['test_set']['title']}, {chosen_by(report)}",
        "num_images": images,
        "by": "validation" if held_out else "test",
        "device": report["evaluation"]["device"],
        "max_drop_points": max_drop,
        "max_size_kb": max_size_kb,
        **{what: {"choice": choice, "why": why} for what, choice, why in answers},
        "evidence": {
            name: {
                "accuracy_percent": each.accuracy_percent,
                "change_points": each.change,
                "change_ci95_points": [each.low, each.high],
                "agreement_with_fp32": each.agreement,
                "judged": each.judged(max_drop),
            }
            for name, each in told.items()
        },
    }


def recommend(
    report: Mapping[str, Any], max_drop: float, max_size_kb: float | None, trained: str = "fp32"
) -> Recommendation:
    """Returns what the figures of a comparison say; nothing here is a rule of thumb.

    Ship: the fastest precision within both limits. Transmit: the smallest within the drop, as long as the run itself
    did not do better. Train: as before, unless every integer precision that is small enough is shown to have lost too
    much: then aware of quantization, for the one that lost least. What the images cannot tell is called within noise,
    and is neither shipped nor a reason to train otherwise.

    Args:
        report: content of `quantization_comparison.json`.
        max_drop: points of accuracy.
        max_size_kb: of a file, in units of 1024 bytes.
        trained: in what the model was trained.
    """
    if not report["precisions"]:
        raise KeyError("precisions")
    return Choice(report, max_drop, float("inf") if max_size_kb is None else 1024 * max_size_kb).of_all(trained)


class Choice:
    """The precisions of a report, sorted by what its images say of them."""

    def __init__(self, report: Mapping[str, Any], max_drop: float, limit: float) -> None:
        self.report, self.max_drop, self.limit = report, max_drop, limit
        self.entries: Mapping[str, Mapping[str, Any]] = report["precisions"]
        self.evidence, self.images, _ = evidence(report)
        self.verdicts = {name: each.judged(max_drop) for name, each in self.evidence.items()}
        self.fits = [name for name, entry in self.entries.items() if entry["file_size_bytes"] <= limit]

    def of_all(self, trained: str) -> Recommendation:
        """Returns the three answers."""
        (train, why_train), (ship, why_ship) = self.train(trained), self.ship()
        transmit, why_transmit = self.transmit()
        return Recommendation(train, ship, transmit, (why_train, why_ship, why_transmit))

    def ship(self) -> tuple[str | None, str]:
        """Returns the fastest precision within both limits."""
        good = [name for name in self.fits if self.verdicts[name] == KEPT]
        if good:
            best = min(good, key=lambda name: self.entries[name]["inference_ms"])
            of = "the only one" if good == [best] else f"fastest of {_names(good)}, which are"
            why = f"{self.figures(best)}; {of} within the limits"
            return best, why + self.noise(self.fits)
        if not self.fits:
            smallest = min(self.entries, key=lambda name: self.entries[name]["file_size_bytes"])
            size = self.entries[smallest]["file_size_bytes"] / 1024
            return None, f"no file is that small; {smallest}, the smallest, has {size:.1f} kB of {self.limit / 1024:g}"
        lost = [name for name in self.fits if self.verdicts[name] == LOST]
        if not lost:
            shown = f"but not shown to lose at most {self.max_drop:g} points"
            return None, f"{_are(self.fits)} small enough, {shown}{self.noise(self.fits)}"
        best = max(lost, key=lambda name: self.evidence[name].change)
        told = f"{_are(lost)} small enough, but lost more than {self.max_drop:g} points"
        return None, f"{told} ({best}: {self.figures(best)}){self.noise(self.fits)}"

    def transmit(self) -> tuple[str | None, str]:
        """Returns the smallest precision that updates can travel in, or the codecs of the run if they did better."""
        sendable = [name for name in self.entries if name in CODECS]
        kept = [name for name in sendable if self.verdicts[name] == KEPT]
        smallest = min(kept, key=lambda name: self.entries[name]["file_size_bytes"], default=None)
        measured = self.report["communication"].get("measured", {})
        ratio = measured.get("compression_ratio")
        if ratio is not None:
            _figure("communication", measured, "compression_ratio", 0, LARGEST)
        if ratio and ratio > 1 and (smallest is None or ratio >= self.entries[smallest]["compression_ratio"]):
            return "the codecs of this run", (
                f"{ratio:.2f}x fewer bytes than FP32, measured while the model was trained; the changes here are "
                "against this model in FP32, so what the codecs cost shows only beside a run without them"
            )
        if smallest is None:
            return None, f"no precision is shown to lose at most {self.max_drop:g} points{self.noise(sendable)}"
        why = f"{self.figures(smallest)}: the smallest within {self.max_drop:g} points"
        if smallest != BASELINE:
            why += f", {self.entries[smallest]['compression_ratio']:.2f}x fewer bytes than FP32"
            command = f"codec@broadcast={smallest} codec@update={smallest}"
            why += f"; measured on the final model, so train once with {command} to see what rounds of it cost"
        return smallest, why + self.noise(sendable)

    def train(self, trained: str) -> tuple[str, str]:
        """Returns in what to train the next model."""
        as_it_was = "as this model was"
        integers = [name for name in self.fits if name in QAT_BITS]
        within = [name for name in integers if self.verdicts[name] == KEPT]
        if within:
            return trained, f"{as_it_was}: {_are(within)} within the limits, made from it"
        if any(self.verdicts[name] == NOISE for name in integers):
            return trained, as_it_was + self.noise(integers)
        untrained = [name for name in integers if "trained_with" not in self.entries[name]]
        if untrained:
            best = max(untrained, key=lambda name: self.evidence[name].change)
            bits, lost = QAT_BITS[best], self.evidence[best]
            return f"qat int{bits}", (
                f"{best} lost more than {self.max_drop:g} points after training: {lost.change:+.2f} "
                f"({lost.low:+.2f} to {lost.high:+.2f}); train with training=qat training.bits={bits} and compare again"
            )
        if integers:
            lost_too = f"{_names(integers)} lost more than {self.max_drop:g} points although trained for it"
            return trained, f"{as_it_was}: {lost_too}"
        return trained, f"{as_it_was}: no integer precision that training could help was measured within the size"

    def noise(self, names: Sequence[str]) -> str:
        """Returns which of some precisions cannot be told from good or bad ones, with what leads there; "" for none."""
        unclear = [name for name in names if self.verdicts[name] == NOISE]
        if not unclear:
            return ""
        told = (f"{name} {each.change:+.2f} ({each.low:+.2f} to {each.high:+.2f})" for name, each in self.of(unclear))
        return (
            f"; within noise: {', '.join(told)}: {counted(self.images, 'image')} cannot tell whether that is more than "
            f"{self.max_drop:g} points lost"
        )

    def of(self, names: Sequence[str]) -> list[tuple[str, Evidence]]:
        """Returns the evidence of some precisions."""
        return [(name, self.evidence[name]) for name in names]

    def figures(self, name: str) -> str:
        """Returns what was measured of one precision."""
        entry = self.entries[name]
        told = f"{self.evidence[name]}, {entry['file_size_bytes'] / 1024:.1f} kB"
        return f"{told}, {entry['inference_ms']:.3f} ms/image"


def chosen_by(report: Mapping[str, Any]) -> str:
    """Returns by which images is chosen, and what that means where they are not validation images."""
    _, images, held_out = evidence(report)
    if held_out:
        return f"chosen by {counted(images, 'validation image')}"
    return (
        f"chosen by {counted(images, 'test image')}, for want of validation images (data.validation_fraction=0.1 "
        "holds some out), so the accuracy of what is chosen is optimistic"
    )


def _names(names: Sequence[str]) -> str:
    return ", ".join(names)


def _are(names: Sequence[str]) -> str:
    return f"{_names(names)} {'is' if len(names) == 1 else 'are'}"
