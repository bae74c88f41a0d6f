"""Deployment files of networks that nobody has tried: written, and asked once, in a process of its own."""

import multiprocessing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fl.deployment.formats import formats
from fl.models.architecture import Architecture, architecture_of
from fl.models.net import Network

LONGEST_S = 1800.0
"""For a file to be written and to answer once."""


def written_apart(
    model: Network, kind: str, wanted: Sequence[str], inputs: torch.Tensor, folder: Path
) -> dict[str, str]:
    """Writes the precisions of a format; returns why those that cannot be had cannot, by precision.

    A converter or a runtime may crash on operations that it was not made for: then that process is all that is lost,
    and another one writes the rest.

    Args:
        model: FP32, in evaluation mode.
        kind: the format's name.
        wanted: precisions, in order.
        inputs: float [n, bands, height, width], to calibrate on; n may be 0.
        folder: an existing one.
    """
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    reasons: dict[str, str] = {}
    left = list(wanted)
    while left:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe(duplex=False)
        asked = there, architecture_of(model), state, kind, left, inputs.contiguous().numpy(), folder
        process = context.Process(target=_write, args=asked, daemon=True)
        process.start()
        there.close()
        done = _told(here, left, reasons)
        process.kill()
        process.join()
        if len(done) < len(left):
            reasons[left[len(done)]] = "its converter or runtime crashes on this network, or does not answer"
        left = left[len(done) + 1 :]
    return reasons


def _told(here: Any, left: Sequence[str], reasons: dict[str, str]) -> list[str]:
    """Returns the precisions that the process got to the end of, and notes what was wrong with them."""
    done: list[str] = []
    try:
        while len(done) < len(left) and here.poll(LONGEST_S):
            precision, reason = here.recv()
            done.append(precision)
            if reason:
                reasons[precision] = reason
    except EOFError:
        pass
    return done


def _write(  # seven: what is written of what, and where to tell; they cross a process boundary as they are
    there: Any,
    architecture: Architecture,
    state: Mapping[str, np.ndarray],
    kind: str,
    wanted: Sequence[str],
    inputs: np.ndarray,
    folder: Path,
) -> None:
    (each,) = formats([kind], "--formats")
    network = architecture.build().eval()
    network.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    calibration = torch.from_numpy(inputs)
    one = calibration[:1] if len(calibration) else torch.zeros(1, *calibration.shape[1:])
    for precision in wanted:
        reason = ""
        try:
            each.export(precision, network, calibration, folder)
            if not each.load(each.path(folder, precision), 1, architecture)(one).isfinite().all():
                reason = "its answers are not finite"
        except Exception as error:  # whatever a converter makes of a network
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        there.send((precision, reason))
