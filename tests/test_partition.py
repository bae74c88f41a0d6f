"""Clients share the training images out completely, as configured, or the setting is refused."""

import numpy as np
import pytest

from fl.errors import ConfigError
from fl.partition import Dirichlet, Iid, Shards, label_distribution, split_among_clients

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


@pytest.mark.parametrize(
    ("partition", "num_clients", "words"),
    [
        (Iid(), 601, "num_clients=601"),
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
