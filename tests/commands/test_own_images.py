"""Images that are no 8-bit RGB of 64 pixels go the whole way, and a model file says what it is for."""

import re
import shutil
from pathlib import Path

import networks
import numpy as np
import pytest
import tifffile
from conftest import REPOSITORY

import fl
from fl.core.files import read_json, read_jsonl
from fl.models.architecture import architecture_of, input_of

SIZE, BANDS = (24, 40), 4
SMALL = ["data=folder", "data.normalize=bands", "augmentation=flips", "num_clients=2", "num_rounds=8", "lr=0.01"]
SMALL += ["local_epochs=2", "batch_size=8", "threads_per_client=1", "strategy=fedavg", "data.test_fraction=0.4"]
CODED = ["codec@update=ecq", "codec@broadcast=ecq", "update.bits=4", "broadcast.bits=4"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Georeferenced 16-bit TIFFs: fields of three textures, brightness says nothing."""
    folder, rng = tmp_path_factory.mktemp("scenes"), np.random.default_rng(1)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    for label, texture in enumerate((np.sin(x), np.sin(y), np.zeros(SIZE))):
        (folder / "abc"[label]).mkdir()
        for number in range(20):
            base = rng.uniform(800, 5000) + rng.normal(0, 60, (*SIZE, BANDS))
            array = (base + 400 * texture[:, :, None] * [1, 0.5, 0.2, 0.8]).astype(np.uint16)
            keys = (1, 1, 0, 1, 3072, 0, 1, 32632)
            corner = (0.0, 0.0, 0.0, 4e5 + 1000 * number, 5e6, 0.0)
            tags = [(33550, "d", 3, (10.0, 10.0, 0.0)), (33922, "d", 6, corner), (34735, "H", 8, keys)]
            path = folder / "abc"[label] / f"{label}_{number}.tif"
            tifffile.imwrite(path, array, photometric="minisblack", planarconfig="contig", extratags=tags)
    return folder


@pytest.fixture
def beside(tmp_path):
    shutil.copy(Path(networks.__file__), tmp_path / "my_networks.py")
    return tmp_path


@pytest.mark.long
def test_they_go_the_whole_way(images, beside, command, refused, monkeypatch):
    own, run = "my_networks.Residual", beside / "run"
    model, place = f"model._target_={own}", f"data.path={images}"
    told = command("fl.train", *SMALL, *CODED, place, model, f"hydra.run.dir={run}", cwd=beside, check=0).stdout
    assert "images of 24x40 pixels, 4 bands of uint16, each band less its mean over the training images" in told
    assert read_jsonl(run / "rounds.jsonl")[-1]["test_accuracy"] > 0.6
    pixels = read_json(run / "partition.json")["pixels"]
    assert (pixels["height"], pixels["width"], pixels["bands"], pixels["dtype"]) == (24, 40, 4, "uint16")
    assert 2000 < pixels["mean"][0] < 4000

    asked = ["--precisions", "fp32,fp16,int8,int8_static", "--formats", "onnx", "--model", own]
    command("compare_quantizations.py", run, *asked, cwd=beside, check=0)
    report = read_json(run / "quantization_comparison.json")
    best = report["precisions"]["fp32"]["accuracy"]
    for entry in (*report["precisions"].values(), *(e for each in report["formats"].values() for e in each.values())):
        assert abs(entry["accuracy"] - best) <= 2 / 24, "normalised by other figures"
    assert set(report["formats"]["onnx"]) == {"fp32", "fp16", "int8", "int8_static"}
    command("compare_quantizations.py", run, "--verify", "--model", own, cwd=beside, check=0)

    files = [run / name for name in ("model_fp32.pt", "model_int8.pt", "model_int8.onnx")]
    shown = ["--batch-sizes", "1", "--model", own, "--output", beside / "bench.json"]
    command("fl", "bench", *files, *shown, cwd=beside, check=0)
    command("fl", "export", run, "--model", own, "--format", "onnx", "--quantize", "fp16", cwd=beside, check=0)

    away = beside / "away.pt"  # apart from its run it still knows
    shutil.copy(run / "final_model.pt", away)
    monkeypatch.syspath_prepend(beside)
    architecture = architecture_of(fl.load_model(away, model=own))
    assert list(architecture.pixels.mean) == pixels["mean"]
    told = command("compare_quantizations.py", away, "--model", own, "--data", images, cwd=beside, check=0).stdout
    assert f"{100 * read_json(beside / 'quantization_comparison.json')['precisions']['fp32']['accuracy']:.2f}%" in told

    line = refused("compare_quantizations.py", REPOSITORY / "examples" / "final_model.pt", "--data", images, cwd=beside)
    assert re.search("a/0_0.tif cannot be decoded|has the classes|unexpected class", line)


def test_the_exported_readmes_lines_answer(images, beside, command):
    command("fl.train", *SMALL, f"data.path={images}", "model=linear", "num_rounds=1", "hydra.run.dir=run", cwd=beside)
    command("fl", "export", "run", cwd=beside, check=0)
    lines = (beside / "run" / "export" / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", lines, re.DOTALL)[1].replace('"model_', f'"{beside}/run/export/model_')
    given = np.stack([tifffile.imread(path) for path in sorted((images / "a").glob("*.tif"))[:3]])
    import torch

    names = {"images": torch.from_numpy(given)}
    exec(code, names)
    model = names["model"]
    assert torch.equal(names["logits"], model(input_of(model)(torch.from_numpy(given))))
    assert names["logits"].shape == (3, 3)


def test_neighbours_share_a_client_and_a_stopped_run_is_finished(images, beside, command):
    settings = [*SMALL, "num_rounds=2", f"data.path={images}", "model=linear", "partition=regions"]
    command("fl.train", *settings, "checkpoint.keep=all", "hydra.run.dir=run", cwd=beside, check=0)
    shares, files = np.load(beside / "run" / "shares.npz"), sorted(images.rglob("*.tif"))
    east = [[int(files[position].stem.partition("_")[2]) for position in shares[client]] for client in ("0", "1")]
    assert max(east[0]) <= min(east[1])
    before = (beside / "run" / "final_model.pt").read_bytes()
    assert fl.load_model(beside / "run" / "models" / "round_0001.pt").architecture.pixels.bands == BANDS
    for name in ("final_model.pt", "summary.json", "communication.json"):
        (beside / "run" / name).unlink()
    command("fl", "resume", "run", cwd=beside, check=0)
    assert (beside / "run" / "final_model.pt").read_bytes() == before


REFUSED = {
    "data.normalize=fixed": ["data.normalize=fixed", "are of uint16", "data.normalize=bands"],
    "augmentation=dihedral": ["augmentation=dihedral", "24x40 pixels", "take flips"],
    "data.bands=[9]": ["data.bands=[9]", "a/0_0.tif has 4 bands"],
    "data.bands=[0]": ["data.bands=[0]", "numbers of bands from 1"],
    "data.bands=rgb": ["a/0_0.tif cannot be decoded"],
    "data.image_size=0": ["data.image_size=0", "must be pixels on each side"],
    "model=net": ["model._target_=fl.models.net.Net", "24x40 pixels, 4 bands", "data.image_size"],
}


@pytest.mark.parametrize("setting", REFUSED)
def test_settings_that_do_not_go_with_them_are_refused(setting, images, tmp_path, refused):
    given = [each for each in SMALL if each.partition("=")[0] != setting.partition("=")[0]]
    model = [] if setting.startswith("model") else ["model=linear"]
    refused("fl.train", *given, *model, f"data.path={images}", setting, "hydra.run.dir=run", words=REFUSED[setting])
    assert not (tmp_path / "run").exists()
