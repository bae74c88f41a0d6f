"""Images are decoded once and whole, split as promised, and refused with one line when something is wrong."""

import io
import multiprocessing
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import zipped
from PIL import Image

from fl.core.errors import DataError
from fl.data import EuroSat, Folder, Synthetic, open_images, split_images
from fl.data.images import Plan, Split
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


def test_decoded_pixels_are_those_of_the_file(image_folder, tmp_path):
    folder = image_folder()
    decoded = opened(Folder(str(folder)), tmp_path / "cache")
    assert np.array_equal(decoded.images[7], np.asarray(Image.open(folder / "b" / "b_1.png")))
    assert decoded.labels[7] == 1
    assert not decoded.notes


def test_another_content_gets_another_cache(image_folder, tmp_path):
    folder, cache = image_folder(), tmp_path / "cache"
    before = opened(Folder(str(folder)), cache)
    shutil.copy(folder / "a" / "a_0.png", folder / "b" / "b_0.png")
    after = opened(Folder(str(folder)), cache)
    assert before.folder != after.folder
    assert before.sha256 != after.sha256


def test_an_image_of_the_same_size_but_other_content_gets_another_cache(tmp_path):
    """Uncompressed, so that only the pixels tell."""
    folders = []
    for value in (1, 2):
        for name in ("a", "b"):
            path = tmp_path / "images" / name / "x.bmp"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((64, 64, 3), value, np.uint8)).save(path)
        folders.append(opened(Folder(str(tmp_path / "images")), tmp_path / "cache"))
    assert folders[0].folder != folders[1].folder
    assert [int(each.images.max()) for each in folders] == [1, 2]


def test_names_that_sort_apart_from_classes_keep_their_labels(tmp_path):
    """Class b has the names that come first."""
    for class_name, name, value in (("b", "0", 20), ("a", "1", 10), ("b", "2", 21), ("a", "3", 11)):
        (tmp_path / "images" / class_name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((64, 64, 3), value, np.uint8)).save(tmp_path / "images" / class_name / f"{name}.png")
    decoded = opened(Folder(str(tmp_path / "images")), tmp_path / "cache")
    assert decoded.labels.tolist() == [0, 0, 1, 1]
    assert decoded.images[:, 0, 0, 0].tolist() == [10, 11, 20, 21]


def test_images_of_another_size_are_resampled_whole(tmp_path):
    """Left half black, right half white, at twice the size."""
    pixels = np.zeros((128, 128, 3), np.uint8)
    pixels[:, 64:] = 255
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "images" / name / "x.png")
    image = opened(Folder(str(tmp_path / "images")), tmp_path / "cache").images[0]
    assert image[:, :30].max() == 0
    assert image[:, 34:].min() == 255


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
    from fl.data import sources

    folder = image_folder()
    path = zipped(folder, tmp_path / "some.zip")
    monkeypatch.setattr(sources, "LARGEST_FILE_BYTES", 1000)
    for source in (folder, path):
        with pytest.raises(DataError, match="bytes; too large"):
            Folder(str(source)).plan(tmp_path)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_other_sizes_and_modes_are_converted_and_it_says_so(image_folder, tmp_path, mode):
    folder = image_folder(size=(40, 50), mode=mode, suffix="tif")
    decoded = opened(Folder(str(folder)), tmp_path / "cache")
    assert "18 images resized to 64x64 (from 50x40" in decoded.notes[0]
    assert f"18 images converted to RGB (from mode {mode})" in decoded.notes[1]


def test_sixteen_bit_images_are_scaled_not_clipped(tmp_path):
    for name, value in (("dark", 10_000), ("light", 50_000)):
        (tmp_path / "deep" / name).mkdir(parents=True)
        Image.fromarray(np.full((64, 64), value, dtype=np.uint16)).save(tmp_path / "deep" / name / "x.png")
    decoded = opened(Folder(str(tmp_path / "deep")), tmp_path / "cache")
    assert decoded.images[0].max() == 10_000 >> 8
    assert decoded.images[1].max() == 50_000 >> 8


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


def test_a_cache_folder_that_cannot_be_written_is_named(image_folder, tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(DataError, match=r"data\.cache_dir="):
        opened(Folder(str(image_folder())), tmp_path / "taken")


def _open_in_process(arguments):
    folder, cache = arguments
    return opened(Folder(folder), Path(cache)).sha256


def test_several_processes_decode_once(image_folder, tmp_path):
    folder, cache = image_folder(per_class=40), tmp_path / "cache"
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        hashes = pool.map(_open_in_process, [(str(folder), str(cache))] * 4)
    assert len(set(hashes)) == 1
    assert [each for each in contents(cache) if "/" not in each and not each.endswith(".lock")] == [
        opened(Folder(str(folder)), cache).folder.name
    ]


def test_what_a_killed_decoding_left_is_removed(image_folder, tmp_path):
    folder, cache = image_folder(), tmp_path / "cache"
    final = opened(Folder(str(folder)), cache).folder
    left_over = final.rename(final.with_name(f".{final.name}.abc"))
    (left_over / "meta.json").unlink()
    assert opened(Folder(str(folder)), cache).folder == final
    assert not left_over.exists()


def test_a_cache_appears_whole_after_decoding(tmp_path):
    """Somebody who looks while it is decoded finds nothing under the final name."""
    seen = []

    def decode(images):
        seen.append([each for each in contents(tmp_path) if not each.startswith(".") and not each.endswith(".lock")])
        images[:] = 7
        return ["a note"]

    images = open_images(Plan("some", "0" * 64, ("a", "b"), np.array([0, 1]), decode), tmp_path)
    assert seen == [[]]
    assert images.folder.name == f"some-{'0' * 20}-v1"
    assert images.notes == ("a note",)
    assert (np.asarray(images.images) == 7).all()


def test_the_hash_of_images_is_of_names_labels_and_pixels(tmp_path):
    def decoded(key, names=("a", "b"), labels=(0, 1), value=7):
        def decode(images):
            images[:] = value
            return []

        return open_images(Plan("some", key * 64, names, np.array(labels), decode), tmp_path).sha256

    assert decoded("0") == decoded("1")
    assert len({decoded("0"), decoded("2", names=("a", "c")), decoded("3", labels=(1, 0)), decoded("4", value=8)}) == 4


def test_pixels_are_mapped_and_nothing_can_change_the_file(image_folder, tmp_path):
    folder, cache = image_folder(), tmp_path / "cache"
    images = opened(Folder(str(folder)), cache).images
    assert isinstance(images, np.memmap)
    before = images[0].copy()
    images[0] = 255 - before
    assert np.array_equal(opened(Folder(str(folder)), cache).images[0], before)


def test_the_split_is_stratified_seeded_and_complete():
    labels = np.repeat(np.arange(3), [100, 50, 10])
    split = split_images(labels, test_fraction=0.2, validation_fraction=0.25, seed=1)
    assert np.bincount(labels[split.test]).tolist() == [20, 10, 2]
    assert np.bincount(labels[split.validation]).tolist() == [20, 10, 2]
    everything = np.concatenate([split.train, split.validation, split.test])
    assert sorted(everything) == list(range(160))
    again = split_images(labels, test_fraction=0.2, validation_fraction=0.25, seed=1)
    other = split_images(labels, test_fraction=0.2, validation_fraction=0.25, seed=2)
    assert split.sha256 == again.sha256 != other.sha256


def test_fractions_of_a_class_are_rounded_to_the_nearest():
    """Of what the test leaves, not of all."""
    labels = np.repeat(np.arange(2), [19, 14])
    split = split_images(labels, test_fraction=0.2, validation_fraction=0.17, seed=1)
    assert np.bincount(labels[split.test]).tolist() == [4, 3]  # 3.8, 2.8
    assert np.bincount(labels[split.validation]).tolist() == [3, 2]  # 0.17 * 15 = 2.55, 0.17 * 11 = 1.87
    split = split_images(labels, test_fraction=0.5, validation_fraction=0.5, seed=1)
    assert np.bincount(labels[split.validation]).tolist() == [4, 4]  # half of 9 and of 7, to even


def test_a_class_that_leaves_nothing_to_train_on_is_refused():
    labels = np.repeat([0, 1], [20, 2])
    with pytest.raises(DataError, match="class 1 has 2 images: too few"):
        split_images(labels, test_fraction=0.5, validation_fraction=0.9, seed=0)


def test_a_splits_hash_is_of_all_three_parts_and_their_borders():
    parts = [np.arange(4), np.arange(4, 6), np.arange(6, 9)]
    moved = [np.arange(4), np.arange(4, 7), np.arange(7, 9)]
    others = [[parts[0] + 9, *parts[1:]], [parts[0], parts[1] + 9, parts[2]], [*parts[:2], parts[2] + 9]]
    hashes = {Split(*each).sha256 for each in (parts, moved, *others)}
    assert len(hashes) == 5


def test_validation_images_come_from_the_training_part():
    labels = np.repeat(np.arange(10), 50)
    without = split_images(labels, test_fraction=0.2, validation_fraction=0.0, seed=0)
    some = split_images(labels, test_fraction=0.2, validation_fraction=0.1, seed=0)
    assert np.array_equal(without.test, some.test)
    assert set(some.validation) <= set(without.train)


def test_a_class_too_small_to_split_is_refused():
    with pytest.raises(DataError, match="too few"):
        split_images(np.array([0] * 10 + [1]), test_fraction=0.2, validation_fraction=0.0, seed=0)


def test_synthetic_images_depend_on_seed_and_position_only(tmp_path):
    small, large = opened(Synthetic(60), tmp_path), opened(Synthetic(90), tmp_path)
    other = opened(Synthetic(60, seed=1), tmp_path)
    assert np.array_equal(small.images, large.images[:60])
    assert not np.array_equal(small.images, other.images)
    assert "SYNTHETIC" in small.title
    assert np.bincount(small.labels).tolist() == [6] * 10


def test_images_of_a_class_differ(tmp_path):
    images = opened(Synthetic(60), tmp_path)
    assert len({image.tobytes() for image in images.images}) == 60


@pytest.mark.parametrize("arguments", [{"num_images": 10}, {"num_images": 1.5}, {"seed": -1}])
def test_impossible_synthetic_settings_are_refused(tmp_path, arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        Synthetic(**arguments)


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
