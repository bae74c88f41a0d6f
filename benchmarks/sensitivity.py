"""How much an error in each tensor harms a trained model: what the allocation of bits in fl/codec/ecq.py rests on.

    python benchmarks/sensitivity.py [--repeats 4] [--json FILE] [overrides of fl.train, as data.path=...]

Adds Gaussian noise to one large tensor of examples/final_model.pt at a time and measures the rise of the loss on 2,000
training images, with BatchNorm in training mode, as clients meet an error of the broadcast. Divided by the noise's
variance that is the harm of an error in the tensor; divided by the tensor's size as well, of an error in one element.
"""

from pathlib import Path
from statistics import mean, stdev

import torch
import torch.nn.functional as F
from table import options_of, print_table, write_results

from fl.codec.base import TINY
from fl.core.errors import one_line_errors
from fl.core.seeds import numpy_generator
from fl.data import open_images, split_images
from fl.data.settings import DataSettings
from fl.experiment.composing import composed
from fl.models.net import Net, channels_last, to_input
from fl.quantization.model_file import load_fp32

MODEL = Path(__file__).resolve().parents[1] / "examples" / "final_model.pt"
SIGMA = 0.02
"""Standard deviation of the noise: about that of a client's update in the middle of a run."""
NUM_IMAGES, BATCH_SIZE = 2000, 500


def loss_of(model: Net, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Returns the mean loss with the statistics of each batch, as in training."""
    channels_last(model).train()
    with torch.no_grad():
        batches = zip(images.split(BATCH_SIZE), labels.split(BATCH_SIZE), strict=True)
        return mean(float(F.cross_entropy(model(to_input(batch)), wanted)) for batch, wanted in batches)


def main() -> None:
    """Prints one line per tensor."""
    options = options_of(__doc__ or "", repeats=4)
    with one_line_errors():
        data = DataSettings.from_config(composed(options.overrides)["data"])
        source = open_images(data.source.build().plan(data.cache_dir), data.cache_dir)
        split = split_images(source.labels, test_fraction=data.test_fraction, validation_fraction=0.0, seed=42)
        chosen = numpy_generator(0, "sensitivity").permutation(split.train)[:NUM_IMAGES]
        images, labels = torch.from_numpy(source.images[chosen]), torch.from_numpy(source.labels[chosen])
        model, _ = load_fp32(MODEL)
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        before = loss_of(model, images, labels)
        rows, found = [], {}
        for name, tensor in state.items():
            if tensor.numel() < TINY:
                continue
            rises = []
            for draw in range(options.repeats):
                noise = SIGMA * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(draw))
                model.load_state_dict({**state, name: tensor + noise})
                rises.append(loss_of(model, images, labels) - before)
            harm, spread = mean(rises) / SIGMA**2, stdev(rises) / SIGMA**2 if len(rises) > 1 else 0.0
            found[name] = {"elements": tensor.numel(), "rises": rises, "harm": harm, "each": harm / tensor.numel()}
            cells = f"{tensor.numel():,}", f"{harm:.1f} ± {spread:.1f}", f"{harm / tensor.numel():.1e}"
            rows.append((name, *cells))
    print_table(
        f"{source.title}: rise of the loss ({before:.4f} before) per variance of noise in one tensor",
        ("tensor", "elements", "rise per variance", "and per element"),
        rows,
    )
    write_results(options.json, {"images": source.name, "loss": before, "sigma": SIGMA, "tensors": found})


if __name__ == "__main__":
    main()
