"""How far a figure of some images may lie from that of all images."""

from bisect import bisect_left

Z = 1.959964
"""Standard normal quantile of a 95 % interval."""

STEPS = 10**9
"""Of a difference, from none to one: as closely as its interval is told."""


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

    def first(limit: float) -> float:
        """Returns where the score, which falls from one end to the other, is at most `limit`."""
        steps = range(-STEPS, STEPS + 1)
        found = bisect_left(steps, -limit, key=lambda step: -score(step / STEPS))
        return steps[min(found, len(steps) - 1)] / STEPS

    return first(Z), first(-Z)
