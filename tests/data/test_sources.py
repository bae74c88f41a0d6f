"""Images come from a zip or a folder, whole and safely, or one line says what is wrong with it."""

import io
import shutil
import zipfile

import numpy as np
import pytest
from conftest import zipped
from PIL import Image

from fl.core.errors import DataError
from fl.data import EuroSat, Folder, open_images, split_images
from fl.data.sources import EUROSAT_CLASSES


def opened(source, cache):
    return open_images(source.plan(cache), cache)


def contents(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) if folder.exists() else []


@pytest.fixture
def eurosat_like(image_folder):
    """A folder with EuroSAT's classes and a few images of noise."""
    return image_folder(classes=EUROSAT_CLASSES, per_class=5, suffix="jpg")


def test_a_zip_and_its_unpacked_folder_share_one_cache(eurosat_like, tmp_path):
    cache = tmp_path / "cache"
    from_zip = opened(EuroSat(str(zipped(eurosat_like, tmp_path / "some.zip"))), cache)
    from_folder = opened(EuroSat(str(eurosat_like)), cache)
    assert from_zip.folder == from_folder.folder
    assert from_zip.class_names == EUROSAT_CLASSES
    assert from_zip.images.shape == (50, 64, 64, 3)
    assert from_zip.images.dtype == np.uint8


def test_names_that_sort_apart_from_classes_keep_their_labels(tmp_path):
    """Class b has the names that come first."""
    for class_name, name, value in (("b", "0", 20), ("a", "1", 10), ("b", "2", 21), ("a", "3", 11)):
        (tmp_path / "images" / class_name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((64, 64, 3), value, np.uint8)).save(tmp_path / "images" / class_name / f"{name}.png")
    decoded = opened(Folder(str(tmp_path / "images")), tmp_path / "cache")
    assert decoded.labels.tolist() == [0, 0, 1, 1]
    assert decoded.images[:, 0, 0, 0].tolist() == [10, 11, 20, 21]


def test_what_systems_put_beside_images_is_no_image(image_folder, tmp_path):
    folder = image_folder()
    shutil.copy(folder / "a" / "a_0.png", folder / "a" / "a_9.PNG")
    (folder / "a" / "._a_0.png").write_bytes(b"resource fork")
    (folder / "__MACOSX" / "a").mkdir(parents=True)
    (folder / "__MACOSX" / "a" / "a_0.png").write_bytes(b"resource fork")
    (folder / "a" / "Thumbs.db").write_bytes(b"thumbnails")
    path = zipped(folder, tmp_path / "some.zip", prefix="")
    for source in (folder, path):
        assert np.bincount(Folder(str(source)).plan(tmp_path).labels).tolist() == [7, 6, 6]


def test_an_empty_folder_among_classes_is_a_class_without_images(image_folder, tmp_path):
    folder = image_folder()
    (folder / "z").mkdir()
    with pytest.raises(DataError, match="no images of class z"):
        Folder(str(folder)).plan(tmp_path)


def test_one_class_is_nothing_to_learn(image_folder, tmp_path):
    with pytest.raises(DataError, match="at least two sub-folders"):
        Folder(str(image_folder(classes=("a",)))).plan(tmp_path)


def test_files_too_large_to_be_images_are_refused(image_folder, tmp_path, monkeypatch):
    from fl.data import listing

    folder = image_folder()
    path = zipped(folder, tmp_path / "some.zip")
    monkeypatch.setattr(listing, "LARGEST_FILE_BYTES", 1000)
    for source in (folder, path):
        with pytest.raises(DataError, match="bytes; too large"):
            Folder(str(source)).plan(tmp_path)


def _missing_class(folder):
    shutil.rmtree(folder / "Forest")


def _empty_class(folder):
    for path in (folder / "Forest").iterdir():
        path.unlink()


def _extra_class(folder):
    shutil.copytree(folder / "Forest", folder / "Lake")


def _corrupt_image(folder):
    path = folder / "River" / "River_3.jpg"
    path.write_bytes(path.read_bytes()[:100])


def _not_an_image(folder):
    (folder / "River" / "River_3.jpg").write_text("no image")


def _image_beside_classes(folder):
    shutil.copy(folder / "River" / "River_0.jpg", folder / "stray.jpg")


DAMAGES = {
    "missing class": (_missing_class, "no images of class Forest"),
    "empty class": (_empty_class, "no images of class Forest"),
    "extra class": (_extra_class, "unexpected class Lake"),
    "corrupt image": (_corrupt_image, "River/River_3.jpg cannot be decoded"),
    "text as image": (_not_an_image, "River/River_3.jpg cannot be decoded"),
    "stray image": (_image_beside_classes, "sub-folders"),
}


@pytest.mark.parametrize("as_zip", [True, False])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_data_is_refused_and_the_cache_untouched(eurosat_like, tmp_path, damage, as_zip):
    harm, words = DAMAGES[damage]
    harm(eurosat_like)
    path = zipped(eurosat_like, tmp_path / "bad.zip") if as_zip else eurosat_like
    cache = tmp_path / "cache"
    with pytest.raises(DataError, match=words) as caught:
        opened(EuroSat(str(path)), cache)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [each for each in contents(cache) if not each.endswith(".lock")] == []


def test_a_truncated_zip_is_refused(eurosat_like, tmp_path):
    path = zipped(eurosat_like, tmp_path / "whole.zip")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match="not a whole zip file"):
        EuroSat(str(path)).plan(tmp_path / "cache")


def test_damaged_bytes_inside_a_zip_are_refused(eurosat_like, tmp_path):
    path = zipped(eurosat_like, tmp_path / "whole.zip")
    content = bytearray(path.read_bytes())
    content[2000:2010] = b"0123456789"
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be decoded"):
        opened(EuroSat(str(path)), tmp_path / "cache")


@pytest.mark.parametrize("name", ["../Forest/x.jpg", "/etc/Forest/x.jpg", "2750/../../x.jpg", "..\\Forest\\x.jpg"])
def test_entries_that_point_outside_are_refused(tmp_path, name):
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "JPEG")
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr(name, buffer.getvalue())
    with pytest.raises(DataError, match="points outside"):
        EuroSat(str(tmp_path / "evil.zip")).plan(tmp_path / "cache")


def test_links_that_point_outside_a_folder_are_refused(image_folder, tmp_path):
    folder = image_folder()
    Image.new("RGB", (64, 64)).save(tmp_path / "secret.png")
    (folder / "a" / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(DataError, match="points outside the folder"):
        Folder(str(folder)).plan(tmp_path / "cache")


def test_a_missing_path_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        EuroSat(str(tmp_path / "nowhere.zip")).plan(tmp_path / "cache")


def test_without_data_and_without_network_it_says_what_to_set(tmp_path, monkeypatch):
    import fl.data.torchvision_import as shim

    def offline(*args, **kwargs):
        raise OSError("network is unreachable")

    monkeypatch.setattr(shim, "EuroSAT", offline)
    with pytest.raises(DataError, match=r"EUROSAT_ZIP=.*data.path=.*data=synthetic"):
        EuroSat(None).plan(tmp_path / "cache")


def test_torchvisions_eurosat_imports_beside_this_torch():
    from fl.data.torchvision_import import EuroSAT

    assert EuroSAT.__name__ == "EuroSAT"


@pytest.mark.eurosat
def test_the_real_images_are_what_was_published(eurosat_zip, cache_dir):
    """Counts, mean and standard deviation as published with the data set."""
    real = opened(EuroSat(str(eurosat_zip)), cache_dir)
    assert np.bincount(real.labels).tolist() == [3000, 3000, 3000, 2500, 2500, 2000, 2500, 3000, 2500, 3000]
    mean = real.images.reshape(-1, 3)[::7].mean(axis=0) / 255
    deviation = real.images.reshape(-1, 3)[::7].std(axis=0) / 255
    assert np.allclose(mean, [0.3444, 0.3803, 0.4078], atol=1e-3)
    assert np.allclose(deviation, [0.2027, 0.1369, 0.1156], atol=1e-3)
    split = split_images(real.labels, test_fraction=0.2, validation_fraction=0.0, seed=42)
    assert (len(split.train), len(split.validation), len(split.test)) == (21_600, 0, 5_400)
