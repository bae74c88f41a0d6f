"""The image cache: what is damaged is noticed and decoded again, and what is cut while it is read is one line."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
import zlib

import numpy as np
import pytest
from conftest import SMALL, train, zipped
from PIL import Image

from fl.core.errors import DataError
from fl.core.files import write_npz
from fl.core.targets import Target
from fl.data import Folder, images, open_images, sources
from fl.data.images import VERIFIED, load_images
from fl.data.partition import Sharing, read_shares, share_images
from fl.federation import client_app


@pytest.fixture
def source(image_folder):
    return Folder(str(image_folder(per_class=3)))


def opened(source, folder, **options):
    return open_images(source.plan(folder / "cache"), folder / "cache", **options)


def flipped(path, place, keep_times=False):
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    if keep_times:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def meta_with(**changes):
    def change(folder):
        told = json.loads((folder / "meta.json").read_text())
        (folder / "meta.json").write_text(json.dumps({**told, **changes}))

    return change


DAMAGE = {
    "a pixel": lambda folder: flipped(folder / "images.npy", -1),
    "a pixel, times kept": lambda folder: flipped(folder / "images.npy", -5000, keep_times=True),
    "a label": lambda folder: flipped(folder / "labels.npy", -8),
    "a class's name": meta_with(class_names=["other", "names", "here"]),
    "the count": meta_with(num_images=7),
    "no hash": meta_with(sha256=None),
    "names of another kind": meta_with(class_names=7),
    "cut pixels": lambda folder: os.truncate(folder / "images.npy", 5000),
    "cut labels": lambda folder: os.truncate(folder / "labels.npy", 130),
    "no meta": lambda folder: (folder / "meta.json").unlink(),
    "empty meta": lambda folder: (folder / "meta.json").write_text(""),
    "other types": lambda folder: np.save(folder / "labels.npy", np.load(folder / "labels.npy").astype(np.int32)),
    "objects": lambda folder: np.save(folder / "labels.npy", np.array([{}], object), allow_pickle=True),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_decoded_again_and_a_line_says_so(source, tmp_path, capsys, damage):
    before = opened(source, tmp_path)
    expected = np.array(before.images), before.labels, before.sha256
    DAMAGE[damage](before.folder)
    with pytest.raises(DataError, match="delete this folder and run again"):
        load_images(before.folder)
    again = opened(source, tmp_path)
    told = capsys.readouterr().out
    assert told.count("decoding it again") == 1
    assert f"image cache {before.folder}: is damaged (" in told
    for one, other in zip(expected, (again.images, again.labels, again.sha256), strict=True):
        np.testing.assert_array_equal(one, other)
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [
        f"{before.folder.name}",
        f"{before.folder.name}.lock",
    ]


def test_sound_files_are_read_once_and_again_when_they_were_touched(source, tmp_path, monkeypatch):
    folder = opened(source, tmp_path).folder
    read = []
    monkeypatch.setattr(images, "_checksum", lambda *given, sum=images._checksum: read.append(1) or sum(*given))
    for _ in range(3):
        opened(source, tmp_path)
    assert read == []
    os.utime(folder / "images.npy")
    for _ in range(3):
        opened(source, tmp_path)
    assert read == [1]
    opened(source, tmp_path, verify=True)
    assert read == [1, 1]


def test_what_the_disk_itself_did_is_found_on_request(source, tmp_path, capsys):
    """A bit that flips on the disk leaves inode, size and times as they are."""
    before = opened(source, tmp_path)
    expected = np.array(before.images)
    flipped(before.folder / "images.npy", -1)
    (before.folder / VERIFIED).write_text(json.dumps(images._identity(before.folder)))
    assert not np.array_equal(opened(source, tmp_path).images, expected)
    assert np.array_equal(opened(source, tmp_path, verify=True).images, expected)
    assert "its checksum is wrong" in capsys.readouterr().out


def test_who_has_the_damaged_one_open_keeps_it(source, tmp_path):
    before = opened(source, tmp_path)
    expected = np.array(before.images)
    flipped(before.folder / "labels.npy", -8)
    opened(source, tmp_path)
    assert np.array_equal(before.images, expected)


def four_more(content, crc):
    """Returns four bytes that give a content this CRC-32: bits of a CRC are sums of bits of what it is of."""
    base, known, rest, more = zlib.crc32(content + bytes(4)), {}, 0, 0
    rest = base ^ crc
    for bit in range(32):
        effect, bits = zlib.crc32(content + (1 << bit).to_bytes(4, "little")) ^ base, 1 << bit
        while effect and effect.bit_length() in known:
            other, others = known[effect.bit_length()]
            effect, bits = effect ^ other, bits ^ others
        known[effect.bit_length()] = effect, bits
    while rest:
        effect, bits = known[rest.bit_length()]
        rest, more = rest ^ effect, more ^ bits
    return more.to_bytes(4, "little")


@pytest.fixture
def twins(tmp_path):
    """Two folders of images of equal names, sizes and CRC-32s, grey in the first and white in the second."""
    for name, value in (("grey", 100), ("white", 255)):
        for number, kind in enumerate("ab"):
            (tmp_path / name / kind).mkdir(parents=True)
            path = tmp_path / name / kind / "0.bmp"
            Image.fromarray(np.full((64, 64, 3), value, np.uint8)).save(path)
            path.write_bytes(path.read_bytes() + four_more(path.read_bytes(), number))
            assert zlib.crc32(path.read_bytes()) == number
    return tmp_path / "grey", tmp_path / "white"


@pytest.mark.parametrize("as_zip", [True, False])
def test_sets_made_to_have_equal_checksums_have_caches_of_their_own(twins, tmp_path, as_zip):
    paths = [zipped(folder, tmp_path / f"{folder.name}.zip") if as_zip else folder for folder in twins]
    assert [opened(Folder(str(path)), tmp_path).images[0, 0, 0, 0] for path in paths] == [100, 255]


def test_a_zip_of_many_images_is_hashed_again_when_it_was_touched(twins, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MANY_IMAGES", 2)
    hashed = []
    monkeypatch.setattr(sources, "_hashed", lambda *given, make=sources._hashed: hashed.append(1) or make(*given))
    path, white = zipped(twins[0], tmp_path / "some.zip"), zipped(twins[1], tmp_path / "other.zip")
    keys = [Folder(str(path)).plan(tmp_path / "cache").key for _ in range(3)]
    assert hashed == [1]
    times = path.stat()
    path.write_bytes(white.read_bytes())
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert Folder(str(path)).plan(tmp_path / "cache").key not in keys
    assert hashed == [1, 1]
    for text in ("", "{", "[]", "null", '{"identity": null}', json.dumps({"identity": images.identity(path)})):
        for remembered in (tmp_path / "cache" / "sources").iterdir():
            remembered.write_text(text)
        assert Folder(str(path)).plan(tmp_path / "cache").key not in keys
    assert len(hashed) == 8


# Shares


SHARING = Sharing(Target("fl.data.partition.Iid"), np.arange(60) % 3, np.arange(10, 60), num_clients=4, seed=1)


def positions(change):
    """Writes other shares, with their SHA-256 beside them."""

    def write(path):
        shares = dict(enumerate(read_shares(path)))
        change(shares)
        write_npz(path, {str(client): np.asarray(share) for client, share in shares.items()})
        resigned(path)

    return write


def resigned(path):
    path.with_suffix(".sha256").write_text(hashlib.sha256(path.read_bytes()).hexdigest())


def claimed(path):
    """An array of 8 TiB in a few bytes."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<i8", "fortran_order": False, "shape": (1 << 40,)})
    packed(path, {f"{client}.npy": header.getvalue() for client in range(4)}, zipfile.ZIP_STORED)


def packed(path, entries, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    resigned(path)


SHARES = {
    "a bit": lambda path: flipped(path, 200),
    "nothing": lambda path: path.write_bytes(b""),
    "cut": lambda path: os.truncate(path, 300),
    "others' shares": lambda path: write_npz(path, dict(zip("1032", read_shares(path), strict=True))),
    "another hash": lambda path: path.with_suffix(".sha256").write_text("0" * 64),
    "a client less": positions(lambda shares: shares.pop(3)),
    "an image twice": positions(lambda shares: shares.update({1: shares[0]})),
    "an image twice with one client": positions(lambda shares: shares.update({1: [*shares[1], shares[1][0]]})),
    "an image of others": positions(lambda shares: shares.update({1: [3]})),
    "no image": positions(lambda shares: shares.update({1: [1 << 40]})),
    "an image from the end": positions(lambda shares: shares.update({1: [-1]})),
    "a client without": positions(lambda shares: shares.update({1: np.array([], np.int64)})),
    "fractions": positions(lambda shares: shares.update({1: [11.5]})),
    "a table": positions(lambda shares: shares.update({1: [[11]]})),
    "claimed": claimed,
    "compressed": lambda path: packed(path, {f"{client}.npy": bytes(1 << 24) for client in range(4)}),
}


@pytest.mark.parametrize("damage", SHARES)
def test_damaged_shares_are_made_again_and_a_line_says_so(damage, tmp_path, capsys):
    path = share_images(tmp_path, SHARING)
    whole = path.read_bytes()
    assert share_images(tmp_path, SHARING) == path
    assert capsys.readouterr().out == ""
    SHARES[damage](path)
    assert share_images(tmp_path, SHARING) == path
    told = capsys.readouterr().out
    assert told.count("\n") == 1
    assert told.startswith("note: ")
    assert told.endswith("sharing the images out again\n")
    assert path.read_bytes() == whole
    assert share_images(tmp_path, SHARING) == path
    assert capsys.readouterr().out == ""


def test_a_client_takes_the_shares_that_the_run_was_told_of(tmp_path):
    path = share_images(tmp_path, SHARING)
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(client_app._shares_once(path, expected)["2"]) == 12
    client_app._shares_once.cache_clear()
    SHARES["an image twice"](path)
    with pytest.raises(DataError, match="is damaged"):
        client_app._shares_once(path, expected)


@pytest.mark.long
def test_a_run_on_damaged_pixels_gives_the_same_bytes(small_run, tmp_path, command, monkeypatch):
    monkeypatch.setenv("QUANTFL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "one").mkdir()
    train(command, *SMALL, cwd=tmp_path / "one")
    (folder,) = (path for path in (tmp_path / "cache").iterdir() if path.name.startswith("synthetic") and path.is_dir())
    flipped(folder / "images.npy", -1, keep_times=True)
    done = command("fl.train", *SMALL, f"hydra.run.dir={tmp_path / 'two'}", check=0)
    assert "decoding it again" in done.stdout
    assert (tmp_path / "two" / "final_model.pt").read_bytes() == (small_run / "final_model.pt").read_bytes()


@pytest.mark.long
def test_a_cache_that_is_cut_while_it_is_read_is_one_line(tmp_path):
    own = {**os.environ, "QUANTFL_CACHE": str(tmp_path / "cache")}
    run = [sys.executable, "-m", "fl.train", *SMALL, "num_rounds=500", f"hydra.run.dir={tmp_path / 'run'}"]
    with subprocess.Popen(run, env=own, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "run" / "checkpoint.pt").exists() and process.poll() is None:
            time.sleep(0.05)
        (pixels,) = (tmp_path / "cache").glob("synthetic*/images.npy")
        os.truncate(pixels, 4096)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert len(errors.splitlines()) == 1, errors
    assert "cut short while it was read" in errors
    assert process.returncode != -signal.SIGBUS
