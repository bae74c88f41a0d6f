"""How clients of unequal weight share the bits of a round."""

from collections.abc import Sequence

import numpy as np

MOST_BITS = 4.0
"""For an element of one client's update, unless the mean is larger: by then almost nothing is lost."""
NARROWEST, HALVINGS = 400.0, 200
"""Of the search for the multiplier: its logarithm, and how often the range is halved."""


def shared_bits(mean: float, weights: Sequence[float]) -> list[float]:
    """Returns bits per element for each client, so many on average that their weighted mean is off by least.

    An update of which `1 - 4**-bits` of the energy arrives (Cover and Thomas 2006, section 10.3.2), raised to its
    length as without error feedback, is off by `1 / (4**bits - 1)` of its energy. The sum of those errors, each times
    the square of its client's weight, is least where `4**bits / (4**bits - 1)**2` goes as one over that square.

    Args:
        mean: above 0.
        weights: above 0, one for each client; where they are equal, all have `mean`.
    """
    squares = np.square(np.asarray(weights, np.float64) / max(weights))
    if squares.min() == 1:
        return [mean] * len(weights)
    most, low, high = max(mean, MOST_BITS), -NARROWEST, NARROWEST
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        scaled = squares * 2.0**middle
        bits = np.minimum(np.log2(1 + scaled / 2 + np.sqrt(scaled + scaled**2 / 4)) / 2, most)
        low, high = (low, middle) if bits.mean() > mean else (middle, high)
    return [float(each) for each in bits]
