"""Model files ready to be run, whatever format they are in, and what memory they take in a process of their own."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fl.core.targets import Target
from fl.deployment.files import deployed, network_in, open_file, source_of
from fl.models.architecture import Architecture, architecture_of, input_of
from fl.models.net import to_input
from fl.quantization.model_file import load_with_info


@dataclass
class Candidate:
    """A model file that can be run.

    Attributes:
        path: of the file.
        run: from images [n, height, width, bands] to float32 logits on the CPU.
        is_fp32: whether it may be the baseline.
        weight_bytes: of all its tensors.
        device: where it runs.
        made_from: SHA-256 of the model it was converted from, None where that is not known.
        architecture: of the network in it, which says what images it is for.
        tell: says what was done to read the file, if anything was.
        network: as the user named it.
    """

    path: Path
    run: Callable[[Tensor], Tensor]
    is_fp32: bool
    weight_bytes: int
    device: str
    made_from: str | None
    architecture: Architecture
    tell: Callable[[Path], None] = lambda path: None
    network: Target | None = None


def opened(path: Path, device: Any, threads: int, network: Target | None = None) -> Candidate:
    """Returns a model file ready to run; `network` names it, where neither the file nor its run may.

    Raises:
        QuantflError: it cannot be read or run, or its runtime is not installed.
    """
    if deployed(path):
        architecture = network_in(path, network)
        kind, precision, execute = open_file(path, threads, architecture)
        is_fp32, pixels = precision == "fp32", architecture.pixels
        answer = lambda x: execute(to_input(x, pixels=pixels))  # noqa: E731
        return Candidate(path, answer, is_fp32, kind.weight_bytes(path), "cpu", source_of(path), architecture)
    model, file = load_with_info(path, device, network)
    given = input_of(model)

    def run(images: Tensor) -> Tensor:
        logits: Tensor = model(given(images.to(device))).float().cpu()
        return logits

    size = sum(tensor.numel() * tensor.element_size() for tensor in file.state.values())
    is_fp32 = file.info.get("precision", "fp32") == "fp32"
    made_from = file.made_from or file.sha256
    return Candidate(path, run, is_fp32, size, device.type, made_from, architecture_of(model), file.tell, network)
