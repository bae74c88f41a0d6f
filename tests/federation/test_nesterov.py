"""Nesterov's momentum on the server."""

from types import SimpleNamespace

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict

from fl.federation.messages import ARRAYS, METRICS


def test_nesterov_momentum_on_the_server_is_torchs(tmp_path):
    """The server's steps over three rounds equal torch.optim.SGD(nesterov=True) on the negative changes."""
    from fl.federation.nesterov import FedAvgNesterov

    strategy = FedAvgNesterov(server_learning_rate=0.7, momentum=0.6, min_train_nodes=1, min_available_nodes=1)
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = torch.optim.SGD([parameter], lr=0.7, momentum=0.6, nesterov=True)
    ours = ArrayRecord({"w": Array(parameter.detach().numpy())})
    for number, change in enumerate(([0.5, 0.1], [0.4, -0.2], [-0.3, 0.3]), start=1):
        strategy.received = {"w": ours["w"].numpy()}
        answered = ArrayRecord({"w": Array(ours["w"].numpy() + np.float32(change))})
        metrics = MetricRecord({"num-examples": 5, "train-loss": 1.0})
        reply = SimpleNamespace(content=RecordDict({ARRAYS: answered, METRICS: metrics}), has_error=lambda: False)
        ours, _ = strategy.aggregate_train(number, [reply])
        parameter.grad = -torch.tensor(change)
        optimizer.step()
        assert np.allclose(ours["w"].numpy(), parameter.detach().numpy(), atol=1e-6)
