"""Decoded images in a memory-mapped cache, and their split into training, validation and test images."""

import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock

from fl.core.console import progress, say
from fl.core.errors import ConfigError, DataError, counted
from fl.core.files import read_json, regular, sha256, write_json
from fl.core.pixels import DTYPES, Pixels
from fl.core.units import MIB

FORMAT = 1
"""Part of every cache key: raise it when the decoded form changes."""
KEY_DIGITS = 40
"""Of a key in a folder's name: 160 bits, so that nobody makes two sets of one name."""
VERIFIED = "verified.json"
"""Which files of a cache folder were found sound."""
MANY_IMAGES = 1000
"""So many that decoding takes a while."""


@dataclass(frozen=True)
class ImageSet:
    """A decoded data set.

    Attributes:
        images: [n, height, width, bands] of a type in `DTYPES`, mapped from disk.
        labels: int64 [n], positions in `class_names`.
        class_names: in alphabetical order for images from disk.
        name: what it is called in logs and reports.
        synthetic: generated, not photographed; every report says so.
        sha256: of class names, labels and pixels.
        notes: what decoding changed ("12 images were resized ...").
        folder: the cache folder it lies in.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    name: str
    synthetic: bool
    sha256: str
    notes: tuple[str, ...]
    folder: Path

    @property
    def title(self) -> str:
        """The name, with SYNTHETIC where it applies."""
        return f"{self.name} (SYNTHETIC images)" if self.synthetic else self.name

    @property
    def pixels(self) -> Pixels:
        """What each image is like."""
        height, width, bands = self.images.shape[1:]
        return Pixels(height, width, bands, self.images.dtype.name)


@dataclass(frozen=True)
class Rows:
    """Some images of a set, read from disk when they are asked for.

    Attributes:
        images: all of them.
        positions: int64, of these.
    """

    images: np.ndarray
    positions: np.ndarray

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, rows: slice) -> np.ndarray:
        found: np.ndarray = self.images[self.positions[rows]]
        return found

    def thinned(self, step: int) -> "Rows":
        """Returns each of so many."""
        return Rows(self.images, self.positions[::step])


@dataclass(frozen=True)
class Plan:
    """What a source is about to decode.

    Attributes:
        name: of the data set.
        key: of its content; equal content gives an equal key, wherever it lies.
        class_names: of the data set.
        labels: int64 [n].
        decode: fills an array of `form` and returns notes on what it changed; may raise `DataError`.
        synthetic: see `ImageSet`.
        files: of each image, as CLASS/NAME; none where images are no files.
        form: looks what the images are like; may raise `DataError`.
        places: looks where on Earth each image is, float64 [n, 2]; may raise `DataError`. None where nobody knows.
    """

    name: str
    key: str
    class_names: tuple[str, ...]
    labels: np.ndarray
    decode: Callable[[np.ndarray], list[str]]
    synthetic: bool = False
    files: Sequence[str] = ()
    form: Callable[[], Pixels] = Pixels
    places: Callable[[], np.ndarray] | None = None


def open_images(plan: Plan, cache_dir: Path, *, verify: bool = False) -> ImageSet:
    """Returns the decoded images, from the cache when they are there, decoding them into it otherwise.

    A cache folder is written beside its final place and renamed, under a lock: several processes may ask at
    once, one decodes, and a decoding that fails or is killed leaves no folder behind under the final name. A damaged
    one is decoded again, and a line says so.

    Args:
        plan: what to decode.
        cache_dir: where.
        verify: read every pixel, also of files that are known to be sound.

    Raises:
        DataError: an image cannot be decoded, or `cache_dir` cannot be written.
    """
    folder = cache_dir.expanduser().absolute() / f"{plan.name}-{plan.key[:KEY_DIGITS]}-v{FORMAT}"
    if folder.is_dir():
        try:
            return load_images(folder, verify=verify)
        except DataError as error:
            say(f"note: {str(error).partition(';')[0]}; decoding it again")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not _is_sound(folder, verify):  # another process may have been quicker
                _decode_into(folder, plan)
    except OSError as error:
        raise DataError(f"data.cache_dir={cache_dir}: cannot be written ({error.strerror or error})") from error
    return load_images(folder)


def _is_sound(folder: Path, verify: bool) -> bool:
    try:
        load_images(folder, verify=verify)
    except DataError:
        return False
    return True


def _decode_into(folder: Path, plan: Plan) -> None:
    for left_over in folder.parent.glob(f".{folder.name}.*"):  # of a process that was killed: we hold the lock
        shutil.rmtree(left_over, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        form = plan.form()
        shape, dtype = (len(plan.labels), *form.shape), np.dtype(form.dtype)
        _refuse_little_room(folder, math.prod(shape) * dtype.itemsize)
        if len(plan.labels) >= MANY_IMAGES:
            say(f"Decoding {counted(len(plan.labels), 'image')} once, into {folder}...")
        images = np.lib.format.open_memmap(temporary / "images.npy", "w+", dtype, shape)
        notes = plan.decode(images)
        images.flush()
        np.save(temporary / "labels.npy", plan.labels)
        write_json(
            temporary / "meta.json",
            {
                "name": plan.name,
                "class_names": plan.class_names,
                "synthetic": plan.synthetic,
                "num_images": len(plan.labels),
                "sha256": _checksum(plan.class_names, plan.labels, images),
                "notes": notes,
            },
        )
        temporary.chmod(0o755)
        if folder.exists():
            folder.rename(temporary.with_name(f"{temporary.name}.damaged"))  # who has it open keeps it
        temporary.rename(folder)
    finally:
        for left_over in folder.parent.glob(f"{temporary.name}*"):
            shutil.rmtree(left_over, ignore_errors=True)


def _refuse_little_room(folder: Path, num_bytes: int) -> None:
    """Refuses what the disk cannot hold: a mapped file that does not fit ends the process while it is written."""
    if num_bytes > (free := shutil.disk_usage(folder.parent).free):
        needed = f"{num_bytes / MIB:,.0f} MiB are needed for decoded images, {free / MIB:,.0f} are free"
        raise DataError(f"data.cache_dir={folder.parent}: {needed}; set QUANTFL_CACHE to a larger disk")


def load_images(folder: Path, *, verify: bool = False) -> ImageSet:
    """Opens a cache folder; pixels are mapped (copy on write, so that nothing can change the file).

    Its checksum is verified when its files are others than those that were found sound before, by inode, size and
    times, which lie in `verified.json`.

    Args:
        folder: of the cache.
        verify: in any case.

    Raises:
        DataError: the folder is damaged.
    """
    try:
        meta = read_json(folder / "meta.json")
        count = int(meta["num_images"])
        for name in ("images.npy", "labels.npy"):
            open(folder / name, "rb", opener=regular).close()
        images = np.load(folder / "images.npy", mmap_mode="c", allow_pickle=False)
        labels = np.load(folder / "labels.npy", mmap_mode="r", allow_pickle=False)
        if images.ndim != 4 or 0 in images.shape or len(images) != count or labels.shape != (count,):
            raise ValueError("sizes disagree")
        if images.dtype.name not in DTYPES or not images.dtype.isnative or labels.dtype != np.int64:
            raise ValueError("types disagree")
        labels, found = np.array(labels), _identity(folder)
        if verify or _verified(folder) != found:
            if _checksum(meta["class_names"], labels, images) != meta["sha256"]:
                raise ValueError("its checksum is wrong")
            with suppress(OSError):  # of a folder that others own
                write_json(folder / VERIFIED, found)
        return ImageSet(
            images,
            labels,
            tuple(meta["class_names"]),
            meta["name"],
            meta["synthetic"],
            meta["sha256"],
            tuple(meta["notes"]),
            folder,
        )
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        raise DataError(f"image cache {folder}: is damaged ({error}); delete this folder and run again") from error


def visible(image: np.ndarray) -> np.ndarray:
    """Returns an image to look at, uint8 [height, width, 3]: its first bands, 2nd to 98th percentile of each.

    8-bit images of three bands are shown as they are, those of fewer in grey.
    """
    bands = image[:, :, :3] if image.shape[2] >= 3 else image[:, :, :1].repeat(3, axis=2)
    if image.dtype == np.uint8 and image.shape[2] in (1, 3):
        return bands
    low, high = np.percentile(bands.astype(np.float64), [2, 98], axis=(0, 1))
    scaled = (bands - low) / np.maximum(high - low, np.finfo(np.float32).tiny)
    return (255 * scaled.clip(0, 1)).round().astype(np.uint8)


def identity(path: Path) -> list[int]:
    """Returns what changes with a file's content, unless the disk itself fails."""
    told = path.stat()
    return [told.st_ino, told.st_size, told.st_mtime_ns, told.st_ctime_ns]


def _identity(folder: Path) -> dict[str, list[int]]:
    return {name: identity(folder / name) for name in ("images.npy", "labels.npy", "meta.json")}


def _verified(folder: Path) -> object:
    try:
        return read_json(folder / VERIFIED)
    except (OSError, ConfigError):
        return None


def _checksum(class_names: Sequence[str], labels: np.ndarray, images: np.ndarray) -> str:
    with progress("hashing images"):
        return sha256("\n".join(class_names).encode(), labels, images)
