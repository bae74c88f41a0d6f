"""Updates that wait for the next version, whatever version each was trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord

from fl.codec.tensors import is_statistic, not_finite
from fl.communication.policies import FedAsync, FedBuff, Policy, discount
from fl.federation.messages import Content, LazyArrays, arrays_of, metrics_of, with_content
from fl.federation.spool import Spool
from fl.federation.strategy import Aggregator

Key = tuple[int, int]
"""Satellite and version that an update is of: one may answer twice before a version is full."""


@dataclass(frozen=True)
class _Waiting:
    """An update: its reply, whose arrays lie in the spool, how stale it is, and whether it was moved already."""

    reply: Message
    staleness: int
    moved: bool


class Buffer:
    """What the next version is made of.

    Updates to one and the same newest model are aggregated as a round's are. Otherwise each counts by its change: it
    becomes x + server_lr * (1 + staleness) ** -0.5 * change, with the newest model x, and BatchNorm's statistics are
    the mean of what was trained, by images times the same discount. `FedAsync` mixes the trained model in as it is.

    Args:
        aggregator: the strategy.
        policy: see `fl.communication.policies`.
        folder: where what waits lies that is too large for memory; None for the system's.
    """

    def __init__(self, aggregator: Aggregator, policy: Policy, folder: Path | None) -> None:
        self._aggregator, self._policy, self._folder = aggregator, policy, folder
        self._server_lr = policy.server_lr if isinstance(policy, FedBuff) else 1.0
        self._waiting: dict[Key, _Waiting] = {}
        self._model: ArrayRecord | None = None  # that updates without staleness were trained on
        self._spool: Spool | None = None

    def put(self, key: Key, reply: Message, model: ArrayRecord, newest: ArrayRecord, staleness: int) -> None:
        """Keeps an update.

        Args:
            key: of whom, to what.
            reply: valid, decoded.
            model: that it was trained on.
            newest: the model that the next version begins from.
            staleness: versions between the two.
        """
        self._spool = self._spool or Spool(newest, self._folder)
        arrays: Mapping[str, Array] = arrays_of(reply)
        fresh = staleness == 0 and (self._model is None or model is self._model or dict(model) == dict(self._model))
        if fresh:
            self._model = model
        elif not isinstance(self._policy, FedAsync):
            arrays = self._moved(arrays, model, newest, staleness)
        content = Content(self._spool.put(arrays), metrics_of(reply))
        self._waiting[key] = _Waiting(with_content(reply, content), staleness, not fresh)

    def aggregate(
        self, server_round: int, newest: ArrayRecord, keys: Sequence[Key]
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Returns the next version of these updates, and the mean of their metrics; nothing waits then.

        Raises:
            RunError: the strategy needs more updates.
        """
        waiting = [self._waiting[key] for key in keys]
        if isinstance(self._policy, FedAsync):
            (only,) = waiting
            share = self._policy.mixing * discount(only.staleness)
            made = self._aggregator.mixed(newest, only.reply, share), metrics_of(only.reply)
        else:
            made = self._mean(server_round, newest, waiting)
        self.clear()
        return made

    def clear(self) -> None:
        """Drops what waits."""
        if self._spool is not None:
            self._spool.close()
        self._waiting, self._model, self._spool = {}, None, None

    def _mean(
        self, server_round: int, newest: ArrayRecord, waiting: Sequence[_Waiting]
    ) -> tuple[ArrayRecord, MetricRecord]:
        replies = [each.reply for each in waiting]
        if self._server_lr == 1 and self._model is not None and not any(each.moved for each in waiting):
            newest = self._model
        elif (model := self._model) is not None:
            replies = [
                each.reply
                if each.moved
                else with_content(
                    each.reply,
                    Content(self._moved(arrays_of(each.reply), model, newest, 0), metrics_of(each.reply)),
                )
                for each in waiting
            ]
        self._aggregator.begin_from(server_round, newest)
        discounts = [discount(each.staleness) for each in waiting]
        return self._aggregator.aggregate_train(server_round, newest, replies, discounts)

    def _moved(
        self, trained: Mapping[str, Array], model: ArrayRecord, newest: ArrayRecord, staleness: int
    ) -> LazyArrays:
        rate = self._server_lr * discount(staleness)

        def read(name: str) -> Array:
            old, base = newest[name].numpy(), model[name].numpy()
            if is_statistic(name) or not np.issubdtype(old.dtype, np.floating) or not_finite(base) is not None:
                return trained[name]
            step = rate * (trained[name].numpy().astype(np.float64) - base)
            return Array(np.asarray(old + step, old.dtype))

        return LazyArrays(tuple(newest), read)
