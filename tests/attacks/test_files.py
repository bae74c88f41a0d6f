"""Files that others made: images, settings. Nothing in them is run, and none takes more memory than is stated."""

import io
import os
import shutil
import struct
import subprocess
import sys
import threading
import zipfile
import zlib

import numpy as np
import pytest
from conftest import composed
from PIL import Image

from fl.core.errors import ConfigError, DataError, QuantflError
from fl.core.files import read_json, write_json
from fl.data.decoding import MOST_PIXELS
from fl.data.sources import plan_files
from fl.experiment.settings import settings_from

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n(OUT) (w) file closefile showpage\n"


def picture(kind="PNG", size=(64, 64)):
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def opened(folder):
    plan = plan_files("folder", folder, None)
    return plan.decode(np.zeros((len(plan.labels), 64, 64, 3), np.uint8))


@pytest.fixture
def images(image_folder):
    return image_folder(per_class=2)


def huge_png(width, height):
    """Returns a PNG of a few bytes that claims to be large, all zeros."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    row = bytes(1 + (width + 7) // 8)
    packer = zlib.compressobj(9)
    body = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("name", ["g.jpg", "g.png", "g.tif"])
def test_no_image_starts_a_program(name, images, tmp_path, monkeypatch):
    """Pillow hands EPS to Ghostscript, whatever the file is called."""
    (tmp_path / "bin").mkdir()
    gs = tmp_path / "bin" / "gs"
    gs.write_text(f"#!/bin/sh\ntouch {tmp_path}/was-run\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    (images / "a" / name).write_bytes(EPS)
    with pytest.raises(DataError, match=rf"a/{name} cannot be decoded"):
        opened(images)
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize("kind", ["GIF", "PPM", "ICO", "TGA", "PCX", "SGI", "DDS"])
def test_formats_that_are_not_documented_are_refused(kind, images):
    (images / "a" / "x.png").write_bytes(picture(kind))
    with pytest.raises(DataError, match=r"a/x\.png cannot be decoded"):
        opened(images)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP", "WEBP"])
def test_formats_that_are_documented_are_known_by_content(kind, images):
    (images / "a" / "x.png").write_bytes(picture(kind))
    assert opened(images) == []


def test_no_pipe_is_waited_for(images):
    pipe = images / "a" / "pipe.png"
    os.mkfifo(pipe)
    writer = threading.Timer(2, os.close, [os.open(pipe, os.O_RDWR)])  # lets a reader go on
    writer.start()
    with pytest.raises(DataError, match=r"a/pipe\.png is no regular file; refused"):
        opened(images)
    assert writer.is_alive(), "it was waited for"
    writer.join()


@pytest.mark.parametrize("side", [4097, 10_000, 13_000, 30_000])
def test_pixels_are_bounded_before_they_are_decoded(side, images):
    (images / "a" / "x.png").write_bytes(huge_png(side, side))
    code = (
        "import resource, sys; from pathlib import Path; sys.path[:0] = [sys.argv[2]];"
        "import numpy as np; from fl.data.sources import plan_files; from fl.core.errors import DataError\n"
        "plan = plan_files('folder', Path(sys.argv[1]), None)\n"
        "images = np.zeros((len(plan.labels), 64, 64, 3), np.uint8)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: plan.decode(images)\n"
        "except DataError as error: print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    arguments = [sys.executable, "-W", "error", "-c", code, str(images), os.getcwd()]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    told, extra = done.stdout.splitlines()
    assert f"{side}x{side} pixels are more than {MOST_PIXELS:,}; make it smaller" in told or "exceeds limit" in told
    assert int(extra) < 50_000, "kilobytes"


def test_an_entry_that_claims_less_than_it_holds_is_refused(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("a/1.png", "b/1.png"):
            archive.writestr(name, picture() + bytes(50_000_000))
    content = path.read_bytes().replace(struct.pack("<I", 50_000_000 + len(picture())), struct.pack("<I", 200))
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be decoded"):
        opened(path)


FORGED = {
    "downloads": ("data", "_target_", "fl.data.torchvision_import.EuroSAT"),
    "another group's": ("data", "_target_", "fl.codec.Raw"),
    "a function's module": ("strategy", "_target_", "fl.federation.strategy.Aggregator"),
    "nested": ("strategy", "_target_", "flwr.serverapp.strategy.fedavg.FedAvg"),
    "torch": ("optimizer", "_target_", "torch.optim.swa_utils.AveragedModel"),
    "of os": ("link", "_target_", "os.system"),
    "engine": ("engine", "_target_", "fl.federation.engine.local.LocalGrid"),
    "images": ("data", "num_images", 10**9),
}


@pytest.mark.parametrize("kind", FORGED)
def test_settings_of_others_name_known_classes_and_bounded_values(kind):
    group, key, value = FORGED[kind]
    config = composed("data=synthetic")
    config[group] = {key: value} if key == "_target_" else {**config[group], key: value}
    with pytest.raises(ConfigError, match="are built from files" if key == "_target_" else "num_images=1000000000"):
        settings_from(config)


def test_what_conf_names_is_what_may_be_named():
    config = composed("data=synthetic", "strategy=nesterov", "codec@update=tcq", "optimizer=adamw")
    assert settings_from(config).server.strategy.target == "fl.federation.nesterov.FedAvgNesterov"
    for target in ("flwr.serverapp.strategy.FedYogi", "flwr.serverapp.strategy.FedMedian"):
        assert settings_from({**config, "strategy": {"_target_": target}}).server.strategy.target == target
    settings_from({**config, "optimizer": {"_target_": "torch.optim.RMSprop"}})


def _change(value, replacement):
    """Yields a JSON document once for each place in it, with something else there."""
    if isinstance(value, dict):
        for key in value:
            yield {k: v for k, v in value.items() if k != key}
            for changed in _change(value[key], replacement):
                yield {**value, key: changed}
    elif isinstance(value, list):
        for place in range(min(2, len(value))):
            for changed in _change(value[place], replacement):
                yield [*value[:place], changed, *value[place + 1 :]]
    yield replacement


REPLACEMENTS = [None, -1, 10**400, "text", [], {}, [[1]], True, float("nan"), float("-inf")]


@pytest.mark.parametrize("replacement", REPLACEMENTS, ids=repr)
def test_forged_settings_are_refused_in_one_line_or_usable(replacement):
    config = composed("data=synthetic", "codec@update=ecq")
    for forged in _change(config, replacement):
        if not isinstance(forged, dict):
            continue
        told = ""
        try:
            settings_from(forged)
        except QuantflError as error:
            told = str(error)
        assert "\n" not in told


def test_forged_settings_reach_no_traceback(small_run, tmp_path, refused):
    folder = tmp_path / "run"
    shutil.copytree(small_run, folder)
    (folder / "final_model.pt").unlink()
    settings = read_json(folder / "settings.json")
    for forged in ([], "text", 3, None, {}, {**settings, "data": 3}, {**settings, "data": None}):
        write_json(folder / "settings.json", forged)
        refused("fl", "resume", folder)
