"""How the training images are shared out among clients, by flwr-datasets."""

import importlib.metadata
import json
import logging
import warnings
import zipfile
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from fl.core.console import progress, say
from fl.core.errors import ConfigError, DataError, counted
from fl.core.files import sha256, write_npz
from fl.core.targets import Target

for noisy in ("datasets", "datasets.config"):
    logging.getLogger(noisy).setLevel(logging.WARNING)  # it announces every library that it finds

MANY_CLIENTS = 200
"""So many that sharing out takes a while, the first time."""


class Partition(Protocol):
    """A way of sharing out; a new one is one class with this method and one file in `conf/partition/`."""

    def split(self, labels: np.ndarray, num_clients: int, seed: int) -> list[np.ndarray]:
        """Returns positions in `labels` (int64 [n]) for each client; may raise `ConfigError`."""


@dataclass(frozen=True)
class Iid:
    """Equal random shares (sizes differ by at most one)."""

    def split(self, labels: np.ndarray, num_clients: int, seed: int) -> list[np.ndarray]:
        return np.array_split(np.random.default_rng(seed).permutation(len(labels)), num_clients)


@dataclass(frozen=True)
class Dirichlet:
    """Class proportions drawn from a Dirichlet distribution (arXiv 1905.12022): small `alpha`, unlike clients.

    Args:
        alpha: concentration, above 0.
        min_images: every client gets at least this many; drawn again up to ten times.
    """

    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.5
    min_images: Annotated[int, Field(ge=1)] = 10

    def split(self, labels: np.ndarray, num_clients: int, seed: int) -> list[np.ndarray]:
        from flwr_datasets.partitioner import DirichletPartitioner

        partitioner = DirichletPartitioner(
            num_clients, "label", self.alpha, min_partition_size=self.min_images, seed=seed % 2**32
        )
        try:
            return _load(partitioner, labels)
        except ValueError as error:
            raise ConfigError(
                f"partition.alpha={self.alpha}: ten draws left some of {num_clients} clients with fewer than "
                f"partition.min_images={self.min_images} images; raise alpha, or lower num_clients or min_images"
            ) from error


@dataclass(frozen=True)
class Shards:
    """Images sorted by class and cut into equal shards, a few for each client (arXiv 1602.05629, section 3).

    Args:
        shards_per_client: number of shards each client gets; with 2, most clients see two classes. What does
            not fill a shard is left out.
    """

    shards_per_client: Annotated[int, Field(ge=1)] = 2

    def split(self, labels: np.ndarray, num_clients: int, seed: int) -> list[np.ndarray]:
        from flwr_datasets.partitioner import ShardPartitioner

        if num_clients * self.shards_per_client > len(labels):
            raise ConfigError(
                f"partition.shards_per_client={self.shards_per_client}: {num_clients} clients need "
                f"{num_clients * self.shards_per_client} shards, but there are {len(labels)} training images"
            )
        partitioner = ShardPartitioner(
            num_clients, "label", num_shards_per_partition=self.shards_per_client, seed=seed % 2**32
        )
        return _load(partitioner, labels)


def split_among_clients(partition: Partition, labels: np.ndarray, num_clients: int, seed: int) -> list[np.ndarray]:
    """Returns one sorted int64 array of positions in `labels` per client.

    Args:
        partition: the way of sharing out.
        labels: int64 [n], of the training images.
        num_clients: how many clients.
        seed: for this purpose, from `fl.core.seeds.derive`.

    Raises:
        ConfigError: more clients than images, or a client without images.
    """
    if num_clients > len(labels):
        raise ConfigError(f"num_clients={num_clients}: there are only {len(labels)} training images")
    shares = [np.sort(np.asarray(share, dtype=np.int64)) for share in partition.split(labels, num_clients, seed)]
    empty = [client for client, share in enumerate(shares) if not len(share)]
    if empty:
        raise ConfigError(f"num_clients={num_clients}: client {empty[0]} gets no images; lower num_clients")
    return shares


def share_images(
    folder: Path,
    partition: Target,
    labels: np.ndarray,
    positions: np.ndarray,
    num_clients: int,
    seed: int,
    otherwise: Path | None = None,
) -> Path:
    """Returns a file in `folder` with one sorted int64 array of image positions per client, named "0", "1", ...

    The file's name is a hash of all that decides its content, so an existing one is used as it is; for a class that is
    not the project's own it is made again, because its code may have changed.

    Args:
        folder: made when it is missing.
        partition: names a `Partition`.
        labels: int64, of every image.
        positions: int64 [n], of the images to share out.
        num_clients: how many clients.
        seed: for this purpose, from `fl.core.seeds.derive`.
        otherwise: where to write if `folder` cannot be written.

    Raises:
        ConfigError: see `split_among_clients`.
        DataError: `folder` cannot be written.
    """
    code = Path(__file__).read_bytes()
    versions = [importlib.metadata.version(name) for name in ("flwr-datasets", "numpy")]
    decides = [partition.target, dict(partition.parameters), num_clients, seed, versions]
    path = folder / f"{sha256(json.dumps(decides).encode(), code, labels, positions)[:32]}.npz"
    if not path.exists() or not partition.target.startswith("fl.data.partition."):
        if num_clients >= MANY_CLIENTS:
            say(f"Sharing {counted(len(positions), 'training image')} among {num_clients:,} clients...")
        shares = split_among_clients(partition.build(), labels[positions], num_clients, seed)
        arrays = {str(client): positions[share] for client, share in enumerate(shares)}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_npz(path, arrays)
        except OSError as error:
            if otherwise is not None:
                write_npz(otherwise, arrays)
                return otherwise
            raise DataError(f"data.cache_dir={folder.parent}: cannot be written ({error.strerror or error})") from error
    return path


def read_shares(path: Path) -> list[np.ndarray]:
    """Returns what `share_images` wrote.

    Raises:
        DataError: the file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            return [stored[str(client)] for client in range(len(stored.files))]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: is damaged ({error}); delete this file and run again") from error


def _load(partitioner: Any, labels: np.ndarray) -> list[np.ndarray]:
    import datasets

    partitioner.dataset = datasets.Dataset.from_dict({"position": np.arange(len(labels)), "label": labels})
    loaded = []
    quiet = warnings.catch_warnings(action="ignore")  # one per new Dirichlet draw, and pyarrow's deprecations
    with quiet, progress("sharing images out", partitioner.num_partitions) as advance:
        for client in range(partitioner.num_partitions):
            loaded.append(np.asarray(partitioner.load_partition(client)["position"]))
            advance(1)
    return loaded


def label_distribution(labels: np.ndarray, shares: list[np.ndarray], num_classes: int) -> np.ndarray:
    """Returns int64 [clients, classes]: how many images of each class each client holds."""
    return np.stack([np.bincount(labels[share], minlength=num_classes) for share in shares])
