"""What a satellite trains with."""

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from fl.core.groups import STRICT, Positive


@dataclass(frozen=True, config=STRICT)
class Computer:
    """A computer on board, as `conf/computer/*.yaml` gives it.

    Attributes:
        images_per_s: that it trains on, forward and back; None where unknown.
        watts: that it draws while it trains; None where unknown.
        source: where the figures come from, or that they are assumed.
    """

    images_per_s: Positive | None = None
    watts: Positive | None = None
    source: Annotated[str, Field(min_length=1, strict=True)] = "none"
