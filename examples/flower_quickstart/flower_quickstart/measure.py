"""Runs the app in this process, with codecs and without: what accuracy, how many bytes.

python -m flower_quickstart.measure [ROUNDS]
"""

import logging
import random
import sys
import tomllib
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from flwr.serverapp.strategy import FedAvg

from fl.codec import CodecStrategy, codec_mod
from fl.federation.engine import InProcess
from fl.federation.messages import payload_bytes
from flower_quickstart import client_app
from flower_quickstart.codecs import codecs
from flower_quickstart.task import initial_model

CLIENTS = 10
PROJECT = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())
CONFIG = PROJECT["tool"]["flwr"]["app"]["config"]


def configured(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Tells a client what `flwr run` would."""
    context.run_config.update(CONFIG)
    return call_next(message, context)


def run(rounds: int, coded: bool) -> tuple[float, int, int, int]:
    """Returns the accuracy, and the bytes of all arrays to the clients, of those in the first message, and back."""
    app = ClientApp(mods=[*([codec_mod(**codecs)] if coded else []), configured])
    app.train()(client_app.train)
    app.evaluate()(client_app.evaluate)
    strategy = FedAvg(fraction_train=CONFIG["fraction-train"])
    strategy = CodecStrategy(strategy, **codecs) if coded else strategy
    random.seed(1)  # Flower draws clients from it
    with InProcess().open(app, CLIENTS) as grid:
        carry, sent, received = grid.send_and_receive, [], []

        def weighed(messages, timeout=None):
            messages = list(messages)
            sent.append(sum(payload_bytes(message.content) for message in messages))
            replies = list(carry(messages))
            received.append(sum(payload_bytes(reply.content) for reply in replies))
            return replies

        grid.send_and_receive = weighed
        result = strategy.start(grid, initial_model(), num_rounds=rounds)
    return result.evaluate_metrics_clientapp[rounds]["eval_acc"], sum(sent), sent[0], sum(received)


def main(rounds: int = 5) -> None:
    """Prints the table of README.md."""
    logging.getLogger("flwr").setLevel(logging.WARNING)
    plain, coded = run(rounds, coded=False), run(rounds, coded=True)
    print(f"{rounds} rounds, {CLIENTS} clients, half of them train, all evaluate\n")
    print("| | accuracy | to the clients | back |\n|---|---|---|---|")
    for name, (accuracy, sent, _, received) in (("plain", plain), ("coded", coded)):
        print(f"| {name} | {100 * accuracy:.1f} % | {sent:,} B | {received:,} B |")
    print(f"| ratio | | {plain[1] / coded[1]:.1f} | {plain[3] / coded[3]:.1f} |")
    later = (plain[1] - plain[2]) / (coded[1] - coded[2])
    print(f"\nTo the clients after the first message, which brings them the same first model: {later:.1f}.")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
