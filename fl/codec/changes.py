"""What travels between two models: their difference, and the tensors for which none may be taken."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from fl.codec.base import Codec
from fl.codec.entropy import CHUNK
from fl.codec.payload import Spec, Tensors, specs_of
from fl.codec.tensors import is_statistic, is_vector
from fl.core.errors import ConfigError, PayloadError

_BITS = {2: "i2", 4: "i4", 8: "i8"}


def difference(codec: Codec, new: Tensors, base: Tensors) -> dict[str, np.ndarray]:
    """Returns what has to travel for who holds `base` to come to `new`."""
    exact = _may_be_variances(base)
    return codec.differences(_as_bits(new, exact), _as_bits(base, exact))


def without_rounding(codec: Codec, change: Tensors, base: Tensors) -> Tensors:
    """Returns a difference in which a tensor that moved by nothing but rounding did not move.

    The weighted mean of equal arrays is a few units in the last place off, so what no client trains would otherwise be
    coded in every round, at a rate that others lack. A tensor whose every element is within 8 units (one in FP16) of
    where it was counts as that.
    """
    return {
        name: np.zeros_like(array)
        if not codec.travels_as_value(name, array.dtype) and _is_rounding(array, base[name])
        else array
        for name, array in change.items()
    }


def _is_rounding(change: np.ndarray, base: np.ndarray) -> bool:
    if change.dtype != base.dtype:
        return False
    part = np.finfo(base.dtype).eps * (8 if base.dtype.itemsize > 2 else 1)
    moved, held = change.reshape(-1), base.reshape(-1)
    return all(  # NaN is nothing of the kind
        (np.abs(moved[start : start + CHUNK]) <= part * np.abs(held[start : start + CHUNK])).all()
        for start in range(0, moved.size, CHUNK)
    )


def specs_of_difference(base: Tensors) -> dict[str, Spec]:
    """Returns shapes and types of what travels to who holds `base`; a payload cannot be decoded without."""
    return specs_of(_as_bits(base, _may_be_variances(base)))


def specs_of_earlier_difference(model: Tensors, differed: Collection[str]) -> dict[str, Spec]:
    """Returns the same for an earlier base of this model, of which is known what traveled as a difference."""
    return specs_of(_as_bits(model, {n for n, a in model.items() if n not in differed and _is_unknown_vector(n, a)}))


def applied(codec: Codec, payload: bytes, base: Tensors) -> dict[str, np.ndarray]:
    """Returns `base` with what a payload holds; both ends come to the same bits.

    Raises:
        PayloadError: damaged, for another model, of another codec, or not finite.
    """
    exact = _may_be_variances(base)
    held = _as_bits(base, exact)
    new = codec.applied(held, codec.decode(payload, specs_of(held)))
    for name in exact:
        dtype: np.dtype = base[name].dtype
        new[name] = new[name].view(dtype)
        if not (np.isfinite(new[name]) | (new[name] == base[name])).all():
            raise PayloadError(f"payload: {name} holds NaN or infinity")
    return new


def _may_be_variances(base: Tensors) -> set[str]:
    """Tells vectors without a negative element, and without a name that says what they are.

    An app that sends lists of arrays calls them 0, 1, 2, …: BatchNorm's variances may be among them, which a rounded
    difference could make negative. Both ends hold `base`, so both come to the same answer.
    """
    return {name for name, array in base.items() if _is_unknown_vector(name, array) and (array >= 0).all()}


def _is_unknown_vector(name: str, array: np.ndarray) -> bool:
    vector = array.size == max(array.shape, default=1)
    known = is_statistic(name) or is_vector(name, array.shape)
    return vector and not known and np.issubdtype(array.dtype, np.floating) and array.dtype.itemsize in _BITS


def _as_bits(tensors: Tensors, exact: set[str]) -> Tensors:
    """Returns the tensors, some as integers of the same bits, for integers travel exactly in every codec."""
    if not exact:
        return tensors
    return {name: a.view(_BITS[a.dtype.itemsize]) if name in exact else a for name, a in tensors.items()}


def lost(exact: np.ndarray, sent: np.ndarray) -> np.ndarray:
    """Returns exact minus sent, 0 where both are the same infinity or NaN, as in the constant mask of a model."""
    with np.errstate(invalid="ignore"):
        missing = exact - sent
        if not np.isfinite(missing).all():
            same = (exact == sent) | (np.isnan(exact) & np.isnan(sent))
            missing = np.where(same, 0, missing).astype(missing.dtype)
    return np.asarray(missing)


def fitted(answer: Tensors, model: Tensors) -> dict[str, np.ndarray]:
    """Returns an answer in the order and types of the model that it is based on.

    Raises:
        ConfigError: it has other names or shapes; names the first.
        PayloadError: it has a value that the model's type cannot hold.
    """
    for name in answer:
        if name not in model:
            raise ConfigError(f"the answer has other names than the model that was received: {name!r} is not in it")
    for name, array in model.items():
        if name not in answer:
            raise ConfigError(f"the answer has other names than the model that was received: {name!r} is missing")
        if answer[name].shape != array.shape:
            shapes = f"{list(answer[name].shape)} in the answer, {list(array.shape)} in the model that was received"
            raise ConfigError(f"the answer has other shapes: {name!r} is {shapes}")
    return {name: _fitted(name, answer[name], array.dtype) for name, array in model.items()}


def _fitted(name: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        cast = array.astype(dtype)
    rounds = np.issubdtype(array.dtype, np.floating) and np.issubdtype(dtype, np.floating)
    fits = np.isfinite(cast) | ~np.isfinite(array) if rounds else cast == array
    if not fits.all():
        raise PayloadError(f"the answer has other types: {name!r} is {array.dtype}, which {dtype} cannot hold")
    return np.asarray(cast)


def as_type(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Returns the array in a type; Flower's mean makes float64 of integers."""
    return np.asarray(np.rint(array) if np.issubdtype(dtype, np.integer) else array, dtype=dtype)


def as_tensors(model: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns NumPy arrays of a state dict, or of whatever names arrays or tensors."""
    return {name: np.asarray(t.detach().cpu() if hasattr(t, "detach") else t) for name, t in model.items()}
