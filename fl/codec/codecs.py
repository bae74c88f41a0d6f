"""Codecs that work on one element after another: raw, FP16, integers with scales, sparse ternary."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from fl.codec.base import STRICT, Codec, Decay
from fl.codec.entropy import Entropy, pack, unpack
from fl.core.errors import PayloadError

LARGEST, SMALLEST = np.finfo(np.float32).max, np.finfo(np.float32).tiny
BLOCK = 1 << 16
"""Elements quantized at a time: they stay in the processor's cache."""
SMALL_HALF = 2.0**-13
"""Where FP16's own rounding of the largest element comes to less than what it makes of the smallest."""
LONE = bytes(4)
"""Where channels have one element each, a first scale of 0 says that one for all of them follows."""


@dataclass(frozen=True, config=STRICT)
class Raw(Codec):
    """Exact: every tensor of any dtype, compressed where that is shorter; NaN is refused as everywhere."""

    exact = True

    @property
    def description(self) -> str:
        return "raw"

    def encode_large(
        self, arrays: Sequence[np.ndarray], rng: np.random.Generator, other_bytes: int, total: int
    ) -> list[bytes]:
        raise AssertionError("no tensor is the codec's own where all are exact")

    def decode_large(self, body: memoryview, shape: tuple[int, int]) -> np.ndarray:
        raise AssertionError("no tensor is the codec's own where all are exact")


@dataclass(frozen=True, config=STRICT)
class Fp16(Codec):
    """IEEE half precision, 11 significant bits; values beyond 65,504 are refused.

    A tensor without an element of `SMALL_HALF` is sent times a power of two: the smaller FP16 is, the fewer of its bits
    are significant, and below 3e-8 it is 0.
    """

    error_feedback: bool = False
    decay: Decay = 1.0
    tiny = 0

    @property
    def description(self) -> str:
        return "fp16"

    def encode_large(
        self, arrays: Sequence[np.ndarray], rng: np.random.Generator, other_bytes: int, total: int
    ) -> list[bytes]:
        bodies = []
        for array in arrays:
            if (largest := max(array.max(), -array.min())) >= 65520:  # what is nearer to the next power than to 65,504
                raise PayloadError(f"payload: {largest:g} exceeds FP16, whose largest is 65504")
            exponent = 15 - int(np.frexp(largest)[1]) if 0 < largest < SMALL_HALF else 0
            head = np.array([exponent], "<i2").tobytes() if exponent else b""
            bodies.append(head + np.ldexp(array, exponent).astype("<f2").tobytes())
        return bodies

    def decode_large(self, body: memoryview, shape: tuple[int, int]) -> np.ndarray:
        head = len(body) - 2 * shape[0] * shape[1]
        if head not in (0, 2):
            raise PayloadError(f"payload: {len(body)} bytes are no FP16 tensor of {shape[0] * shape[1]} elements")
        exponent = int(np.frombuffer(body[:head], "<i2")[0]) if head else 0
        if exponent < 0:
            raise PayloadError("payload: FP16 times a power of two that makes it larger")
        with np.errstate(invalid="ignore"):  # of NaN, which is refused where all are checked
            return np.ldexp(np.frombuffer(body[head:], "<f2").astype(np.float32), -exponent).reshape(shape)


@dataclass(frozen=True, config=STRICT)
class Uniform(Codec):
    """Symmetric integers with one FP32 scale per channel (the first axis), which its largest magnitude decides.

    Channels of one element share a scale, for scales of their own would be longer than the elements.

    An element is off by half a step at most, or, rounded stochastically, by less than a step and right on average.

    Args:
        bits: of an integer, 2 to 8; int8 holds -127 to 127.
        rounding: "nearest", or "stochastic": up with the probability of the fraction.
        scales: "channel", or "tensor": one for all channels, which entropy coding turns into fewer bytes.
        entropy: how the integers are packed.
        error_feedback: see `Codec`.
        decay: see `Codec`.
    """

    bits: Annotated[int, Field(ge=2, le=8, strict=True)] = 8
    rounding: Literal["nearest", "stochastic"] = "nearest"
    scales: Literal["channel", "tensor"] = "channel"
    entropy: Entropy = "ans"
    error_feedback: bool = False
    decay: Decay = 1.0

    @property
    def description(self) -> str:
        return f"int{self.bits} per {self.scales}"

    @property
    def small_bytes(self) -> int:
        return 1 if self.bits < 4 else 2

    def encode_large(
        self, arrays: Sequence[np.ndarray], rng: np.random.Generator, other_bytes: int, total: int
    ) -> list[bytes]:
        return [self._encode(array, rng) for array in arrays]

    def _encode(self, array: np.ndarray, rng: np.random.Generator) -> bytes:
        levels, shape = 2 ** (self.bits - 1) - 1, array.shape
        lone = self.scales == "channel" and shape[1] == 1
        array = array.reshape(1, -1) if lone or self.scales == "tensor" else array
        symbols, scales = np.empty(array.shape, np.int8), np.empty(len(array), np.float32)
        coarsest = LARGEST / np.float32(levels) * np.float32(1 - 1e-7)  # the product does not overflow
        for part in _blocks(array.shape):
            rows, columns = part
            if columns.start == 0:
                largest = np.maximum(array[rows].max(axis=1), -array[rows].min(axis=1)).astype(np.float64)
                scales[rows] = np.clip((largest / levels).astype(np.float32), SMALLEST, coarsest)
            scaled = array[part] / scales[rows, None]
            if self.rounding == "stochastic":
                scaled += rng.random(scaled.shape, dtype=np.float32)
                np.floor(scaled, out=scaled)
                np.clip(scaled, -levels, levels, out=scaled)
            else:
                np.rint(scaled, out=scaled)
            symbols[part] = scaled
        return LONE * lone + scales.astype("<f4").tobytes() + pack(symbols.reshape(shape), self.entropy)

    def decode_large(self, body: memoryview, shape: tuple[int, int]) -> np.ndarray:
        lone = self.scales == "channel" and shape[1] == 1 and body[:4] == LONE
        rows, columns = (1, shape[0] * shape[1]) if lone or self.scales == "tensor" else shape
        body = body[4:] if lone else body
        if len(body) < 4 * rows:
            raise PayloadError(f"payload: ends within {rows} scales")
        scales = np.frombuffer(body[: 4 * rows], "<f4").astype(np.float32)
        symbols = unpack(body[4 * rows :], rows * columns, shape[1]).reshape(rows, columns)
        array = np.empty((rows, columns), np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            for part in _blocks(array.shape):
                np.multiply(symbols[part], scales[part[0], None], out=array[part], casting="unsafe")
        return array.reshape(shape)


def _blocks(shape: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    """Yields pieces of a matrix of about `BLOCK` elements."""
    rows, columns = max(1, BLOCK // shape[1]), min(BLOCK, shape[1])
    for row in range(0, shape[0], rows):
        for column in range(0, shape[1], columns):
            yield slice(row, row + rows), slice(column, column + columns)


@dataclass(frozen=True, config=STRICT)
class Stc(Codec):
    """Sparse ternary compression (arXiv 1903.02891): the largest elements, each as plus or minus their tensor's mean.

    A tensor without any of them sends its largest element, so that none is silent beside others.

    Args:
        fraction: of the elements of all tensors that are sent, those largest ones of a tensor beside.
        entropy: how the signs and gaps are packed.
        error_feedback: see `Codec`; the published baseline needs it.
        decay: see `Codec`.
    """

    fraction: Annotated[float, Field(gt=0, le=1, strict=True)] = 0.01
    entropy: Entropy = "ans"
    error_feedback: bool = True
    decay: Decay = 1.0
    small_bytes = 1

    @property
    def description(self) -> str:
        return "stc"

    def encode_large(
        self, arrays: Sequence[np.ndarray], rng: np.random.Generator, other_bytes: int, total: int
    ) -> list[bytes]:
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
        for start in range(0, len(vector), BLOCK):
            part = vector[start : start + BLOCK]
            bits = _magnitude_bits(part)
            kept = bits > least
            first = np.flatnonzero((bits == least) & (bits > 0))[: equal - taken]  # nothing of what is 0
            kept[first] = True
            taken += len(first)
            symbols[start : start + BLOCK] = kept * np.sign(part)
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


def _least_of_largest(arrays: Sequence[np.ndarray], kept: int) -> tuple[int, int]:
    """Returns the bits of the smallest of the `kept` largest magnitudes, and how many as large are among these."""
    high, place = 0, 0
    for shift in (16, 0):  # the first half of the bits, then the second of those that begin so
        counts = np.zeros(1 << 16, np.int64)
        for array in arrays:
            flat = array.reshape(-1)
            for start in range(0, len(flat), BLOCK):
                bits = _magnitude_bits(flat[start : start + BLOCK])
                bits = bits[bits >> 16 == high] & 0xFFFF if shift == 0 else bits >> 16
                counts += np.bincount(bits, minlength=len(counts))
        beyond = np.cumsum(counts[::-1])[::-1]
        place = int(np.flatnonzero(beyond >= kept)[-1])
        kept -= int(beyond[place] - counts[place])
        high = place if shift else high
    return high << 16 | place, kept
