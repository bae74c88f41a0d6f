"""One random stream per concern: the same on every machine and in every release, and none like another."""

import numpy as np
import torch

from fl.core.seeds import derive, numpy_generator, torch_generator


def test_streams_are_those_of_earlier_releases():
    """Every published figure was made with these."""
    assert derive(42, "init") == 2741530509752383398
    assert derive(42, "local", 3, 1) == 3289894643100220983


def test_seed_concern_and_each_index_make_another_stream():
    arguments = [
        *((seed, concern) for seed in (0, 1, 42) for concern in ("init", "split", "partition")),
        *((0, "local", server_round, client) for server_round in range(5) for client in range(5)),
    ]  # each concern with as many indices as it always has: a last 0 is as good as none
    streams = {derive(*each) for each in arguments}
    assert len(streams) == len(arguments)
    assert all(0 <= stream < 2**63 for stream in streams)
    assert len({derive(0, "local", number) >> 60 for number in range(200)}) == 8, "all bits are used"


def test_generators_begin_with_what_is_derived():
    assert numpy_generator(3, "a", 1).random() == np.random.default_rng(derive(3, "a", 1)).random()
    expected = torch.rand(3, generator=torch.Generator().manual_seed(derive(3, "a", 1)))
    assert torch.equal(torch.rand(3, generator=torch_generator(3, "a", 1)), expected)
