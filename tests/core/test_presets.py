"""The files of `conf/` are found and read as plain data, and so are those of others."""

import pytest
from conftest import REPOSITORY

from fl.core.presets import choices, preset, yaml_file


def test_choices_are_the_files_of_a_group():
    files = (REPOSITORY / "conf" / "link").iterdir()
    assert choices("link") == sorted(path.stem for path in files if path.suffix == ".yaml")
    assert choices("nothing") == []


def test_a_preset_is_plain_data():
    link = preset("link", "flat_rate")
    assert type(link) is dict
    assert link["_target_"] == "fl.communication.link.Link"


def test_references_are_resolved_or_left(tmp_path):
    (tmp_path / "x.yaml").write_text("a: 1\nb: ${a}\n")
    assert yaml_file(tmp_path / "x.yaml") == {"a": 1, "b": 1}
    assert yaml_file(tmp_path / "x.yaml", resolve=False) == {"a": 1, "b": "${a}"}


@pytest.mark.parametrize("text", ["a: [1", "a: ${nothing}", "a: 1\n\tb: 2"])
def test_a_file_that_is_none_is_one_line(text, tmp_path):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ValueError, match=r".") as told:
        yaml_file(tmp_path / "x.yaml")
    assert len(str(told.value).splitlines()) == 1
