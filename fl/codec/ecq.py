"""Entropy-coded quantization: one step for all tensors, found so that what it codes has the size that was asked for."""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated

import numpy as np
from pydantic import Field, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass

from fl.codec.base import STRICT, Arrays, Feedback, Packed, Shared
from fl.codec.entropy import CHUNK, WIDE_CHUNK, Entropy, Packing, plain_bytes, unpack
from fl.codec.rate import Curve, Steps, bodies_within, largest_within
from fl.core.errors import PayloadError

LARGEST, SMALLEST = np.finfo(np.float32).max, np.finfo(np.float32).smallest_subnormal
MOST_BINS = 15
"""Bins whose mean is stored; a value beyond decodes to the middle of its bin."""
MOST_GAIN = 2.0
"""Levels are raised no further: beyond that the error would be larger than if nothing were sent."""
LEAST_SHARE = 0.25
"""Of the rate, for each tensor: so that one of small values is not silent beside one of large values."""
TOLERANCE = 0.005
HEAD_BYTES = 15
"""Of a body: step, number of bins, and the head of its symbols."""


@dataclass(frozen=True, config=STRICT)
class Ecq(Feedback, Packed, Shared):
    """Dead-zone quantization with bin means, entropy coded, to a given number of bits per element that it codes.

    A magnitude falls into bin `floor(x / step + offset)`, bin 0 is the dead zone, and each bin decodes to its mean. One
    global step serves all tensors: the one at which their bodies together have `bits` for each of their elements, or
    up to 0.5 % less; a tensor that did not change takes nothing. Tensors that are not the codec's and the payload's
    header come on top (`composition` tells what). Less is used where nothing is left to say, at 27 bits or sooner.

    A tensor's own step is the global one times a power of its size. Power 0 gives the smallest squared error (Gersho
    and Gray 1992, section 8.3), but an error in a small tensor harms the model more: `benchmarks/sensitivity.py`
    measures about the same harm for the same error per *tensor*, the first one apart. Around a bit, where the error
    falls as one over a tensor's bits, that asks for bits as one over the square root of the size: about power 1/4.

    No tensor is silent beside others: its step is so fine that its largest element has a bin beyond the dead zone, and
    that it has a quarter of the rate, or eight bins where that takes less. Where so many elements are as large as the
    largest that it takes too much, some of them are sent, chosen at random. If one of each tensor takes too much, the
    rate is refused.

    Bin means make the error smallest, but shrink what is sent: at 1 bit by a third. That is right with error feedback,
    which sends the rest later. Without it the levels of each tensor are raised by one factor, so that what is decoded
    has the length of what was encoded along its direction, as in EDEN (arXiv 2108.08842, section 4). The factor is at
    most 2, where the squared error comes to that of sending nothing: at half a bit and below large tensors arrive
    shorter than they were, on average too.

    Args:
        bits: per element that is coded, above 0: 1 means a 32nd of FP32.
        offset: 0.5 rounds to the nearest; less widens the dead zone.
        size_power: of a tensor's size in its step; 0 gives all tensors the same step.
        entropy: "none" takes whole bits for each bin, 2 at least, and may stay well below the rate.
    """

    bits: Annotated[float, Field(gt=0, le=32, allow_inf_nan=False)] = 1.0
    offset: Annotated[float, Field(ge=0, le=0.5)] = 0.4
    size_power: Annotated[float, Field(ge=0, le=1)] = 0.25

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

    def encode_large(self, arrays: Arrays, rng: np.random.Generator, other_bytes: int, total: int) -> list[bytes]:
        wanted = self.bits * sum(array.size for array in arrays) / 8
        return bodies_within(wanted, lambda target: self._found(arrays, target, rng).bodies())

    def _found(self, arrays: Arrays, wanted: float, rng: np.random.Generator) -> "_Attempt":
        """Returns the tensors quantized so finely that they take about so many bytes."""
        curves = [Curve(array, self.offset) for array in arrays]
        fair = Steps(curves, [self._fair(curve) for curve in curves], self.size_power)
        coarsest = Steps(curves, [curve.coarsest for curve in curves], self.size_power)
        slack = max(TOLERANCE * wanted, 4 * len(arrays))
        if self.entropy == "none":  # three bins at least
            self._refuse_below(sum(HEAD_BYTES + 1 + math.ceil(array.size / 4) for array in arrays), arrays, wanted)
        for steps in (fair, coarsest):
            found = steps.largest_within(lambda each: _Attempt(self, arrays, curves, each), wanted, slack, coarsest.end)
            if found:
                return found
        seed = int(rng.integers(2**32))  # many elements are as large as the largest: only some are sent
        fewest = _Attempt(self, arrays, curves, coarsest.limits, 0.0, seed)
        self._refuse_below(fewest.size, arrays, wanted)
        some = largest_within(
            lambda each: _Attempt(self, arrays, curves, coarsest.limits, 2.0**-each, seed),
            lambda each: 25 * len(arrays) + coarsest.expected_bytes(coarsest.end) * 2.0**-each,
            wanted,
            slack,
            (0.0, 40.0),
        )
        return some or fewest

    def _refuse_below(self, least: float, arrays: Arrays, wanted: float) -> None:
        if least > wanted:
            floor = math.ceil(1.02 * 8000 * least / sum(array.size for array in arrays)) / 1000
            raise PayloadError(
                f"ecq: bits={self.bits:g} is less than one element of each of the {len(arrays)} tensors takes; "
                f"choose at least {floor:g}"
            )

    def _fair(self, curve: Curve) -> float:
        """Returns the coarsest step at which a tensor has its share, or its largest element a few bins."""
        share = curve.step_for(LEAST_SHARE * self.bits * curve.size)
        return max(share, curve.largest / 8)

    def _encode(self, array: np.ndarray, step: float) -> bytes:
        """Returns the body of one tensor."""
        return _Attempt(self, [array], [Curve(array, self.offset)], [step]).bodies()[0]

    def _quantized(self, array: np.ndarray, step: float) -> np.ndarray:
        """Returns the bins, of the array's shape: int8 where they fit."""
        largest = float(max(array.max(), -array.min()))
        bins = np.empty(array.shape, np.int8 if largest / step < 126 else np.int32)
        flat, out, offset, width = array.reshape(-1), bins.reshape(-1), np.float32(self.offset), np.float32(step)
        for start in range(0, len(flat), CHUNK):
            part = flat[start : start + CHUNK]
            scaled = part / width
            scaled += np.copysign(offset, part)
            out[start : start + CHUNK] = scaled  # towards zero
        return bins

    def _body(self, array: np.ndarray, bins: np.ndarray, step: float, packing: Packing) -> bytes:
        """Returns the bins with their means, raised without error feedback.

        Only sums of NumPy: the order of a library's dot product, and so the bits, depends on the number of threads.
        """
        used = min(max(int(bins.max()), -int(bins.min())), MOST_BINS)
        counts, sums = np.zeros(used + 2, np.int64), np.zeros(used + 2)
        energy = beyond = 0.0
        flat, symbols = array.reshape(-1), bins.reshape(-1)
        for start in range(0, len(flat), CHUNK):
            part, each = np.abs(flat[start : start + CHUNK]), np.abs(symbols[start : start + CHUNK])
            energy += float(np.square(part, dtype=np.float64).sum())
            inside = np.minimum(each, used + 1) if used == MOST_BINS else each
            counts += np.bincount(inside, minlength=used + 2)
            sums += np.bincount(inside, weights=part, minlength=used + 2)
            if used == MOST_BINS:
                far = inside > used
                beyond += float((part[far] * (each[far] + (0.5 - self.offset))).sum())
        lower = np.arange(1, used + 1) - self.offset
        means = sums[1:-1] / np.maximum(counts[1:-1], 1) / step - lower
        places = np.clip(np.rint(255 * np.where(counts[1:-1] > 0, means, 0.5)), 0, 255).astype(np.uint8)
        product = step * (float((sums[1:-1] * (lower + places / 255)).sum()) + beyond)
        if product > 0 and not self.error_feedback:
            step *= min(energy / product, MOST_GAIN)
        head = np.array([min(step, float(LARGEST))], "<f4").tobytes() + bytes([used])
        return head + places.tobytes() + packing.coded()

    def decode_large(self, body: memoryview, shape: tuple[int, int]) -> np.ndarray:
        if len(body) < 5 or len(body) < 5 + body[4]:
            raise PayloadError("payload: ends within the bins' means")
        step, used = np.frombuffer(body[:4], "<f4")[0], body[4]
        symbols = unpack(body[5 + used :], shape[0] * shape[1], shape[1])
        if used > MOST_BINS:
            raise PayloadError(f"payload: {used} bins have means, at most {MOST_BINS} may")
        places = np.frombuffer(body[5 : 5 + used], np.uint8) / 255
        with np.errstate(over="ignore", invalid="ignore"):
            means = (np.arange(1, used + 1) - self.offset + places) * float(step)
            means = np.clip(means, -LARGEST, LARGEST).astype(np.float32)
            array = np.empty(len(symbols), np.float32)
            if symbols.dtype == np.int8:  # whose levels fit into a table
                table = self._levels(np.arange(256, dtype=np.uint8).view(np.int8), means, step)
                for start in range(0, len(symbols), CHUNK):
                    array[start : start + CHUNK] = table[symbols[start : start + CHUNK].view(np.uint8)]
                return array.reshape(shape)
            for start in range(0, len(symbols), WIDE_CHUNK):  # what is in between takes more memory than the result
                array[start : start + WIDE_CHUNK] = self._levels(symbols[start : start + WIDE_CHUNK], means, step)
        return array.reshape(shape)

    def _levels(self, symbols: np.ndarray, means: np.ndarray, step: np.float32) -> np.ndarray:
        """Returns what symbols decode to, float32."""
        bins = np.abs(symbols.astype(np.float32))
        levels = np.clip((bins + np.float32(0.5 - self.offset)) * step, -LARGEST, LARGEST)
        known = np.concatenate([np.zeros(1, np.float32), means])
        inside = bins <= len(means)
        levels[inside] = known[bins[inside].astype(np.int64)]
        return np.where(symbols < 0, -levels, levels)


class _Attempt:
    """Tensors quantized with a step each, and counted.

    Attributes:
        size: about how many bytes their bodies take.
    """

    def __init__(
        self,
        codec: Ecq,
        arrays: Arrays,
        curves: Sequence[Curve],
        steps: Sequence[float],
        part: float = 1.0,
        seed: int = 0,
    ) -> None:
        self._codec, self._arrays = codec, arrays
        self._steps = [float(np.float32(np.clip(step, float(SMALLEST), float(LARGEST)))) for step in steps]
        self._part, self._seed = part, seed
        ends = [codec._quantized(curve.ends, step).tolist() for curve, step in zip(curves, self._steps, strict=True)]
        used = [min(max(-low, high), MOST_BINS) for low, high in ends]
        if codec.entropy == "none" and part == 1:  # the outermost bins tell
            sizes: list[float] = [plain_bytes(low, high, a.size) for (low, high), a in zip(ends, arrays, strict=True)]
        else:
            sizes = [each.size for each in self._packings]
        self.size = sum(size + 5 + each for size, each in zip(sizes, used, strict=True))

    @cached_property
    def _bins(self) -> list[np.ndarray]:
        found = [self._codec._quantized(*each) for each in zip(self._arrays, self._steps, strict=True)]
        if self._part < 1:
            rng = np.random.default_rng(self._seed)
            for bins in found:
                places = rng.permutation(np.flatnonzero(bins))
                bins.reshape(-1)[places[max(1, round(self._part * len(places))) :]] = 0
        return found

    @cached_property
    def _packings(self) -> list[Packing]:
        return [Packing(bins, self._codec.entropy) for bins in self._bins]

    def bodies(self) -> list[bytes]:
        """Returns them coded."""
        several = zip(self._arrays, self._bins, self._steps, self._packings, strict=True)
        return [self._codec._body(*each) for each in several]
