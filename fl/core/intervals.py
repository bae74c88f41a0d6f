"""How far a figure of some images may lie from that of all images."""

from scipy.optimize import brentq

Z = 1.959964
"""Standard normal quantile of a 95 % interval."""


def paired_interval(only_ours: float, only_theirs: float, images: int) -> tuple[float, float]:
    """Returns the 95 % interval of the difference of two accuracies on the same images, as fractions.

    The score interval of paired proportions (Tango 1998, Statistics in Medicine 17), which is as wide as few images
    make it even where all answers agree.

    Args:
        only_ours: images that only the first model answers rightly.
        only_theirs: images that only the second does.
        images: all of them.
    """

    def score(difference: float) -> float:
        linear = (2 * images - only_ours + only_theirs) * difference - only_ours - only_theirs
        constant = -only_theirs * difference * (1 - difference)
        expected = ((linear**2 - 8 * images * constant) ** 0.5 - linear) / (4 * images)
        variance = images * (2 * expected + difference * (1 - difference))
        return (only_ours - only_theirs - images * difference) / max(variance, 1e-12) ** 0.5

    edge = 1 - 1e-9  # the score falls from one end to the other
    low = brentq(lambda each: score(each) - Z, -edge, edge) if score(-edge) > Z else -1.0
    high = brentq(lambda each: score(each) + Z, -edge, edge) if score(edge) < -Z else 1.0
    return float(low), float(high)
