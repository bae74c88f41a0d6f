"""The network, the images of a client, training and evaluation: nothing here knows of codecs."""

from functools import cache

import numpy as np
import torch
from flwr.app import ArrayRecord
from sklearn.datasets import load_digits
from torch import nn

digits = cache(load_digits)


class Net(nn.Module):
    """A small CNN for images of 8×8: 85,130 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(1024, 64), nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns logits [images, 10] of images [images, 1, 8, 8]."""
        x = torch.max_pool2d(torch.relu(self.conv2(torch.relu(self.conv1(x)))), 2)
        return self.fc2(torch.relu(self.fc1(x.flatten(1))))


def initial_model() -> ArrayRecord:
    """Returns the first model, which server and clients make alike, so that it never has to be sent."""
    with torch.random.fork_rng():
        torch.manual_seed(42)
        return ArrayRecord(Net().state_dict())


def load_data(partition_id: int, num_partitions: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns training images and labels, test images and labels of a client: every fifth image tests."""
    images, labels = digits().images, digits().target
    mine = np.random.default_rng(0).permutation(len(labels))[partition_id::num_partitions]
    images = torch.from_numpy(images[mine]).float()[:, None] / 16
    labels, tests = torch.from_numpy(labels[mine]), torch.arange(len(mine)) % 5 == 0
    return images[~tests], labels[~tests], images[tests], labels[tests]


def train(net: nn.Module, images: torch.Tensor, labels: torch.Tensor, epochs: int, lr: float) -> float:
    """Trains and returns the mean loss."""
    optimizer, losses = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9), []
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(16):
            loss = nn.functional.cross_entropy(net(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return sum(losses) / len(losses)


@torch.inference_mode()
def test(net: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    """Returns loss and accuracy."""
    logits = net(images)
    accuracy = (logits.argmax(1) == labels).float().mean().item()
    return nn.functional.cross_entropy(logits, labels).item(), accuracy
