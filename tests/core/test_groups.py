"""Groups of settings take what is theirs, and refuse what cannot be by its name and value."""

from dataclasses import field

import pytest
from pydantic.dataclasses import dataclass

from fl.core.errors import ConfigError
from fl.core.groups import STRICT, Count, Fraction, filled, names_of


@dataclass(frozen=True, config=STRICT)
class Group:
    rounds: Count
    share: Fraction = 1.0
    found: int = field(default=0, metadata={"setting": False})


def test_a_group_takes_its_own_fields_and_leaves_those_of_others():
    assert filled(Group, {"rounds": 3, "share": 0.5, "lr": 0.1}) == Group(3, 0.5)
    assert filled(Group, {"rounds": 3}) == Group(3, 1.0)


def test_a_field_that_is_no_setting_cannot_be_set():
    assert names_of(Group) == ["rounds", "share"]
    assert filled(Group, {"rounds": 3, "found": 7}).found == 0


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rounds": 0}, "rounds=0"),
        ({"rounds": 1.5}, r"rounds=1\.5"),
        ({"rounds": 1, "share": 1.01}, r"share=1\.01"),
        ({"rounds": 1, "share": float("nan")}, "share=nan"),
        ({}, "rounds"),
    ],
)
def test_what_cannot_be_is_refused_by_name_and_value(values, words):
    with pytest.raises(ConfigError, match=words):
        filled(Group, values)
