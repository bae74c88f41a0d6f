"""Computers on board: the rate of each preset is the arithmetic that its source tells."""

import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fl.core.presets import choices, preset
from fl.models.net import Net


@pytest.mark.parametrize("name", [each for each in choices("computer") if each != "none"])
def test_a_rate_is_a_share_of_a_peak_over_the_operations_of_an_image(name):
    told = preset("computer", name)
    share, peak, gflop = (
        float(re.search(pattern, told["source"])[1])
        for pattern in (r"at (\d+)% of", r"of (\d+) GFLOPS", r"([\d.]+) GFLOP an image")
    )
    with FlopCounterMode(display=False) as counter:
        Net()(torch.zeros(2, 3, 64, 64)).sum().backward()
    assert counter.get_total_flops() / 2e9 == pytest.approx(gflop, rel=0.03)
    assert told["images_per_s"] == pytest.approx(share / 100 * peak / gflop, rel=0.05)
