"""Flower's strategies, with BatchNorm's statistics kept out of their optimizers and clients known by name."""

import logging
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedProx, FedYogi
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

from fl.codec.strategy import move
from fl.codec.tensors import not_finite
from fl.core.errors import ConfigError, ModelFileError, RunError, counted
from fl.core.targets import Target
from fl.federation.messages import (
    ARRAYS,
    CONFIG,
    METRICS,
    NUM_EXAMPLES,
    Content,
    LazyArrays,
    arrays_of,
    config_of,
    metrics_of,
    number,
    split_statistics,
    with_content,
)
from fl.federation.nesterov import FedAvgNesterov
from fl.federation.robust import ROBUST, chosen, too_few

PROVIDED = (
    *("fraction_train", "fraction_evaluate", "min_train_nodes", "min_evaluate_nodes", "min_available_nodes"),
    *("weighted_by_key", "arrayrecord_key", "configrecord_key", "train_metrics_aggr_fn", "evaluate_metrics_aggr_fn"),
)
"""Settings of a Flower strategy that the round loop decides, so no configuration may."""

MAY_BE_NULL = ("max_norm",)


def check_strategy(strategy: Target, clients: int) -> None:
    """Refuses a strategy that cannot be built, whose numbers make no sense, or that needs more clients.

    Args:
        strategy: as configured.
        clients: asked in each round.

    Raises:
        ConfigError: names the setting, its value and what it may be.
    """
    for name in strategy.parameters:
        if name in PROVIDED:
            raise ConfigError(f"strategy.{name}: is set by the run itself (fraction_train, min_completed, ...)")
    strategy.check()
    for name, value in strategy.parameters.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is None and name in MAY_BE_NULL:
            continue
        if not is_number or not 0 <= value < float("inf"):
            raise ConfigError(f"strategy.{name}={value}: must be a number of at least 0")
        if name.startswith("num_") and value != int(value):
            raise ConfigError(f"strategy.{name}={value}: must be a whole number")
    if problem := too_few(Aggregator(strategy).inner, clients):
        asked = f"{counted(clients, 'client')} {'is' if clients == 1 else 'are'} asked"
        raise ConfigError(f"{problem}; {asked} (num_clients, fraction_train)")


class Aggregator:
    """Wraps any strategy derived from Flower's FedAvg.

    An averaging strategy sees parameters only; BatchNorm's running statistics are the weighted mean of the clients'.
    A robust one (`robust.py`) sees them too and treats them by its rule. In both cases variances stay positive and
    counters int64. Which clients take part is the round loop's choice: Flower samples from the global random state and
    waits for ever for missing nodes.
    """

    def __init__(self, strategy: Target) -> None:
        logger = logging.getLogger("flwr")
        logger.setLevel(max(logger.level, logging.WARNING))  # its lines per round repeat ours
        everyone = {"fraction_train": 1.0, "fraction_evaluate": 1.0}
        alone = dict.fromkeys(("min_train_nodes", "min_evaluate_nodes", "min_available_nodes"), 1)
        self.inner: FedAvg = strategy.build(**everyone, **alone)
        self._split = _whole if isinstance(self.inner, ROBUST) else split_statistics

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, nodes: Sequence[int]
    ) -> list[Message]:
        """Returns one message per node with the whole model and what the strategy adds to `config`."""
        parameters, _ = self._split(without_constants(arrays))
        move(self.inner, parameters)
        messages = list(self.inner.configure_train(server_round, parameters, config, _only(nodes)))
        for message in messages:
            message.content = RecordDict({ARRAYS: arrays, CONFIG: config_of(message)})
        return sorted(messages, key=lambda message: nodes.index(message.metadata.dst_node_id))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, nodes: Sequence[int]
    ) -> list[Message]:
        """Returns one evaluation message per node."""
        messages = self.inner.configure_evaluate(server_round, arrays, config, _only(nodes))
        return sorted(messages, key=lambda message: nodes.index(message.metadata.dst_node_id))

    def begin_from(self, server_round: int, arrays: ArrayRecord) -> None:
        """Has a strategy that moves a model of its own move this one, whatever was sent since."""
        parameters, _ = self._split(without_constants(arrays))
        move(self.inner, parameters)
        list(self.inner.configure_train(server_round, parameters, ConfigRecord(), _only([0])))

    def aggregate_train(
        self,
        server_round: int,
        arrays: ArrayRecord,
        replies: Sequence[Message],
        discounts: Sequence[float] | None = None,
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Returns the next model and the weighted mean of the clients' metrics.

        Args:
            server_round: from 1.
            arrays: the model that was sent; gives order and dtypes of the result.
            replies: valid ones, at least one, in the order in which they are to be summed.
            discounts: by which BatchNorm's statistics count less than their images; None: none does.

        Raises:
            RunError: the strategy needs more.
        """
        if problem := too_few(self.inner, len(replies)):
            raise RunError(f"round {server_round}: {problem}; {counted(len(replies), 'client')} completed")
        averaged = without_constants(arrays)
        parameter_names, statistic_names = (list(part) for part in self._split(averaged))
        read = _part if type(self.inner) in MEANS else _in_memory
        parameter_replies = [with_content(reply, read(reply, parameter_names)) for reply in replies]
        used = chosen(self.inner, parameter_replies, averaged)
        aggregated, metrics = self.inner.aggregate_train(server_round, used)
        if aggregated is None or metrics is None:
            raise ValueError(f"{type(self.inner).__name__} returned nothing for {len(replies)} valid replies")
        statistics = cast(list[RecordDict], [_part(reply, statistic_names) for reply in replies])
        for content, share in zip(statistics, discounts or (), strict=bool(discounts)):
            (metrics_in,) = content.metric_records.values()
            content.metric_records[METRICS] = MetricRecord({NUM_EXAMPLES: share * number(metrics_in, NUM_EXAMPLES)})
        merged = {**arrays, **aggregated, **aggregate_arrayrecords(statistics, NUM_EXAMPLES)}
        return ArrayRecord({name: _cast(merged[name], old.dtype) for name, old in arrays.items()}), metrics

    def mixed(self, arrays: ArrayRecord, reply: Message, share: float) -> ArrayRecord:
        """Returns (1 - share) of a model and share of a reply's, BatchNorm's statistics too; constants stay."""
        trained, new = arrays_of(reply), {}
        for name, old in without_constants(arrays).items():
            values = (1 - share) * old.numpy().astype(np.float64) + share * trained[name].numpy()
            new[name] = _cast(Array(np.asarray(values)), old.dtype)
        return ArrayRecord({name: new.get(name, old) for name, old in arrays.items()})

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Returns the weighted mean of the clients' evaluation metrics, None without replies."""
        return self.inner.aggregate_evaluate(server_round, replies)

    def state(self) -> dict[str, Any]:
        """Returns what the inner strategy remembers between rounds, as tensors and numbers that torch can save."""
        kept = {name: _to_plain(value) for name, value in vars(self.inner).items()}
        return {name: value for name, value in kept.items() if value is not None}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restores what `state` returned.

        Raises:
            ModelFileError: it is no state of such a strategy.
        """
        for name, value in state.items():
            before = getattr(self.inner, name, None)
            if name.startswith("__") or (before is not None and (_to_plain(before) or {}).keys() != value.keys()):
                raise ModelFileError(f"{name} of the strategy is no {', '.join(value)}")
            setattr(self.inner, name, _from_plain(value))


MEANS = (FedAvg, FedProx, FedAvgM, FedAdam, FedYogi, FedAdagrad, FedAvgNesterov)
"""Strategies that read each answer once, to add it up: their memory does not depend on how many there are."""


def _part(reply: Message, names: Sequence[str]) -> Content:
    """Returns some arrays of a reply, which stay where they are until they are asked for, and its metrics."""
    arrays = arrays_of(reply)
    return Content(LazyArrays(names, arrays.__getitem__), metrics_of(reply))


def _in_memory(reply: Message, names: Sequence[str]) -> RecordDict:
    """Returns the same for strategies that compare answers, or change them: all of them at once."""
    arrays = arrays_of(reply)
    return RecordDict({ARRAYS: ArrayRecord({name: arrays[name] for name in names}), METRICS: metrics_of(reply)})


def _to_plain(value: Any) -> dict[str, Any] | None:
    if isinstance(value, ArrayRecord):
        return {"record": {name: torch.from_numpy(array.numpy()) for name, array in value.items()}}
    if isinstance(value, dict) and all(isinstance(each, np.ndarray | np.generic) for each in value.values()):
        return {"dict": {name: torch.from_numpy(np.array(each)) for name, each in value.items()}}
    if isinstance(value, list) and all(isinstance(each, np.ndarray | np.generic) for each in value):
        return {"list": [torch.from_numpy(np.array(each)) for each in value]}
    return {"number": value} if type(value) in (int, float) else None


def _from_plain(value: dict[str, Any]) -> Any:
    if "record" in value:
        return ArrayRecord({name: Array(tensor.numpy()) for name, tensor in value["record"].items()})
    if "dict" in value:
        return {name: tensor.numpy() for name, tensor in value["dict"].items()}
    if "list" in value:
        return [tensor.numpy() for tensor in value["list"]]
    if type(value["number"]) not in (int, float):
        raise TypeError("no number")
    return value["number"]


def without_constants(arrays: ArrayRecord) -> ArrayRecord:
    """Returns what can be averaged: all but arrays that are not finite, as constant masks are."""
    return ArrayRecord({name: array for name, array in arrays.items() if not_finite(array.numpy()) is None})


def _whole(arrays: ArrayRecord) -> tuple[ArrayRecord, ArrayRecord]:
    """Returns a model as `split_statistics` does, with nothing apart."""
    return arrays, ArrayRecord()


def _only(nodes: Sequence[int]) -> Grid:
    return cast(Grid, SimpleNamespace(get_node_ids=lambda: nodes))


def _cast(array: Array, dtype: str) -> Array:
    values = array.numpy()
    values = np.rint(values) if np.issubdtype(np.dtype(dtype), np.integer) else values
    return Array(np.asarray(values, dtype=dtype))
