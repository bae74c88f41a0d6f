"""Tensors by their names and types, and how those are laid out that no codec of its own codes: small or exact."""

import hashlib

import numpy as np

from fl.codec.entropy import compress, decompress
from fl.codec.payload import PLAIN, PLANES, SCALED_BYTE, SCALED_HALF, Spec, Tensors
from fl.core.errors import PayloadError

BYTE_STEPS = np.array([code if code < 16 else (16 + code % 16) << (code // 16 - 1) for code in range(128)])
"""Magnitudes of a byte: 0 to 31, then 16 for each doubling up to 1,984."""


STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""BatchNorm's, as torch calls them."""


def is_statistic(name: str) -> bool:
    """Tells BatchNorm's running statistics and counters, which are averaged and never optimized, by their names."""
    return name.endswith(tuple(f".{kind}" for kind in STATISTICS))


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


def refuse_impossible(tensors: Tensors) -> None:
    """Raises `PayloadError` where an element is NaN or infinity, or a variance negative."""
    for name, array in tensors.items():
        if np.issubdtype(array.dtype, np.inexact) and not np.isfinite(array).all():
            raise PayloadError(f"payload: {name} holds NaN or infinity")
        if name.endswith(".running_var") and (array < 0).any():
            raise PayloadError(f"payload: {name} holds a negative variance")


def not_finite(array: np.ndarray) -> np.ndarray | None:
    """Returns where an array is not finite, None if it is everywhere."""
    if not np.issubdtype(array.dtype, np.inexact) or (finite := np.isfinite(array)).all():
        return None
    return ~finite


def _little(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<"))


def within(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Returns the array in a type; what exceeds it becomes its largest."""
    if dtype.itemsize < array.itemsize:
        largest = np.finfo(dtype).max
        array = np.clip(array, -largest, largest)
    with np.errstate(invalid="ignore"):  # NaN, which is refused later
        return np.asarray(array).astype(dtype, copy=False)


def encode_exact(array: np.ndarray) -> tuple[int, bytes]:
    """Returns kind and body of an array that loses nothing, compressed where that is shorter."""
    if array.nbytes >= 64:
        planes = compress(_little(array), 19 if array.nbytes < 2**16 else 1)  # long ones take long, and gain nothing
        if len(planes) < array.nbytes:
            return PLANES, planes
    return PLAIN, _little(array).tobytes()


def encode_small(name: str, array: np.ndarray, num_bytes: int) -> tuple[int, bytes]:
    """Returns kind and body of a finite array: FP16 or a byte times a power of two, exact where `Codec` says so."""
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
    decoded = decode_small(kind, memoryview(body), Spec(array.shape, array.dtype))
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


def decode_small(kind: int, body: memoryview, spec: Spec) -> np.ndarray:
    """Returns the array, new; raises `PayloadError` where kind and body are none of such an array."""
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
        return within(np.ldexp(values, exponent), spec.dtype).reshape(spec.shape)


def _refuse_odd_bits(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.bool_ and (array.view(np.uint8) > 1).any():
        raise PayloadError("payload: a boolean is neither 0 nor 1")
    return array
