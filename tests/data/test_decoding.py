"""Images of any size, number of bands and usual depth come out as they went in, or one line says what is wrong."""

import io
import os
import subprocess
import sys
import zlib

import numpy as np
import pytest
import tifffile
from conftest import zipped
from data.test_sources import opened
from PIL import Image

from fl.core.errors import ConfigError, DataError
from fl.core.pixels import Pixels
from fl.data import EuroSatMs, Folder
from fl.data.decoding import place_of, resized
from fl.data.images import ImageSet
from fl.data.normalization import band_statistics
from fl.data.sources import BANDS, EUROSAT_CLASSES

RNG = np.random.default_rng(0)
LIMITS = {"uint8": (0, 255), "uint16": (0, 65535), "int16": (-32768, 32767), "float32": (-1e6, 1e6)}


def noise(dtype="uint16", shape=(64, 64, 5)):
    low, high = LIMITS[dtype]
    return RNG.uniform(low, high, shape).astype(dtype)


def tiff(array, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, array, **{"photometric": "minisblack", "planarconfig": "contig", **options})
    return file.getvalue()


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def png(array, mode=None):
    file = io.BytesIO()
    Image.fromarray(array, mode).save(file, "PNG")
    return file.getvalue()


def folder_of(tmp_path, contents, name="x.tif"):
    """Writes contents as the first images of two classes."""
    for number, content in enumerate(contents):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number}_{name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "images"


def decoded(tmp_path, *contents, bands=None, image_size=None):
    contents = contents if len(contents) > 1 else contents * 2
    source = Folder(str(folder_of(tmp_path, contents)), None, image_size, bands)
    return opened(source, tmp_path / "cache")


KINDS = {
    **{f"tiff {dtype}": (lambda a: tiff(a), dtype) for dtype in LIMITS},
    "tiff separate": (lambda a: tiff(np.moveaxis(a, 2, 0), planarconfig="separate"), "uint16"),
    "tiff pages": (lambda a: tiff(np.moveaxis(a, 2, 0), planarconfig=None), "uint16"),
    "tiff tiles": (lambda a: tiff(a, tile=(32, 32)), "uint16"),
    "tiff big-endian": (lambda a: tiff(a, byteorder=">"), "uint16"),
    "tiff big": (lambda a: tiff(a, bigtiff=True), "uint16"),
    "tiff zlib": (lambda a: tiff(a, compression="zlib", predictor=True), "uint16"),
    "tiff lzw": (lambda a: tiff(a, compression="lzw"), "int16"),
    "tiff zstd": (lambda a: tiff(a, compression="zstd", predictor=True), "float32"),
    "tiff float64": (lambda a: tiff(a.astype(np.float64)), "float32"),
    "npy": (npy, "int16"),
    "npy bands first": (lambda a: npy(np.moveaxis(a, 2, 0)), "uint16"),
    "npy fortran": (lambda a: npy(np.asfortranarray(a)), "uint8"),
    "npy big-endian": (lambda a: npy(a.astype(">f8")), "float32"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_band_and_value_comes_out_as_it_went_in(kind, tmp_path):
    write, dtype = KINDS[kind]
    arrays = [noise(dtype), noise(dtype)]
    images = decoded(tmp_path, *map(write, arrays))
    assert images.images.dtype == dtype
    assert np.array_equal(images.images, arrays)
    assert images.pixels == Pixels(64, 64, 5, dtype)
    assert not images.notes


def test_one_band_needs_no_axis_and_an_overview_is_none(tmp_path):
    array = noise(shape=(40, 24))
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(array, photometric="minisblack", metadata=None)
        writer.write(array[::2, ::2], photometric="minisblack", subfiletype=1, metadata=None)
    for content in (file.getvalue(), npy(array)):
        found = decoded(tmp_path, content)
        assert np.array_equal(found.images[0, :, :, 0], array)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_pngs_of_16_bits_keep_them(channels, tmp_path):
    import imagecodecs

    array = noise(shape=(64, 64, channels))
    found = decoded(tmp_path, imagecodecs.png_encode(array.squeeze()))
    kept = 1 if channels < 3 else 3  # without transparency
    assert np.array_equal(found.images[0], array[:, :, :kept])
    assert ("2 images converted" in "".join(found.notes)) == (channels in (2, 4))


@pytest.mark.parametrize(("mode", "bands"), [("L", 1), ("1", 1), ("LA", 1), ("P", 3), ("RGBA", 3), ("CMYK", 3)])
def test_what_has_8_bits_is_grey_or_rgb(mode, bands, tmp_path):
    image, file = Image.fromarray(noise("uint8", (64, 64, 3))).convert(mode), io.BytesIO()
    image.save(file, "TIFF" if mode == "CMYK" else "PNG")
    found = decoded(tmp_path, file.getvalue())
    expected = image.convert("L") if bands == 1 else image.convert("RGBA").convert("RGB")
    assert np.array_equal(found.images[0].squeeze(), np.asarray(expected))
    assert ("converted to" in "".join(found.notes)) == (mode != "L")


def test_bands_are_chosen_by_number_from_one_and_in_order(tmp_path):
    array = noise()
    found = decoded(tmp_path, tiff(array), bands=[3, 2, 1])
    assert np.array_equal(found.images[0], array[:, :, [2, 1, 0]])
    again = decoded(tmp_path, tiff(array), bands=[5])
    assert np.array_equal(again.images[0], array[:, :, [4]])
    with pytest.raises(DataError, match=r"data.bands=\[3, 6\]: a/0_x.tif has 5 bands; the first is 1"):
        decoded(tmp_path, tiff(array), bands=[3, 6])


@pytest.mark.parametrize("dtype", LIMITS)
def test_a_size_is_chosen_and_each_band_resampled_by_itself(dtype, tmp_path):
    array = np.zeros((128, 128, 5), dtype)
    array[:, 64:, 3] = LIMITS[dtype][1]
    found = decoded(tmp_path, tiff(array), image_size=[32, 64])
    assert found.images.shape == (2, 32, 64, 5)
    assert (found.images[..., [0, 1, 2, 4]] == 0).all()
    assert (found.images[:, :, :30, 3] == 0).all()
    assert (found.images[:, :, 34:, 3] == LIMITS[dtype][1]).all()
    assert found.notes == ("2 images resized to 64x32 (from 128x128, ...)",)


def test_resampling_rounds_and_stays_in_the_type():
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)[None, :, None].repeat(4, 0)
    small = resized(ramp, 4, 16)
    assert small.dtype == np.uint16
    assert np.abs(small[0, :, 0] - np.linspace(1560, 63975, 16)).max() < 600


DIFFERENT = {
    "bands": ([noise(), noise(shape=(64, 64, 4))], "a/0_x.tif has 5 bands, b/1_x.tif 4 bands; data.bands=rgb"),
    "types": ([noise(), noise("float32")], "a/0_x.tif has pixels of uint16, b/1_x.tif of float32"),
    "sizes": ([noise(), noise(shape=(32, 64, 5))], "a/0_x.tif has 64x64 pixels, b/1_x.tif has 64x32 pixels; choose"),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_images_that_differ_are_refused_by_name(what, tmp_path):
    arrays, told = DIFFERENT[what]
    with pytest.raises(DataError, match=told):
        decoded(tmp_path, *map(tiff, arrays))


SPOILT = {
    "not finite": (tiff(np.full((8, 8, 2), np.nan, np.float32)), "128 values of its pixels are not finite"),
    "too large for float32": (npy(np.full((8, 8, 2), 1e300)), "128 values of its pixels are not finite"),
    "of 32 bits": (tiff(np.zeros((8, 8, 2), np.uint32)), "pixels of uint32; give 8 or 16 bits, or floats"),
    "complex": (npy(np.zeros((8, 8, 2), complex)), "an array of complex128"),
    "objects": (npy(np.array([[{}]], object)), "an array of object"),
    "ambiguous": (npy(np.zeros((8, 8, 8))), r"shape \[8, 8, 8\] does not say which axis are the bands"),
    "four axes": (npy(np.zeros((2, 8, 8, 3))), r"shape \[2, 8, 8, 3\]"),
    "cut npy": (npy(noise())[:-1], "bytes are not an array of shape"),
    "cut tiff": (tiff(noise())[:-2000], "parts of it are missing"),
    "text": (b"no image at all", "is no JPEG, PNG, TIFF, BMP, WEBP"),
    "an empty file": (b"", "is no JPEG"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_what_is_no_such_image_is_refused_by_name(what, tmp_path):
    content, told = SPOILT[what]
    with pytest.raises(DataError, match=rf"a/0_x.tif cannot be decoded \(.*{told}") as caught:
        decoded(tmp_path, content)
    assert "\n" not in str(caught.value)
    assert not [each for each in (tmp_path / "cache").iterdir() if each.suffix != ".lock"]


def bomb(array_shape, packed):
    """A TIFF that says it is small, whose only strip unpacks to far more."""
    content = tiff(np.zeros(array_shape, np.uint16), compression="zlib", rowsperstrip=array_shape[0])
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page = file.pages.first
        (offset, count) = page.tags["StripOffsets"], page.tags["StripByteCounts"]
        places = offset.valueoffset, count.valueoffset
    changed = bytearray(content + packed)
    for place, value in zip(places, (len(content), len(packed)), strict=True):
        changed[place : place + 4] = value.to_bytes(4, "little")
    return bytes(changed)


def claiming(tag, value):
    """A small TIFF with another value in a tag."""
    content = tiff(np.zeros((64, 64, 3), np.uint8), compression="zlib", tile=(32, 32) if "Tile" in tag else None)
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        told = file.pages.first.tags[tag]
        place, size = told.valueoffset, {3: 2, 4: 4}[told.dtype]
    return content[:place] + value.to_bytes(size, "little") + content[place + size :]


HUGE = {
    "deflated": lambda: bomb((64, 64, 3), zlib.compress(bytes(256 << 20), 1)),
    "wide": lambda: claiming("ImageWidth", 65535),
    "high": lambda: claiming("ImageLength", 65535),
    "many bands": lambda: claiming("SamplesPerPixel", 65535),
    "wide tiles": lambda: claiming("TileWidth", 65520),
    "npy": lambda: npy(np.zeros((1, 1)))[:-8].replace(b"(1, 1)", b"(9**9,)") + bytes(8),
    "npy claims": lambda: npy(np.zeros((11, 11))).replace(b"(11, 11)", b"(1<<9, 9)"),
}


def test_no_file_takes_more_memory_than_its_image(tmp_path):
    for what, make in HUGE.items():
        folder_of(tmp_path / what, [make()] * 2)
    code = (
        "import resource, sys; from pathlib import Path; sys.path[:0] = [sys.argv[2]]; import numpy as np\n"
        "import tifffile, imagecodecs; from fl.data.sources import plan_files; from fl.core.errors import DataError\n"
        "from fl.data.decoding import Wanted\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for folder in sorted(Path(sys.argv[1]).iterdir()):\n"
        "    plan, before = plan_files('folder', folder / 'images', None, Wanted((64, 64), None)), peak()\n"
        "    try: form = plan.form(); plan.decode(np.zeros((2, *form.shape), form.dtype)); told = 'fine'\n"
        "    except DataError as error: told = error\n"
        "    print(folder.name, told, peak() - before, sep='|')"
    )
    arguments = [sys.executable, "-W", "error", "-c", code, str(tmp_path), os.getcwd()]
    lines = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line.split("|")[0] for line in lines] == sorted(HUGE)
    for line in lines:
        assert "a/0_x.tif cannot be decoded" in line
        assert int(line.split("|")[2]) < 50_000, f"{line}: kilobytes"


@pytest.mark.parametrize("write", [tiff, npy], ids=["tiff", "npy"])
def test_large_images_are_refused_before_they_are_decoded(write, tmp_path, monkeypatch):
    from fl.data import decoding

    for name in ("MOST_PIXELS", "MOST_BYTES"):
        with monkeypatch.context() as patched:
            patched.setattr(decoding, name, 4000)
            with pytest.raises(DataError, match=r"64x64 pixels of 5 bands are more than|larger than 1 GiB"):
                decoded(tmp_path, write(noise()))


def test_statistics_are_those_of_the_training_images_alone(tmp_path, monkeypatch):
    from fl.data import normalization

    monkeypatch.setattr(normalization, "CHUNK_BYTES", 8 * 64 * 64 * 5 * 2)  # two images at a time
    images = decoded(tmp_path, *(tiff(noise() // np.uint16(number + 1)) for number in range(7)))
    positions = np.array([0, 2, 3, 4, 6])
    found = band_statistics(images, positions)
    expected = images.images[positions].astype(np.float64)
    assert np.allclose(found.mean, expected.mean(axis=(0, 1, 2)), rtol=1e-12)
    assert np.allclose(found.deviation, expected.std(axis=(0, 1, 2)), rtol=1e-12)
    assert found.plain == images.pixels


def test_a_band_without_any_difference_is_named():
    arrays = np.stack([noise(), noise()])
    arrays[..., 1] = 7
    images = ImageSet(arrays, np.array([0, 1]), ("a", "b"), "x", False, "", (), None)
    with pytest.raises(DataError, match="band 2 has the same value in all training images"):
        band_statistics(images, np.array([0, 1]))


def located(array, x, y, code=32632):
    keys = (1, 1, 0, 1, 3072 if code > 5000 else 2048, 0, 1, code)
    tags = [(33550, "d", 3, (10.0, 10.0, 0.0)), (33922, "d", 6, (0.0, 0.0, 0.0, x, y, 0.0)), (34735, "H", 8, keys)]
    return tiff(array, extratags=tags)


def test_a_tiff_says_where_its_middle_is():
    assert place_of(located(noise(), 4e5, 5e6)) == (32632, 4e5 + 320, 5e6 - 320)
    for content in (tiff(noise()), npy(noise()), located(noise(), np.nan, 0)):
        with pytest.raises(ValueError, match=r"GeoTIFF|tiepoint"):
            place_of(content)


def test_places_of_several_zones_are_put_on_one_map(tmp_path):
    """Three and a half degrees west of its zone's middle, and as much east of the next zone's, 48 degrees north."""
    pytest.importorskip("pyproj")
    contents = [located(noise(), 499_680, 5_316_000 + 320), located(noise(), 499_680, 5_316_000 + 320, 32633)]
    source = Folder(str(folder_of(tmp_path, contents)), None, None, None)
    west, east = source.plan(tmp_path).places()
    assert np.isclose((east - west)[0], 6 * np.cos(np.radians(47.99)), atol=0.01)
    assert abs((east - west)[1]) < 1e-9
    for wrong, told in (((499_680, 5e6, 1025), "EPSG:1025"), ((1e30, 1e30, 32633), "outside of where")):
        contents = [located(noise(), 499_680, 5_316_000), located(noise(), *wrong)]
        source = Folder(str(folder_of(tmp_path / told[:4], contents)), None, None, None)
        with pytest.raises(DataError, match=f"partition=regions: .*{told}"):
            source.plan(tmp_path).places()
    plain = Folder(str(folder_of(tmp_path / "other", [tiff(noise())] * 2)), None, None, None)
    with pytest.raises(DataError, match=r"partition=regions: .*a/0_x.tif.* only georeferenced TIFFs"):
        plain.plan(tmp_path).places()


@pytest.mark.parametrize("as_zip", [True, False])
def test_eurosats_archive_of_all_bands_is_read_with_the_names_of_bands(as_zip, tmp_path):
    """Laid out as EuroSATallBands.zip: ds/images/remote_sensing/otherDatasets/sentinel_2/tif/CLASS/CLASS_n.tif."""
    inside = tmp_path / "ds" / "images" / "remote_sensing" / "otherDatasets" / "sentinel_2" / "tif"
    array = noise(shape=(64, 64, 13))
    for name in EUROSAT_CLASSES:
        (inside / name).mkdir(parents=True)
        for number in (1, 2):
            (inside / name / f"{name}_{number}.tif").write_bytes(tiff(array))
    path = zipped(tmp_path / "ds", tmp_path / "all.zip") if as_zip else inside
    images = opened(EuroSatMs(str(path)), tmp_path / "cache")
    assert images.pixels == Pixels(64, 64, 13, "uint16")
    assert np.array_equal(images.images[19], array)
    rgb = opened(EuroSatMs(str(path), ("B04", "B03", "B02")), tmp_path / "cache")
    assert np.array_equal(rgb.images[0], array[:, :, [3, 2, 1]])
    assert BANDS[-1] == "B8A"
    with pytest.raises(ConfigError, match=r"data.bands=B8: is none of B01, "):
        EuroSatMs(str(path), ("B8",))
    with pytest.raises(ConfigError, match="EUROSAT_MS_ZIP is needed"):
        EuroSatMs()


def test_older_runs_that_named_no_size_get_64_pixels_of_rgb(tmp_path):
    grey = np.asarray(Image.fromarray(noise("uint8", (128, 128, 3))).convert("L"))
    old = opened(Folder(str(folder_of(tmp_path, [png(grey), png(noise("uint8", (64, 64, 3)))]))), tmp_path / "cache")
    assert old.pixels == Pixels()
    assert old.notes == (
        "1 image resized to 64x64 (from 128x128, ...)",
        "1 image converted to RGB (from mode L)",
    )


def test_a_disk_with_too_little_room_is_said_before_anything_is_written(tmp_path, monkeypatch):
    import shutil

    from fl.data import images

    monkeypatch.setattr(images.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 1000))
    with pytest.raises(DataError, match=r"0 MiB are needed for decoded images, 0 are free; set QUANTFL_CACHE"):
        decoded(tmp_path, tiff(noise()))
