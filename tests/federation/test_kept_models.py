"""Which rounds' models are kept."""

import pytest
from core.test_records import records

from fl.federation.kept_models import keep_model
from fl.models.net import initial_model


def kept(folder):
    return sorted(int(path.stem.removeprefix("round_")) for path in (folder / "models").glob("*"))


@pytest.mark.parametrize(
    ("keep", "expected"),
    [("last", []), ("best", [3]), ("all", [1, 2, 3, 4]), (1, [4]), (3, [2, 3, 4]), (9, [1, 2, 3, 4])],
)
def test_models_are_kept_as_asked(keep, expected, tmp_path):
    scored, state = records((0.5, 1.0), (0.7, 0.6), (0.7, 0.5), (0.6, 0.5)), initial_model(10, 0).state_dict()
    for done in range(1, 5):
        keep_model(tmp_path, state, scored[:done], keep)
    assert kept(tmp_path) == expected
