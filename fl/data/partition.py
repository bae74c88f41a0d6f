"""How the training images are shared out among clients, by flwr-datasets."""

import dataclasses
import importlib.metadata
import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from fl.core.console import progress, say
from fl.core.errors import ConfigError, DataError, counted
from fl.core.files import read_npz, sha256, write_bytes, write_npz
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
        settings = {"alpha": self.alpha, "min_partition_size": self.min_images}
        try:
            return _shared("DirichletPartitioner", labels, num_clients, seed, settings)
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
        if num_clients * self.shards_per_client > len(labels):
            raise ConfigError(
                f"partition.shards_per_client={self.shards_per_client}: {num_clients} clients need "
                f"{num_clients * self.shards_per_client} shards, but there are {len(labels)} training images"
            )
        settings = {"num_shards_per_partition": self.shards_per_client}
        return _shared("ShardPartitioner", labels, num_clients, seed, settings)


@dataclass(frozen=True)
class Regions:
    """Neighbouring images for each client, where the images say where they are: equal shares but for one image.

    The images are cut in two across their longer side, in proportion to the clients on either, and so on (a k-d tree,
    doi.org/10.1145/361002.361007). Nothing is drawn.
    """

    def split(self, labels: np.ndarray, num_clients: int, seed: int) -> list[np.ndarray]:
        raise ConfigError("partition=regions: it is not known where these images are")

    def split_places(self, places: np.ndarray, num_clients: int) -> list[np.ndarray]:
        """Returns positions in `places` (float64 [n, 2]) for each client."""
        return _cut(np.arange(len(places)), places, num_clients)


def _cut(positions: np.ndarray, places: np.ndarray, parts: int) -> list[np.ndarray]:
    if parts == 1:
        return [positions]
    here = places[positions]
    ordered = positions[np.argsort(here[:, np.argmax(np.ptp(here, axis=0))], kind="stable")]
    before = parts // 2
    middle = round(len(positions) * before / parts)
    return _cut(ordered[:middle], places, before) + _cut(ordered[middle:], places, parts - before)


def split_among_clients(
    partition: Partition, labels: np.ndarray, num_clients: int, seed: int, places: np.ndarray | None = None
) -> list[np.ndarray]:
    """Returns one sorted int64 array of positions in `labels` per client.

    Args:
        partition: the way of sharing out.
        labels: int64 [n], of the training images.
        num_clients: how many clients.
        seed: for this purpose, from `fl.core.seeds.derive`.
        places: float64 [n, 2], where that is asked for.

    Raises:
        ConfigError: more clients than images, or a client without images.
    """
    if num_clients > len(labels):
        raise ConfigError(f"num_clients={num_clients}: there are only {len(labels)} training images")
    if isinstance(partition, Regions) and places is not None:
        found = partition.split_places(places, num_clients)
    else:
        found = partition.split(labels, num_clients, seed)
    shares = [np.sort(np.asarray(share, dtype=np.int64)) for share in found]
    empty = [client for client, share in enumerate(shares) if not len(share)]
    if empty:
        raise ConfigError(f"num_clients={num_clients}: client {empty[0]} gets no images; lower num_clients")
    return shares


@dataclasses.dataclass(frozen=True)
class Sharing:
    """All that decides who gets which images.

    Attributes:
        partition: names a `Partition`.
        labels: int64, of every image.
        positions: int64 [n], of the images to share out.
        num_clients: how many clients.
        seed: for this purpose, from `fl.core.seeds.derive`.
        places: of every image, float64 [n, 2], where the partition asks for them.
    """

    partition: Target
    labels: np.ndarray
    positions: np.ndarray
    num_clients: int
    seed: int
    places: np.ndarray | None = None

    @property
    def file_name(self) -> str:
        """A hash of it, of this code and of the libraries' versions."""
        code = Path(__file__).read_bytes()
        versions = [importlib.metadata.version(name) for name in ("flwr-datasets", "numpy")]
        target, parameters = self.partition.target, dict(self.partition.parameters)
        decides = [target, parameters, self.num_clients, self.seed, versions]
        arrays = [self.labels, self.positions, *([] if self.places is None else [self.places])]
        return f"{sha256(json.dumps(decides).encode(), code, *arrays)[:32]}.npz"

    def shares(self) -> dict[str, np.ndarray]:
        """Returns a sorted int64 array of image positions per client, "0", "1", ...; see `split_among_clients`."""
        if self.num_clients >= MANY_CLIENTS:
            say(f"Sharing {counted(len(self.positions), 'training image')} among {self.num_clients:,} clients...")
        labels = self.labels[self.positions]
        places = None if self.places is None else self.places[self.positions]
        shares = split_among_clients(self.partition.build(), labels, self.num_clients, self.seed, places)
        return {str(client): self.positions[share] for client, share in enumerate(shares)}


def share_images(folder: Path, sharing: Sharing, otherwise: Path | None = None) -> Path:
    """Returns a file in `folder` that holds the shares.

    The file's name is a hash of all that decides its content, so an existing one is used if it is whole: it has the
    SHA-256 that was written beside it, and shares out what there is. A damaged one is made again, and a line says so;
    for a class that is not the project's own it always is, because its code may have changed.

    Args:
        folder: made when it is missing.
        sharing: who gets which images.
        otherwise: where to write if `folder` cannot be written.

    Raises:
        ConfigError: see `split_among_clients`.
        DataError: `folder` cannot be written.
    """
    path = folder / sharing.file_name
    if not sharing.partition.target.startswith("fl.data.partition.") or not _is_whole(path, sharing):
        arrays = sharing.shares()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_npz(path, arrays)
            write_bytes(_digest_of(path), sha256(path.read_bytes()).encode())
        except OSError as error:
            if otherwise is not None:
                write_npz(otherwise, arrays)
                return otherwise
            raise DataError(f"data.cache_dir={folder.parent}: cannot be written ({error.strerror or error})") from error
    return path


def _digest_of(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _is_whole(path: Path, sharing: Sharing) -> bool:
    """Tells whether shares are there that can be used; what is wrong with those that are is said in a line."""
    if not path.exists() or not _digest_of(path).exists():
        return False
    try:
        if not path.is_file() or _digest_of(path).read_bytes() != sha256(path.read_bytes()).encode():
            raise DataError(f"{path}: is damaged (its content does not have its SHA-256)")
        _refuse_other_shares(read_shares(path), sharing, path)
    except (DataError, OSError) as error:
        say(f"note: {str(error).partition(';')[0]}; sharing the images out again")
        return False
    return True


def _refuse_other_shares(shares: list[np.ndarray], sharing: Sharing, path: Path) -> None:
    """Raises `DataError` unless shares are of so many clients, and of images to share out, each at most once."""
    if len(shares) != sharing.num_clients:
        raise DataError(f"{path}: is damaged (shares of {len(shares)} clients instead of {sharing.num_clients})")
    every = np.concatenate(shares)
    if not all(map(len, shares)) or len(np.unique(every)) < len(every) or not np.isin(every, sharing.positions).all():
        raise DataError(f"{path}: is damaged (an image is shared out twice, or is none of these, or a client has none)")


def read_shares(path: Path) -> list[np.ndarray]:
    """Returns what `share_images` wrote, without taking more memory than the file has.

    Raises:
        DataError: the file is damaged.
    """
    try:
        stored = read_npz(path)
        shares = [stored[str(client)].copy() for client in range(len(stored))]
        if odd := [each for each in shares if each.ndim != 1 or each.dtype != np.int64]:
            raise ValueError(f"an array of {odd[0].dtype} and shape {list(odd[0].shape)} is no positions")
        return shares
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: is damaged ({error}); delete this file and run again") from error


def _shared(
    kind: str, labels: np.ndarray, num_clients: int, seed: int, settings: Mapping[str, Any]
) -> list[np.ndarray]:
    """Returns the shares that a partitioner of flwr-datasets makes; see `Partition.split`."""
    import datasets  # now: with pandas and pyarrow it takes seconds, and most runs find their shares in the cache
    from flwr_datasets import partitioner as kinds

    partitioner: Any = getattr(kinds, kind)(num_clients, "label", seed=seed % 2**32, **settings)
    partitioner.dataset = datasets.Dataset.from_dict({"position": np.arange(len(labels)), "label": labels})
    loaded = []
    quiet = warnings.catch_warnings(action="ignore")  # one per new Dirichlet draw, and pyarrow's deprecations
    with quiet, progress("sharing images out", partitioner.num_partitions, "client") as advance:
        for client in range(partitioner.num_partitions):
            loaded.append(np.asarray(partitioner.load_partition(client)["position"]))
            advance(1)
    return loaded


def label_distribution(labels: np.ndarray, shares: list[np.ndarray], num_classes: int) -> np.ndarray:
    """Returns int64 [clients, classes]: how many images of each class each client holds."""
    return np.stack([np.bincount(labels[share], minlength=num_classes) for share in shares])
