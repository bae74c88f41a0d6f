"""FedAvg with Nesterov momentum on the server."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord

from fl.federation.robust import FromReceived


class FedAvgNesterov(FromReceived):
    """FedAvg followed by a step of SGD with Nesterov momentum on the server.

    The mean change of a round is taken as a gradient: `m = momentum * m + change`, and the model moves by
    `server_learning_rate * (change + momentum * m)` (the outer optimizer of DiLoCo, arXiv 2311.08105, algorithm 1).
    Flower's FedAvgM has heavy-ball momentum only.

    Args:
        server_learning_rate: above 0; 1 with `momentum` 0 is FedAvg.
        momentum: from 0 to below 1.
        **kwargs: of FedAvg.
    """

    def __init__(self, *, server_learning_rate: float = 1.0, momentum: float = 0.5, **kwargs: Any) -> None:
        if not server_learning_rate > 0:
            raise ValueError(f"server_learning_rate={server_learning_rate}: must be above 0")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum}: must be from 0 to below 1")
        super().__init__(**kwargs)
        self.server_learning_rate, self.momentum = server_learning_rate, momentum
        self.velocity: dict[str, np.ndarray] = {}

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Returns the model after the server's step."""
        mean, metrics = super().aggregate_train(server_round, replies)
        if mean is None:
            return mean, metrics
        moved = {}
        for name, old in self.received.items():
            change = mean[name].numpy() - old
            self.velocity[name] = self.momentum * self.velocity.get(name, np.zeros_like(change)) + change
            step = change + self.momentum * self.velocity[name]
            moved[name] = Array(np.asarray(old + self.server_learning_rate * step))
        return ArrayRecord(moved), metrics
