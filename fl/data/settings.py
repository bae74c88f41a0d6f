"""Where images come from and how they are split, as the `data` group says."""

import dataclasses
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from fl.core.console import say
from fl.core.errors import ConfigError, DataError
from fl.core.pixels import Normalize, Pixels
from fl.core.presets import preset
from fl.core.targets import Target, first_problem
from fl.data.images import ImageSet, Plan, open_images
from fl.data.normalization import band_statistics
from fl.data.split import Split, listed_split, read_lists, split_images

SHARES = "shares"
"""Folder of a cache that every run keeps its clients' shares in."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class DataSettings:
    """The data group: where images come from and how they are split."""

    source: Target
    cache_dir: Path
    test_fraction: Annotated[float, Field(gt=0, lt=1, strict=True)]
    validation_fraction: Annotated[float, Field(ge=0, lt=1, strict=True)]
    verify_cache: bool = False
    split: Literal["random", "spatial", "files"] = "random"
    split_files: Path | None = None
    normalize: Normalize = "fixed"

    @property
    def holds_out(self) -> bool:
        """Whether there may be validation images."""
        return self.validation_fraction > 0 or self.split != "random"

    def in_a_known_cache(self) -> "DataSettings":
        """Returns the settings of a folder that anybody may have made, with a cache that is the user's own.

        That is the one that they name where a run has kept shares in it before, else the default, which is said.
        """
        default, told = Path(preset("data", "eurosat")["cache_dir"]), self.cache_dir.expanduser().absolute()
        with suppress(OSError, ValueError):
            if told == default.expanduser().absolute() or any((told / SHARES).glob("*.npz")):
                return self
        say(
            f"note: data.cache_dir={self.cache_dir}: is no cache of before, and these settings may be anybody's; "
            f"the cache is {default} (QUANTFL_CACHE)"
        )
        return dataclasses.replace(self, cache_dir=default)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], trusted: Collection[str] = ()) -> "DataSettings":
        """Splits the group into the source's own settings and the common ones."""
        common = [field.name for field in dataclasses.fields(cls) if field.name != "source"]
        own = {key: value for key, value in config.items() if key not in common}
        source = Target.from_config("data", own, trusted)
        source.check()
        source.build()
        try:
            return cls(source=source, **{key: config[key] for key in common if key in config})
        except ValidationError as error:
            raise ConfigError(first_problem(error, "data")) from error


def open_data(data: DataSettings, seed: int) -> tuple[ImageSet, Split]:
    """Returns the decoded images and their split, from the cache where possible.

    Raises:
        DataError: see `fl.data`.
    """
    plan = data.source.build().plan(data.cache_dir)
    images = open_images(plan, data.cache_dir, verify=data.verify_cache)
    return images, split_of(data, plan, seed)


def split_of(data: DataSettings, plan: Plan, seed: int) -> Split:
    """Returns which images train, validate and test.

    Args:
        data: of the run.
        plan: of the images.
        seed: of the run.

    Raises:
        DataError: see `fl.data.split`.
    """
    if data.split == "random":
        fractions = {"test_fraction": data.test_fraction, "validation_fraction": data.validation_fraction}
        return split_images(plan.labels, **fractions, seed=seed)
    if data.validation_fraction:
        raise ConfigError(
            f"data.validation_fraction={data.validation_fraction:g}: with data.split={data.split} the list val is the "
            "validation set"
        )
    if not plan.files:
        raise ConfigError(f"data.split={data.split}: {plan.name} images are no files that a list could name")
    return listed_split(plan.files, read_lists(data.split, data.split_files, data.cache_dir), data.split)


def pixels_of(data: DataSettings, images: ImageSet, split: Split) -> Pixels:
    """Returns what the images are like, and by what they are normalised: found on the training images alone.

    Args:
        data: of the run.
        images: all of them.
        split: which of them train.

    Raises:
        ConfigError: the fixed normalization, and they are not of 8 bits.
        DataError: a band is the same everywhere.
    """
    if data.normalize == "bands":
        return band_statistics(images, split.train)
    if images.pixels.dtype != "uint8":
        raise ConfigError(
            f"data.normalize=fixed: is for 8-bit images, these are of {images.pixels.dtype}; take data.normalize=bands"
        )
    return images.pixels


def places_of(data: DataSettings) -> np.ndarray:
    """Returns where on Earth each image is, float64 [n, 2], in units that are the same in both directions.

    Raises:
        DataError: the images do not say.
    """
    plan = data.source.build().plan(data.cache_dir)
    if plan.places is None:
        raise DataError(f"partition=regions: {plan.name} images do not say where they are")
    return plan.places()
