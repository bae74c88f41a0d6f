"""How payloads and what belongs to them stand in Flower's messages."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fl.codec.base import Codec
from fl.codec.changes import as_tensors
from fl.codec.payload import Tensors
from fl.codec.tensors import STATISTICS
from fl.core.errors import ConfigError, PayloadError

WIRE = "quantfl.link"
"""Record in messages and in a client's state."""
BITS = "bits"
"""In that record: of each element of this client's update, where clients share them by weight."""
STYPE = "quantfl.payload"
"""Serialization type of an array that is a payload: whoever does not decode it fails loudly."""
CANNOT = "codec_mod cannot take part"
"""Begins what is wrong with how both ends are set up, and would be wrong again in the next round."""
NEEDED = "the client's app needs ClientApp(mods=[codec_mod(...)])"

EXAMPLES = "num-examples"
"""Flower's own key in the metrics of an answer, by which its strategies weight it."""

Initial = Callable[[], Mapping[str, Any]]
"""Returns the model that server and clients hold before anything was sent; the same everywhere, to the bit.

An `ArrayRecord`, a state dict, or NumPy arrays by name.
"""


def record_of(tensors: Tensors) -> ArrayRecord:
    """Returns plain arrays."""
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in tensors.items()})


def tensors_of(record: ArrayRecord) -> dict[str, np.ndarray]:
    """Returns the arrays of a record.

    Raises:
        PayloadError: an array that is no NumPy array.
    """
    try:
        return {name: array.numpy() for name, array in record.items()}
    except Exception as error:  # whatever NumPy makes of bytes it did not write
        raise PayloadError(f"unreadable array: {error}") from error


def start_of(initial: Initial) -> dict[str, np.ndarray]:
    """Returns the first model as arrays.

    Raises:
        ConfigError: it is no model.
    """
    model = initial()
    if not isinstance(model, Mapping):
        raise ConfigError(f"initial: returned a {type(model).__name__}, not an ArrayRecord or a state dict")
    return tensors_of(model) if isinstance(model, ArrayRecord) else as_tensors(model)


class Names:
    """What an app says of arrays without names: which are BatchNorm's statistics.

    Within the codecs they have the names of `inside`; apps, strategies and plain messages never see those.

    Args:
        statistics: of names as they stand in an `ArrayRecord` ("3"), which of `STATISTICS` each is; None for none.
    """

    def __init__(self, statistics: Mapping[str, str] | None) -> None:
        self._inside = {name: f"{name}.{kind}" for name, kind in (statistics or {}).items()}
        self._outside = {inside: name for name, inside in self._inside.items()}

    def inside(self, tensors: Tensors) -> dict[str, np.ndarray]:
        """Returns arrays by names that say what they are.

        Raises:
            ConfigError: there is no array of a name.
        """
        if missing := [name for name in self._inside if name not in tensors]:
            raise ConfigError(f"statistics: the model has no array {missing[0]!r}, its arrays are {_some(tensors)}")
        return {self._inside.get(name, name): array for name, array in tensors.items()}

    def tensors_of(self, record: ArrayRecord) -> dict[str, np.ndarray]:
        """Returns the arrays of an app's record."""
        return self.inside(tensors_of(record))

    def record_of(self, tensors: Tensors) -> ArrayRecord:
        """Returns plain arrays under the app's names."""
        return record_of({self._outside.get(name, name): array for name, array in tensors.items()})


def _some(names: Iterable[str]) -> str:
    first = list(names)[:6]
    return ", ".join(first[:5]) + (", ..." if len(first) > 5 else "")


def payload_array(payload: bytes) -> Array:
    """Returns the array that carries a payload."""
    return Array(dtype="uint8", shape=(len(payload),), stype=STYPE, data=payload)


def is_coded(record: ArrayRecord) -> bool:
    """Tells whether every array of a record is a payload; one of no bytes says that nothing is new."""
    return all(array.stype == STYPE for array in record.values())


def bytes_in(record: ConfigRecord, key: str) -> bytes:
    """Returns one entry of a record.

    Raises:
        PayloadError: it is missing, or not bytes.
    """
    value = record.get(key)
    if not isinstance(value, bytes):
        raise PayloadError(f"{key}: {value!r} is not bytes")
    return value


def checked(  # six: the arguments of both ends
    end: str, broadcast: object, update: object, initial: object, seed: object, statistics: object
) -> None:
    """Refuses arguments of another kind.

    Args:
        end: of the wire, for the error.
        broadcast: should be a codec or None.
        update: the same.
        initial: should be a function or None.
        seed: should be a number.
        statistics: should be a mapping of names to `STATISTICS`, or None.

    Raises:
        ConfigError: names the argument.
    """
    for name, codec in (("broadcast", broadcast), ("update", update)):
        if codec is not None and not isinstance(codec, Codec):
            raise ConfigError(f"{end}({name}={codec!r:.60}): must be a codec, as in {name}=Uniform(bits=8), or None")
    if isinstance(broadcast, Codec) and broadcast.by_weight:
        raise ConfigError(f"{end}(broadcast=...): by_weight is for updates, a broadcast is the same for all clients")
    if initial is not None and not callable(initial):
        kind = type(initial).__name__
        raise ConfigError(f"{end}(initial=...): is a {kind}; must be a function that returns the first model")
    if type(seed) is not int or seed < 0:
        raise ConfigError(f"{end}(seed={seed!r}): must be a whole number of at least 0")
    told = statistics.items() if isinstance(statistics, Mapping) else () if statistics is None else [(0, 0)]
    if not all(isinstance(name, str) and kind in STATISTICS for name, kind in told):
        raise ConfigError(
            f"{end}(statistics={statistics!r:.60}): must say of names of arrays which of {', '.join(STATISTICS)} each "
            'is, as in {"3": "running_mean", "4": "running_var"}'
        )


def settings_of(
    broadcast: Codec | None, update: Codec | None, initial: Initial | None, statistics: Mapping[str, str] | None = None
) -> str:
    """Returns what both ends must be told alike, as text to compare and to show."""
    told = {"broadcast": broadcast.description if broadcast else None, "update": update.description if update else None}
    told["initial"] = None if initial is None else "given"
    if statistics:
        told["statistics"] = "/".join(f"{name}:{kind}" for name, kind in sorted(statistics.items()))
    return ", ".join(f"{name}={value}" for name, value in told.items())


def examples_in(content: RecordDict) -> float | None:
    """Returns how many images a client says to have trained on, None where it does not."""
    for record in content.metric_records.values():
        count = record.get(EXAMPLES)
        if isinstance(count, int | float) and 0 < count < math.inf:
            return float(count)
    return None


def model_key(records: Mapping[str, ArrayRecord], chosen: str | None) -> str:
    """Returns which record of an answer or message is the model.

    Args:
        records: the array records, at least one.
        chosen: the key that is the model's if there are several.

    Raises:
        ConfigError: it cannot be told; names the records.
    """
    if chosen in records:
        return str(chosen)
    if len(records) == 1:
        return next(iter(records))
    names = ", ".join(map(repr, records))
    raise ConfigError(
        f"the array records {names} are in one message, and none of them is known to be the model; send the model that "
        "the strategy was given in one of them, and answer under the same name"
    )


def array_bytes(messages: Iterable[Message]) -> int:
    """Returns the length of all arrays in messages."""
    contents = [message.content for message in messages if message.has_content()]
    records = [record for content in contents for record in content.array_records.values()]
    return sum(len(array.data) for record in records for array in record.values())
