"""Splits by lists: every image where it is listed, and nothing guessed."""

import numpy as np
import pytest
from PIL import Image

from fl.core.errors import ConfigError, DataError
from fl.data import split as splits
from fl.data.settings import DataSettings, open_data
from fl.data.split import SPATIAL, Split, listed_split, read_lists

FILES = ["forest/forest_1.jpg", "forest/forest_2.jpg", "sea/sea_1.jpg", "sea/sea_2.jpg", "sea/9.jpg", "forest/9.jpg"]


def test_each_image_is_where_it_is_listed_whatever_its_ending(capsys):
    lists = {"train": ["sea_1.tif", "forest_2.jpg"], "val": ["sea/9.png"], "test": ["forest_1"]}
    found = listed_split(FILES, lists)
    assert [part.tolist() for part in (found.train, found.validation, found.test)] == [[1, 2], [4], [0]]
    assert "2 images in none of the lists, left out" in capsys.readouterr().out
    assert found.told("eurosat") == "eurosat, files split"
    assert Split(found.train, found.validation, found.test).told("eurosat") == "eurosat"
    assert Split(found.train, found.validation, found.test).sha256 == found.sha256


@pytest.mark.parametrize(
    ("lists", "told"),
    [
        (
            {"train": ["sea_1.jpg", "sea_3.jpg"], "test": ["sea_2.jpg"]},
            "train lists 'sea_3.jpg', and there is no image",
        ),
        ({"train": ["9.jpg"], "test": ["sea_2.jpg"]}, "there is 2 images of that name; write CLASS/NAME"),
        ({"train": ["sea_1.jpg"], "test": ["sea/sea_1.jpg"]}, "'sea/sea_1.jpg' is in train and in test"),
        ({"train": ["sea_1.jpg", "sea_1.jpg"], "test": ["sea_2.jpg"]}, "is in train and in train"),
        ({"train": [], "test": ["sea_2.jpg"]}, "the list train is empty"),
        ({"train": ["sea_1.jpg"], "val": ["sea_2.jpg"]}, "the list test is empty"),
    ],
)
def test_lists_that_do_not_go_with_the_images_are_refused(lists, told):
    with pytest.raises(DataError) as error:
        listed_split(FILES, lists)
    assert told in str(error.value)


@pytest.fixture
def folder(tmp_path):
    """Forty images of two classes, and lists of them."""
    for name in ("forest", "sea"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(20):
            pixels = np.full((64, 64, 3), 6 * number + (100 if name == "sea" else 0), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{name}_{number}.png")
    parts = {"train.txt": range(12), "val.txt": range(12, 15), "test.txt": range(15, 20)}
    (tmp_path / "lists").mkdir()
    for file, numbers in parts.items():
        names = [f"{name}_{number}.png" for name in ("forest", "sea") for number in numbers]
        (tmp_path / "lists" / file).write_text("\n".join(names) + "\n")
    return tmp_path


def settings(folder, **changes):
    config = {
        "_target_": "fl.data.Folder",
        "path": str(folder / "images"),
        "cache_dir": str(folder / "cache"),
        "test_fraction": 0.2,
        "validation_fraction": 0.0,
        "split": "files",
        "split_files": str(folder / "lists"),
    }
    return DataSettings.from_config({**config, **changes})


def test_a_folder_is_split_as_its_lists_say(folder):
    images, found = open_data(settings(folder), seed=1)
    assert [len(part) for part in (found.train, found.validation, found.test)] == [24, 6, 10]
    assert sorted({images.images[each, 0, 0, 0] for each in found.test}) == sorted(
        6 * number + offset for number in range(15, 20) for offset in (0, 100)
    )
    assert open_data(settings(folder), seed=2)[1].sha256 == found.sha256
    (folder / "lists" / "val.txt").unlink()
    assert len(open_data(settings(folder), seed=1)[1].validation) == 0


def test_what_does_not_go_with_lists_is_refused(folder):
    with pytest.raises(ConfigError, match="the list val is the validation set"):
        open_data(settings(folder, validation_fraction=0.1), seed=1)
    with pytest.raises(DataError, match=r"data.split_files=DIR is needed, a folder with train.txt, val.txt, test.txt"):
        open_data(settings(folder, split_files=None), seed=1)
    with pytest.raises(DataError, match=r"data.split_files=.*: train.txt cannot be read"):
        open_data(settings(folder, split_files=str(folder)), seed=1)
    with pytest.raises(ConfigError, match=r"data\.split"):
        settings(folder, split="by longitude")


def test_images_that_are_no_files_are_in_no_list(folder):
    common = {"cache_dir": str(folder / "cache"), "test_fraction": 0.2, "validation_fraction": 0.0, "split": "files"}
    asked = DataSettings.from_config({"_target_": "fl.data.Synthetic", "num_images": 50, **common})
    with pytest.raises(ConfigError, match="synthetic images are no files that a list could name"):
        open_data(asked, seed=1)


def test_torchgeos_lists_are_known_by_their_hash_and_fetched_once(folder, monkeypatch):
    for name, _ in SPATIAL.values():
        (folder / "lists" / name).write_text("forest_1.png\n")
    with pytest.raises(DataError, match=r"eurosat-spatial-train.txt: is not torchgeo's list"):
        read_lists("spatial", folder / "lists", folder)

    def offline(*args, **kwargs):
        raise OSError("network is unreachable")

    monkeypatch.setattr(splits.urllib.request, "urlopen", offline)
    with pytest.raises(DataError, match=r"download failed.*EUROSAT_SPLITS"):
        read_lists("spatial", None, folder)


@pytest.mark.eurosat
def test_the_spatial_split_is_torchgeos(eurosat_zip, eurosat_splits, cache_dir):
    config = {
        "_target_": "fl.data.EuroSat",
        "path": str(eurosat_zip),
        "cache_dir": str(cache_dir),
        "test_fraction": 0.2,
        "validation_fraction": 0.0,
        "split": "spatial",
        "split_files": str(eurosat_splits),
    }
    images, found = open_data(DataSettings.from_config(config), seed=42)
    assert [len(part) for part in (found.train, found.validation, found.test)] == [16_200, 5_400, 5_400]
    assert not {*found.train} & {*found.test}
    assert len({*found.train, *found.validation, *found.test}) == len(images.labels)
    counts = np.bincount(images.labels[found.test], minlength=10)
    assert counts.min() > 0
    assert found.told(images.title) == "eurosat, spatial split"
