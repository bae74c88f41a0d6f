"""Entropy-coded quantization: one step for all tensors, found so that the payload has the size that was asked for."""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass

from fl.codec.base import Codec, Decay
from fl.codec.entropy import WIDE_CHUNK, Entropy, pack, unpack
from fl.errors import PayloadError

LARGEST = np.finfo(np.float32).max
MOST_BINS = 15
"""Bins whose mean is stored; a value beyond decodes to the middle of its bin."""
MOST_GAIN = 2.0
"""Levels are raised no further: beyond that the error would be larger than if nothing were sent."""
STEPS = 30
TOLERANCE = 0.005


@dataclass(frozen=True)
class Ecq(Codec):
    """Dead-zone quantization with bin means, entropy coded, to a given number of bits per element of the model.

    A magnitude falls into bin `floor(x / step + offset)`, bin 0 is the dead zone, and each bin decodes to its mean. One
    global step serves all tensors, and bisection finds the one at which the whole payload, tables and small tensors
    included, has `bits` for each element of the model; less is used where nothing is left to say.

    A tensor's own step is the global one times a power of its size. Power 0 gives the smallest squared error (Gersho
    and Gray 1992, section 8.3), but an error in a small tensor harms the model more: `benchmarks/sensitivity.py`
    measures about the same harm for the same error per *tensor*. Around a bit, where the error of an unbiased tensor
    falls as one over its bits, that asks for bits as one over the square root of the size: about power 1/4.

    Bin means make the error smallest, but shrink what is sent: at 1 bit by a third. That is right with error feedback,
    which sends the rest later. Without it the levels of each tensor are raised by one factor, so that what is decoded
    has the length of what was encoded along its direction, as EDEN does (arXiv 2108.08842, section 4); at very low
    rates no more than twofold, where the error of the unbiased tensor would exceed that of sending nothing. Up to about
    half a bit the squared error is then that of sending nothing, and falls from there on.

    Args:
        bits: per element of the model, above 0: 1 means a 32nd of FP32. Tables and small tensors alone may take more.
        offset: 0.5 rounds to the nearest; less widens the dead zone.
        size_power: of a tensor's size in its step; 0 gives all tensors the same step.
        entropy: how bins are packed; "none" takes whole bits for each, 2 at least, and may stay well below the rate.
        error_feedback: see `Codec`.
        decay: see `Codec`.
    """

    bits: Annotated[float, Field(gt=0, le=32, allow_inf_nan=False)] = 1.0
    offset: Annotated[float, Field(ge=0, le=0.5)] = 0.4
    size_power: Annotated[float, Field(ge=0, le=1)] = 0.25
    entropy: Entropy = "ans"
    error_feedback: bool = False
    decay: Decay = 1.0

    @field_validator("bits", mode="before")
    @classmethod
    def _no_boolean(cls, bits: object) -> object:
        if isinstance(bits, bool):
            raise ValueError("must be a number")
        return bits

    @field_validator("entropy")
    @classmethod
    def _plain_packing_fits(cls, entropy: Entropy, info: ValidationInfo) -> Entropy:
        if entropy == "none" and (bits := info.data.get("bits", 2)) < 2:
            raise ValueError(f"plain packing takes 2 bits at least, bits={bits:g} is less; choose ans or zstd")
        return entropy

    @property
    def description(self) -> str:
        return f"ecq(offset={self.offset})"

    def encode_large(
        self, arrays: Sequence[np.ndarray], rng: np.random.Generator, other_bytes: int, total: int
    ) -> list[bytes]:
        wanted = self.bits * total / 8 - other_bytes
        biggest = max(array.size for array in arrays)
        finer = [(array.size / biggest) ** self.size_power for array in arrays]
        largest = max(float(np.abs(array).max()) / f for array, f in zip(arrays, finer, strict=True))

        def coded(exponent: float) -> list[bytes]:
            steps = [np.float32(min(2.0**exponent * f, float(LARGEST))) for f in finer]
            return [self._encode(array, step) for array, step in zip(arrays, steps, strict=True)]

        # A step of twice the largest magnitude empties every bin, one of a 2 ** 30th makes bins of 30 bits.
        exponent = np.log2(largest) if largest else 0.0
        fine = max(exponent - 30, -126.0)
        coarse = max(fine, exponent + 1.1)
        best = coded(coarse)
        for _ in range(STEPS if largest else 0):
            middle = (coarse + fine) / 2
            bodies = coded(middle)
            size = sum(map(len, bodies))
            if size > wanted:
                fine = middle
                continue
            best, coarse = bodies, middle
            if size >= (1 - TOLERANCE) * wanted:
                break
        return best if self.error_feedback else [self._unbiased(*each) for each in zip(arrays, best, strict=True)]

    def _unbiased(self, array: np.ndarray, body: bytes) -> bytes:
        """Returns the body with a step by which the decoded array is as long as the encoded one, along this."""
        decoded = self.decode_large(memoryview(body), (array.shape[0], array.shape[1]))
        # No dot product of a library: its order, and with it the bits, depends on the number of threads.
        energy = float(np.multiply(array, array, dtype=np.float64).sum())
        product = float(np.multiply(array, decoded, dtype=np.float64).sum())
        gain = min(energy / product, MOST_GAIN) if product else 1.0
        step = min(float(np.frombuffer(body[:4], "<f4")[0]) * gain, float(LARGEST))
        return np.array([step], "<f4").tobytes() + body[4:]

    def _encode(self, array: np.ndarray, step: np.float32) -> bytes:
        scaled = array.reshape(-1).astype(np.float64)
        scaled /= float(step)
        bins = (scaled + np.copysign(self.offset, scaled)).astype(np.int32)
        used = min(int(max(bins.max(), -bins.min())), MOST_BINS)
        inside = np.minimum(np.abs(bins), used + 1)
        counts = np.bincount(inside, minlength=used + 1)[1 : used + 1]
        sums = np.bincount(inside, weights=np.abs(scaled), minlength=used + 1)[1 : used + 1]
        lower = np.arange(1, used + 1) - self.offset
        places = np.where(counts > 0, sums / np.maximum(counts, 1) - lower, 0.5)
        head = np.array([step], "<f4").tobytes() + bytes([used])
        head += np.clip(np.rint(255 * places), 0, 255).astype(np.uint8).tobytes()
        return head + pack(bins, self.entropy)

    def decode_large(self, body: memoryview, shape: tuple[int, int]) -> np.ndarray:
        if len(body) < 5 or len(body) < 5 + body[4]:
            raise PayloadError("payload: ends within the bins' means")
        step, used = np.frombuffer(body[:4], "<f4")[0], body[4]
        symbols = unpack(body[5 + used :], shape[0] * shape[1])
        if used > MOST_BINS:
            raise PayloadError(f"payload: {used} bins have means, at most {MOST_BINS} may")
        places = np.frombuffer(body[5 : 5 + used], np.uint8) / 255
        means = np.concatenate([[0.0], np.arange(1, used + 1) - self.offset + places])
        with np.errstate(over="ignore", invalid="ignore"):
            levels = np.clip(means * float(step), -LARGEST, LARGEST).astype(np.float32)
            both_signs = np.concatenate([-levels[:0:-1], levels])
            array = np.empty(len(symbols), np.float32)
            for start in range(0, len(symbols), WIDE_CHUNK):  # what is in between takes more memory than the result
                part = symbols[start : start + WIDE_CHUNK]
                chunk = both_signs[np.clip(part, -used, used) + used]
                beyond = np.flatnonzero((part < -used) | (part > used))
                bins = part[beyond].astype(np.float32)
                values = (np.abs(bins) + np.float32(0.5 - self.offset)) * step
                chunk[beyond] = np.clip(np.copysign(values, bins), -LARGEST, LARGEST)
                array[start : start + WIDE_CHUNK] = chunk
        return array.reshape(shape)
