"""What a run needs to continue after it was killed."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fl.errors import RunError
from fl.model_file import to_bytes
from fl.results import write_bytes

FILE = "checkpoint.pt"


@dataclass(frozen=True)
class Checkpoint:
    """State after a round.

    Attributes:
        round: the last one completed.
        state: the global model.
        strategy: what the strategy remembers.
        clients: every client's `Context.state`, serialized, by node id.
        link: what the server's end of the link remembers.
    """

    round: int
    state: dict[str, Tensor]
    strategy: dict[str, Any]
    clients: dict[int, bytes]
    link: dict[str, Any]


def save_checkpoint(run_dir: Path, checkpoint: Checkpoint) -> None:
    """Writes it whole, over the one before."""
    content = vars(checkpoint) | {"clients": {n: _as_tensor(state) for n, state in checkpoint.clients.items() if state}}
    write_bytes(run_dir / FILE, to_bytes(content))


def _as_tensor(content: bytes) -> Tensor:
    """Bytes as what `weights_only=True` lets through."""
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def load_checkpoint(run_dir: Path) -> Checkpoint:
    """Reads it back.

    Raises:
        RunError: there is none, or it is damaged.
    """
    try:
        content = (run_dir / FILE).read_bytes()
        loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        clients = {node: state.numpy().tobytes() for node, state in loaded.pop("clients").items()}
        return Checkpoint(**loaded, clients=clients)
    except FileNotFoundError as error:
        raise RunError(f"{run_dir}: holds no {FILE}, though rounds were recorded; start the run again") from error
    except Exception as error:  # whatever torch makes of bytes it did not write
        raise RunError(f"{run_dir / FILE}: is damaged ({type(error).__name__}); start the run again") from error
