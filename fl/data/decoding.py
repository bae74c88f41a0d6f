"""Image files as arrays: JPEG, PNG, BMP, WebP, TIFF and `.npy`, known by content, of any number of bands."""

import io
import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import imagecodecs
import numpy as np
import tifffile
from PIL import Image, UnidentifiedImageError

from fl.core.errors import counted
from fl.core.pixels import DTYPES, Pixels

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")
"""Of Pillow, whatever a file is called: its others start programs (EPS) or are many, old and unused."""
MOST_PIXELS, MOST_BYTES, MOST_PAGES, MOST_SCANS = 4096**2, 1 << 30, 1024, 100
"""Of an image, before anything of it is decoded."""
NUMPY, PNG = b"\x93NUMPY", b"\x89PNG\r\n\x1a\n"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
TIFF_NUMBERS = ("MINISBLACK", "RGB")
"""Photometric interpretations whose samples are the bands; of others Pillow makes RGB."""
TIFF_PACKED = ("NONE", "LZW", "ADOBE_DEFLATE", "DEFLATE", "PACKBITS", "ZSTD")
GREY = {"1", "L", "LA"}
logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what is wrong with a file is raised, or checked here


@dataclass(frozen=True)
class Wanted:
    """What images of any kind become.

    Attributes:
        size: height and width; None for those of the images.
        bands: numbers from 1, in order; "rgb" for 8-bit red, green and blue, whatever an image has; None for its own.
    """

    size: tuple[int, int] | None = (64, 64)
    bands: Literal["rgb"] | tuple[int, ...] | None = "rgb"

    @property
    def form(self) -> Pixels | None:
        """What all images will be like, if that is known before one was looked at."""
        return Pixels(*self.size) if self.size and self.bands == "rgb" else None

    def look(self, content: bytes) -> Pixels:
        """Returns what a file holds, of which only the beginning is decoded; bands are counted before the choice.

        Raises:
            ValueError: it is no image, too large, or of another kind of numbers; libraries raise other errors too.
        """
        if self.bands == "rgb":
            image = _opened(content)
            return Pixels(image.height, image.width)
        return _look(content)

    def decode(self, content: bytes) -> tuple[np.ndarray, str]:
        """Returns [height, width, bands], and the mode it was converted from ("" if it was not).

        Raises:
            ValueError: see `look`; or it holds numbers that are not finite.
        """
        if self.bands == "rgb":
            return _rgb(_loaded(content))
        array, mode = _decoded(content)
        if self.bands is not None:
            array = array[:, :, [number - 1 for number in self.bands]]
        if array.dtype == np.float32 and (lost := int(array.size - np.isfinite(array).sum())):
            raise ValueError(f"{counted(lost, 'value')} of its pixels are not finite; fill them first")
        return array, mode


def resized(array: np.ndarray, height: int, width: int) -> np.ndarray:
    """Returns an image, any type [h, w, bands], as [height, width, bands], each band interpolated by itself."""
    if array.shape[:2] == (height, width):
        return array
    whole = array if array.dtype == np.uint8 else array.astype(np.float32)
    bands = [Image.fromarray(np.ascontiguousarray(whole[:, :, band])) for band in range(array.shape[2])]
    small = np.stack([np.asarray(each.resize((width, height), Image.Resampling.BILINEAR)) for each in bands], 2)
    if array.dtype.kind == "f" or array.dtype == np.uint8:
        return small
    limits = np.iinfo(array.dtype)
    return np.clip(np.rint(small), limits.min, limits.max).astype(array.dtype)


def place_of(content: bytes) -> tuple[int, float, float]:
    """Returns where a GeoTIFF's centre is: the EPSG code of its coordinates, x and y in them.

    Raises:
        ValueError: it does not say.
    """
    if not content.startswith(TIFF):
        raise ValueError("is no GeoTIFF")
    with _tiff(content) as file:
        page = file.pages.first
        told = {name: tag.value for name in (33550, 33922) if (tag := page.tags.get(name)) is not None}
        keys = page.geotiff_tags or {}
    code = int(keys.get("ProjectedCSTypeGeoKey") or keys.get("GeographicTypeGeoKey") or 0)
    if len(told.get(33550, ())) < 2 or len(told.get(33922, ())) < 6 or not 1024 <= code < 32767:
        raise ValueError("has no tiepoint, pixel scale and EPSG code")
    (step_x, step_y, *_), (column, row, _, x, y, *_) = told[33550], told[33922]
    x, y = x + (page.imagewidth / 2 - column) * step_x, y - (page.imagelength / 2 - row) * step_y
    if not (math.isfinite(x) and math.isfinite(y)):
        raise ValueError("has a tiepoint that is not finite")
    return code, x, y


def _look(content: bytes) -> Pixels:
    if content.startswith(NUMPY):
        array = _mapped(content)
        return _checked(array.shape, array.dtype)
    if content.startswith(TIFF):
        with _tiff(content) as file:
            if pages := _pages_of_bands(file):
                return _form_of(pages)
    image = _opened(content)
    if _is_deep(content):
        return _checked((image.height, image.width, 1 if content[25] in (0, 4) else 3), np.dtype(np.uint16))
    is_16 = image.mode.startswith("I;16")
    bands = 1 if image.mode in GREY or is_16 else 3
    return Pixels(image.height, image.width, bands, "uint16" if is_16 else "uint8")


def _decoded(content: bytes) -> tuple[np.ndarray, str]:
    if content.startswith(NUMPY):
        return _of_known_type(_mapped(content)), ""
    if content.startswith(TIFF):
        with _tiff(content) as file:
            if pages := _pages_of_bands(file):
                return _of_known_type(_tiff_bands(pages, len(content))), ""
    if _is_deep(content):
        _opened(content)
        array = np.asarray(imagecodecs.png_decode(content))
        array = array[:, :, None] if array.ndim == 2 else array
        bands = 1 if array.shape[2] < 3 else 3
        return array[:, :, :bands], "" if bands == array.shape[2] else "with transparency"
    image = _loaded(content)
    if image.mode in GREY:
        return np.asarray(image.convert("L"))[:, :, None], "" if image.mode == "L" else image.mode
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)[:, :, None], ""
    return _rgb(image)


def _opened(content: bytes) -> Image.Image:
    """Returns an image that is not decoded yet.

    Raises:
        ValueError: it has too many pixels.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # of what is refused here
        try:
            image: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
        except UnidentifiedImageError as error:
            raise ValueError(f"is no {', '.join(FORMATS)} that is known, or damaged at its beginning") from error
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(f"{image.width}x{image.height} pixels are more than {MOST_PIXELS:,}; make it smaller")
    if image.format == "JPEG" and (scans := content.count(b"\xff\xda")) > MOST_SCANS:
        raise ValueError(f"a JPEG of {scans:,} scans, each of which goes over the whole image; at most {MOST_SCANS}")
    return image


def _loaded(content: bytes) -> Image.Image:
    image = _opened(content)
    image.load()
    return image


def _rgb(image: Image.Image) -> tuple[np.ndarray, str]:
    if image.mode == "RGB":
        return np.asarray(image), ""
    if image.mode.startswith("I;16"):  # PIL's own conversion clips 16 bits at 255
        whole = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    elif image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode}; give 8 or 16 bits, or another data.bands than rgb")
    else:
        whole = image.convert("RGBA").convert("RGB")  # by way of RGBA: a palette with transparency warns otherwise
    return np.asarray(whole), image.mode


def _is_deep(content: bytes) -> bool:
    """Tells PNGs of 16 bits, of which Pillow would keep 8."""
    return content.startswith(PNG) and content[24:25] == b"\x10"


def _checked(shape: tuple[int, ...], dtype: Any) -> Pixels:
    """Returns what an image is like.

    Raises:
        ValueError: it is too large, or its numbers are of another kind.
    """
    height, width, bands = shape
    if height * width > MOST_PIXELS or height * width * bands * dtype.itemsize > MOST_BYTES:
        raise ValueError(f"{width}x{height} pixels of {bands} bands are more than {MOST_PIXELS:,}, or than 1 GiB")
    if dtype.newbyteorder("=").name in DTYPES:
        return Pixels(height, width, bands, dtype.newbyteorder("=").name)
    if dtype.kind == "f":
        return Pixels(height, width, bands, "float32")
    raise ValueError(f"pixels of {dtype.name}; give 8 or 16 bits, or floats")


def _of_known_type(array: np.ndarray) -> np.ndarray:
    """Returns the pixels in one of the types that are kept, in this machine's byte order."""
    form = _checked(array.shape, array.dtype)
    with np.errstate(over="ignore"):  # becomes infinite, and is refused for that
        return array.astype(form.dtype, copy=False)


def _mapped(content: bytes) -> np.ndarray:
    """Returns a `.npy` file's array [height, width, bands] without a copy.

    Raises:
        ValueError: it is no such array.
    """
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the npy format")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read(file)
    if dtype.kind not in "uif" or len(shape) not in (2, 3) or 0 in shape:
        raise ValueError(f"an array of {dtype} and shape {list(shape)}; give numbers [height, width, bands]")
    if math.prod(shape) * dtype.itemsize != len(content) - file.tell():
        raise ValueError(f"its {len(content):,} bytes are not an array of shape {list(shape)}")
    array = np.frombuffer(content, dtype, offset=file.tell()).reshape(shape, order="F" if is_fortran else "C")
    if array.ndim == 2:
        return array[:, :, None]
    first, middle, last = array.shape
    if last < min(first, middle):
        return array
    if first < min(middle, last):
        return np.moveaxis(array, 0, 2)
    raise ValueError(f"shape {list(shape)} does not say which axis are the bands: the shortest, first or last")


def _tiff(content: bytes) -> Any:
    return tifffile.TiffFile(io.BytesIO(content))


def _pages_of_bands(file: Any) -> list[Any]:
    """Returns the pages that hold an image's bands: one, or as many as it has; none for what Pillow shall decode.

    Raises:
        ValueError: there are too many.
    """
    first = file.pages.first
    plain = first.photometric.name in TIFF_NUMBERS and first.compression.name in TIFF_PACKED
    if not plain or first.dtype is None or first.bitspersample not in (8, 16, 32, 64):
        return []
    if first.axes not in ("YX", "YXS", "SYX"):
        raise ValueError(f"its axes are {first.axes}; give one image of one or more bands")
    pages = [first]
    while first.axes == "YX" and len(pages) <= MOST_PAGES:
        try:
            page = file.pages[len(pages)]
        except IndexError:
            break
        same = (page.shape, page.dtype, page.compression) == (first.shape, first.dtype, first.compression)
        if not same or page.is_reduced:  # an overview, a mask
            break
        pages.append(page)
    if len(pages) > MOST_PAGES:
        raise ValueError(f"more than {MOST_PAGES:,} pages")
    for page in pages:
        if math.prod(page.chunks) * page.dtype.itemsize > MOST_BYTES:
            raise ValueError("a part of it is larger than 1 GiB")
    return pages


def _form_of(pages: Sequence[Any]) -> Pixels:
    first = pages[0]
    bands = len(pages) if first.axes == "YX" else first.shape[first.axes.index("S")]
    return _checked((first.imagelength, first.imagewidth, bands), first.dtype)


def _tiff_bands(pages: Sequence[Any], num_bytes: int) -> np.ndarray:
    """Returns [height, width, bands].

    Raises:
        ValueError: parts of it are missing.
    """
    _form_of(pages)
    for page in pages:
        parts = zip(page.dataoffsets, page.databytecounts, strict=True)
        there = all(offset > 0 and 0 < count <= num_bytes - offset for offset, count in parts)
        if not there or sum(part.size for part, *_ in page.segments(maxworkers=1) if part is not None) < page.size:
            raise ValueError("parts of it are missing")  # which tifffile takes for zeros
    arrays = [page.asarray() for page in pages]
    if pages[0].axes == "YX":
        return np.stack(arrays, 2)
    return np.moveaxis(arrays[0], 0, 2) if pages[0].axes == "SYX" else np.asarray(arrays[0])
