"""How many bytes quantized tensors take at a step, told from histograms of their magnitudes."""

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Protocol, TypeVar

import numpy as np

from fl.codec.entropy import CHUNK, entropy_bits

CELLS = 4096
"""Bins whose elements are counted one by one; in those beyond, elements are taken to lie evenly."""
BIN_BITS = 30
"""Of the finest bins."""
BISECTIONS, TRIES = 24, 30


class Curve:
    """The entropy of a tensor's bins as a function of their step.

    Magnitudes are counted by the first 16 bits of their FP32: 128 buckets for each doubling, in which they are taken to
    lie evenly. That is within 1 % of the true entropy.

    Args:
        array: float32, any shape, not all zero.
        offset: how far a bin's lower edge is below a multiple of the step.

    Attributes:
        size: how many elements it has.
        ends: the lowest and the highest, float32.
        largest: magnitude.
    """

    def __init__(self, array: np.ndarray, offset: float) -> None:
        self._offset, self.size = offset, array.size
        flat, counts = array.reshape(-1).view("<u4"), np.zeros(1 << 15, np.int64)
        for start in range(0, flat.size, CHUNK):
            counts += np.bincount((flat[start : start + CHUNK] >> 16) & 0x7FFF, minlength=len(counts))
        used = np.flatnonzero(counts).astype(np.uint32)
        self._counts = counts[used].astype(np.float64)
        self._low, self._high = ((each << 16).view(np.float32).astype(np.float64) for each in (used, used + 1))
        self.ends = np.array([array.min(), array.max()])
        self.largest = float(np.abs(self.ends).max())
        self._high[-1] = min(self._high[-1], np.finfo(np.float32).max)

    @property
    def coarsest(self) -> float:
        """The largest step at which the largest element is not in the dead zone."""
        return self.largest / (1 - self._offset) * (1 - 1e-5)

    @cached_property
    def _below(self) -> tuple[np.ndarray, np.ndarray]:
        """Magnitudes in ascending order, and how many elements are below each."""
        sums = np.cumsum(self._counts)
        edges = np.stack([self._low, self._high], axis=1).reshape(-1)
        return edges, np.stack([sums - self._counts, sums], axis=1).reshape(-1)

    def bits(self, step: float) -> float:
        """Returns how many all elements take together."""
        cells = int(min(self.largest / step + self._offset, CELLS)) + 1
        edges = (np.arange(1, cells + 1) - self._offset) * step
        below = np.interp(edges, *self._below)
        found = below - np.concatenate([[0.0], below[:-1]])
        beyond = self._low >= edges[-1]
        bits = entropy_bits(found, self.size) + below[-1] - found[0]
        if beyond.any():
            inside = np.maximum((self._high[beyond] - self._low[beyond]) / step, 1)
            bits += entropy_bits(self._counts[beyond], self.size)
            bits += float((self._counts[beyond] * (1 + np.log2(inside))).sum())
        return bits

    def expected_bytes(self, step: float) -> float:
        """Returns about how long the tensor's body is."""
        return self.bits(step) / 8 + 25 + 2 * min(self.largest / step, 15)

    def step_for(self, bits: float) -> float:
        """Returns the largest step at which all elements together take so many bits, `coarsest` at most."""
        end = math.log2(self.coarsest)
        return float(2.0 ** inverse(lambda exponent: self.bits(2.0**exponent), bits, end - BIN_BITS, end))


def inverse(falling: Callable[[float], float], wanted: float, low: float, high: float) -> float:
    """Returns the least place at which a falling function is no more than `wanted`, or the nearest end."""
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if falling(middle) > wanted:
            low = middle
        else:
            high = middle
    return high


class Sized(Protocol):
    """What was tried.

    Attributes:
        size: in bytes.
    """

    size: float


Tried = TypeVar("Tried", bound=Sized)


def largest_within(
    attempt: Callable[[float], Tried],
    expected: Callable[[float], float],
    wanted: float,
    slack: float,
    ends: tuple[float, float],
) -> Tried | None:
    """Returns the attempt that takes at most `wanted` bytes, and `slack` less at most; None if none takes so few.

    Args:
        attempt: what is tried with an exponent of the step.
        expected: about how long that is; its factor to the truth is learned from each attempt.
        wanted: bytes.
        slack: bytes.
        ends: the least and the largest exponent.
    """
    found, ratio, (fine, coarse) = None, 1.0, ends
    for number in range(TRIES):
        exponent = inverse(lambda each: ratio * expected(each), wanted - slack / 2, *ends)  # noqa: B023
        if number and (number > TRIES // 5 or not fine < exponent < coarse):
            exponent = (fine + coarse) / 2
        tried = attempt(exponent)
        if tried.size > wanted:
            fine = exponent
        else:
            found, coarse = tried, exponent
        if coarse - fine < 1e-4 or (found is tried and tried.size >= wanted - slack):
            break
        ratio = tried.size / max(expected(exponent), 1)
    return found


def bodies_within(wanted: float, bodies_for: Callable[[float], list[bytes]]) -> list[bytes]:
    """Returns bodies of at most `wanted` bytes: what they are made for is off by a few, as entropies are."""
    target = wanted
    while True:
        bodies = bodies_for(target)
        if (excess := sum(map(len, bodies)) - wanted) <= 0:
            return bodies
        target -= excess


class Steps:
    """A step for each of several tensors: a power of two times a power of the tensor's size, and limited.

    Args:
        curves: of the tensors.
        limits: their largest steps.
        size_power: of a tensor's part of the largest one's size.
        wider: by how much a step is wider than the one of a curve that takes as many bytes.
    """

    def __init__(self, curves: Sequence[Curve], limits: Sequence[float], size_power: float, wider: float = 1.0) -> None:
        biggest = max(curve.size for curve in curves)
        self._curves, self.limits, self._wider = curves, limits, wider
        self._finer = [(curve.size / biggest) ** size_power for curve in curves]
        self.end = max(math.log2(limit / f) for limit, f in zip(limits, self._finer, strict=True))

    def _at(self, exponent: float) -> list[float]:
        return [min(2.0**exponent * f, limit) for f, limit in zip(self._finer, self.limits, strict=True)]

    def expected_bytes(self, exponent: float) -> float:
        """Returns about how long all bodies are; from the exponent `end` on steps are at their limits."""
        several = zip(self._curves, self._at(exponent), strict=True)
        return sum(curve.expected_bytes(step / self._wider) for curve, step in several)

    def largest_within(
        self, attempt: Callable[[list[float]], Tried], wanted: float, slack: float, end: float
    ) -> Tried | None:
        """Returns the attempt with the largest steps, up to those of an exponent; see the function of this name."""
        ends = end - BIN_BITS, end
        return largest_within(lambda each: attempt(self._at(each)), self.expected_bytes, wanted, slack, ends)
