"""EDEN: random rotation, then the best quantizer of what every rotated vector looks like."""

import math
from collections.abc import Iterator
from dataclasses import field
from functools import lru_cache
from statistics import NormalDist
from typing import Annotated

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from fl.codec.base import STRICT, Arrays, Feedback, Packed, Rated
from fl.codec.entropy import Entropy, pack, unpack
from fl.core.errors import PayloadError

LARGEST = np.finfo(np.float32).max
BLOCK, GROUP = 4096, 16
"""Elements that are rotated together; blocks that are worked on together, in the processor's cache."""


@dataclass(frozen=True, config=STRICT)
class Eden(Feedback, Packed, Rated):
    """EDEN (arXiv 2108.08842): random rotation in blocks, then the best quantizer of a normal distribution.

    Rotation is a random sign per element and a Hadamard transform of up to 4,096 elements; padding is at most that of
    the last block. Without error feedback the scale of a block keeps the length along its direction. Where no element
    stands out that is unbiased, and the mean over many clients converges; of one spike among small values only the
    spike arrives, for all rotated values are about as large. With feedback the scale makes the error smallest.

    Args:
        bits: per element, 1 to 8.
        entropy: rotated values are normal, which leaves little to gain at 1 bit.
    """

    bits: Annotated[int, Field(ge=1, le=8, strict=True)] = 1
    entropy: Entropy = field(default="none", kw_only=True)

    @property
    def description(self) -> str:
        return f"eden{self.bits}"

    def encode_large(self, arrays: Arrays, rng: np.random.Generator, other_bytes: int, total: int) -> list[bytes]:
        return [self._encode(array.reshape(-1), int(rng.integers(2**32))) for array in arrays]

    def _encode(self, vector: np.ndarray, seed: int) -> bytes:
        centroids, symbols, scales = _centroids(self.bits), [], []
        edges, signs, whole = (centroids[1:] + centroids[:-1]) / 2, _Signs(seed), len(vector) // BLOCK * BLOCK
        norms = [float(np.abs(part).max(initial=0)) or 1.0 for part in (vector[:whole], vector[whole:])]
        for start, shape in _groups(len(vector)):
            rows, norm = np.zeros(shape, np.float32), norms[start == whole]
            piece = vector[start : start + rows.size]
            rows.reshape(-1)[: len(piece)] = piece / np.float32(norm)
            rotated = _hadamard(rows * signs.draw(shape)).astype(np.float64)
            energy = np.square(rotated).sum(axis=1)
            deviation = np.sqrt(energy / shape[1])[:, None]
            chosen = np.searchsorted(edges, rotated / np.where(deviation > 0, deviation, 1))
            quantized = centroids[chosen].astype(np.float64)
            product, square = (rotated * quantized).sum(axis=1), np.square(quantized).sum(axis=1)
            scale = product / square if self.error_feedback else energy / np.where(product > 0, product, 1)
            scales.append(np.minimum(scale * norm, LARGEST))
            symbols.append(chosen.reshape(-1).astype(np.uint8))
        head = np.array([seed], "<u4").tobytes() + np.concatenate(scales).astype("<f4").tobytes()
        return head + pack(np.concatenate(symbols), self.entropy)

    def decode_large(self, body: memoryview, shape: tuple[int, int]) -> np.ndarray:
        size = shape[0] * shape[1]
        shapes = [group for _, group in _groups(size)]
        count = sum(rows for rows, _ in shapes)
        if len(body) < 4 + 4 * count:
            raise PayloadError(f"payload: ends within the scales of {count} blocks")
        signs = _Signs(int.from_bytes(body[:4], "little"))
        scales = np.frombuffer(body[4 : 4 + 4 * count], "<f4").astype(np.float32)
        symbols = unpack(body[4 + 4 * count :], sum(rows * columns for rows, columns in shapes))
        if int(symbols.min()) < 0 or int(symbols.max()) >= 2**self.bits:
            raise PayloadError("payload: a symbol is no centroid's")
        centroids, vector, at = _centroids(self.bits), np.empty(size, np.float32), 0
        for start, group in _groups(size):
            part = vector[start : start + math.prod(group)]
            rotated = _hadamard(centroids[symbols[start : start + math.prod(group)]].reshape(group))
            with np.errstate(over="ignore", invalid="ignore"):
                part[:] = (rotated * signs.draw(group) * scales[at : at + group[0], None]).reshape(-1)[: len(part)]
            at += group[0]
        return np.clip(vector, -LARGEST, LARGEST, out=vector).reshape(shape)


def _groups(size: int) -> Iterator[tuple[int, tuple[int, int]]]:
    """Yields where the next blocks begin, how many, and their length: the last one is shorter, and padded."""
    whole, rest = divmod(size, BLOCK)
    for first in range(0, whole, GROUP):
        yield first * BLOCK, (min(GROUP, whole - first), BLOCK)
    if rest:
        yield whole * BLOCK, (1, 1 << (rest - 1).bit_length())


class _Signs:
    """A random sign for every element of the blocks: bits of Philox4x64-10 with the seed as key."""

    def __init__(self, seed: int) -> None:
        self._raw = np.random.Philox(key=seed)

    def draw(self, shape: tuple[int, int]) -> np.ndarray:
        """Returns the next ones, float32; each call begins with a new word of 64 bits."""
        words = self._raw.random_raw((math.prod(shape) + 63) // 64).astype("<u8")
        bits = np.unpackbits(words.view(np.uint8), count=math.prod(shape), bitorder="little")
        return (1 - 2 * bits.view(np.int8)).astype(np.float32).reshape(shape)


def _hadamard(rows: np.ndarray) -> np.ndarray:
    """Returns the orthonormal Walsh-Hadamard transform of each row; its length is a power of two.

    Sums of two, neighbours first, in an order that is part of the format: every machine comes to the same bits.
    """
    count, length = rows.shape
    inner = min(64, length)
    # Neighbours are few at a time in a row: the axis that is transformed comes first in memory, once for each half.
    done = _butterflies(rows.reshape(-1, inner).T)
    done = _butterflies(done.T.reshape(count, -1, inner).swapaxes(0, 1))
    return done.swapaxes(0, 1).reshape(count, length) * np.float32(1 / math.sqrt(length))


def _butterflies(array: np.ndarray) -> np.ndarray:
    """Returns the unscaled transform along the first axis."""
    shape, half = array.shape, 1
    done = np.ascontiguousarray(array).reshape(shape[0], -1)
    while half < shape[0]:
        pairs = done.reshape(shape[0] // (2 * half), 2, half, -1)
        done = np.empty_like(pairs)
        np.add(pairs[:, 0], pairs[:, 1], out=done[:, 0])
        np.subtract(pairs[:, 0], pairs[:, 1], out=done[:, 1])
        half *= 2
    return done.reshape(shape)


@lru_cache
def _centroids(bits: int) -> np.ndarray:
    """Returns the 2 ** bits levels of the best quantizer of a standard normal value (Lloyd 1982, Max 1960), float32.

    Each level is the mean of a normal value between the middles to its neighbours: solved in float64 by Newton's
    method from the density that many levels have, and rounded to multiples of 2 ** -16, so that every machine has
    the same.
    """
    half = 2 ** (bits - 1)
    levels = np.array([math.sqrt(3) * NormalDist().inv_cdf(0.5 + (each + 0.5) / (2 * half)) for each in range(half)])
    for _ in range(50):
        edges = np.array([0.0, *((levels[1:] + levels[:-1]) / 2), math.inf])
        density = np.array([math.exp(-edge * edge / 2) / math.sqrt(2 * math.pi) for edge in edges])
        beyond = np.array([math.erfc(edge / math.sqrt(2)) / 2 for edge in edges])
        mass = beyond[:-1] - beyond[1:]
        means = (density[:-1] - density[1:]) / mass
        lower = density[1:-1] * (means[1:] - edges[1:-1]) / mass[1:] / 2  # how the next mean moves with each middle
        upper = density[1:-1] * (edges[1:-1] - means[:-1]) / mass[:-1] / 2  # and the one before
        slope = np.eye(half) - np.diag(np.pad(lower, (1, 0)) + np.pad(upper, (0, 1)))
        slope -= np.diag(lower, -1) + np.diag(upper, 1)
        change = np.linalg.solve(slope, means - levels)
        levels = levels + change
        if np.abs(change).max() < 1e-12:
            break
    positive = np.rint(levels * 2**16) / 2**16
    return np.concatenate([-positive[::-1], positive]).astype(np.float32)
