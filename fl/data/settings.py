"""Where images come from and how they are split, as the `data` group says."""

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from fl.core.errors import ConfigError
from fl.core.targets import Target, first_problem
from fl.data.images import ImageSet, Split, open_images, split_images


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class DataSettings:
    """The data group: where images come from and how they are split."""

    source: Target
    cache_dir: Path
    test_fraction: Annotated[float, Field(gt=0, lt=1, strict=True)]
    validation_fraction: Annotated[float, Field(ge=0, lt=1, strict=True)]
    verify_cache: bool = False

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
    split = split_images(
        images.labels, test_fraction=data.test_fraction, validation_fraction=data.validation_fraction, seed=seed
    )
    return images, split
