"""The line that a round prints."""

import dataclasses

from core.test_records import EVALUATED

from fl.core.records import Traffic
from fl.federation.journal import round_line


def test_the_line_of_a_round_shows_what_is_known():
    line = round_line(dataclasses.replace(EVALUATED, broadcast=Traffic(3 * 2**20, 1, 1)), 10)
    assert line.startswith("round  2/10  test 25.00% loss 1.5000  validation 50.00%  clients 75.00%")
    assert "train loss 1.0000  clients 2/3" in line
    assert "broadcast 3.00 MB" in line
    assert line.endswith("3.5 s")
    assert "exact" not in line
