"""Images are decoded once and whole, kept in a cache, and split as promised."""

import multiprocessing
import shutil
from pathlib import Path

import numpy as np
import pytest
from data.test_sources import contents, opened
from PIL import Image

from fl.core.errors import DataError
from fl.data import Folder, open_images, split_images
from fl.data.images import Plan
from fl.data.split import Split


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
    assert images.folder.name == f"some-{'0' * 40}-v1"
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
    found = opened(Folder(str(folder)), cache)
    images, content = found.images, (found.folder / "images.npy").read_bytes()
    assert isinstance(images, np.memmap)
    images[0] = 255 - images[0]
    assert (found.folder / "images.npy").read_bytes() == content


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
