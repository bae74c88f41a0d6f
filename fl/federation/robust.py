"""Aggregation that a few clients cannot decide: what Flower's robust strategies need and choose, and clipping."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Bulyan, FedAvg, FedMedian, FedTrimmedAvg, MultiKrum
from flwr.serverapp.strategy.multikrum import select_multikrum

from fl.core.errors import counted
from fl.federation.messages import ARRAYS, arrays_of


class FromReceived(FedAvg):
    """A strategy that looks at changes: it remembers the model before the round."""

    received: dict[str, np.ndarray] = {}  # noqa: RUF012 (replaced, never changed)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Remembers the model before the round."""
        self.received = {name: array.numpy() for name, array in arrays.items()}
        return super().configure_train(server_round, arrays, config, grid)


class NormClipping(FromReceived):
    """FedAvg of changes that are shortened to a bound (norm thresholding, Sun et al., arXiv 1911.07963).

    A change is a client's model minus the one before the round, BatchNorm's running statistics among it; its length is
    the L2 norm over all of it but counters. A longer one is scaled as a whole, so variances stay positive.

    Args:
        max_norm: the longest change, above 0; None: the median length of the round's changes.
        **kwargs: of FedAvg.
    """

    def __init__(self, *, max_norm: float | None = None, **kwargs: object) -> None:
        if max_norm is not None and not max_norm > 0:
            raise ValueError(f"max_norm={max_norm}: must be above 0, or null for the median of the changes")
        super().__init__(**kwargs)  # type: ignore[arg-type]
        self.max_norm = max_norm

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Returns the weighted mean of the shortened changes on top of the model before the round."""
        replies = list(replies)
        lengths = [self._length(arrays_of(reply)) for reply in replies]
        bound = float(np.median(lengths)) if self.max_norm is None else self.max_norm
        for reply, length in zip(replies, lengths, strict=True):
            if length > bound:
                self._shorten(arrays_of(reply), bound / length)
        return super().aggregate_train(server_round, replies)

    def _length(self, trained: ArrayRecord) -> float:
        floats = {name: old for name, old in self.received.items() if np.issubdtype(old.dtype, np.floating)}
        changes = (trained[name].numpy().astype(np.float64) - old for name, old in floats.items())
        return float(np.sqrt(sum(np.vdot(change, change) for change in changes)))

    def _shorten(self, trained: ArrayRecord, factor: float) -> None:
        for name, old in self.received.items():
            if old.dtype == np.bool_:  # there is no part of such a change
                continue
            change = trained[name].numpy() - old
            kept = old.dtype if np.issubdtype(old.dtype, np.floating) else np.float64  # the mean rounds counters
            trained[name] = Array(np.asarray(old + factor * change, kept))


ROBUST = (MultiKrum, Bulyan, FedMedian, FedTrimmedAvg, NormClipping)
"""Strategies under which BatchNorm's statistics pass the same rule as the weights."""


def too_few(strategy: FedAvg, clients: int) -> str | None:
    """Returns why a robust strategy cannot keep its promise with so many answers, None if it can.

    The bounds are those of the papers: 2f + 3 for Krum (arXiv 1703.02757), 4f + 3 for Bulyan (arXiv 1802.07927).
    """
    kind = type(strategy).__name__
    if isinstance(strategy, MultiKrum | Bulyan):
        f = strategy.num_malicious_nodes
        factor = 4 if isinstance(strategy, Bulyan) else 2
        if clients < factor * f + 3:
            needed = f"{factor} x {f} + 3 = {factor * f + 3} clients or more"
            return f"strategy.num_malicious_nodes={f}: {kind} needs {needed} in each round"
    if isinstance(strategy, MultiKrum) and strategy.num_nodes_to_select > max(
        1, clients - strategy.num_malicious_nodes - 2
    ):
        chosen, f = strategy.num_nodes_to_select, strategy.num_malicious_nodes
        return (
            f"strategy.num_nodes_to_select={chosen}: {kind} may choose {clients} - {f} - 2 of {clients} clients at most"
        )
    if isinstance(strategy, FedTrimmedAvg) and int(strategy.beta * clients) < 1:
        told = f"strategy.beta={strategy.beta:g}: leaves out none of {counted(clients, 'client')}"
        return f"{told}; from 1 / {clients} on, and below 0.5, it does"
    if isinstance(strategy, FedMedian) and clients < 3:
        return f"strategy: {kind} needs 3 clients or more in each round"
    return None


def chosen(strategy: FedAvg, replies: Sequence[Message], received: ArrayRecord) -> list[Message]:
    """Returns the replies that Krum chooses, in their order, and all of them under other strategies.

    Args:
        strategy: Bulyan, which chooses in its own first step, is told to do it the same way.
        replies: with the whole model.
        received: the model before the round.
    """
    nearest = _nearest(received)
    if isinstance(strategy, Bulyan):
        strategy.selection_rule = nearest
    if not isinstance(strategy, MultiKrum):
        return list(replies)
    contents = [reply.content for reply in replies]
    best = nearest(contents, strategy.num_malicious_nodes, strategy.num_nodes_to_select)
    return [reply for reply in replies if any(reply.content is each for each in best)]


def _nearest(received: ArrayRecord) -> Callable[[list[RecordDict], int, int], list[RecordDict]]:
    """Returns Krum's choice among replies' contents by the distances between their changes.

    Weights are as far from each other as changes, but FP32 rounds away what is small beside their lengths. All
    floating-point tensors count, so who poisons running statistics only is far away as well; counters do not, for they
    differ by the sizes of shares.
    """
    before = {name: array.numpy() for name, array in received.items() if np.issubdtype(array.dtype, np.floating)}

    def nearest(contents: list[RecordDict], num_malicious_nodes: int, num_nodes_to_select: int) -> list[RecordDict]:
        changes = []
        for content in contents:
            arrays = content.array_records[ARRAYS]
            moved = ArrayRecord({name: Array(np.asarray(arrays[name].numpy() - old)) for name, old in before.items()})
            changes.append(RecordDict({ARRAYS: moved}))
        with np.errstate(over="ignore", invalid="ignore"):  # who is that far away comes last
            best = select_multikrum(changes, num_malicious_nodes, num_nodes_to_select)
        return [content for content, each in zip(contents, changes, strict=True) if any(each is one for one in best)]

    return nearest
