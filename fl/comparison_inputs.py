"""What a comparison works on: the run that made the model, the test images, and training images to calibrate on."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from fl.comparison import TestSet
from fl.data import ImageSet, Split
from fl.data.sources import EUROSAT_CLASSES
from fl.errors import ConfigError, DataError, QuantflError
from fl.experiment import PARTITION, SETTINGS, DataSettings, open_data
from fl.quantization import Precision
from fl.results import read_json
from fl.seeds import numpy_generator
from fl.server_app import read_summary
from fl.targets import Target

CONF = Path(__file__).resolve().parents[1] / "conf"
DEFAULT_SEED = 42
CALIBRATION_POOL = 512


@dataclass(frozen=True)
class Inputs:
    """Test images, training images for calibration (None where none can be had, with the reason), class names."""

    test: TestSet
    calibration: np.ndarray | None
    no_calibration: str
    class_names: tuple[str, ...]


def precisions(names: list[str]) -> dict[str, Precision]:
    """Builds precisions from `conf/precision/`.

    Raises:
        ConfigError: there is no such precision; names the valid ones.
    """
    known = sorted(path.stem for path in (CONF / "precision").glob("*.yaml"))
    for name in names:
        if name not in known:
            raise ConfigError(f"--precisions {name}: there is no such precision; valid choices: {', '.join(known)}")
    found = {}
    for name in names:
        config = OmegaConf.to_container(OmegaConf.load(CONF / "precision" / f"{name}.yaml"))
        found[name] = Target.from_config(f"precision/{name}", config).build(f"precision/{name}")
    return found


def find_run(model_path: Path) -> dict[str, Any] | None:
    """Returns the summary of the run whose folder the model lies in, None for a model from elsewhere."""
    summary = read_summary(model_path.parent)
    return summary if summary and (model_path.parent / SETTINGS).is_file() else None


def find_inputs(model_path: Path, data: str | None, num_classes: int) -> Inputs:
    """Returns what to evaluate and to calibrate on.

    Without `data`: the test part of the run's own data set, or of EuroSAT for a model without a run. With `data`,
    a zip is a whole data set, of which the test part is taken; a folder is a custom test set, taken whole; either
    is recognised when it holds the run's own images, and then gives the run's own test part. Calibration images
    are always training images.

    Args:
        model_path: of the FP32 model.
        data: the user's `--data`: None, "eurosat", "synthetic", or the path of a zip or folder.
        num_classes: of the model.

    Raises:
        QuantflError: data is missing, damaged, or its classes are not the model's.
    """
    own = _RunData.beside(model_path)
    if data is None or data in ("eurosat", "synthetic"):
        config, seed = (own.config, own.seed) if own and data is None else (_group(data or "eurosat"), DEFAULT_SEED)
        images, split = open_data(DataSettings.from_config(config), seed)
        if own and data is None and images.sha256 != own.images_sha256:
            raise DataError(f"{model_path.parent}: the images of the run have changed since; give --data")
        return _from_split(images, split, seed, num_classes)
    return _from_path(Path(data), own, num_classes)


@dataclass(frozen=True)
class _RunData:
    """The data of the run that made a model."""

    config: Mapping[str, Any]
    seed: int
    images_sha256: str
    class_names: tuple[str, ...]

    @classmethod
    def beside(cls, model_path: Path) -> "_RunData | None":
        folder = model_path.parent
        if not (folder / SETTINGS).is_file() or not (folder / PARTITION).is_file():
            return None
        settings, partition = read_json(folder / SETTINGS), read_json(folder / PARTITION)
        config = dict(settings["data"])
        path = config.get("path")
        if path and not Path(path).expanduser().exists() and os.environ.get("EUROSAT_ZIP"):
            config["path"] = os.environ["EUROSAT_ZIP"]  # the data set moved; its hash is checked all the same
        return cls(config, settings["seed"], partition["images_sha256"], tuple(partition["class_names"]))


def _group(name: str) -> dict[str, Any]:
    config: Any = OmegaConf.to_container(OmegaConf.load(CONF / "data" / f"{name}.yaml"), resolve=True)
    return dict(config)


def _from_split(images: ImageSet, split: Split, seed: int, num_classes: int) -> Inputs:
    _check_classes(images, num_classes)
    test = TestSet(images.images[split.test], images.labels[split.test], images.title, images.synthetic, images.notes)
    chosen = numpy_generator(seed, "calibration").permutation(split.train)[:CALIBRATION_POOL]
    return Inputs(test, images.images[np.sort(chosen)], "", images.class_names)


def _from_path(path: Path, own: _RunData | None, num_classes: int) -> Inputs:
    class_names = own.class_names if own else EUROSAT_CLASSES if num_classes == len(EUROSAT_CLASSES) else None
    common = own.config if own else _group("eurosat")
    config = {**_group("folder"), "path": str(path), "class_names": class_names, "cache_dir": common["cache_dir"]}
    seed = own.seed if own else DEFAULT_SEED
    for key in ("test_fraction", "validation_fraction"):
        config[key] = common[key]
    settings = DataSettings.from_config(config)
    images = _whole(settings)
    is_own = own is not None and images.sha256 == own.images_sha256
    if is_own or path.is_file():
        return _from_split(*open_data(settings, seed), seed, num_classes)
    _check_classes(images, num_classes)
    test = TestSet(images.images, images.labels, f"custom test set {path.name}", images.synthetic, images.notes)
    try:
        training = find_inputs_for_calibration(own)
        return Inputs(test, training, "", images.class_names)
    except QuantflError as error:
        return Inputs(test, None, f"needs training images to calibrate on ({error})", images.class_names)


def find_inputs_for_calibration(own: _RunData | None) -> np.ndarray:
    """Returns training images of the run, or of EuroSAT where it is given, for a custom test set.

    Raises:
        QuantflError: there are none.
    """
    if own is None and not os.environ.get("EUROSAT_ZIP"):
        raise DataError("the model has no run beside it and EUROSAT_ZIP is not set")
    config, seed = (own.config, own.seed) if own else (_group("eurosat"), DEFAULT_SEED)
    images, split = open_data(DataSettings.from_config(config), seed)
    if own and images.sha256 != own.images_sha256:
        raise DataError("the images of the run have changed since")
    calibration = _from_split(images, split, seed, len(images.class_names)).calibration
    assert calibration is not None
    return calibration


def _whole(settings: DataSettings) -> ImageSet:
    from fl.data import open_images

    return open_images(settings.source.build("data").plan(settings.cache_dir), settings.cache_dir)


def _check_classes(images: ImageSet, num_classes: int) -> None:
    if len(images.class_names) != num_classes:
        names = ", ".join(images.class_names)
        raise DataError(f"{images.name}: has {len(images.class_names)} classes ({names}), the model {num_classes}")
