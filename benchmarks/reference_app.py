"""The usual way, written plainly as Flower's quickstarts are; run by reference_flower_ray.py with a plan file.

Its settings stand in the file that the variable PLAN names, where every process finds them.
"""

import functools
import itertools
import json
import os
import time
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from torch.utils.data import DataLoader, Subset

import fl.data.torchvision_import  # noqa: F401  lets torchvision load beside a CPU-only torch too
from fl.core.targets import Target
from fl.models.net import Net, initial_model

from torchvision import datasets, transforms  # isort: skip

client_app = ClientApp()
server_app = ServerApp()
normalize = [transforms.ToTensor(), transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))]
flips = [transforms.RandomHorizontalFlip(), transforms.RandomVerticalFlip()]
finished: list[float] = []
accuracies: list[float] = []


@functools.cache
def plan():
    """Returns the settings."""
    return json.loads(Path(os.environ["PLAN"]).read_text())


def load(positions, transform):
    """Returns some of the images, decoded from JPEG whenever one is asked for."""
    return Subset(datasets.ImageFolder(plan()["folder"], transforms.Compose(transform)), positions)


@client_app.train()
def train(message: Message, context: Context):
    """Trains the received model on this client's images."""
    model = Net(plan()["num_classes"])
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    images = load(plan()["clients"][context.node_config["partition-id"]], [*flips, *normalize])
    optimizer = Target(**plan()["optimizer"]).build(model.parameters(), lr=message.content["config"]["lr"])
    criterion = torch.nn.CrossEntropyLoss()
    running_loss = 0.0
    model.train()
    for _ in range(plan()["local_epochs"]):
        for batch, labels in DataLoader(images, batch_size=plan()["batch_size"], shuffle=True):
            optimizer.zero_grad()
            loss = criterion(model(batch), labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
    metrics = MetricRecord({"train_loss": running_loss, "num-examples": len(images)})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=message)


def evaluate(server_round: int, arrays: ArrayRecord):
    """Evaluates the global model on the test images."""
    model = Net(plan()["num_classes"])
    model.load_state_dict(arrays.to_torch_state_dict())
    model.eval()
    correct = 0
    if server_round > 0:  # ours does not evaluate the untrained model
        with torch.no_grad():
            for batch, labels in DataLoader(load(plan()["test"], normalize), batch_size=250):
                correct += (model(batch).argmax(dim=1) == labels).sum().item()
    finished.append(time.perf_counter())
    accuracies.append(correct / len(plan()["test"]))
    return MetricRecord({"accuracy": accuracies[-1]})


@server_app.main()
def main(grid: Grid, context: Context):
    """Runs FedAvg."""
    arrays = ArrayRecord(initial_model(plan()["num_classes"], plan()["seed"]).state_dict())
    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0)
    config = ConfigRecord({"lr": plan()["lr"]})
    strategy.start(grid, arrays, plan()["num_rounds"], train_config=config, evaluate_fn=evaluate)


if __name__ == "__main__":
    from flwr.simulation import run_simulation
    from reference_app import accuracies, client_app, finished, server_app  # as modules, so that Ray sends names only

    run_simulation(server_app, client_app, num_supernodes=len(plan()["clients"]))
    rounds = [after - before for before, after in itertools.pairwise(finished)]
    print(json.dumps({"round_s": rounds, "accuracy": accuracies[-1]}))
