"""Entropy-coded trellis quantization: what `ecq` sends with the same error, in fewer bytes and more time."""

import math
import struct
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from fl.codec.base import STRICT, Arrays, Feedback, Shared
from fl.codec.contexts import Reader, Writer, model_of
from fl.codec.ecq import LARGEST, LEAST_SHARE, MOST_GAIN, TOLERANCE
from fl.codec.entropy import entropy_bits, read_varints, varints
from fl.codec.rate import Curve, Steps, bodies_within
from fl.codec.trellis import CENTRED, MOST, NEXT, NOMINAL, Prices, best_path, in_lanes, lanes_of, out_of_lanes
from fl.core.errors import PayloadError

OFFSET, WIDER = 0.4, 0.55
"""A step of the trellis takes about as many bits as one of `ecq`'s with this offset that is so much wider."""
SAMPLE, SHORT, PASSES = 192, 64, 3
"""Prices are learned from that many lanes of a tensor, so long, in so many passes: more of them talk prices and path
into sending nothing."""
_HEAD = struct.Struct("<fB6b")  # step, largest index, what the levels of small indices are off by
TINIEST = float(np.finfo(np.float32).tiny)
_OFF = 127
"""Levels are off by so many parts of a step, at most one step."""


@dataclass(frozen=True, config=STRICT)
class Tcq(Feedback, Shared):
    """Trellis-coded quantization, entropy coded, to a given number of bits per element that it codes.

    As `ecq`, with two quantizers in the place of one, which take turns by the parity of what was sent
    (`fl/codec/trellis.py`). Steps, their growth with a tensor's size, the share that each tensor has of the rate, and
    the factor that levels are raised by without error feedback, at most 2, are those of `ecq`. A step is at least a
    254th of a tensor's largest magnitude.

    Args:
        bits: per element that is coded, above 0 and up to 4: 1 means a 32nd of FP32.
        size_power: of a tensor's size in its step; 0 gives all tensors the same step.
    """

    bits: Annotated[float, Field(gt=0, le=4, allow_inf_nan=False)] = 1.0
    size_power: Annotated[float, Field(ge=0, le=1)] = 0.25
    description, small_bytes = "tcq", 1

    def encode_large(self, arrays: Arrays, rng: np.random.Generator, other_bytes: int, total: int) -> list[bytes]:
        elements = sum(array.size for array in arrays)
        wanted = self.bits * elements / 8
        curves = [Curve(array, OFFSET) for array in arrays]
        steps = Steps(curves, [self._coarsest(curve) for curve in curves], self.size_power, WIDER)
        parts = [_Part(array.reshape(-1)) for array in arrays]
        slack = max(TOLERANCE * wanted, 4 * len(arrays))

        def bodies(target: float) -> list[bytes]:
            found = steps.largest_within(lambda each: _Attempt(parts, each), target, slack, steps.end)
            if found is None:
                floor = math.ceil(1.02 * 8000 * _Attempt(parts, steps.limits).size / elements) / 1000
                raise PayloadError(
                    f"tcq: bits={self.bits:g} is less than these tensors take; choose at least {floor:g}"
                )
            return [part.body(self.error_feedback) for part in found.parts]

        return bodies_within(wanted, bodies)

    def _coarsest(self, curve: Curve) -> float:
        """Returns the step at which a tensor has its share, or its largest element an index of about eight."""
        share = WIDER * curve.step_for(LEAST_SHARE * self.bits * curve.size)
        return max(share, curve.largest / 16)

    def decode_large(self, body: memoryview, shape: tuple[int, int]) -> np.ndarray:
        return _decode(body, shape[0] * shape[1]).reshape(shape)


class _Part:
    """One tensor in lanes, and those of a few short ones to learn prices from."""

    def __init__(self, vector: np.ndarray) -> None:
        self.lanes, short = in_lanes(vector), in_lanes(vector, SHORT)
        self.some = np.ascontiguousarray(short[:, :: max(1, short.shape[1] // SAMPLE)])
        self.finest = max(float(np.abs(vector).max()) / float(NOMINAL.max()), TINIEST)


class _Quantized:
    """One tensor quantized with a step."""

    def __init__(self, part: _Part, step: float) -> None:
        self._step = np.float32(min(max(step, part.finest), float(LARGEST)))
        self._values, values = part.lanes / self._step, part.some / self._step
        prices = Prices.guess(float(np.sqrt(np.square(values, dtype=np.float64).mean())))
        for _ in range(PASSES):
            prices = Prices.of(values, best_path(values, prices))
        self._path = best_path(self._values, prices)
        self._counts, self._used = self._path.counts(), max(1, int(self._path.indices.max()))
        self._negative = (self._values < 0)[self._path.indices > 0]
        negative = np.count_nonzero(self._negative)
        self._signs = np.array([self._negative.size - negative, negative])
        histograms = (self._signs, *(each[: self._used + 1] for each in self._counts))
        self._head = b"".join(varints(each) for each in histograms)
        bits = self._path.bits() + entropy_bits(self._signs)
        self.size = _HEAD.size + len(self._head) + bits / 8 + 8

    def body(self, shrunk: bool) -> bytes:
        """Returns step, levels, histograms, coded indices and signs.

        Args:
            shrunk: levels are the means; else they are raised, so that what is decoded is as long as what was encoded.
        """
        path, values = self._path, self._values
        off = np.rint((Prices.of(values, path).levels - NOMINAL)[:, 1:CENTRED] * _OFF).clip(-_OFF, _OFF)
        step = float(self._step)
        if not shrunk:
            # No dot product of a library: its order, and with it the bits, depends on the number of threads.
            decoded = _levels(off.reshape(-1))[path.quantizers, path.indices]
            product = float(np.multiply(decoded, np.abs(values), dtype=np.float64).sum())
            energy = float(np.square(values, dtype=np.float64).sum())
            step *= min(energy / product, MOST_GAIN) if product else 1.0
        head = _HEAD.pack(min(step, float(LARGEST)), self._used, *off.astype(int).reshape(-1))
        models = [model_of(each[: self._used + 1]) if each.any() else None for each in self._counts]
        writer = Writer()
        if len(self._negative):
            writer.put_before(self._negative, model_of(self._signs))
        for indices, quantizers in zip(path.indices[::-1], path.quantizers[::-1], strict=True):
            for which in (1, 0):
                if (model := models[which]) is not None:
                    writer.put_before(indices[quantizers == which], model)
        return head + self._head + writer.words()


class _Attempt:
    """All tensors quantized with a step each; `size` is about how many bytes their bodies take."""

    def __init__(self, parts: Sequence[_Part], steps: Sequence[float]) -> None:
        self.parts = [_Quantized(part, step) for part, step in zip(parts, steps, strict=True)]
        self.size = sum(part.size for part in self.parts)


def _levels(off: Sequence[int] | np.ndarray) -> np.ndarray:
    """Returns what each index of each quantizer decodes to, in steps."""
    levels = NOMINAL.copy()
    levels[:, 1:CENTRED] += np.asarray(off, np.float32).reshape(2, -1) / np.float32(_OFF)
    return levels


def _decode(body: memoryview, size: int) -> np.ndarray:
    """Returns the vector.

    Raises:
        PayloadError: the body is not what `_Quantized.body` makes of so many elements.
    """
    if len(body) < _HEAD.size:
        raise PayloadError("payload: ends within the head of a tensor")
    step, used, *off = _HEAD.unpack_from(body)
    if not 1 <= used <= MOST:
        raise PayloadError(f"payload: the largest index is {used}, it must be from 1 to {MOST}")
    (steps, lanes), histograms, at = lanes_of(size), [], _HEAD.size
    for length in (2, used + 1, used + 1):
        each, taken = read_varints(body[at:], length)
        histograms.append(each.astype(np.int64))
        at += taken
    signs, *counts = histograms
    if sum(int(each.sum()) for each in counts) != steps * lanes:
        raise PayloadError("payload: the histograms are of another number of indices")
    reader = Reader(body[at:])
    indices, quantizers = _read_path(reader, counts, (steps, lanes))
    nonzero = np.flatnonzero(indices)
    if len(nonzero) != signs.sum():
        raise PayloadError("payload: the histograms are not those of the indices")
    negative = np.empty(len(nonzero), np.uint8)
    if len(nonzero):
        reader.fill(negative, model_of(signs))
    reader.end()
    with np.errstate(over="ignore", invalid="ignore"):
        levels = np.clip(_levels(off) * np.float32(step), -LARGEST, LARGEST)
    values = levels[quantizers, indices].reshape(-1)
    values[nonzero[negative > 0]] *= -1
    return out_of_lanes(values.reshape(steps, lanes), size)


def _read_path(reader: Reader, counts: Arrays, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns indices and quantizers, uint8 [steps, lanes]."""
    models = [model_of(each) if each.any() else None for each in counts]
    indices, quantizers = np.empty(shape, np.uint8), np.empty(shape, np.uint8)
    following, state = NEXT.reshape(-1), np.zeros(shape[1], np.uint8)
    for now, which in zip(indices, quantizers, strict=True):
        np.bitwise_and(state, 1, out=which)
        for quantizer, model in enumerate(models):
            mine = which == quantizer
            found = np.empty(np.count_nonzero(mine), np.uint8)
            if model is not None:
                reader.fill(found, model)
            elif len(found):
                raise PayloadError("payload: an index has no histogram")
            now[mine] = found
        state = following[2 * state + (now & 1)]
    return indices, quantizers
