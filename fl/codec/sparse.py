"""Sparse ternary compression: the largest elements alone."""

from dataclasses import field
from typing import Annotated

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from fl.codec.base import STRICT, Arrays, Feedback, Packed
from fl.codec.entropy import CHUNK, pack, unpack
from fl.core.errors import PayloadError


@dataclass(frozen=True, config=STRICT)
class Stc(Feedback, Packed):
    """Sparse ternary compression (arXiv 1903.02891): the largest elements, each as plus or minus their tensor's mean.

    A tensor without any of them sends its largest element, so that none is silent beside others.

    Args:
        fraction: of the elements of all tensors that are sent, those largest ones of a tensor beside.
        error_feedback: see `Codec`; the published baseline needs it.
    """

    fraction: Annotated[float, Field(gt=0, le=1, strict=True)] = 0.01
    error_feedback: bool = field(default=True, kw_only=True)
    description, small_bytes = "stc", 1

    def encode_large(self, arrays: Arrays, rng: np.random.Generator, other_bytes: int, total: int) -> list[bytes]:
        size = sum(array.size for array in arrays)
        least, equal = _least_of_largest(arrays, max(1, round(self.fraction * size)))
        bodies = []
        for array in arrays:
            body, taken = self._body(array, least, equal)
            bodies.append(body)
            equal -= taken
        return bodies

    def _body(self, array: np.ndarray, least: int, equal: int) -> tuple[bytes, int]:
        """Returns the body of all beyond `least` and the first `equal` of those that are it, and of how many."""
        vector, symbols = array.reshape(-1), np.zeros(array.size, np.int8)
        chosen, taken = [], 0
        for start in range(0, len(vector), CHUNK):
            part = vector[start : start + CHUNK]
            bits = _magnitude_bits(part)
            kept = bits > least
            first = np.flatnonzero((bits == least) & (bits > 0))[: equal - taken]  # nothing of what is 0
            kept[first] = True
            taken += len(first)
            symbols[start : start + CHUNK] = kept * np.sign(part)
            chosen.append(np.abs(part[kept]))
        magnitudes = np.concatenate(chosen)
        if not len(magnitudes):
            highest = min(map(int, (vector.argmax(), vector.argmin())), key=lambda at: (-abs(vector[at]), at))
            symbols[highest], magnitudes = np.sign(vector[highest]), np.abs(vector[highest : highest + 1])
        mean = magnitudes.mean(dtype=np.float64)
        return np.array([mean], "<f4").tobytes() + pack(symbols.reshape(array.shape), self.entropy), taken

    def decode_large(self, body: memoryview, shape: tuple[int, int]) -> np.ndarray:
        if len(body) < 4:
            raise PayloadError("payload: ends within the mean magnitude")
        symbols = unpack(body[4:], shape[0] * shape[1], shape[1]).reshape(shape)
        with np.errstate(over="ignore", invalid="ignore"):
            return symbols.astype(np.float32) * np.frombuffer(body[:4], "<f4")[0]


def _magnitude_bits(array: np.ndarray) -> np.ndarray:
    """Returns the bits of the magnitudes of float32, which are in the order of these."""
    return array.view(np.uint32) & np.uint32(0x7FFFFFFF)


def _least_of_largest(arrays: Arrays, kept: int) -> tuple[int, int]:
    """Returns the bits of the smallest of the `kept` largest magnitudes, and how many as large are among these."""
    high, place = 0, 0
    for shift in (16, 0):  # the first half of the bits, then the second of those that begin so
        counts = np.zeros(1 << 16, np.int64)
        for array in arrays:
            flat = array.reshape(-1)
            for start in range(0, len(flat), CHUNK):
                bits = _magnitude_bits(flat[start : start + CHUNK])
                bits = bits[bits >> 16 == high] & 0xFFFF if shift == 0 else bits >> 16
                counts += np.bincount(bits, minlength=len(counts))
        beyond = np.cumsum(counts[::-1])[::-1]
        place = int(np.flatnonzero(beyond >= kept)[-1])
        kept -= int(beyond[place] - counts[place])
        high = place if shift else high
    return high << 16 | place, kept
