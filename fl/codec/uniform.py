"""Codecs that work on one element after another: raw, FP16, integers with scales."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, cast

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from fl.codec.base import STRICT, Arrays, Codec, Feedback, Packed, Rated
from fl.codec.entropy import CHUNK, pack, unpack
from fl.codec.payload import NO_STATE, Header, Tensors, assemble, specs_of
from fl.codec.tensors import encode_exact, refuse_impossible
from fl.core.errors import PayloadError

LARGEST, SMALLEST = np.finfo(np.float32).max, np.finfo(np.float32).tiny
SMALL_HALF = 2.0**-13
"""Where FP16's own rounding of the largest element comes to less than what it makes of the smallest."""
LONE = bytes(4)
"""Where channels have one element each, a first scale of 0 says that one for all of them follows."""


@dataclass(frozen=True, config=STRICT)
class Raw(Codec):
    """Exact: every tensor of any dtype, compressed where that is shorter; NaN is refused as everywhere."""

    description, exact = "raw", True
    encode_large = decode_large = cast(Any, None)  # no tensor is the codec's own where all are exact

    def encode(self, tensors: Tensors, rng: np.random.Generator, *, base: bytes = NO_STATE) -> bytes:
        refuse_impossible(tensors)
        bodies = [encode_exact(array) for array in tensors.values()]
        return assemble(Header(self.description, base), specs_of(tensors), bodies)


@dataclass(frozen=True, config=STRICT)
class Fp16(Feedback):
    """IEEE half precision, 11 significant bits; values beyond 65,504 are refused.

    A tensor without an element of `SMALL_HALF` is sent times a power of two: the smaller FP16 is, the fewer of its bits
    are significant, and below 3e-8 it is 0.
    """

    description, tiny = "fp16", 0

    def encode_large(self, arrays: Arrays, rng: np.random.Generator, other_bytes: int, total: int) -> list[bytes]:
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
class Uniform(Feedback, Packed, Rated):
    """Symmetric integers with one FP32 scale per channel (the first axis), which its largest magnitude decides.

    Channels of one element share a scale, for scales of their own would be longer than the elements.

    An element is off by half a step at most, or, rounded stochastically, by less than a step and right on average.

    Args:
        bits: of an integer, 2 to 8; int8 holds -127 to 127.
        rounding: "nearest", or "stochastic": up with the probability of the fraction.
        scales: "channel", or "tensor": one for all channels, which entropy coding turns into fewer bytes.
    """

    bits: Annotated[int, Field(ge=2, le=8, strict=True)] = 8
    rounding: Literal["nearest", "stochastic"] = "nearest"
    scales: Literal["channel", "tensor"] = "channel"

    @property
    def description(self) -> str:
        return f"int{self.bits} per {self.scales}"

    def encode_large(self, arrays: Arrays, rng: np.random.Generator, other_bytes: int, total: int) -> list[bytes]:
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
    """Yields pieces of a matrix of about `CHUNK` elements."""
    rows, columns = max(1, CHUNK // shape[1]), min(CHUNK, shape[1])
    for row in range(0, shape[0], rows):
        for column in range(0, shape[1], columns):
            yield slice(row, row + rows), slice(column, column + columns)
