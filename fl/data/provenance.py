"""What a comparison works on: the run that made the model, the test images, and training images to calibrate on."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fl.core.errors import ConfigError, DataError, QuantflError, reading, suggestion
from fl.core.files import read_json, sha256
from fl.core.pixels import USUAL, Pixels
from fl.core.presets import preset
from fl.core.records import check_summary, check_sums, read_rounds
from fl.core.run_folder import COMMUNICATION, PARTITION, ROUNDS, SETTINGS, SUMMARY, run_of
from fl.core.seeds import numpy_generator
from fl.core.targets import Target
from fl.data.images import ImageSet, Plan, Rows, open_images
from fl.data.settings import DataSettings, split_of
from fl.data.sources import EUROSAT_CLASSES
from fl.data.split import Split

COUNTS = ("num_clients", "clients_per_round", "rounds_completed")
"""Of a run's summary: what a comparison prices."""

DEFAULT_SEED = 42

CALIBRATION_POOL, CHUNK = 512, 1000

NAMED = ("eurosat", "synthetic")


@dataclass(frozen=True)
class TestSet:
    """Images to evaluate on.

    Attributes:
        images: of which slices are [n, height, width, bands].
        labels: int64 [n].
        title: with SYNTHETIC where it applies.
        synthetic: see `fl.data.ImageSet`.
        notes: what decoding changed.
    """

    images: Rows
    labels: np.ndarray
    title: str
    synthetic: bool
    notes: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """Of pixels and labels."""
        chunks = (self.images[start : start + CHUNK] for start in range(0, len(self.labels), CHUNK))
        return sha256(self.labels, *chunks)

    def thinned(self, step: int) -> "TestSet":
        """Returns each of so many images."""
        return replace(self, images=self.images.thinned(step), labels=self.labels[::step])


@dataclass(frozen=True)
class Inputs:
    """What is evaluated, and what INT8 static is calibrated on.

    Attributes:
        test: the test images.
        calibration: [n, height, width, bands] training images, None where none can be had.
        calibrated_on: where they come from, or why there are none.
        class_names: of the test images.
        validation: images that the run held out to choose by, None where it held none.
    """

    test: TestSet
    calibration: np.ndarray | None
    calibrated_on: str
    class_names: tuple[str, ...]
    validation: TestSet | None = None


@dataclass(frozen=True)
class Run:
    """The run a model was made by: its folder, its summary, its link, how and on what it was trained."""

    folder: Path
    summary: Mapping[str, Any]
    link: Any
    training: Mapping[str, Any]
    data: Mapping[str, Any]
    seed: int
    images_sha256: str
    split_sha256: str
    class_names: tuple[str, ...]

    def trained_for(self, precision: str) -> str | None:
        """Returns the training precision if it was quantization-aware and made for this one, else None."""
        if not self.training:  # a run from before there was a choice
            return None
        training = Target.from_config("training", self.training).build()
        return training.describe("cpu") if training.made_for(precision) else None


def find_run(model_path: Path, model_sha256: str) -> Run | None:
    """Returns the run beside a file, or in the folder above, if a round of it made the model with this hash, else None.

    Raises:
        ConfigError: the run's own files are damaged.
    """
    folder = run_of(model_path, model_sha256)
    return _run_in(folder) if folder else None


def _run_in(folder: Path) -> Run:
    summary, settings, partition = (read_json(folder / name) for name in (SUMMARY, SETTINGS, PARTITION))
    if (folder / ROUNDS).is_file():
        _check_sums(folder, summary)
    try:
        data = dict(settings["data"])
        if data["_target_"] == "fl.data.EuroSat" and not (data["path"] and Path(data["path"]).exists()):
            data["path"] = os.environ.get("EUROSAT_ZIP") or None  # it moved; what is found there is checked by hash
        if data.get("split") == "spatial" and not (data["split_files"] and Path(data["split_files"]).is_dir()):
            data["split_files"] = os.environ.get("EUROSAT_SPLITS") or None  # likewise, by hash
        data["cache_dir"] = preset("data", "eurosat")["cache_dir"]  # of this machine
        hashes = partition["images_sha256"], partition["split_sha256"]
        if not all(isinstance(each, str) for each in (*hashes, *partition["class_names"])):
            raise TypeError("hashes or class names are no text")
        if not all(type(summary[key]) is int and summary[key] > 0 for key in COUNTS):
            raise TypeError("numbers of clients or rounds are none")
        training = dict(settings.get("training") or {})
        names = tuple(partition["class_names"])
        return Run(folder, summary, settings.get("link"), training, data, settings["seed"], *hashes, names)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{folder}: {SUMMARY}, {SETTINGS} or {PARTITION} is damaged ({error!r})") from error


def _check_sums(folder: Path, summary: Mapping[str, Any]) -> None:
    """Refuses what a run's files tell in sum, where its rounds tell something else."""
    records, ledger = read_rounds(folder / ROUNDS), folder / COMMUNICATION
    with reading(folder / SUMMARY):
        check_summary(summary, records)
    if ledger.is_file():
        with reading(ledger):
            check_sums(read_json(ledger)["measured"], records)


def find_inputs(run: Run | None, data: str | None, num_classes: int, pixels: Pixels = USUAL) -> Inputs:
    """Returns what to evaluate and to calibrate on.

    Without `data`: the test part of the run's own data set, or of EuroSAT (seed 42) for a model without a run. With
    `data`, the images of a known data set, the run's or EuroSAT, are recognised by their hash and give its test part;
    a zip or a named set is a whole data set, of which the test part is taken; any other folder is a custom test set,
    taken whole. Calibration images are always training images of a known data set.

    Args:
        run: that made the model, if known.
        data: the user's `--data`: None, "eurosat", "synthetic", or the path of a zip or folder.
        num_classes: of the model.
        pixels: of the images that the model is for.

    Raises:
        QuantflError: data is missing, damaged, or not what the model is for.
    """
    if data is None:
        images, split = _known(run)
        _check(images, run, num_classes, pixels)
        return _from_split(images, split)
    try:
        known, reason = _known(run) if run or os.environ.get("EUROSAT_ZIP") else None, "EUROSAT_ZIP is not set"
    except QuantflError as error:
        known, reason = None, str(error)
    if data not in NAMED and not Path(data).expanduser().exists():
        near = suggestion(data, NAMED, "; ", "")
        raise ConfigError(f"--data {data}: no such file or folder, and none of {', '.join(NAMED)}{near}")
    settings = DataSettings.from_config(_asked(data, run, num_classes, pixels))
    images, plan = _open(settings)
    _check(images, run, num_classes, pixels)
    if known and images.sha256 == known[0].sha256:
        return _from_split(*known)
    if data in NAMED or Path(data).expanduser().is_file():
        return _from_split(images, split_of(settings, plan, DEFAULT_SEED))
    rows, title = Rows(images.images, np.arange(len(images.labels))), f"custom test set {Path(data).name}"
    test = TestSet(rows, images.labels, title, images.synthetic, images.notes)
    if known and known[0].class_names == images.class_names:
        calibrated = _from_split(*known)
        return Inputs(test, calibrated.calibration, calibrated.calibrated_on, images.class_names)
    reason = "the known training images have other classes" if known else reason
    return Inputs(test, None, f"needs training images to calibrate on ({reason})", images.class_names)


def _known(run: Run | None) -> tuple[ImageSet, Split]:
    """Returns the data the model was trained on, as far as is known: the run's, else EuroSAT."""
    settings = DataSettings.from_config(run.data if run else preset("data", "eurosat"))
    images, plan = _open(settings)
    split = split_of(settings, plan, run.seed if run else DEFAULT_SEED)
    if run and (images.sha256, split.sha256) != (run.images_sha256, run.split_sha256):
        raise DataError(f"{images.name}: these are not the images, or not the split, of the run that made the model")
    return images, split


def _asked(data: str, run: Run | None, num_classes: int, pixels: Pixels) -> dict[str, Any]:
    if data in NAMED:
        config = preset("data", data)
        return {**config, "num_images": run.data["num_images"]} if run and "num_images" in run.data else config
    names = run.class_names if run else EUROSAT_CLASSES if num_classes == len(EUROSAT_CLASSES) else None
    common = {key: value for key, value in preset("data", "eurosat").items() if key not in ("_target_", "path")}
    own: dict[str, Any] = {"_target_": "fl.data.Folder", "path": str(Path(data).expanduser()), "class_names": names}
    if pixels.dtype != "uint8" or pixels.bands != 3:  # as the run took them, or whole
        own["bands"] = run.data.get("bands") if run else None
    if run and run.data["_target_"] == "fl.data.EuroSatMs":
        own |= {"_target_": "fl.data.EuroSatMs"}
        del own["class_names"]
    else:
        own["image_size"] = [pixels.height, pixels.width]
    return {**own, **common}


def _open(settings: DataSettings) -> tuple[ImageSet, Plan]:
    plan = settings.source.build().plan(settings.cache_dir)
    return open_images(plan, settings.cache_dir), plan


def _from_split(images: ImageSet, split: Split) -> Inputs:
    test, held_out = (
        TestSet(
            Rows(images.images, part), images.labels[part], split.told(images.title), images.synthetic, images.notes
        )
        for part in (split.test, split.validation)
    )
    chosen = np.sort(numpy_generator(0, "calibration").permutation(split.train)[:CALIBRATION_POOL])
    calibrated_on = f"{len(chosen)} training images of {images.title}"
    validation = held_out if len(split.validation) else None
    return Inputs(test, images.images[chosen], calibrated_on, images.class_names, validation)


def _check(images: ImageSet, run: Run | None, num_classes: int, pixels: Pixels) -> None:
    """Refuses images of other classes, bands or types than the model was trained on."""
    expected = run.class_names if run else None
    if len(images.class_names) != num_classes or (expected and images.class_names != expected):
        names, wanted = ", ".join(images.class_names), ", ".join(expected) if expected else f"{num_classes} classes"
        raise DataError(f"{images.name}: has the classes {names}; the model has {wanted}")
    if (images.pixels.bands, images.pixels.dtype) != (pixels.bands, pixels.dtype):
        raise DataError(f"{images.name}: has images of {images.pixels.told()}; the model is for {pixels.told()}")
