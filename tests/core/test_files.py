"""Files appear whole or not at all, hold JSON, and are known by their hash."""

import os
import stat
from pathlib import Path

import numpy as np
import pytest

from fl.core.errors import ConfigError
from fl.core.files import plain, read_json, read_jsonl, sha256, write_bytes, write_json, write_jsonl
from fl.core.records import Score


def test_what_json_does_not_know_becomes_what_it_knows():
    value = {1: np.float32(0.5), "path": Path("a/b"), "score": Score(1.0, 0.5), "arrays": (np.arange(2), [np.int64(3)])}
    assert plain(value) == {
        "1": 0.5,
        "path": "a/b",
        "score": {"loss": 1.0, "accuracy": 0.5},
        "arrays": [[0, 1], [3]],
    }
    assert type(plain(value)["1"]) is float


def test_files_appear_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_json(path, {"a": [1.5, None]})
    assert path.read_text() == '{\n  "a": [\n    1.5,\n    null\n  ]\n}\n'
    for write, value in ((write_json, {"a": float("nan")}), (write_jsonl, [1.0, float("inf")])):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write(path, value)
    monkeypatch.setattr(os, "replace", lambda *args: (_ for _ in ()).throw(OSError("disk is gone")))
    with pytest.raises(OSError, match="disk is gone"):
        write_bytes(path, b"new")
    assert read_json(path) == {"a": [1.5, None]}
    assert [each.name for each in tmp_path.iterdir()] == ["x.json"], "nothing is left beside it"


def test_files_have_the_rights_that_the_user_gives_new_ones(tmp_path):
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "x", b"content")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640
    assert os.umask(before) == before
    with pytest.raises(IsADirectoryError):
        write_bytes(tmp_path, b"content")


def test_lines_come_back_and_damaged_ones_are_named(tmp_path):
    write_jsonl(tmp_path / "x.jsonl", [{"a": 1}, {"b": np.arange(2)}])
    assert read_jsonl(tmp_path / "x.jsonl") == [{"a": 1}, {"b": [0, 1]}]
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n{"b"')
    for read in (read_json, read_jsonl):
        with pytest.raises(ConfigError, match=r"x\.jsonl: is "):
            read(tmp_path / "x.jsonl")


def test_a_hash_is_of_all_parts_in_order():
    assert sha256(b"ab", b"c") == sha256(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256(np.arange(4, dtype=np.uint8)) == sha256(bytes(range(4)))
    turned = np.arange(6, dtype=np.uint8).reshape(2, 3).T
    assert sha256(turned) == sha256(np.ascontiguousarray(turned))
    assert sha256(b"a", b"b") != sha256(b"b", b"a")
