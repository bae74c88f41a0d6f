"""The clients."""

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fl.codec import codec_mod
from flower_quickstart.codecs import codecs
from flower_quickstart.task import Net, load_data
from flower_quickstart.task import test as test_fn
from flower_quickstart.task import train as train_fn

app = ClientApp(mods=[codec_mod(**codecs)])


def _received(message: Message, context: Context) -> tuple[Net, list[torch.Tensor]]:
    net = Net()
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    place = context.node_config
    return net, list(load_data(int(place["partition-id"]), int(place["num-partitions"])))


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answers with the trained model."""
    net, (images, labels, _, _) = _received(message, context)
    torch.manual_seed(int(context.node_config["partition-id"]))
    loss = train_fn(net, images, labels, context.run_config["local-epochs"], context.run_config["lr"])
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(images)})
    return Message(RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Answers with what the model reaches here."""
    net, (_, _, images, labels) = _received(message, context)
    loss, accuracy = test_fn(net, images, labels)
    metrics = MetricRecord({"eval_loss": loss, "eval_acc": accuracy, "num-examples": len(images)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
