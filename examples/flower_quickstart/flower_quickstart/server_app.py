"""The server."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from fl.codec import CodecStrategy
from flower_quickstart.codecs import codecs
from flower_quickstart.task import initial_model

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Trains, and writes down what came of it."""
    strategy = CodecStrategy(FedAvg(fraction_train=context.run_config["fraction-train"]), **codecs)
    rounds = int(context.run_config["num-server-rounds"])
    result = strategy.start(grid, initial_model(), num_rounds=rounds)
    reached = result.evaluate_metrics_clientapp[rounds]["eval_acc"]
    print(f"accuracy after {rounds} rounds: {100 * reached:.1f} %")
