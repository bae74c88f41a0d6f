"""What images are like, and how their pixels become a network's input."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

DTYPES = ("uint8", "uint16", "int16", "float32")
"""Of pixels, as NumPy calls them."""
MOST_SIDE, MOST_BANDS = 4096, 1024
Normalize = Literal["fixed", "bands"]


@dataclass(frozen=True)
class Pixels:
    """Size and type of every image of a set, and what its bands are normalised by.

    Attributes:
        height: of an image.
        width: of an image.
        bands: of an image; 3 are red, green and blue unless the images say otherwise.
        dtype: one of `DTYPES`.
        mean: of each band, subtracted; empty for the fixed `(x / 255 - 0.5) / 0.5` of 8-bit images.
        deviation: of each band, divided by.
    """

    height: int = 64
    width: int = 64
    bands: int = 3
    dtype: str = "uint8"
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width, bands."""
        return self.height, self.width, self.bands

    @property
    def plain(self) -> "Pixels":
        """The same without means and deviations."""
        return replace(self, mean=(), deviation=())

    def told(self) -> str:
        """Returns it in words."""
        bands = "1 band" if self.bands == 1 else f"{self.bands} bands"
        return f"{self.height}x{self.width} pixels, {bands} of {self.dtype}"

    def describe(self) -> dict[str, Any]:
        """Returns what files keep of it beside the number of bands, plain data; nothing for the usual ones."""
        if replace(self, bands=USUAL.bands) == USUAL:
            return {}
        own = {"height": self.height, "width": self.width, "dtype": self.dtype}
        return {**own, **({"mean": list(self.mean), "deviation": list(self.deviation)} if self.mean else {})}


USUAL = Pixels()
"""8-bit RGB of 64x64 pixels, normalised as it always was."""


def described_pixels(told: Mapping[str, Any] | None, bands: int) -> Pixels:
    """Returns what `Pixels.describe` told.

    Args:
        told: from a file; anything may be in it.
        bands: of an image.

    Raises:
        ValueError: it cannot be.
    """
    if told is None:
        return Pixels(bands=bands)
    height, width, dtype = told.get("height"), told.get("width"), told.get("dtype")
    mean, deviation = _numbers(told.get("mean", ()), bands), _numbers(told.get("deviation", ()), bands)
    sides = all(type(side) is int and 0 < side <= MOST_SIDE for side in (height, width))
    if not sides or dtype not in DTYPES or len(mean) != len(deviation) or any(each <= 0 for each in deviation):
        raise ValueError(f"it is for images of {height} x {width} pixels of {dtype}, or normalises them by nothing")
    assert isinstance(height, int)
    assert isinstance(width, int)
    return Pixels(height, width, bands, str(dtype), mean, deviation)


def _numbers(told: Any, bands: int) -> tuple[float, ...]:
    numbers = tuple(told) if isinstance(told, Sequence) and not isinstance(told, str) else (math.nan,)
    if len(numbers) not in (0, bands) or not all(
        type(each) in (int, float) and math.isfinite(each) for each in numbers
    ):
        raise ValueError(f"it normalises {bands} bands by other than {bands} numbers")
    return tuple(map(float, numbers))
