"""What every codec shares: the way through a payload, and settings."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Self

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from fl.codec.entropy import Entropy
from fl.codec.payload import CODED, NO_STATE, Header, Spec, Tensors, assemble, dissect, specs_of
from fl.codec.shares import MOST_BITS
from fl.codec.tensors import decode_small, encode_small, is_value, is_vector, not_finite, refuse_impossible, within
from fl.core.errors import PayloadError

Arrays = Sequence[np.ndarray]
STRICT = ConfigDict(extra="forbid")
"""Of every codec's class: a setting that it does not have is an error."""
TINY = 1024
"""Smaller tensors, and vectors (`is_vector`), cost little and would lose much: no codec of its own codes them."""
LATEST = 1000
"""Rounds after which bits no longer rise: any rise has come to its end by then, or is too small to be one."""


class Codec(ABC):
    """Tensors to one payload and back: names, shapes and dtypes survive, values lose what the codec gives up.

    A codec is a class with three members: `description`, `encode_large` and `decode_large`. Which tensors reach them is
    decided here, once for all codecs: integers and booleans are exact; BatchNorm's statistics, biases and weights of
    normalizations, and tensors of fewer than `TINY` elements are FP16 or a byte times a power of two, statistics exact
    where that would move one far; the rest is the codec's.

    Attributes:
        error_feedback: whether a sender adds what was lost to what it sends next (arXiv 1901.09847).
        decay: what is kept of the loss until then, from 0 to 1.
        by_weight: whether clients of larger weight send more bits in an update, others fewer; the mean stays.
        exact: whether no difference is taken and no tensor is the codec's own; who sets it overrides `encode`.
        tiny: tensors with fewer elements are never the codec's, nor, unless it is 0, is any `is_vector`.
        small_bytes: for each element of those: 2, or 1 where the codec's own have less than half a byte.
    """

    error_feedback: bool = False
    decay: float = 1.0
    by_weight: bool = False
    exact: bool = False
    tiny: int = TINY

    def in_round(self, number: int) -> "Codec":
        """Returns the codec of a round, counted from 1: itself, but for one whose bits go by the round."""
        return self

    @property
    def small_bytes(self) -> int:
        """Of each element of a tensor that is too small to be coded."""
        return 2

    @property
    @abstractmethod
    def description(self) -> str:
        """ASCII, with every setting that a decoder must know."""

    @abstractmethod
    def encode_large(self, arrays: Arrays, rng: np.random.Generator, other_bytes: int, total: int) -> list[bytes]:
        """Returns a body for each array.

        Args:
            arrays: float32 [channels, elements of each], finite, not all 0, at least `TINY` elements each.
            rng: for rounding and rotation.
            other_bytes: length of the payload without these bodies.
            total: elements of all tensors of the model.
        """

    @abstractmethod
    def decode_large(self, body: memoryview, shape: tuple[int, int]) -> np.ndarray:
        """Returns one array, float32 of this shape.

        Raises:
            PayloadError: the body is not what `encode_large` makes of such an array.
        """

    def travels_as_value(self, name: str, dtype: np.dtype) -> bool:
        """Tells the tensors that travel as values; of all others the difference to the base does."""
        return self.exact or is_value(name, dtype)

    def differences(self, new: Tensors, base: Tensors) -> dict[str, np.ndarray]:
        """Returns what has to travel for who holds `base` to come to `new`; zeros where `base` is not finite.

        Raises:
            PayloadError: an element of `base` is not finite, as in a mask, and another one in `new`.
        """
        changes = {}
        for name, array in new.items():
            with np.errstate(over="ignore", invalid="ignore"):  # `encode` refuses what comes of it
                change = array if self.travels_as_value(name, array.dtype) else np.asarray(array - base[name])
            if (fixed := not_finite(base[name])) is not None:
                if not np.array_equal(array[fixed], base[name][fixed], equal_nan=True):
                    raise PayloadError(f"payload: {name} holds NaN or infinity, which may not change")
                change = np.where(fixed, change.dtype.type(0), change)
            changes[name] = change
        return changes

    def applied(self, base: Tensors, decoded: Tensors) -> dict[str, np.ndarray]:
        """Returns `base` with what was decoded; both ends come to the same bits.

        What is not finite in `base` stays as it is, and nothing else becomes so.

        Raises:
            PayloadError: a sum is not finite.
        """
        new = {}
        for name, change in decoded.items():
            with np.errstate(over="ignore", invalid="ignore"):
                array = change if self.travels_as_value(name, change.dtype) else np.asarray(base[name] + change)
            if (fixed := not_finite(base[name])) is not None:
                refuse_impossible({name: np.where(fixed, array.dtype.type(0), array)})
                array = np.where(fixed, base[name], array)
            else:
                refuse_impossible({name: array})
            new[name] = array
        return new

    def encode(self, tensors: Tensors, rng: np.random.Generator, *, base: bytes = NO_STATE) -> bytes:
        """Returns the payload.

        Args:
            tensors: what travels, by name, any shapes, dtypes of NumPy.
            rng: for stochastic rounding and random rotation; a codec without either leaves it alone.
            base: fingerprint of what these are differences to.

        Raises:
            PayloadError: NaN, infinity or a negative variance; or what the codec cannot hold.
        """
        refuse_impossible(tensors)
        large = {name: _as_matrix(name, array) for name, array in tensors.items() if self._is_large(name, array)}
        bodies = {n: encode_small(n, array, self.small_bytes) for n, array in tensors.items() if n not in large}
        specs = specs_of(tensors)
        if large:
            empty = [bodies.get(name, (CODED, b"")) for name in tensors]
            other_bytes = len(assemble(Header(self.description, base), specs, empty))
            moved = [name for name, array in large.items() if array.any()]  # the others have nothing to say
            total, several = sum(spec.size for spec in specs.values()), [large[name] for name in moved]
            coded = self.encode_large(several, rng, other_bytes, total) if moved else []
            bodies |= dict.fromkeys(large, (CODED, b"")) | {n: (CODED, b) for n, b in zip(moved, coded, strict=True)}
        return assemble(Header(self.description, base), specs, [bodies[name] for name in tensors])

    def decode(self, payload: bytes, specs: Mapping[str, Spec]) -> dict[str, np.ndarray]:
        """Returns the tensors, new arrays, all finite and variances not negative.

        Args:
            payload: what `encode` returned, here or on another machine.
            specs: names, shapes and dtypes of the model, which decide what is allocated.

        Raises:
            PayloadError: damaged, for another model, of another codec, or not what was promised above.
        """
        header, bodies = dissect(payload, specs)
        if header.codec != self.description:
            raise PayloadError(f"payload: was coded by {header.codec!r}, not by {self.description!r}")
        tensors = {}
        for (name, spec), (kind, body) in zip(specs.items(), bodies, strict=True):
            if kind == CODED:
                rows = spec.shape[0] if len(spec.shape) > 1 else 1
                if not self._is_large(name, spec):
                    raise PayloadError(f"payload: {name} is coded, which such a tensor never is")
                shape = rows, spec.size // rows
                matrix = self.decode_large(body, shape) if len(body) else np.zeros(shape, np.float32)
                decoded = within(matrix, spec.dtype).reshape(spec.shape)
            else:
                decoded = decode_small(kind, body, spec)
            tensors[name] = decoded
        refuse_impossible(tensors)
        return tensors

    def _is_large(self, name: str, array: np.ndarray | Spec) -> bool:
        small = array.size < max(1, self.tiny) or (self.tiny > 0 and is_vector(name, array.shape))
        return not small and not self.travels_as_value(name, array.dtype)


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Feedback(Codec):
    """The settings of a codec that loses something; `Codec` says what they do."""

    error_feedback: bool = False
    decay: Annotated[float, Field(ge=0, le=1, strict=True)] = 1.0


class Rated(Codec):
    """A codec of so many bits for each element that it codes."""

    bits: float

    @property
    def small_bytes(self) -> int:
        """As few as are no coarser than what is coded."""
        return 1 if self.bits < 4 else 2


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Shared(Rated):
    """The settings of a codec of any number of `bits`: who has them, and when.

    What a round loses is mended in part by those after it, and nothing mends the last: with `rise`, early rounds have
    fewer bits and late ones more (as DAdaQuant does, arXiv 2111.00465).

    Args:
        by_weight: whether clients share the bits of an update by weight (`fl/codec/shares.py`).
        rise: a round has so many times the bits of the one before, up to `MOST_BITS` or `bits`; `bits` are the first
            round's, 1 gives all rounds the same.
    """

    by_weight: Annotated[bool, Field(strict=True)] = False
    rise: Annotated[float, Field(ge=1, le=2, strict=True)] = 1.0

    def in_round(self, number: int) -> Self:
        """Returns the codec of a round, counted from 1."""
        if self.rise == 1:
            return self
        return self.at(min(self.bits * self.rise ** min(number - 1, LATEST), max(self.bits, MOST_BITS)))

    def at(self, bits: float) -> Self:
        """Returns the same codec with other bits per element.

        Raises:
            PayloadError: there can be no such number.
        """
        try:
            return replace(self, bits=bits)  # type: ignore[call-arg]
        except ValueError as error:
            raise PayloadError(f"payload: cannot have {bits!r} bits for each element") from error


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Packed(Codec):
    """The setting of a codec that makes integers: how they are packed."""

    entropy: Entropy = "ans"


def _as_matrix(name: str, array: np.ndarray) -> np.ndarray:
    rows = array.shape[0] if array.ndim > 1 else 1
    with np.errstate(over="ignore"):
        matrix = np.ascontiguousarray(array, dtype=np.float32).reshape(rows, -1)
    if array.dtype.itemsize > 4 and not np.isfinite(matrix).all():
        raise PayloadError(f"payload: {name} holds a value that exceeds FP32")
    return matrix
