"""Images on disk: EuroSAT (zip, folder or download) and any folder of class sub-folders."""

import functools
import math
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar

import numpy as np
from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass as checked

from fl.core.console import progress
from fl.core.errors import ConfigError, DataError, counted, suggestion
from fl.core.files import read_json, sha256, write_json
from fl.core.pixels import MOST_BANDS, MOST_SIDE, Pixels
from fl.data.decoding import Wanted, place_of, resized
from fl.data.images import MANY_IMAGES, Plan, identity
from fl.data.listing import ImageFile, list_folder, list_zip

T = TypeVar("T")


def _within(number: Any, most: float = math.inf) -> bool:
    return type(number) is int and 1 <= number <= most


def _sides(value: Any) -> Any:
    sides = [value, value] if isinstance(value, int) else value
    if sides is None:
        return None
    if isinstance(sides, list | tuple) and len(sides) == 2 and all(_within(each, MOST_SIDE) for each in sides):
        return tuple(sides)
    raise ValueError(
        f"must be pixels on each side, 1 to {MOST_SIDE:,}, or [height, width], or null for the images' own"
    )


def _numbers(value: Any) -> Any:
    if value in (None, "rgb"):
        return value
    if isinstance(value, list | tuple) and _within(len(value), MOST_BANDS) and all(map(_within, value)):
        return tuple(value)
    raise ValueError("must be numbers of bands from 1, as [3,2,1], or rgb, or null for all")


Size = Annotated[tuple[int, int] | None, BeforeValidator(_sides)]
Bands = Annotated[Literal["rgb"] | tuple[int, ...] | None, BeforeValidator(_numbers)]

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
BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", "B12", "B8A")
"""Sentinel-2's, in the order that EuroSAT's files have them."""
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"}
RGB = Wanted()
"""64x64 pixels of red, green and blue, as EuroSAT's."""


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
        return plan_files("eurosat", where, EUROSAT_CLASSES, cache_dir=cache_dir)


@checked(frozen=True)
class Folder:
    """Any folder (or zip) of class sub-folders, each holding images of any size, number of bands and usual depth.

    Args:
        path: the folder.
        class_names: the classes it must have, exactly; taken from the folder when None.
        image_size: pixels on each side, or [height, width]; of the images when None. Runs from before there was a
            choice said nothing, and meant 64 and rgb.
        bands: which, by number from 1, in this order; all when None; rgb: 8-bit red, green and blue of any image.
    """

    path: str | None = None
    class_names: tuple[str, ...] | None = None
    image_size: Size = (64, 64)
    bands: Bands = "rgb"

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError(
                "data=folder: data.path=DIR is needed, a folder (or zip) with one sub-folder of images for each class, "
                "as in DIR/forest/1.jpg and DIR/sea/1.jpg"
            )

    def plan(self, cache_dir: Path) -> Plan:
        assert self.path
        wanted = Wanted(self.image_size, self.bands)
        return plan_files("folder", Path(self.path).expanduser(), self.class_names, wanted, cache_dir=cache_dir)


@checked(frozen=True)
class EuroSatMs:
    """EuroSAT with all 13 bands of Sentinel-2 (Helber et al., IEEE JSTARS 2019), 16-bit TIFF: its ten classes.

    Args:
        path: the zip file, or a folder it was unpacked to.
        bands: by name, as in `BANDS`, in any order; all when None.
    """

    path: str | None = None
    bands: Annotated[tuple[str, ...], Field(min_length=1)] | None = None

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError(
                "data=eurosat_ms: data.path=PATH or the variable EUROSAT_MS_ZIP is needed, EuroSATallBands.zip or the "
                "folder that was unpacked from it"
            )
        if unknown := [name for name in self.bands or () if name not in BANDS]:
            near = suggestion(str(unknown[0]), BANDS, "; ", "")
            raise ConfigError(f"data.bands={unknown[0]}: is none of {', '.join(BANDS)}{near}")

    def plan(self, cache_dir: Path) -> Plan:
        assert self.path
        wanted = Wanted((64, 64), tuple(BANDS.index(name) + 1 for name in self.bands or BANDS))
        return plan_files("eurosat_ms", Path(self.path).expanduser(), EUROSAT_CLASSES, wanted, cache_dir=cache_dir)


def plan_files(
    name: str, path: Path, class_names: tuple[str, ...] | None, wanted: Wanted = RGB, *, cache_dir: Path | None = None
) -> Plan:
    """Plans a data set from a zip file or a folder.

    The key covers class, name and SHA-256 of every image, so a zip and its unpacked folder share a cache, and no two
    sets do.

    Args:
        name: of the data set.
        path: of the zip or folder.
        class_names: the classes it must have; None for those that it has.
        wanted: what its images become.
        cache_dir: where it is remembered what a zip of many images holds; None: nowhere.

    Raises:
        DataError: the path is missing or damaged, entries point outside, or the classes are not the expected ones.
    """
    suffixes = IMAGE_SUFFIXES if wanted.bands == "rgb" else {*IMAGE_SUFFIXES, ".npy"}
    found_at = identity(path) if cache_dir is not None and path.is_file() else []
    if path.is_dir():
        files, class_folders = list_folder(path, suffixes)
    elif path.is_file():
        files, class_folders = list_zip(path, suffixes)
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
    hashed = functools.partial(_hashed, path, files)
    if cache_dir is not None and found_at and len(files) >= MANY_IMAGES:
        of = [str(path.absolute()), sorted(suffixes)]
        listing = _remembered(cache_dir.expanduser() / "sources", of, found_at, hashed)
    else:
        listing = hashed()
    listing += "" if wanted == RGB else repr(wanted)
    return Plan(
        name,
        sha256(listing.encode()),
        tuple(expected),
        labels,
        functools.partial(_decode, path, files, wanted),
        files=[file.place for file in files],
        form=functools.partial(_form, path, files, wanted),
        places=functools.partial(_places, path, files),
    )


def _each(path: Path, files: Sequence[ImageFile], what: str, do: Callable[[bytes], T]) -> Iterator[tuple[ImageFile, T]]:
    """Yields every file with what is made of its content; what cannot be is refused by name."""
    with progress(what, len(files), "image") as advance:
        for file in files:
            try:
                made = do(file.read())
            except Exception as error:  # whatever a library makes of damaged content
                told = (str(error).splitlines() or [type(error).__name__])[0]
                raise DataError(f"data.path={path}: {file.place} cannot be decoded ({told})") from error
            yield file, made
            advance(1)


def _hashed(path: Path, files: Sequence[ImageFile]) -> str:
    """Returns the SHA-256 of every file's place and content; what cannot be read is refused by name."""
    found = _each(path, files, "hashing image files", sha256)
    return sha256("".join(f"{file.place} {content}\n" for file, content in found).encode())


def _remembered(folder: Path, of: Sequence[Any], found_at: list[int], make: Callable[[], str]) -> str:
    """Returns a hash that was made of a file that is still the same one, or makes it."""
    path = folder / f"{sha256(repr(of).encode())[:32]}.json"
    with suppress(OSError, ConfigError, LookupError, TypeError):
        told = read_json(path)
        if told["identity"] == found_at and re.fullmatch("[0-9a-f]{64}", told["sha256"]):
            return str(told["sha256"])
    made = make()
    with suppress(OSError):  # a cache that cannot be written is told of where images are decoded into it
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, {"identity": found_at, "sha256": made})
    return made


def _form(path: Path, files: Sequence[ImageFile], wanted: Wanted) -> Pixels:
    """Returns what all images will be like.

    Raises:
        DataError: they differ in what was not chosen.
    """
    if known := wanted.form:
        return known
    first: tuple[ImageFile, Pixels] | None = None
    for file, form in _each(path, files, "looking at images", wanted.look):
        if isinstance(wanted.bands, tuple) and max(wanted.bands) > form.bands:
            have = counted(form.bands, "band")
            raise DataError(f"data.bands={list(wanted.bands)}: {file.place} has {have}; the first is 1")
        first = first or (file, form)
        (one, held), size = first, wanted.size or form.shape[:2]
        if held.bands != form.bands:
            told = f"{one.place} has {counted(held.bands, 'band')}, {file.place} {counted(form.bands, 'band')}"
            raise DataError(f"data.path={path}: {told}; data.bands=rgb makes red, green and blue of all")
        if held.dtype != form.dtype:
            told = f"{one.place} has pixels of {held.dtype}, {file.place} of {form.dtype}"
            raise DataError(f"data.path={path}: {told}; give images of one type")
        if wanted.size is None and (held.shape[:2] != size or max(size) > MOST_SIDE):
            sizes = [
                f"{each.place} has {pixels.width}x{pixels.height} pixels" for each, pixels in (first, (file, form))
            ]
            raise DataError(
                f"data.path={path}: {', '.join(dict.fromkeys(sizes))}; choose a size, as in data.image_size=64"
            )
    assert first
    held = first[1]
    height, width = wanted.size or held.shape[:2]
    return Pixels(height, width, len(wanted.bands) if isinstance(wanted.bands, tuple) else held.bands, held.dtype)


def _decode(path: Path, files: Sequence[ImageFile], wanted: Wanted, images: np.ndarray) -> list[str]:
    sizes: Counter[tuple[int, int]] = Counter()
    converted: Counter[str] = Counter()
    height, width = images.shape[1:3]
    found = _each(path, files, "decoding images once", wanted.decode)
    for position, (_, (array, mode)) in enumerate(found):
        if mode:
            converted[mode] += 1
        if array.shape[:2] != (height, width):
            sizes[array.shape[1], array.shape[0]] += 1
        images[position] = resized(array, height, width)
    told = ", ".join(f"{wide}x{high}" for (wide, high), _ in sizes.most_common(3))
    notes = [f"{_images(sizes)} resized to {width}x{height} (from {told}, ...)"] if sizes else []
    kind = "RGB" if images.shape[3] == 3 else "grey"
    return notes + (
        [f"{_images(converted)} converted to {kind} (from mode {', '.join(converted)})"] if converted else []
    )


def _images(counts: Counter[Any]) -> str:
    return counted(counts.total(), "image").replace(",", "")  # as in the notes of older caches


def _places(path: Path, files: Sequence[ImageFile]) -> np.ndarray:
    """Returns where images are: in the coordinates of their files where all have the same, else east and north.

    Raises:
        DataError: a file does not say; or they have several systems, and what converts them is not installed.
    """
    try:
        found = np.array([place for _, place in _each(path, files, "looking where images are", place_of)])
    except DataError as error:
        raise DataError(f"partition=regions: {error}; only georeferenced TIFFs say where they are") from error
    codes, places = found[:, 0].astype(int), found[:, 1:]
    if len(set(codes)) == 1 and not 4000 <= codes[0] < 5000:  # metres
        return places
    try:
        import pyproj
    except ImportError as error:
        raise DataError(
            "partition=regions: images in several systems of coordinates, or in degrees, need pyproj; install it with: "
            "pip install -c constraints.txt -e '.[geo]'"
        ) from error
    degrees = np.empty_like(places)
    for code in set(codes.tolist()):
        these = codes == code
        try:
            to_degrees = pyproj.Transformer.from_crs(code, 4326, always_xy=True)
            degrees[these] = np.stack(to_degrees.transform(*places[these].T), 1)
        except pyproj.exceptions.ProjError as error:
            raise DataError(f"partition=regions: EPSG:{code} of some images is no system that pyproj knows") from error
    if not np.isfinite(degrees).all():
        raise DataError("partition=regions: some images lie outside of where their coordinates are defined")
    return degrees * [np.cos(np.radians(degrees[:, 1].mean())), 1]


def _download(cache_dir: Path) -> Path:
    """Returns EuroSAT.zip in the cache folder, downloaded by torchvision when it is not there yet."""
    target = cache_dir / "downloads" / "EuroSAT.zip"
    if target.is_file():
        return target
    from fl.data.torchvision_import import EuroSAT  # now: it loads torchvision, which nothing but a download needs

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            with progress("downloading EuroSAT"):
                EuroSAT(scratch, download=True)
            (Path(scratch) / "eurosat" / "EuroSAT.zip").rename(target)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"data.path and EUROSAT_ZIP are not set, and the download failed ({error}); "
            "set EUROSAT_ZIP=/path/to/EuroSAT.zip or data.path=/path/to/zip-or-folder, or try data=synthetic"
        ) from error
    return target
