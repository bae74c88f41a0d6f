"""What Flower messages hold in this project, and how long they are."""

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.serde import recorddict_to_proto

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


def is_statistic(name: str) -> bool:
    """Tells BatchNorm's running statistics and counters, which are averaged and never optimized, by their names."""
    return name.endswith((".running_mean", ".running_var", ".num_batches_tracked"))


def split_statistics(arrays: ArrayRecord) -> tuple[ArrayRecord, ArrayRecord]:
    """Returns (parameters, statistics), sharing the arrays."""
    parameters = {name: array for name, array in arrays.items() if not is_statistic(name)}
    statistics = {name: array for name, array in arrays.items() if is_statistic(name)}
    return ArrayRecord(parameters), ArrayRecord(statistics)
