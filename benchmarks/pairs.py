"""What pairs of runs with the same seeds say of a difference: mean, 95 % interval, and whether a target is met."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

LEVEL = 0.95
ROUNDING = 1e-9
"""Points: differences of accuracies are sums of float64."""


@dataclass(frozen=True)
class Paired:
    """A mean of paired differences, in points.

    Attributes:
        n: pairs.
        mean: of the differences.
        standard_error: of the mean, None for one pair.
        low: lower end of the 95 % interval of the mean (Student's t with n - 1 degrees of freedom), None for one pair.
        high: its upper end.
    """

    n: int
    mean: float
    standard_error: float | None
    low: float | None
    high: float | None

    def __str__(self) -> str:
        """Returns the mean and, where there is one, its interval."""
        return f"{self.mean:+.2f}" if self.low is None else f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"

    def to_json(self) -> dict[str, float | int | None]:
        """Returns all five figures."""
        return asdict(self)


def paired(pairs: Sequence[tuple[float, float]]) -> Paired | None:
    """Returns the difference in points of pairs (mine, theirs) of accuracies, None without pairs."""
    if not pairs:
        return None
    differences = [100 * (mine - theirs) for mine, theirs in pairs]
    mean, n = statistics.fmean(differences), len(differences)
    if n == 1:
        return Paired(n, mean, None, None, None)
    error = statistics.stdev(differences) / math.sqrt(n)
    half = half_width(error, n)
    return Paired(n, mean, error, mean - half, mean + half)


def half_width(standard_error: float, n: int) -> float:
    """Returns half of the 95 % interval of a mean of n values."""
    from scipy.stats import t

    return float(t.ppf(0.5 + LEVEL / 2, n - 1)) * standard_error


def within(change: Paired | None, points: float) -> bool | None:
    """Returns whether the mean loses at most so many points, None without pairs."""
    return None if change is None else change.mean >= -points - ROUNDING


def verdict(change: Paired | None, points: float) -> str | None:
    """Returns what the interval says of a loss of at most so many points; None where there is no interval.

    "met": all of it is within the target, "missed": all of it is outside, "not resolved": it has values of both kinds.
    """
    if change is None or change.low is None or change.high is None:
        return None
    if change.low >= -points - ROUNDING:
        return "met"
    return "missed" if change.high < -points - ROUNDING else "not resolved"
