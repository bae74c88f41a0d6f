"""Which images train, validate and test: drawn at random, or listed in files."""

import os
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from fl.core.console import say
from fl.core.errors import DataError, counted
from fl.core.files import read_regular, sha256, write_bytes
from fl.core.seeds import numpy_generator

LISTS = "https://hf.co/datasets/torchgeo/eurosat/resolve/1ce6f1bfb56db63fd91b6ecc466ea67f2509774c"
"""Where torchgeo keeps its lists of EuroSAT's images by longitude: the west trains, the east tests."""
SPATIAL = {
    "train": ("eurosat-spatial-train.txt", "2db7d455afb8dcbca898ea19a00f1f90c091734efdbba89e22aaf24056da243f"),
    "val": ("eurosat-spatial-val.txt", "6c758477604b7057a0fd990d7f6327b63b99a6725aac11a6a9d0174a7fdd8f0b"),
    "test": ("eurosat-spatial-test.txt", "de22dec83d350cac3b3e4ca8e285cb6733c81ab94bf5bcf9213a567993402452"),
}
"""File and SHA-256 of each list."""
OWN = {"train": "train.txt", "val": "val.txt", "test": "test.txt"}
"""Lists of anybody's."""
LONGEST_LIST, PATIENCE_S = 64 * 1024**2, 60


@dataclass(frozen=True)
class Split:
    """Positions in an `ImageSet`, each int64 and sorted; none is in two of them."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    kind: str = "random"

    def told(self, title: str) -> str:
        """Returns the images' title with the kind of split, where it is not the usual one."""
        return title if self.kind == "random" else f"{title}, {self.kind} split"

    @property
    def sha256(self) -> str:
        """Of all three, with their sizes."""
        sizes = np.array([len(self.train), len(self.validation), len(self.test)])
        return sha256(sizes, self.train, self.validation, self.test)


def split_images(labels: np.ndarray, *, test_fraction: float, validation_fraction: float, seed: int) -> Split:
    """Returns a stratified split: each class gives the same fractions, up to rounding.

    Args:
        labels: int64 [n].
        test_fraction: of each class, for testing.
        validation_fraction: of what remains, for validation.
        seed: of the run.

    Raises:
        DataError: a class is too small to give a training and a test image.
    """
    rng = numpy_generator(seed, "split")
    train, validation, test = [], [], []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        num_test = round(len(members) * test_fraction)
        num_validation = round((len(members) - num_test) * validation_fraction)
        if not num_test or num_test + num_validation >= len(members):
            raise DataError(
                f"class {label} has {len(members)} images: too few for data.test_fraction={test_fraction} and "
                f"data.validation_fraction={validation_fraction}; each class must give a training and a test image"
            )
        test.append(members[:num_test])
        validation.append(members[num_test : num_test + num_validation])
        train.append(members[num_test + num_validation :])
    sorted_parts = [np.sort(np.concatenate(part)) for part in (train, validation, test)]
    return Split(sorted_parts[0], sorted_parts[1], sorted_parts[2])


def listed_split(files: Sequence[str], lists: dict[str, list[str]], kind: str = "files") -> Split:
    """Returns the split that lists of file names make; images in none of them are left out, and a line says so.

    Args:
        files: of every image, as CLASS/NAME.
        lists: names for "train", "val" and "test": NAME where one image has it, or CLASS/NAME; endings do not count,
            for lists are of JPEG, and the same images exist as TIFF.
        kind: of the split.

    Raises:
        DataError: a name is of no image or of several, one is listed twice, or nobody trains or tests.
    """
    places: dict[str, list[int]] = {}
    for position, file in enumerate(files):
        path = PurePosixPath(file)
        for name in {str(path.with_suffix("")), path.stem}:
            places.setdefault(name, []).append(position)
    taken: dict[int, str] = {}
    parts: dict[str, list[int]] = {part: [] for part in OWN}
    for part, names in lists.items():
        for name in names:
            found = places.get(str(PurePosixPath(name).with_suffix("")), [])
            if len(found) != 1:
                told = "no image of that name" if not found else f"{len(found)} images of that name; write CLASS/NAME"
                raise DataError(f"data.split_files: {part} lists {name[:100]!r}, and there is {told}")
            if found[0] in taken:
                raise DataError(f"data.split_files: {name[:100]!r} is in {taken[found[0]]} and in {part}")
            taken[found[0]] = part
            parts[part].append(found[0])
    for part in ("train", "test"):
        if not parts[part]:
            raise DataError(f"data.split_files: the list {part} is empty")
    if left := len(files) - len(taken):
        say(f"note: {counted(left, 'image')} in none of the lists, left out")
    train, validation, test = (np.array(sorted(parts[part]), dtype=np.int64) for part in OWN)
    return Split(train, validation, test, kind)


def read_lists(kind: str, folder: Path | None, cache_dir: Path) -> dict[str, list[str]]:
    """Returns the names in the lists of a split.

    Args:
        kind: "spatial", torchgeo's lists, which are downloaded where no folder is given; "files", anybody's.
        folder: that holds them.
        cache_dir: for what is downloaded.

    Raises:
        DataError: one is missing or, of torchgeo's, another.
    """
    if kind == "files" and folder is None:
        raise DataError(f"data.split=files: data.split_files=DIR is needed, a folder with {', '.join(OWN.values())}")
    lists = {}
    for part in OWN:
        name, expected = SPATIAL[part] if kind == "spatial" else (OWN[part], None)
        path = (folder.expanduser() if folder else _downloaded(name, cache_dir.expanduser())) / name
        if part == "val" and kind == "files" and not path.exists():
            continue
        try:
            content = read_regular(path, LONGEST_LIST)
            names = content.decode().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            told = getattr(error, "strerror", None) or error
            raise DataError(f"data.split_files={folder}: {name} cannot be read ({told})") from error
        if expected and sha256(content) != expected:
            found = sha256(content)[:16]
            raise DataError(f"{path}: is not torchgeo's list (SHA-256 {found}... instead of {expected[:16]}...)")
        lists[part] = [line.strip() for line in names if line.strip()]
    return lists


def _downloaded(name: str, cache_dir: Path) -> Path:
    """Returns the cache's folder with one of torchgeo's lists in it."""
    folder = cache_dir / "downloads"
    if (folder / name).is_file():
        return folder
    try:
        with urllib.request.urlopen(f"{LISTS}/{name}", timeout=PATIENCE_S) as answer:  # noqa: S310  a constant, https
            content = answer.read(LONGEST_LIST)
        os.makedirs(folder, exist_ok=True)
        write_bytes(folder / name, content)
    except OSError as error:
        raise DataError(
            f"data.split=spatial: torchgeo's lists are not here, and the download failed ({error}); set "
            "data.split_files=DIR, or the variable EUROSAT_SPLITS, to a folder that holds eurosat-spatial-*.txt"
        ) from error
    return folder
