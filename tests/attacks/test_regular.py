"""Pipes, devices and endless files where others put files: nothing waits for them, and none takes memory."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
from attacks.test_forged import ended
from conftest import REPOSITORY

from fl.communication.contacts import Contacts
from fl.communication.orbits import read_elements
from fl.communication.pricing import load_links, over_contacts
from fl.core.errors import ConfigError, QuantflError
from fl.core.files import read_json, read_jsonl, read_regular, regular
from fl.core.lines import Lines
from fl.core.presets import yaml_file
from fl.core.run_folder import is_complete
from fl.data.images import load_images
from fl.data.partition import read_shares
from fl.data.split import read_lists
from fl.federation.checkpoint import _read
from fl.federation.client_states import read_state
from fl.report.records import RunRecords

STATE = f"00001-{'0' * 64}"


def pipe(path):
    os.mkfifo(path)


def device(path):
    path.symlink_to("/dev/null")


def endless(path):
    with path.open("wb") as file:
        file.truncate(1 << 43)


TOLD = {pipe: "is no regular file", device: "is no regular file", endless: "bytes; at most"}
READERS = {
    "settings.json": lambda path: read_json(path),
    "rounds.jsonl": lambda path: read_jsonl(path),
    "link.yaml": lambda path: yaml_file(path),
    "windows.json": lambda path: Contacts.read(path),
    "elements.tle": lambda path: read_elements(path),
    "train.txt": lambda path: read_lists("files", path.parent, path.parent),
    "events.jsonl": lambda path: Lines(path),
    "checkpoint.pt": lambda path: _read(path),
    STATE: lambda path: read_state(path.parent, path.name),
}
MAPPED = {"shares.npz": read_shares, "images.npy": lambda path: load_images(path.parent)}


@pytest.fixture(autouse=True)
def patience():
    """Ends a test that waits for what never comes."""

    def end(*_):
        raise AssertionError("it was waited for")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("kind", TOLD)
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file_of_bounded_size_is_told_and_not_read(name, kind, tmp_path):
    kind(tmp_path / name)
    with pytest.raises((OSError, ValueError, QuantflError), match=TOLD[kind]):
        READERS[name](tmp_path / name)


@pytest.mark.parametrize("kind", [pipe, device])
@pytest.mark.parametrize("name", MAPPED)
def test_what_is_no_file_is_not_mapped(name, kind, tmp_path):
    (tmp_path / "meta.json").write_text('{"num_images": 1}')
    kind(tmp_path / name)
    with pytest.raises((OSError, QuantflError), match="is no regular file"):
        MAPPED[name](tmp_path / name)


@pytest.mark.parametrize("name", ["rounds.jsonl", "contacts.json", "predictions.npz"])
def test_a_page_leaves_out_what_is_no_file_and_says_so(name, tmp_path):
    pipe(tmp_path / name)
    run = RunRecords(tmp_path)
    assert not getattr(run, name.partition(".")[0])
    assert "is no regular file" in run.unread[name]


def test_a_model_that_is_no_file_is_none(tmp_path):
    shutil.copy(REPOSITORY / "examples" / "orbit" / "summary.json", tmp_path)
    pipe(tmp_path / "final_model.pt")
    assert not is_complete(tmp_path)


def test_it_is_one_line_of_a_command(tmp_path, monkeypatch, capsys):
    shutil.copy(REPOSITORY / "examples" / "run" / "rounds.jsonl", tmp_path)
    endless(tmp_path / "settings.json")
    arguments = [tmp_path, "--clock", "contacts", "--link", "cubesat_sband"]
    code, errors = ended("fl.commands.communication", *arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 1
    assert errors == f"error: {tmp_path}/settings.json: has {1 << 43:,} bytes; at most {1 << 30:,} are read\n"


def test_files_are_read_as_they_are(tmp_path):
    (tmp_path / "x").write_bytes(b"a\r\nb")
    (tmp_path / "link").symlink_to("x")
    assert read_regular(tmp_path / "link") == b"a\r\nb"
    assert read_regular(tmp_path / "x", 4) == b"a\r\nb"
    with pytest.raises(OSError, match="has 4 bytes; at most 3 are read"):
        read_regular(tmp_path / "x", 3)
    with pytest.raises(IsADirectoryError):
        read_regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "nothing")
    np.savez(tmp_path / "a.npz", np.arange(3))
    with open(tmp_path / "a.npz", "rb", opener=regular) as file, np.load(file) as stored:
        assert stored["arr_0"].tolist() == [0, 1, 2]


# Figures of a run that are replayed


class Options:
    """Of `python -m fl communication RUN --clock contacts --link cubesat_sband --policy synchronous`."""

    policy, constellation, max_days, image_bytes, clients, rounds = ("synchronous",), None, None, None, None, None

    def __init__(self, *runs):
        self.runs = runs


def claim_client(folder, number):
    lines = read_jsonl(folder / "rounds.jsonl")
    lines[0]["clients"][-1]["partition_id"] = number
    (folder / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def claim_clients(folder, number):
    settings = read_json(folder / "settings.json") | {"num_clients": number}
    (folder / "settings.json").write_text(json.dumps(settings))


@pytest.mark.parametrize("claim", [claim_client, claim_clients])
@pytest.mark.parametrize("shared", [True, False])
def test_a_replay_has_no_more_clients_than_the_run_has_data_for(claim, shared, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("rounds.jsonl", "settings.json", *(["partition.json"] if shared else [])):
        shutil.copy(REPOSITORY / "examples" / "run" / name, folder)
    assert over_contacts(Options(folder), load_links(["cubesat_sband"], None))[str(folder)]["num_clients"] == 4
    claim(folder, 1 << 62)
    with pytest.raises(
        ConfigError, match=rf"tells of 4,6.* clients and holds the data of {4 if shared else '100,000'}$"
    ):
        over_contacts(Options(folder), load_links(["cubesat_sband"], None))
