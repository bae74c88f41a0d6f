"""What every codec shares: which tensors are coded how, and the way through a payload."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import ConfigDict, Field

from fl.codec.entropy import compress, decompress
from fl.codec.payload import NO_STATE, Header, Spec, Tensors, assemble, dissect, specs_of
from fl.core.errors import PayloadError

PLAIN, PLANES, SCALED_HALF, CODED, SCALED_BYTE = range(5)
"""How a body is laid out: bytes as they are; compressed; FP16 or a byte times a power of two; the codec's own."""
STRICT = ConfigDict(extra="forbid")
"""Of every codec's class: a setting that it does not have is an error."""
Decay = Annotated[float, Field(ge=0, le=1, strict=True)]
TINY = 1024
"""Smaller tensors, and vectors (`is_vector`), cost little and would lose much: no codec of its own codes them."""
BYTE_STEPS = np.array([code if code < 16 else (16 + code % 16) << (code // 16 - 1) for code in range(128)])
"""Magnitudes of a byte: 0 to 31, then 16 for each doubling up to 1,984."""


def is_statistic(name: str) -> bool:
    """Tells BatchNorm's running statistics and counters by their names."""
    return name.endswith((".running_mean", ".running_var", ".num_batches_tracked"))


def is_value(name: str, dtype: np.dtype) -> bool:
    """Tells the tensors that no rounded difference may be added to.

    They are BatchNorm's statistics, whose sum with one could be a negative variance, and everything that is no
    floating-point number of at most 64 bits.
    """
    return is_statistic(name) or not np.issubdtype(dtype, np.floating) or dtype.itemsize > 8


def is_vector(name: str, shape: tuple[int, ...]) -> bool:
    """Tells biases and the weights of normalizations, of any size: few of all elements, each of which moves many."""
    return len(shape) < 2 and name.endswith(("bias", ".weight"))


def fingerprint(tensors: Tensors) -> bytes:
    """Returns 8 bytes of the SHA-256 of all names and elements, in order."""
    digest = hashlib.sha256()
    for name, array in tensors.items():
        digest.update(name.encode())
        digest.update(_little(array).tobytes())
    return digest.digest()[:8]


@dataclass(frozen=True)
class Composition:
    """What a payload's bytes are.

    Attributes:
        coded_elements: elements of the tensors that the codec itself codes.
        coded_bytes: of their bodies, histograms, steps and scales included.
        small_bytes: of the bodies of all other tensors.
        frame_bytes: of header, tensor table and checksum.
    """

    coded_elements: int
    coded_bytes: int
    small_bytes: int
    frame_bytes: int

    @property
    def bits(self) -> float:
        """Bits for each element that the codec codes; 0 where it codes none."""
        return 8 * self.coded_bytes / self.coded_elements if self.coded_elements else 0.0


def composition(payload: bytes, specs: Mapping[str, Spec]) -> Composition:
    """Returns what the bytes of a payload for this model are; their sum is its length.

    Raises:
        PayloadError: not a whole payload for this model.
    """
    _, bodies = dissect(payload, specs)
    coded = [(spec.size, len(body)) for spec, (kind, body) in zip(specs.values(), bodies, strict=True) if kind == CODED]
    all_bytes, coded_bytes = sum(len(body) for _, body in bodies), sum(length for _, length in coded)
    elements = sum(size for size, _ in coded)
    return Composition(elements, coded_bytes, all_bytes - coded_bytes, len(payload) - all_bytes)


class Codec(ABC):
    """Tensors to one payload and back: names, shapes and dtypes survive, values lose what the codec gives up.

    A codec is a class with three members: `description`, `encode_large` and `decode_large`. Which tensors reach them is
    decided here, once for all codecs: integers and booleans are exact; BatchNorm's statistics, biases and weights of
    normalizations, and tensors of fewer than `TINY` elements are FP16 or a byte times a power of two, statistics exact
    where that would move one far; the rest is the codec's.

    Attributes:
        error_feedback: whether a sender adds what was lost to what it sends next (arXiv 1901.09847).
        decay: what is kept of the loss until then, from 0 to 1.
        exact: whether every tensor travels as it is, and no difference is taken.
        tiny: tensors with fewer elements are never the codec's, nor, unless it is 0, is any `is_vector`.
        small_bytes: for each element of those: 2, or 1 where the codec's own have less than half a byte.
    """

    error_feedback: bool = False
    decay: float = 1.0
    exact: bool = False
    tiny: int = TINY

    @property
    def small_bytes(self) -> int:
        """Of each element of a tensor that is too small to be coded."""
        return 2

    @property
    @abstractmethod
    def description(self) -> str:
        """ASCII, with every setting that a decoder must know."""

    @abstractmethod
    def encode_large(
        self, arrays: Sequence[np.ndarray], rng: np.random.Generator, other_bytes: int, total: int
    ) -> list[bytes]:
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
            if (fixed := _not_finite(base[name])) is not None:
                if not np.array_equal(array[fixed], base[name][fixed], equal_nan=True):
                    raise PayloadError(f"payload: {name} holds NaN or infinity, which may not change")
                change = np.where(fixed, change.dtype.type(0), change)
            changes[name] = change
        return changes

    def applied(self, base: Tensors, decoded: Tensors) -> dict[str, np.ndarray]:
        """Returns `base` with what was decoded; both ends of a link come to the same bits.

        What is not finite in `base` stays as it is, and nothing else becomes so.

        Raises:
            PayloadError: a sum is not finite.
        """
        new = {}
        for name, change in decoded.items():
            with np.errstate(over="ignore", invalid="ignore"):
                array = change if self.travels_as_value(name, change.dtype) else np.asarray(base[name] + change)
            if (fixed := _not_finite(base[name])) is not None:
                self._check({name: np.where(fixed, array.dtype.type(0), array)})
                array = np.where(fixed, base[name], array)
            else:
                self._check({name: array})
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
        self._check(tensors)
        large = {name: _as_matrix(name, array) for name, array in tensors.items() if self._is_large(name, array)}
        bodies: dict[str, tuple[int, bytes]] = {}
        for name, array in tensors.items():
            if name not in large:
                bodies[name] = encode_exact(array) if self.exact else _encode_small(name, array, self.small_bytes)
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
                decoded = _within(matrix, spec.dtype).reshape(spec.shape)
            else:
                decoded = _decode_small(kind, body, spec)
            tensors[name] = decoded
        self._check(tensors)
        return tensors

    def _check(self, tensors: Tensors) -> None:
        for name, array in tensors.items():
            if np.issubdtype(array.dtype, np.inexact) and not np.isfinite(array).all():
                raise PayloadError(f"payload: {name} holds NaN or infinity")
            if name.endswith(".running_var") and (array < 0).any():
                raise PayloadError(f"payload: {name} holds a negative variance")

    def _is_large(self, name: str, array: np.ndarray | Spec) -> bool:
        small = array.size < max(1, self.tiny) or (self.tiny > 0 and is_vector(name, array.shape))
        return not small and not self.travels_as_value(name, array.dtype)


def _not_finite(array: np.ndarray) -> np.ndarray | None:
    """Returns where an array is not finite, None if it is everywhere."""
    if not np.issubdtype(array.dtype, np.inexact) or (finite := np.isfinite(array)).all():
        return None
    return ~finite


def _little(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<"))


def _within(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Returns the array in a type; what exceeds it becomes its largest."""
    if dtype.itemsize < array.itemsize:
        largest = np.finfo(dtype).max
        array = np.clip(array, -largest, largest)
    with np.errstate(invalid="ignore"):  # NaN, which is refused later
        return np.asarray(array).astype(dtype, copy=False)


def _as_matrix(name: str, array: np.ndarray) -> np.ndarray:
    rows = array.shape[0] if array.ndim > 1 else 1
    with np.errstate(over="ignore"):
        matrix = np.ascontiguousarray(array, dtype=np.float32).reshape(rows, -1)
    if array.dtype.itemsize > 4 and not np.isfinite(matrix).all():
        raise PayloadError(f"payload: {name} holds a value that exceeds FP32")
    return matrix


def encode_exact(array: np.ndarray) -> tuple[int, bytes]:
    """Returns kind and body of an array that loses nothing, compressed where that is shorter."""
    if array.nbytes >= 64:
        planes = compress(_little(array), 19 if array.nbytes < 2**16 else 1)  # long ones take long, and gain nothing
        if len(planes) < array.nbytes:
            return PLANES, planes
    return PLAIN, _little(array).tobytes()


def _encode_small(name: str, array: np.ndarray, num_bytes: int) -> tuple[int, bytes]:
    if not array.size or not np.issubdtype(array.dtype, np.floating) or array.dtype.itemsize > 8:
        return encode_exact(array)
    largest = float(np.abs(array).max())
    exponent = int(np.frexp(largest)[1]) if largest else 0
    if num_bytes == 1 and not name.endswith(".num_batches_tracked"):
        body = _byte_body(array, exponent)
        if not name.endswith(".running_var") or _is_close(SCALED_BYTE, body, array, 2**-5):
            return SCALED_BYTE, body
    body = _half_body(array, exponent)
    if not is_statistic(name) or _is_close(SCALED_HALF, body, array, 2**-10):
        return SCALED_HALF, body
    return encode_exact(array)


def _is_close(kind: int, body: bytes, array: np.ndarray, part: float) -> bool:
    """Tells whether no element moves by more than a part of itself, so that none becomes zero."""
    decoded = _decode_small(kind, memoryview(body), Spec(array.shape, array.dtype))
    return bool((np.abs(decoded - array) <= part * np.abs(array)).all())


def _half_body(array: np.ndarray, exponent: int) -> bytes:
    exponent = int(np.clip(exponent - 15, -1100, 1100))
    half = np.ldexp(array.astype(np.float64), -exponent).astype(np.float16)
    return np.array([exponent], "<i2").tobytes() + half.astype("<f2").tobytes()


def _byte_body(array: np.ndarray, exponent: int) -> bytes:
    exponent -= 11  # magnitudes up to 2,048, of which those beyond 1,984 become it
    wide = np.ldexp(array.astype(np.float64).reshape(-1), -exponent)
    codes = np.searchsorted((BYTE_STEPS[1:] + BYTE_STEPS[:-1]) / 2, np.abs(wide), side="right")
    return np.array([exponent], "<i2").tobytes() + (codes + 128 * (wide < 0)).astype(np.uint8).tobytes()


def _decode_small(kind: int, body: memoryview, spec: Spec) -> np.ndarray:
    width = {PLAIN: spec.dtype.itemsize, SCALED_HALF: 2, SCALED_BYTE: 1}.get(kind)
    offset = 2 if kind in (SCALED_HALF, SCALED_BYTE) else 0
    if kind == PLANES:
        little = decompress(body, spec.size, spec.dtype.newbyteorder("<"))
        return _refuse_odd_bits(little).astype(spec.dtype, copy=False).reshape(spec.shape)
    if width is None or len(body) != offset + spec.size * width:
        raise PayloadError(f"payload: {len(body)} bytes of kind {kind} are no tensor of {spec.size} elements")
    if kind == PLAIN:
        little = np.frombuffer(body, spec.dtype.newbyteorder("<"))
        return _refuse_odd_bits(little).astype(spec.dtype).reshape(spec.shape)
    if not np.issubdtype(spec.dtype, np.floating):
        raise PayloadError(f"payload: floating-point numbers for a tensor of {spec.dtype}")
    exponent = int(np.frombuffer(body[:2], "<i2")[0])
    if kind == SCALED_HALF:
        values = np.frombuffer(body[2:], "<f2").astype(np.float64)
    else:
        codes = np.frombuffer(body[2:], np.uint8)
        values = np.where(codes < 128, 1.0, -1.0) * BYTE_STEPS[codes % 128]
    with np.errstate(over="ignore", invalid="ignore"):
        return _within(np.ldexp(values, exponent), spec.dtype).reshape(spec.shape)


def _refuse_odd_bits(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.bool_ and (array.view(np.uint8) > 1).any():
        raise PayloadError("payload: a boolean is neither 0 nor 1")
    return array
