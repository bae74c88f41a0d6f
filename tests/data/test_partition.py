"""Clients share the training images out completely, as configured, or the setting is refused."""

import numpy as np
import pytest

from fl.core.errors import ConfigError, DataError
from fl.core.targets import Target
from fl.data.partition import (
    Dirichlet,
    Iid,
    Regions,
    Shards,
    Sharing,
    label_distribution,
    read_shares,
    share_images,
    split_among_clients,
)

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 60))


@pytest.mark.parametrize("partition", [Iid(), Dirichlet(alpha=0.5), Shards(shards_per_client=2)], ids=str)
def test_every_image_goes_to_one_client_and_the_seed_decides(partition):
    shares = split_among_clients(partition, LABELS, 6, seed=2**40 + 1)
    assert sorted(np.concatenate(shares)) == list(range(600))
    again = split_among_clients(partition, LABELS, 6, seed=2**40 + 1)
    other = split_among_clients(partition, LABELS, 6, seed=2)
    assert all(np.array_equal(one, two) for one, two in zip(shares, again, strict=True))
    assert not all(np.array_equal(one, two) for one, two in zip(shares, other, strict=True))
    assert label_distribution(LABELS, shares, 10).sum() == 600


def test_iid_shares_are_equal_in_size_and_alike():
    shares = split_among_clients(Iid(), LABELS, 7, seed=0)
    assert {len(share) for share in shares} == {85, 86}
    assert label_distribution(LABELS, shares, 10).min() > 0


def test_shards_give_few_classes_and_dirichlet_gives_unlike_clients():
    shards = label_distribution(LABELS, split_among_clients(Shards(2), LABELS, 10, seed=0), 10)
    assert (shards > 0).sum(axis=1).max() <= 4
    unlike = label_distribution(LABELS, split_among_clients(Dirichlet(alpha=0.1), LABELS, 5, seed=0), 10)
    alike = label_distribution(LABELS, split_among_clients(Dirichlet(alpha=1000.0), LABELS, 5, seed=0), 10)
    assert unlike.std(axis=0).mean() > 3 * alike.std(axis=0).mean()


def test_regions_are_cut_across_the_longer_side():
    places = np.stack(np.meshgrid(np.arange(20.0), np.arange(10.0)), 2).reshape(-1, 2)
    west, east = split_among_clients(Regions(), LABELS[:200], 2, seed=0, places=places)
    assert places[west, 0].max() < places[east, 0].min()


def test_regions_are_neighbours_and_nearly_equal():
    """Seven clients on a map twice as wide as high: no client's image lies nearer to the others of another."""
    places = np.random.default_rng(3).random((700, 2)) * [2000, 1000]
    shares = split_among_clients(Regions(), LABELS.repeat(2)[:700], 7, seed=0, places=places)
    assert sorted(np.concatenate(shares)) == list(range(700))
    assert {len(share) for share in shares} == {100}
    boxes = [np.stack([places[share].min(0), places[share].max(0)]) for share in shares]
    for first, one in enumerate(boxes):
        for other in boxes[first + 1 :]:
            apart = (one[1] < other[0]) | (other[1] < one[0])
            assert apart.any(), "two clients' images lie among each other"
    sizes = [len(share) for share in split_among_clients(Regions(), LABELS, 7, seed=0, places=places[:600])]
    assert max(sizes) - min(sizes) <= 2
    with pytest.raises(ConfigError, match="not known where"):
        split_among_clients(Regions(), LABELS, 7, seed=0)


@pytest.mark.parametrize(
    ("partition", "num_clients", "words"),
    [
        (Iid(), 601, "num_clients=601: there are only 600 training images"),
        (Dirichlet(alpha=0.01, min_images=50), 10, "partition.alpha=0.01"),
        (Shards(shards_per_client=200), 10, "partition.shards_per_client=200"),
    ],
)
def test_impossible_settings_are_refused(partition, num_clients, words):
    with pytest.raises(ConfigError, match=words):
        split_among_clients(partition, LABELS, num_clients, seed=0)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [(Dirichlet, {"alpha": 0}), (Dirichlet, {"min_images": 0}), (Shards, {"shards_per_client": 0})],
)
def test_values_out_of_range_are_refused(kind, arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        kind(**arguments)


def shared(folder, otherwise=None, **options):
    arguments = {"partition": Target("fl.data.partition.Iid"), "num_clients": 5, "seed": 1} | options
    return share_images(folder, Sharing(labels=LABELS, positions=np.flatnonzero(LABELS < 8), **arguments), otherwise)


def test_shares_are_made_once_and_read_as_they_were(tmp_path):
    path = shared(tmp_path)
    written = path.stat().st_mtime_ns
    assert shared(tmp_path) == path
    assert path.stat().st_mtime_ns == written
    assert len({shared(tmp_path, **other) for other in ({}, {"seed": 2}, {"num_clients": 6})}) == 3
    shares = read_shares(path)
    assert len(shares) == 5
    assert sorted(np.concatenate(shares)) == list(np.flatnonzero(LABELS < 8))


def test_shares_are_of_the_images_that_may_be_trained_on(tmp_path):
    positions = np.flatnonzero(LABELS < 8)[::2]
    for kind in ("Iid", "Dirichlet"):
        target = Target(f"fl.data.partition.{kind}")
        shares = read_shares(share_images(tmp_path, Sharing(target, LABELS, positions, num_clients=5, seed=1)))
        assert sorted(np.concatenate(shares)) == list(positions)
        assert all(share.dtype == np.int64 and (np.diff(share) > 0).all() for share in shares)
        direct = split_among_clients(target.build(), LABELS[positions], 5, seed=1)
        assert all(np.array_equal(positions[one], two) for one, two in zip(direct, shares, strict=True))


def test_a_cached_split_is_of_these_images_and_settings_only(tmp_path):
    def path(parameters=(("alpha", 1.0),), labels=LABELS, positions=range(300)):
        target = Target("fl.data.partition.Dirichlet", dict(parameters))
        return share_images(tmp_path, Sharing(target, labels, np.array(positions), num_clients=3, seed=1))

    others = [path(parameters=(("alpha", 2.0),)), path(labels=LABELS[::-1].copy()), path(positions=range(1, 301))]
    assert len({path(), *others}) == 4
    assert path() == path()


def test_a_client_without_images_is_refused():
    class Unfair:
        def split(self, labels, num_clients, seed):
            return [np.arange(len(labels)), *[np.array([], dtype=np.int64)] * (num_clients - 1)]

    with pytest.raises(ConfigError, match="client 1 gets no images"):
        split_among_clients(Unfair(), LABELS, 3, seed=0)


def test_a_distribution_has_a_column_for_every_class():
    counts = label_distribution(LABELS, [np.flatnonzero(LABELS == 3), np.flatnonzero(LABELS < 2)], 12)
    assert counts.shape == (2, 12)
    assert counts[0].tolist() == [0, 0, 0, 60, *[0] * 8]
    assert counts[1].tolist() == [60, 60, *[0] * 10]


def test_shares_of_a_class_that_is_not_ours_are_made_again(tmp_path):
    path = shared(tmp_path, partition=Target(f"{__name__}.Everything"))
    first = path.stat().st_mtime_ns
    assert shared(tmp_path, partition=Target(f"{__name__}.Everything")) == path
    assert path.stat().st_mtime_ns > first


class Everything:
    def split(self, labels, num_clients, seed):
        return np.array_split(np.arange(len(labels)), num_clients)


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "shares").touch()
    with pytest.raises(DataError, match=r"data\.cache_dir=.*cannot be written"):
        shared(tmp_path / "shares")
    path = shared(tmp_path / "shares", otherwise=tmp_path / "shares.npz")
    assert path == tmp_path / "shares.npz"
    path.write_bytes(b"PK not a zip")
    with pytest.raises(DataError, match="damaged"):
        read_shares(path)


def test_sharing_images_among_many_clients_says_so(tmp_path, capsys):
    labels = np.arange(600) % 10
    for clients, said in ((2, ""), (200, "Sharing 600 training images among 200 clients...\n")):
        share_images(tmp_path, Sharing(Target("fl.data.partition.Iid"), labels, np.arange(600), clients, 1))
        assert capsys.readouterr().out == said
