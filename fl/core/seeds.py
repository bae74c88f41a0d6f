"""One random stream per concern, all derived from the run's seed."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive(seed: int, concern: str, *index: int) -> int:
    """Returns a 63-bit seed that depends on nothing but the arguments.

    Args:
        seed: the run's seed, 0 or more.
        concern: what the stream is for ("init", "split", "partition", "sampling", "local").
        index: where in the run, for instance the round and the client.
    """
    sequence = np.random.SeedSequence([seed, zlib.crc32(concern.encode()), *index])
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)


def numpy_generator(seed: int, concern: str, *index: int) -> np.random.Generator:
    """Returns a NumPy generator for one concern, see `derive`."""
    return np.random.default_rng(derive(seed, concern, *index))


@contextmanager
def drawn_by(seed: int, concern: str, *index: int) -> Iterator[None]:
    """Within it torch's own random numbers, which dropout takes, come from a seed, see `derive`; then they go on."""
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_initialized() else []):
        torch.manual_seed(derive(seed, concern, *index))
        yield


def torch_generator(seed: int, concern: str, *index: int) -> torch.Generator:
    """Returns a CPU torch generator for one concern, see `derive`."""
    return torch.Generator().manual_seed(derive(seed, concern, *index))
