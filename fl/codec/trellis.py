"""Trellis-coded quantization: two quantizers take turns, and the parity of each index decides which one is next.

Quantizer 0 has the levels 0, ±2, ±4 … steps, quantizer 1 has 0, ±1, ±3 … Eight states lead from one to the other, as in
JPEG 2000 part 2 (ISO/IEC 15444-2, annex on trellis-coded quantization) and, with zero in both quantizers, in the
dependent quantization of H.266 and ISO/IEC 15938-17. The encoder finds the path of the least squared error plus rate
(Viterbi 1967), many paths side by side.

An array is cut into lanes of about `LANE` neighbours; each lane is a path of its own that begins in state 0.
"""

from dataclasses import dataclass

import numpy as np

from fl.codec.entropy import entropy_bits

LANE = 256
MOST = 127
"""The largest index."""
NEXT = np.array([[0, 1], [3, 2], [5, 4], [6, 7], [1, 0], [2, 3], [4, 5], [7, 6]], np.uint8)
"""Next state, by state and parity of the index; states of even number use quantizer 0."""
CENTRED = 4
"""Indices below this one have levels of their own, the means of what fell there."""
PRICE = np.float32(0.25)
"""Squared steps that a bit is worth: between 0.15 and 0.35 the error at equal rate is flat, and smallest here."""
_INDICES = np.arange(MOST + 1)
NOMINAL = np.stack([2 * _INDICES, np.maximum(2 * _INDICES - 1, 0)]).astype(np.float32)
"""Levels in steps, by quantizer and index."""


def _origins() -> tuple[np.ndarray, np.ndarray]:
    """Returns for each state the two states that lead to it, and which branch (2 * quantizer + parity) each takes."""
    pairs = [[(s, 2 * (s % 2) + p) for s in range(8) for p in (0, 1) if NEXT[s, p] == n] for n in range(8)]
    both = np.array(pairs, np.intp)  # [state, which of two, (origin, branch)]
    return both[:, :, 0].T.copy(), both[:, :, 1].T.copy()


ORIGINS, BRANCHES = _origins()


@dataclass(frozen=True)
class Prices:
    """What the encoder believes of the indices.

    Attributes:
        bits: float32 [2, MOST + 1], of each index in each quantizer, its sign included.
        levels: float32 [2, MOST + 1], what each index decodes to, in steps.
    """

    bits: np.ndarray
    levels: np.ndarray

    @classmethod
    def guess(cls, deviation: float) -> "Prices":
        """Returns what is a fair beginning for values of some standard deviation, in steps."""
        bits = 0.5 + np.minimum(1.5 * _INDICES / max(deviation, 1e-3), 60) + (_INDICES > 0)
        return cls(np.stack([bits, bits]).astype(np.float32), NOMINAL)

    @classmethod
    def of(cls, values: np.ndarray, path: "Path") -> "Prices":
        """Returns what a finished path shows: entropies, and the mean of what fell to each index."""
        bits, levels = np.empty((2, MOST + 1), np.float32), NOMINAL.copy()
        for quantizer, counts in enumerate(path.counts()):
            smooth = counts + 0.05
            bits[quantizer] = (_INDICES > 0) - np.log2(smooth / smooth.sum())
            mine = path.quantizers == quantizer
            sums = np.bincount(path.indices[mine], weights=np.abs(values[mine]), minlength=MOST + 1)
            known = (counts > 0) & (_INDICES > 0) & (_INDICES < CENTRED)
            levels[quantizer, known] = sums[known] / counts[known]
        return cls(bits, levels)


@dataclass(frozen=True)
class Path:
    """What the encoder chose: uint8 [steps, lanes] both, indices without their signs."""

    indices: np.ndarray
    quantizers: np.ndarray

    def counts(self) -> list[np.ndarray]:
        """Returns how often each index stands in each quantizer."""
        return [np.bincount(self.indices[self.quantizers == each], minlength=MOST + 1) for each in (0, 1)]

    def bits(self) -> float:
        """Returns what the indices take at least without their signs, each quantizer with a histogram of its own."""
        return sum(entropy_bits(counts) for counts in self.counts())


def in_lanes(vector: np.ndarray, lane: int = LANE) -> np.ndarray:
    """Returns the vector as [steps, lanes], one lane after another in each column, zeros at the very end."""
    steps, lanes = lanes_of(len(vector), lane)
    padded = np.zeros(lanes * steps, vector.dtype)
    padded[: len(vector)] = vector
    return np.ascontiguousarray(padded.reshape(lanes, steps).T)


def out_of_lanes(lanes: np.ndarray, size: int) -> np.ndarray:
    """Returns the vector of `size` that `in_lanes` was given."""
    return np.ascontiguousarray(lanes.T).reshape(-1)[:size]


def lanes_of(size: int, lane: int = LANE) -> tuple[int, int]:
    """Returns how many steps, about `lane`, and lanes a vector has."""
    lanes = max(1, round(size / lane))
    return -(-size // lanes), lanes


def best_path(values: np.ndarray, prices: Prices) -> Path:
    """Returns the path of least squared error plus rate.

    Args:
        values: float32 [steps, lanes], in steps of the quantizer.
        prices: see `Prices`.
    """
    steps, lanes = values.shape
    costs, indices = _branches(np.abs(values), prices)
    total = np.full((8, lanes), np.float32(1e30))
    total[0] = 0
    second = np.empty((steps, 8, lanes), np.bool_)
    first_cost, second_cost, branch_cost = (np.empty((8, lanes), np.float32) for _ in range(3))
    for step in range(steps):
        for which, cost in enumerate((first_cost, second_cost)):
            np.take(total, ORIGINS[which], 0, out=cost)
            np.take(costs[step], BRANCHES[which], 0, out=branch_cost)
            cost += branch_cost
        np.less(second_cost, first_cost, out=second[step])
        np.minimum(first_cost, second_cost, out=total)
    chosen, quantizers = np.empty((steps, lanes), np.uint8), np.empty((steps, lanes), np.uint8)
    state, lane = total.argmin(axis=0), np.arange(lanes)
    for step in range(steps - 1, -1, -1):
        which = second[step, state, lane].astype(np.intp)
        branch = BRANCHES[which, state]
        chosen[step], quantizers[step] = indices[step, branch, lane], branch >> 1
        state = ORIGINS[which, state]
    return Path(chosen, quantizers)


def _branches(sizes: np.ndarray, prices: Prices) -> tuple[np.ndarray, np.ndarray]:
    """Returns cost and index [steps, 4, lanes] of the best index of each quantizer and parity."""
    steps, lanes = sizes.shape
    costs, indices = np.empty((steps, 4, lanes), np.float32), np.empty((steps, 4, lanes), np.uint8)
    for quantizer in (0, 1):
        levels, bits = prices.levels[quantizer], PRICE * prices.bits[quantizer]
        for parity in (0, 1):
            nearest = np.rint((sizes + np.float32(quantizer - 2 * parity)) * np.float32(0.25)) * 2 + np.float32(parity)
            index = np.clip(nearest, parity, MOST - 1 + parity).astype(np.uint8)
            cost = np.square(sizes - levels[index]) + bits[index]
            lowest = np.square(sizes - levels[parity]) + bits[parity]  # few bits may outweigh a larger error
            cheaper = lowest < cost
            branch = 2 * quantizer + parity
            costs[:, branch], indices[:, branch] = np.where(cheaper, lowest, cost), np.where(cheaper, parity, index)
    return costs, indices
