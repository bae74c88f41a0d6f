"""Which image files a zip or a folder holds, class by class; nothing of them is decoded."""

import functools
import os
import zipfile
import zlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fl.core.errors import DataError
from fl.core.files import read_regular

LARGEST_FILE_BYTES = 64 * 1024**2
ZIP_ERRORS = (OSError, ValueError, SyntaxError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What zipfile raises for damaged files (an encrypted entry is a RuntimeError)."""


@dataclass(frozen=True)
class ImageFile:
    """One image file: its class, its name, and how to read its bytes."""

    class_name: str
    name: str
    read: Callable[[], bytes]

    @property
    def place(self) -> str:
        """Class and name."""
        return f"{self.class_name}/{self.name}"


def list_zip(path: Path, suffixes: Collection[str]) -> tuple[list[ImageFile], set[str]]:
    """Returns a zip's image files, and the names of its class folders.

    Raises:
        DataError: it is damaged, or of another layout; an entry is too large or points outside.
    """
    try:
        archive = zipfile.ZipFile(path)
    except ZIP_ERRORS as error:
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
        if entry.is_dir() or hidden or os.path.splitext(name)[1].lower() not in suffixes:
            continue
        if entry.file_size > LARGEST_FILE_BYTES:
            raise DataError(f"data.path={path}: entry {entry.filename!r} has {entry.file_size} bytes; too large")
        files.append((parent, _in_zip(archive, entry, parent.name, name)))
    return _class_files(path, files, folders, suffixes)


@functools.cache
def _folder(text: str) -> PurePosixPath:
    return PurePosixPath(text)  # slow: once per folder, not per image


def _in_zip(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, class_name: str, name: str) -> ImageFile:
    return ImageFile(class_name, name, lambda: archive.read(entry))


def list_folder(path: Path, suffixes: Collection[str]) -> tuple[list[ImageFile], set[str]]:
    """Returns a folder's image files, and the names of its class folders; errors as those of `list_zip`."""
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
        elif place.suffix.lower() in suffixes:
            if not each.is_file():
                raise DataError(f"data.path={path}: {place} is no regular file; refused")
            if (size := each.stat().st_size) > LARGEST_FILE_BYTES:
                raise DataError(f"data.path={path}: {place} has {size} bytes; too large")
            files.append(
                (
                    place.parent,
                    ImageFile(each.parent.name, each.name, functools.partial(read_regular, each, LARGEST_FILE_BYTES)),
                )
            )
    return _class_files(path, files, folders, suffixes)


def _class_files(
    path: Path, files: list[tuple[PurePosixPath, ImageFile]], folders: list[PurePosixPath], suffixes: Collection[str]
) -> tuple[list[ImageFile], set[str]]:
    """Returns the files and the names of all class folders, empty ones too, which must lie side by side."""
    parents = {parent for parent, _ in files}
    above = sorted({str(parent.parent) for parent in parents})
    if any(not parent.parts for parent in parents) or len(above) > 1:
        raise DataError(f"data.path={path}: images must lie in class sub-folders side by side, as in CLASS/image.jpg")
    if not files:
        raise DataError(f"data.path={path}: holds no images ({', '.join(sorted(suffixes))})")
    class_folders = {folder.name for folder in folders if str(folder.parent) == above[0]}
    return [file for _, file in files], class_folders


def _hidden(parts: tuple[str, ...]) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in parts)
