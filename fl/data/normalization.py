"""Means and deviations of bands."""

from dataclasses import replace

import numpy as np

from fl.core.console import progress
from fl.core.errors import DataError
from fl.core.pixels import Pixels
from fl.data.images import ImageSet

CHUNK_BYTES = 16 * 1024**2
"""Of float64 values at a time, whatever the images take together."""


def band_statistics(images: ImageSet, positions: np.ndarray) -> Pixels:
    """Returns what the images are like, with mean and standard deviation of each band over all pixels of some.

    Chunks are merged as by Chan, Golub and LeVeque (1979): to rounding what one pass over all would give.

    Args:
        images: any.
        positions: int64, of those that count.

    Raises:
        DataError: a band has one value throughout.
    """
    height, width, bands = images.pixels.shape
    count, mean, squares = 0, np.zeros(bands), np.zeros(bands)
    step = max(1, CHUNK_BYTES // (8 * height * width * bands))
    with progress("means of bands", len(positions), "image") as advance:
        for start in range(0, len(positions), step):
            chunk = images.images[positions[start : start + step]].reshape(-1, bands).astype(np.float64)
            own = chunk.mean(axis=0)
            apart, total = own - mean, count + len(chunk)
            squares += np.square(chunk - own).sum(axis=0) + np.square(apart) * count * len(chunk) / total
            mean += apart * len(chunk) / total
            count = total
            advance(len(positions[start : start + step]))
    deviation = np.sqrt(squares / count)
    if flat := [band for band in range(bands) if not deviation[band] > 0]:
        raise DataError(
            f"data.normalize=bands: band {flat[0] + 1} has the same value in all training images; leave it out by "
            "data.bands"
        )
    return replace(images.pixels, mean=tuple(mean.tolist()), deviation=tuple(deviation.tolist()))
