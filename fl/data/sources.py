"""Images on disk: EuroSAT (zip, folder or download) and any folder of class sub-folders."""

import functools
import io
import os
import tempfile
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
from PIL import Image
from pydantic.dataclasses import dataclass as checked

from fl.core.console import progress
from fl.core.errors import ConfigError, DataError, counted
from fl.core.files import sha256
from fl.data.images import IMAGE_SIZE, Plan

EUROSAT_CLASSES = (
    "AnnualCrop",
    "Forest",
    "HerbaceousVegetation",
    "Highway",
    "Industrial",
    "Pasture",
    "PermanentCrop",
    "Residential",
    "River",
    "SeaLake",
)
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"}
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")
"""By content, whatever a file is called: other formats of Pillow start programs (EPS) or are many, old and unused."""
LARGEST_FILE_BYTES, MOST_PIXELS = 64 * 1024**2, 4096**2
DECODE_ERRORS = (OSError, ValueError, SyntaxError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What Pillow and zipfile raise for damaged images and entries (an encrypted entry is a RuntimeError)."""


class Source(Protocol):
    """Where images come from; a new data set is one class with this method and one file in `conf/data/`."""

    def plan(self, cache_dir: Path) -> Plan:
        """Looks at the source without decoding it; raises `DataError` when it cannot be used."""


@checked(frozen=True)
class EuroSat:
    """EuroSAT RGB (Helber et al., IEEE JSTARS 2019): exactly its ten classes.

    Args:
        path: the zip file, or a folder it was unpacked to; downloaded by torchvision when None.
    """

    path: str | None = None

    def plan(self, cache_dir: Path) -> Plan:
        where = Path(self.path).expanduser() if self.path else _download(cache_dir.expanduser())
        return plan_files("eurosat", where, EUROSAT_CLASSES)


@checked(frozen=True)
class Folder:
    """Any folder (or zip) of class sub-folders, each holding images.

    Args:
        path: the folder.
        class_names: the classes it must have, exactly; taken from the folder when None.
    """

    path: str | None = None
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError(
                "data=folder: data.path=DIR is needed, a folder (or zip) with one sub-folder of images for each class, "
                "as in DIR/forest/1.jpg and DIR/sea/1.jpg"
            )

    def plan(self, cache_dir: Path) -> Plan:
        assert self.path
        return plan_files("folder", Path(self.path).expanduser(), self.class_names)


@dataclass(frozen=True)
class _File:
    """One image file: its class, its name, the CRC-32 and size of its bytes, and how to read them."""

    class_name: str
    name: str
    crc: int
    num_bytes: int
    read: Callable[[], bytes]


def plan_files(name: str, path: Path, class_names: tuple[str, ...] | None) -> Plan:
    """Plans a data set from a zip file or a folder.

    The key covers class, name, CRC-32 and size of every image, so a zip and its unpacked folder share a cache.

    Raises:
        DataError: the path is missing or damaged, entries point outside, or the classes are not the expected ones.
    """
    if path.is_dir():
        files, class_folders = _list_folder(path)
    elif path.is_file():
        files, class_folders = _list_zip(path)
    else:
        raise DataError(f"data.path={path}: no such file or folder")
    found = sorted({file.class_name for file in files} | class_folders)
    expected = sorted(class_names) if class_names else found
    counts = Counter(file.class_name for file in files)
    missing = [each for each in expected if not counts[each]]
    extra = [each for each in found if each not in expected]
    if missing or extra:
        problems = [f"no images of class {', '.join(missing)}"] if missing else []
        problems += [f"unexpected class {', '.join(extra[:5])}"] if extra else []
        raise DataError(f"data.path={path}: {' and '.join(problems)}; the classes must be {', '.join(expected)}")
    if len(expected) < 2:
        raise DataError(f"data.path={path}: needs at least two sub-folders of images, one per class; found {found}")
    files.sort(key=lambda file: (file.class_name, file.name))
    labels = np.array([expected.index(file.class_name) for file in files], dtype=np.int64)
    listing = "".join(f"{file.class_name}/{file.name} {file.crc:08x} {file.num_bytes}\n" for file in files)

    def decode(images: np.ndarray) -> list[str]:
        return _decode(path, files, images)

    names = [f"{file.class_name}/{file.name}" for file in files]
    return Plan(name, sha256(listing.encode()), tuple(expected), labels, decode, files=names)


def _list_zip(path: Path) -> tuple[list[_File], set[str]]:
    try:
        archive = zipfile.ZipFile(path)
    except DECODE_ERRORS as error:
        raise DataError(f"data.path={path}: not a whole zip file ({error}); download it again") from error
    files, folders = [], []
    for entry in archive.infolist():
        inside, _, name = entry.filename.replace("\\", "/").rstrip("/").rpartition("/")
        parent = _folder(inside)
        if entry.filename.startswith(("/", "\\")) or ".." in (*parent.parts, name) or ":" in entry.filename:
            raise DataError(f"data.path={path}: entry {entry.filename!r} points outside the archive; refused")
        hidden = _hidden((*parent.parts, name))
        if entry.is_dir() and not hidden:
            folders.append(parent / name)
        if entry.is_dir() or hidden or os.path.splitext(name)[1].lower() not in IMAGE_SUFFIXES:
            continue
        if entry.file_size > LARGEST_FILE_BYTES:
            raise DataError(f"data.path={path}: entry {entry.filename!r} has {entry.file_size} bytes; too large")
        files.append((parent, _in_zip(archive, entry, parent.name, name)))
    return _class_files(path, files, folders)


@functools.cache
def _folder(text: str) -> PurePosixPath:
    return PurePosixPath(text)  # slow: once per folder, not per image


def _in_zip(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, class_name: str, name: str) -> _File:
    return _File(class_name, name, entry.CRC, entry.file_size, lambda: archive.read(entry))


def _list_folder(path: Path) -> tuple[list[_File], set[str]]:
    root = path.resolve()
    files, folders = [], []
    for each in sorted(path.rglob("*")):
        place = PurePosixPath(each.relative_to(path).as_posix())
        if _hidden(place.parts):
            continue
        try:
            inside = each.resolve(strict=True).is_relative_to(root)
        except (OSError, RuntimeError):  # a link to nowhere, or to itself
            inside = False
        if not inside:
            raise DataError(f"data.path={path}: {place} points outside the folder, or nowhere; refused")
        if each.is_dir():
            folders.append(place)
        elif place.suffix.lower() in IMAGE_SUFFIXES:
            if not each.is_file():
                raise DataError(f"data.path={path}: {place} is no regular file; refused")
            if (size := each.stat().st_size) > LARGEST_FILE_BYTES:
                raise DataError(f"data.path={path}: {place} has {size} bytes; too large")
            crc = zlib.crc32(each.read_bytes())
            files.append((place.parent, _File(each.parent.name, each.name, crc, size, each.read_bytes)))
    return _class_files(path, files, folders)


def _class_files(
    path: Path, files: list[tuple[PurePosixPath, _File]], folders: list[PurePosixPath]
) -> tuple[list[_File], set[str]]:
    """Returns the files and the names of all class folders, empty ones too, which must lie side by side."""
    parents = {parent for parent, _ in files}
    above = sorted({str(parent.parent) for parent in parents})
    if any(not parent.parts for parent in parents) or len(above) > 1:
        raise DataError(f"data.path={path}: images must lie in class sub-folders side by side, as in CLASS/image.jpg")
    if not files:
        raise DataError(f"data.path={path}: holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    class_folders = {folder.name for folder in folders if str(folder.parent) == above[0]}
    return [file for _, file in files], class_folders


def _hidden(parts: tuple[str, ...]) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in parts)


def _decode(path: Path, files: list[_File], images: np.ndarray) -> list[str]:
    resized: Counter[tuple[int, int]] = Counter()
    converted: Counter[str] = Counter()
    with progress("decoding images once", len(files)) as advance, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # of what is refused below
        for position, file in enumerate(files):
            try:
                image: Image.Image = Image.open(io.BytesIO(file.read()), formats=FORMATS)
                if image.width * image.height > MOST_PIXELS:
                    raise ValueError(
                        f"{image.width}x{image.height} pixels are more than {MOST_PIXELS:,}; make it smaller"
                    )
                image.load()
            except (*DECODE_ERRORS, Image.DecompressionBombError) as error:
                place = f"{file.class_name}/{file.name}"
                raise DataError(f"data.path={path}: {place} cannot be decoded ({error})") from error
            if image.mode != "RGB":
                converted[image.mode] += 1
                image = _to_rgb(image, path, file)
            if image.size != (IMAGE_SIZE, IMAGE_SIZE):
                resized[image.size] += 1
                image = image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR)
            images[position] = np.asarray(image)
            advance(1)
    sizes = ", ".join(f"{width}x{height}" for (width, height), _ in resized.most_common(3))
    notes = [f"{_images(resized)} resized to {IMAGE_SIZE}x{IMAGE_SIZE} (from {sizes}, ...)"] if resized else []
    modes = ", ".join(converted)
    return notes + ([f"{_images(converted)} converted to RGB (from mode {modes})"] if converted else [])


def _images(counts: Counter[Any]) -> str:
    return counted(counts.total(), "image").replace(",", "")  # as in the notes of older caches


def _to_rgb(image: Image.Image, path: Path, file: _File) -> Image.Image:
    if image.mode.startswith("I;16"):  # PIL's own conversion clips 16 bits at 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise DataError(f"data.path={path}: {file.class_name}/{file.name} has mode {image.mode}; give 8 or 16 bits")
    return image.convert("RGBA").convert("RGB")  # by way of RGBA: a palette with transparency warns otherwise


def _download(cache_dir: Path) -> Path:
    """Returns EuroSAT.zip in the cache folder, downloaded by torchvision when it is not there yet."""
    target = cache_dir / "downloads" / "EuroSAT.zip"
    if target.is_file():
        return target
    from fl.data.torchvision_import import EuroSAT  # now: it loads torchvision, which nothing but a download needs

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            EuroSAT(scratch, download=True)
            (Path(scratch) / "eurosat" / "EuroSAT.zip").rename(target)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"data.path and EUROSAT_ZIP are not set, and the download failed ({error}); "
            "set EUROSAT_ZIP=/path/to/EuroSAT.zip or data.path=/path/to/zip-or-folder, or try data=synthetic"
        ) from error
    return target
