"""What Flower messages hold in this project, and how long they are."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.serde import recorddict_to_proto

from fl.codec.tensors import is_statistic

ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"

NUM_EXAMPLES = "num-examples"
"""Flower's own key for the weight of a reply in the mean."""

TRAIN_S = "train-s"
"""Seconds that a client trained."""


def payload_bytes(content: RecordDict) -> int:
    """Returns the length of what the tensors of a message were serialized or coded to."""
    return sum(len(array.data) for record in content.array_records.values() for array in record.values())


def message_bytes(content: RecordDict) -> int:
    """Returns the length of the protobuf encoding of a whole message's content, the same in every engine."""
    return len(recorddict_to_proto(content).SerializeToString())


def weight(message: Message) -> tuple[int, int]:
    """Returns payload and message bytes."""
    return payload_bytes(message.content), message_bytes(message.content)


class LazyArrays(Mapping[str, Array]):
    """Arrays that are read when they are asked for, and in memory for so long as they are used.

    Args:
        names: in their order.
        read: returns the array of a name.
    """

    def __init__(self, names: Sequence[str], read: Callable[[str], Array]) -> None:
        self._names, self._read = tuple(names), read

    def __getitem__(self, name: str) -> Array:
        if name not in self._names:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Content(dict[str, Any]):
    """A reply's arrays and metrics as Flower's aggregation looks at a content; the arrays may lie elsewhere."""

    def __init__(self, arrays: Mapping[str, Array], metrics: MetricRecord) -> None:
        super().__init__({ARRAYS: arrays, METRICS: metrics})
        self.array_records, self.metric_records = {ARRAYS: arrays}, {METRICS: metrics}


def with_content(reply: Message, content: Content | RecordDict) -> Message:
    """Returns a valid reply with another content, as much of a message as Flower's aggregation asks for."""
    return cast(Message, SimpleNamespace(content=content, has_error=lambda: False, metadata=reply.metadata))


def arrays_of(message: Message) -> ArrayRecord:
    """Returns the model in a message."""
    return message.content.array_records[ARRAYS]


def config_of(message: Message) -> ConfigRecord:
    """Returns what the server or a client says beside the model."""
    return message.content.config_records[CONFIG]


def metrics_of(message: Message) -> MetricRecord:
    """Returns the metrics in a reply."""
    return message.content.metric_records[METRICS]


def number(record: ConfigRecord | MetricRecord, key: str, default: float | None = None) -> float:
    """Returns one number of a record.

    Raises:
        ValueError: it is missing without a default, or no number.
    """
    value = record.get(key, default)
    if not isinstance(value, int | float):
        raise ValueError(f"{key} is {value!r}, not a number")
    return value


def split_statistics(arrays: ArrayRecord) -> tuple[ArrayRecord, ArrayRecord]:
    """Returns (parameters, statistics), sharing the arrays."""
    parameters = {name: array for name, array in arrays.items() if not is_statistic(name)}
    statistics = {name: array for name, array in arrays.items() if is_statistic(name)}
    return ArrayRecord(parameters), ArrayRecord(statistics)
