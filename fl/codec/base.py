"""What every codec shares: which tensors are coded how, and the way through a payload."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from fl.codec.entropy import compress, decompress
from fl.codec.payload import NO_STATE, Header, Spec, Tensors, assemble, dissect, specs_of
from fl.errors import PayloadError

PLAIN, PLANES, SCALED_HALF, CODED = range(4)
"""How a tensor's body is laid out: bytes as they are; compressed; FP16 times a power of two; the codec's own."""
Decay = Annotated[float, Field(ge=0, le=1, strict=True)]
TINY = 1024
"""Smaller tensors, and vectors (`is_vector`), cost little and would lose much: FP16 times a power of two."""


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


class Codec(ABC):
    """Tensors to one payload and back: names, shapes and dtypes survive, values lose what the codec gives up.

    A codec is a class with three members: `description`, `encode_large` and `decode_large`. Which tensors reach them is
    decided here, once for all codecs: integers and booleans are exact; BatchNorm's statistics, biases and weights of
    normalizations, and tensors of fewer than `TINY` elements are FP16 times a power of two, or exact where that would
    turn a value into zero; the rest is the codec's.

    Attributes:
        error_feedback: whether a sender adds what was lost to what it sends next (arXiv 1901.09847).
        decay: what is kept of the loss until then, from 0 to 1.
        exact: whether every tensor travels as it is, and no difference is taken.
        tiny: tensors with fewer elements are never the codec's, nor, unless it is 0, is any `is_vector`.
    """

    error_feedback: bool = False
    decay: float = 1.0
    exact: bool = False
    tiny: int = TINY

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
            arrays: float32 [channels, elements of each], finite, at least `TINY` elements each.
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
        """Returns what has to travel for who holds `base` to come to `new`."""
        with np.errstate(over="ignore", invalid="ignore"):  # `encode` refuses what comes of it
            return {n: a if self.travels_as_value(n, a.dtype) else np.asarray(a - base[n]) for n, a in new.items()}

    def applied(self, base: Tensors, decoded: Tensors) -> dict[str, np.ndarray]:
        """Returns `base` with what was decoded; both ends of a link come to the same bits.

        Raises:
            PayloadError: a sum is not finite.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            new = {n: d if self.travels_as_value(n, d.dtype) else np.asarray(base[n] + d) for n, d in decoded.items()}
        self._check(new)
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
                bodies[name] = encode_exact(array) if self.exact else _encode_small(name, array)
        specs = specs_of(tensors)
        if large:
            empty = [bodies.get(name, (CODED, b"")) for name in tensors]
            other_bytes = len(assemble(Header(self.description, base), specs, empty))
            coded = self.encode_large(list(large.values()), rng, other_bytes, sum(spec.size for spec in specs.values()))
            bodies |= {name: (CODED, body) for name, body in zip(large, coded, strict=True)}
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
                matrix = self.decode_large(body, (rows, spec.size // rows))
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
    plain = _little(array).tobytes()
    if len(plain) < 64:
        return PLAIN, plain
    planes = compress(_little(array), 19 if len(plain) < 2**16 else 1)  # long ones take long, and gain nothing
    return (PLANES, planes) if len(planes) < len(plain) else (PLAIN, plain)


def _encode_small(name: str, array: np.ndarray) -> tuple[int, bytes]:
    if not array.size or not np.issubdtype(array.dtype, np.floating) or array.dtype.itemsize > 8:
        return encode_exact(array)
    largest = float(np.abs(array).max())
    exponent = int(np.clip(np.frexp(largest)[1] - 15, -1100, 1100)) if largest else 0
    half = np.ldexp(array.astype(np.float64), -exponent).astype(np.float16)
    body = np.array([exponent], "<i2").tobytes() + half.astype("<f2").tobytes()
    if is_statistic(name):
        decoded = _decode_small(SCALED_HALF, memoryview(body), Spec(array.shape, array.dtype))
        if (np.abs(decoded - array) > 2**-10 * np.abs(array)).any():
            return encode_exact(array)
    return SCALED_HALF, body


def _decode_small(kind: int, body: memoryview, spec: Spec) -> np.ndarray:
    width = {PLAIN: spec.dtype.itemsize, SCALED_HALF: 2}.get(kind)
    offset = 2 if kind == SCALED_HALF else 0
    if kind == PLANES:
        little = decompress(body, spec.size, spec.dtype.newbyteorder("<"))
        return _refuse_odd_bits(little).astype(spec.dtype, copy=False).reshape(spec.shape)
    if width is None or len(body) != offset + spec.size * width:
        raise PayloadError(f"payload: {len(body)} bytes of kind {kind} are no tensor of {spec.size} elements")
    if kind == PLAIN:
        little = np.frombuffer(body, spec.dtype.newbyteorder("<"))
        return _refuse_odd_bits(little).astype(spec.dtype).reshape(spec.shape)
    if not np.issubdtype(spec.dtype, np.floating):
        raise PayloadError(f"payload: FP16 for a tensor of {spec.dtype}")
    exponent = int(np.frombuffer(body[:2], "<i2")[0])
    half = np.frombuffer(body[2:], "<f2").reshape(spec.shape)
    with np.errstate(over="ignore", invalid="ignore"):
        return _within(np.ldexp(half.astype(np.float64), exponent), spec.dtype)


def _refuse_odd_bits(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.bool_ and (array.view(np.uint8) > 1).any():
        raise PayloadError("payload: a boolean is neither 0 nor 1")
    return array
