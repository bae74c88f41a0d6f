"""A journal of lines hashes what it holds and goes on after its last whole line."""

import numpy as np
import pytest

from fl.core.errors import RunError
from fl.core.files import read_jsonl, sha256
from fl.core.lines import Lines


def test_a_journal_hashes_what_it_holds(tmp_path):
    path = tmp_path / "x.jsonl"
    journal = Lines(path)
    assert (journal.mark, journal.count(), journal.last()) == ((0, sha256(b"")), 0, None)
    marks = []
    for number in range(4):
        journal.append({"number": np.int64(number)})
        marks.append(journal.mark)
        assert journal.mark == (path.stat().st_size, sha256(path.read_bytes()))
        assert (journal.count(), journal.last()) == (number + 1, {"number": number})
    assert read_jsonl(path) == [{"number": number} for number in range(4)]
    again = Lines(path)
    assert again.mark == journal.mark
    assert all(again.agrees(mark) for mark in marks)
    again.cut(marks[1][0])
    assert (again.mark, again.last()) == (marks[1], {"number": 1})
    assert [again.agrees(mark) for mark in marks] == [True, True, False, False]
    again.append("more")
    assert read_jsonl(path) == [{"number": 0}, {"number": 1}, "more"]
    with pytest.raises(RunError, match="has become shorter"):
        journal.append("of another process")


@pytest.mark.parametrize("left", [b'{"a', b"x" * 3_000_000])
def test_a_journal_goes_on_after_its_last_whole_line(left, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n' + left)
    journal = Lines(path)
    assert journal.mark == (9, sha256(b'{"a": 1}\n'))
    journal.append({"b": 2})
    assert path.read_bytes() == b'{"a": 1}\n{"b": 2}\n'


@pytest.mark.parametrize("bad", [float("nan"), object()])
def test_what_is_no_json_leaves_a_journal_as_it_was(bad, tmp_path):
    journal = Lines(tmp_path / "x.jsonl")
    journal.append(1)
    with pytest.raises((TypeError, ValueError)):
        journal.append(bad)
    assert (tmp_path / "x.jsonl").read_bytes() == b"1\n"
