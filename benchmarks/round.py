"""What federation costs: one round of the real configuration against a bare PyTorch loop over the same batches.

    python benchmarks/round.py [--repeats 3] [--json FILE] [overrides of fl.train ...]

Both do the same work in one process, client by client in turn, from the same first model: every client trains on its
images, the weights are averaged, the mean is evaluated on the test images; the final weights must agree. The federated
round is a run of fl.train with all its messages, checks, records, plots and checkpoints. Real EuroSAT (EUROSAT_ZIP)
unless told otherwise.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from table import options_of, print_table, write_results

from fl.core.errors import RunError, one_line_errors
from fl.core.files import read_json
from fl.core.machine import compute_with
from fl.core.seeds import derive, torch_generator
from fl.data.partition import Sharing, share_images
from fl.data.settings import open_data
from fl.experiment.composing import composed
from fl.experiment.run import run
from fl.experiment.settings import settings_from
from fl.federation.evaluator import BATCH_SIZE as EVALUATION_BATCH_SIZE
from fl.models.net import channels_last, initial_model, to_input
from fl.training.local import augment

LARGEST_DIFFERENCE = 1e-6
"""Between final weights: Flower and the bare loop average in another precision."""


class Bare:
    """The bare loop, and the seconds it took."""

    def __init__(self, overrides: list[str]) -> None:
        self.settings = settings_from(composed(overrides))
        compute_with(self.settings.compute.threads_per_client)
        self.images, self.split = open_data(self.settings.data, self.settings.rounds.seed)
        seed, cache = (
            derive(self.settings.rounds.seed, "partition"),
            self.settings.data.cache_dir.expanduser() / "shares",
        )
        num_clients = self.settings.rounds.num_clients
        sharing = Sharing(self.settings.partition, self.images.labels, self.split.train, num_clients, seed)
        with np.load(share_images(cache.absolute(), sharing)) as stored:
            self.shares = [stored[str(client)] for client in range(len(stored.files))]
        self.initial = self.model().state_dict()
        self.sums = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in self.initial.items()}
        self.train_s = self.whole_s = 0.0

    def model(self) -> Any:
        return channels_last(initial_model(len(self.images.class_names), self.settings.rounds.seed))

    def train(self, client: int) -> None:
        """Trains one client and adds its weights to the sum."""
        began, settings, share = time.perf_counter(), self.settings.training, self.shares[client]
        model = self.model().train()
        pixels, labels = torch.from_numpy(self.images.images[share]), torch.from_numpy(self.images.labels[share])
        optimizer = settings.optimizer.build(model.parameters(), lr=self.settings.rounds.lr)
        generator = torch_generator(self.settings.rounds.seed, "local", 1, client)
        for _ in range(settings.local_epochs):
            for batch in torch.randperm(len(labels), generator=generator).split(settings.batch_size):
                inputs = to_input(augment(pixels[batch], settings.augmentation, generator))
                loss = F.cross_entropy(model(inputs), labels[batch], label_smoothing=settings.label_smoothing)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        for name, tensor in model.state_dict().items():
            self.sums[name] += len(share) * tensor.double()
        self.train_s += time.perf_counter() - began

    def finish(self) -> dict[str, torch.Tensor]:
        """Evaluates and returns the mean."""
        began = time.perf_counter()
        total = sum(len(share) for share in self.shares)
        mean = {name: (self.sums[name] / total).to(tensor.dtype) for name, tensor in self.initial.items()}
        model = self.model().eval()
        model.load_state_dict(mean)
        with torch.inference_mode():
            for batch in torch.from_numpy(self.split.test).split(EVALUATION_BATCH_SIZE):
                logits = model(to_input(torch.from_numpy(self.images.images[batch])))
                F.cross_entropy(logits, torch.from_numpy(self.images.labels[batch]), reduction="sum").item()
        self.whole_s = self.train_s + time.perf_counter() - began
        return mean

    def in_turn(self, message: Any, context: Any, call_next: Any) -> Any:
        """A Flower mod: trains the same client bare, before or after the federated one in turn."""
        client = int(context.node_config["partition-id"])
        if client % 2:
            self.train(client)
        reply = call_next(message, context)
        if client % 2 == 0:
            self.train(client)
        return reply


def one_pair(overrides: list[str]) -> dict[str, Any]:
    """Returns seconds of one round both ways.

    Raises:
        RunError: the final weights differ.
    """
    overrides = [*overrides, "num_rounds=1", "device=cpu", "engine=in_process"]
    bare = Bare(overrides)
    if bare.settings.rounds.fraction_train < 1:
        raise RunError(f"fraction_train={bare.settings.rounds.fraction_train}: here every client trains; leave it at 1")
    with tempfile.TemporaryDirectory() as folder:
        model = run(composed(overrides), Path(folder), mods=[bare.in_turn])
        whole_s = read_json(Path(folder) / "summary.json")["wall_s"] - bare.train_s
        state = torch.load(model, weights_only=True)
    mean = bare.finish()
    difference = max(float((state[name].double() - mean[name].double()).abs().max()) for name in mean)
    if difference > LARGEST_DIFFERENCE:
        raise RunError(f"the final weights differ by {difference:.2e}: the two did not do the same work")
    return {
        "data": bare.images.title,
        "images": bare.settings.training.local_epochs * sum(len(share) for share in bare.shares),
        "largest_weight_difference": difference,
        "federated_s": whole_s,
        "bare_s": bare.whole_s,
        "ratio": whole_s / bare.whole_s,
    }


def main() -> None:
    """Prints the table."""
    options = options_of(str(__doc__), 3)
    with one_line_errors():
        pairs = [one_pair(options.overrides) for _ in range(options.repeats)]
        rows = []
        for name in ("federated", "bare"):
            times = [pair[f"{name}_s"] for pair in pairs]
            middle = statistics.median(times)
            spread = f"{min(times):.2f}-{max(times):.2f}"
            rows.append([name, f"{middle:.2f}", spread, f"{pairs[0]['images'] / middle:.0f}"])
        ratios = [pair["ratio"] for pair in pairs]
        told = ", ".join(f"{ratio:.3f}" for ratio in ratios)
        agree = max(pair["largest_weight_difference"] for pair in pairs)
        print_table(
            f"One round, {pairs[0]['images']:,} images of {pairs[0]['data']}, {options.repeats} times; final weights "
            f"agree to {agree:.0e}\nfederated / bare: {told}; median {statistics.median(ratios):.3f} (target: <= 1.05)",
            ["way", "seconds (median)", "range", "images/s"],
            rows,
        )
        write_results(options.json, {"pairs": pairs, "ratio": statistics.median(ratios)})


if __name__ == "__main__":
    main()
