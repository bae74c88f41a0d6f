"""What a comparison works on: the run that made the model, the test images, and training images to calibrate on."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from fl.comparison import TestSet
from fl.costs import is_older
from fl.data import ImageSet, Split, open_images, split_images
from fl.data.sources import EUROSAT_CLASSES
from fl.errors import ConfigError, DataError, QuantflError, shell_path
from fl.ledger import communication
from fl.link import Link
from fl.quantization import Precision
from fl.results import read_json, read_rounds, sha256
from fl.run_folder import COMMUNICATION, MODEL, PARTITION, ROUNDS, SETTINGS, SUMMARY
from fl.seeds import numpy_generator
from fl.selection import FOLDER as MODELS
from fl.settings import DataSettings
from fl.targets import Target

CONF = Path(__file__).resolve().parents[1] / "conf"
MULTIRUN = "multirun.yaml"
COUNTS = ("num_clients", "clients_per_round", "rounds_completed")
"""Of a run's summary: what a comparison prices."""
DEFAULT_SEED = 42
CALIBRATION_POOL = 512
NAMED = ("eurosat", "synthetic")
USUAL_ORDER = ("fp32", "fp16", "int8", "int8_static", "int4", "int2")


@dataclass(frozen=True)
class Inputs:
    """What is evaluated, and what INT8 static is calibrated on.

    Attributes:
        test: the test images.
        calibration: uint8 [n, 64, 64, 3] training images, None where none can be had.
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
    """The run a model was made by: its summary, its `communication.json` if any, how and on what it was trained."""

    summary: Mapping[str, Any]
    ledger: Mapping[str, Any] | None
    training: Mapping[str, Any]
    data: Mapping[str, Any]
    seed: int
    images_sha256: str
    split_sha256: str
    class_names: tuple[str, ...]

    def trained_for(self, precision: str) -> str | None:
        """Returns the training precision if it was quantization-aware and made for this one, else None."""
        bits = self.training.get("bits") if self.training.get("_target_") == "fl.training.Qat" else None
        return f"qat int{bits}" if bits and precision.startswith(f"int{bits}") else None


def precisions(names: list[str]) -> dict[str, Precision]:
    """Builds precisions from `conf/precision/`; "all" stands for those that are not named.

    Raises:
        ConfigError: there is no such precision; names the valid ones.
    """
    known = sorted(path.stem for path in (CONF / "precision").glob("*.yaml"))
    if "all" in names:
        usual = [name for name in USUAL_ORDER if name in known]
        named = [name for name in names if name != "all"]
        names = list(dict.fromkeys([*named, *usual, *known]))
    for name in names:
        if name not in known:
            raise ConfigError(f"--precisions {name}: is no precision; valid choices: all, {', '.join(known)}")
    found = {}
    for name in names:
        config = OmegaConf.to_container(OmegaConf.load(CONF / "precision" / f"{name}.yaml"))
        found[name] = Target.from_config(f"precision/{name}", config).build(f"precision/{name}", name=name)
    return found


def model_in(place: Path) -> Path:
    """Returns the final model of a run's folder; any other path as it is.

    Raises:
        ConfigError: a folder without such a model.
    """
    if not place.is_dir() or (place / MODEL).is_file():
        return place / MODEL if place.is_dir() else place
    jobs = sorted(path.parent.name for path in place.glob(f"*/{MODEL}"))
    if (place / MULTIRUN).is_file():
        one = f", such as {place / jobs[0]}" if jobs else "; none of them has a final model yet"
        raise ConfigError(f"{place}: is a sweep, the folder of several runs; give one of them{one}")
    if (place / SETTINGS).is_file():
        command = f"python -m fl.resume {shell_path(place)}"
        raise ConfigError(f"{place}: this run has no {MODEL} yet; it continues with: {command}")
    raise ConfigError(f"{place}: is no run folder, it has no {MODEL}; give the folder of a run, or an FP32 model file")


def find_run(model_path: Path, model_sha256: str) -> Run | None:
    """Returns the run beside a file, or in the folder above, if a round of it made the model with this hash, else None.

    Raises:
        ConfigError: the run's own files are damaged.
    """
    here = model_path.absolute().parent
    return _run_in(here, model_sha256) or _run_in(here.parent, model_sha256)


def _run_in(folder: Path, model_sha256: str) -> Run | None:
    paths = [folder / name for name in (SUMMARY, SETTINGS, PARTITION)]
    if not all(path.is_file() for path in paths):
        return None
    summary, settings, partition = (read_json(path) for path in paths)
    try:
        kept = (folder / MODELS).glob("*.pt")
        if summary["model_sha256"] != model_sha256 and all(sha256(p.read_bytes()) != model_sha256 for p in kept):
            return None
        data = dict(settings["data"])
        if data["_target_"] == "fl.data.EuroSat" and not (data["path"] and Path(data["path"]).exists()):
            data["path"] = os.environ.get("EUROSAT_ZIP") or None  # it moved; what is found there is checked by hash
        data["cache_dir"] = _group("eurosat")["cache_dir"]  # of this machine
        hashes = partition["images_sha256"], partition["split_sha256"]
        if not all(isinstance(each, str) for each in (*hashes, *partition["class_names"])):
            raise TypeError("hashes or class names are no text")
        if not all(type(summary[key]) is int and summary[key] > 0 for key in COUNTS):
            raise TypeError("numbers of clients or rounds are none")
        ledger = _ledger(folder, settings)
        training = dict(settings.get("training") or {})
        return Run(summary, ledger, training, data, settings["seed"], *hashes, tuple(partition["class_names"]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{folder}: {SUMMARY}, {SETTINGS} or {PARTITION} is damaged ({error!r})") from error


def _ledger(folder: Path, settings: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Returns the run's `communication.json`, counted again from its rounds if it is of an older version."""
    path = folder / COMMUNICATION
    ledger = read_json(path) if path.is_file() else None
    if not is_older(ledger) or not (folder / ROUNDS).is_file():
        return ledger
    try:
        target = Target.from_config("link", settings.get("link"))
        if target.resolve("link") is Link:
            return communication(read_rounds(folder / ROUNDS), [target.build("link")])
    except (QuantflError, KeyError, TypeError):  # lines without bytes per client, contact windows that are gone
        pass
    return ledger


def find_inputs(run: Run | None, data: str | None, num_classes: int) -> Inputs:
    """Returns what to evaluate and to calibrate on.

    Without `data`: the test part of the run's own data set, or of EuroSAT (seed 42) for a model without a run. With
    `data`, the images of a known data set, the run's or EuroSAT, are recognised by their hash and give its test part;
    a zip or a named set is a whole data set, of which the test part is taken; any other folder is a custom test set,
    taken whole. Calibration images are always training images of a known data set.

    Args:
        run: that made the model, if known.
        data: the user's `--data`: None, "eurosat", "synthetic", or the path of a zip or folder.
        num_classes: of the model.

    Raises:
        QuantflError: data is missing, damaged, or its classes are not the model's.
    """
    if data is None:
        images, split = _known(run)
        _check_classes(images, run, num_classes)
        return _from_split(images, split)
    try:
        known, reason = _known(run) if run or os.environ.get("EUROSAT_ZIP") else None, "EUROSAT_ZIP is not set"
    except QuantflError as error:
        known, reason = None, str(error)
    if data not in NAMED and not Path(data).expanduser().exists():
        raise ConfigError(f"--data {data}: no such file or folder, and none of {', '.join(NAMED)}")
    settings = DataSettings.from_config(_asked(data, run, num_classes))
    images = _open(settings)
    _check_classes(images, run, num_classes)
    if known and images.sha256 == known[0].sha256:
        return _from_split(*known)
    if data in NAMED or Path(data).expanduser().is_file():
        return _from_split(images, _split(images, settings, DEFAULT_SEED))
    test = TestSet(images.images, images.labels, f"custom test set {Path(data).name}", images.synthetic, images.notes)
    if known and known[0].class_names == images.class_names:
        calibrated = _from_split(*known)
        return Inputs(test, calibrated.calibration, calibrated.calibrated_on, images.class_names)
    reason = "the known training images have other classes" if known else reason
    return Inputs(test, None, f"needs training images to calibrate on ({reason})", images.class_names)


def _known(run: Run | None) -> tuple[ImageSet, Split]:
    """Returns the data the model was trained on, as far as is known: the run's, else EuroSAT."""
    settings = DataSettings.from_config(run.data if run else _group("eurosat"))
    images = _open(settings)
    split = _split(images, settings, run.seed if run else DEFAULT_SEED)
    if run and (images.sha256, split.sha256) != (run.images_sha256, run.split_sha256):
        raise DataError(f"{images.name}: these are not the images, or not the split, of the run that made the model")
    return images, split


def _asked(data: str, run: Run | None, num_classes: int) -> dict[str, Any]:
    if data in NAMED:
        config = _group(data)
        return {**config, "num_images": run.data["num_images"]} if run and "num_images" in run.data else config
    names = run.class_names if run else EUROSAT_CLASSES if num_classes == len(EUROSAT_CLASSES) else None
    common = {key: value for key, value in _group("eurosat").items() if key not in ("_target_", "path")}
    return {"_target_": "fl.data.Folder", "path": str(Path(data).expanduser()), "class_names": names, **common}


def _group(name: str) -> dict[str, Any]:
    config: Any = OmegaConf.to_container(OmegaConf.load(CONF / "data" / f"{name}.yaml"), resolve=True)
    return dict(config)


def _open(settings: DataSettings) -> ImageSet:
    return open_images(settings.source.build("data").plan(settings.cache_dir), settings.cache_dir)


def _split(images: ImageSet, settings: DataSettings, seed: int) -> Split:
    fractions = {"test_fraction": settings.test_fraction, "validation_fraction": settings.validation_fraction}
    return split_images(images.labels, **fractions, seed=seed)


def _from_split(images: ImageSet, split: Split) -> Inputs:
    test, held_out = (
        TestSet(images.images[part], images.labels[part], images.title, images.synthetic, images.notes)
        for part in (split.test, split.validation)
    )
    chosen = np.sort(numpy_generator(0, "calibration").permutation(split.train)[:CALIBRATION_POOL])
    calibrated_on = f"{len(chosen)} training images of {images.title}"
    validation = held_out if len(split.validation) else None
    return Inputs(test, images.images[chosen], calibrated_on, images.class_names, validation)


def _check_classes(images: ImageSet, run: Run | None, num_classes: int) -> None:
    expected = run.class_names if run else None
    if len(images.class_names) != num_classes or (expected and images.class_names != expected):
        names, wanted = ", ".join(images.class_names), ", ".join(expected) if expected else f"{num_classes} classes"
        raise DataError(f"{images.name}: has the classes {names}; the model has {wanted}")
