"""Which images a run is made of, and which client holds which of them."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fl.core.console import say
from fl.core.errors import ConfigError, DataError
from fl.core.files import read_json, sha256, write_json, write_npz
from fl.core.pixels import Pixels
from fl.core.run_folder import INDICES, PARTITION, PARTITION_PLOT, SHARES
from fl.core.seeds import derive
from fl.data import ImageSet, Split
from fl.data.partition import Sharing, label_distribution, read_shares, share_images
from fl.data.settings import SHARES as SHARES_FOLDER
from fl.data.settings import pixels_of, places_of
from fl.experiment.settings import Settings
from fl.federation.plots import plot_label_distribution
from fl.training.start import Start, start_of

REGIONS = "fl.data.partition.Regions"


@dataclass(frozen=True)
class RunImages:
    """Images of a run.

    Attributes:
        images: all of them.
        split: which train, validate and test.
        shares_file: positions in the image set, one array per client.
        start: the network for them, and its first weights.
    """

    images: ImageSet
    split: Split
    shares_file: Path
    start: Start

    @property
    def pixels(self) -> Pixels:
        """What the images are like, and what they are normalised by."""
        return self.start.architecture.pixels

    @cached_property
    def shares(self) -> list[np.ndarray]:
        """Positions in the image set, by client."""
        return read_shares(self.shares_file)

    @cached_property
    def description(self) -> dict[str, Any]:
        """The content of `partition.json`: hashes and the label distribution."""
        counts = label_distribution(self.images.labels, self.shares, len(self.images.class_names))
        return {
            "data": self.images.title,
            "synthetic": self.images.synthetic,
            "class_names": self.images.class_names,
            "images_sha256": self.images.sha256,
            "split_sha256": self.split.sha256,
            "shares_sha256": sha256(*(part for share in self.shares for part in (np.array([len(share)]), share))),
            "label_distribution": counts,
            "images_per_client": counts.sum(axis=1),
            "pixels": dataclasses.asdict(self.pixels),
        }

    def told(self) -> str:
        """Returns what is printed of them."""
        train, validation, test = (len(part) for part in (self.split.train, self.split.validation, self.split.test))
        sizes = f"{train:,} training, {validation:,} validation, {test:,} test images"
        lines = [f"Data: {self.split.told(self.images.title)}: {sizes}", *self.images.notes]
        if self.pixels != Pixels():
            how = ", each band less its mean over the training images, by its deviation" if self.pixels.mean else ""
            lines.insert(1, f"images of {self.pixels.told()}{how}")
        return "\n  note: ".join(lines)

    def write(self, run_dir: Path) -> None:
        """Stores which image is where, before training, unless that was done before the run was killed."""
        split, images, counts = self.split, self.images, self.description["label_distribution"]
        parts = {"train": split.train, "validation": split.validation, "test": split.test}
        writers: dict[str, Callable[[Path], object]] = {
            INDICES: lambda path: write_npz(path, parts),
            SHARES: lambda path: write_npz(path, {str(client): share for client, share in enumerate(self.shares)}),
            PARTITION: lambda path: write_json(path, self.description),
            PARTITION_PLOT: lambda path: plot_label_distribution(path, counts, images.class_names, images.title),
        }
        for name, write in writers.items():
            if not (run_dir / name).exists():
                write(run_dir / name)

    def refuse_others(self, run_dir: Path) -> None:
        """Refuses to continue a run on other images, another split or other shares than it began with."""
        if not (run_dir / PARTITION).exists():
            return
        stored = read_json(run_dir / PARTITION)
        for key in ("images_sha256", "split_sha256", "shares_sha256"):
            if stored.get(key) != self.description[key]:
                raise DataError(f"{run_dir}: the data has changed since the run began ({key}); it cannot be continued")


def share_out(settings: Settings, images: ImageSet, split: Split, otherwise: Path | None = None) -> RunImages:
    """Returns the images with their shares, which are drawn unless they are in the cache, and the network for them.

    Args:
        settings: of the run.
        images: all of them.
        split: which of them train.
        otherwise: where shares are written if the cache cannot be.
    """
    seed, num_clients = derive(settings.rounds.seed, "partition"), settings.rounds.num_clients
    folder = settings.data.cache_dir.expanduser().absolute() / SHARES_FOLDER
    places = places_of(settings.data) if settings.partition.target == REGIONS else None
    sharing = Sharing(settings.partition, images.labels, split.train, num_clients, seed, places)
    pixels = pixels_of(settings.data, images, split)
    if settings.training.augmentation == "dihedral" and pixels.height != pixels.width:
        raise ConfigError(
            f"augmentation=dihedral: turns images by quarters, and these have {pixels.told()}; take flips"
        )
    start, told = start_of(settings.model, len(images.class_names), pixels, settings.rounds.seed)
    if told:
        say(told)
    return RunImages(images, split, share_images(folder, sharing, otherwise), start)
