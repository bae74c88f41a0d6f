"""Integers to bytes and back: plain bit packing, zstandard, or asymmetric numeral systems (constriction)."""

import struct
from typing import Literal

import numpy as np
import zstandard

from fl.codec.contexts import HIGHEST, ColumnCoding, Reader, Writer, decode_columns, model_of
from fl.core.errors import PayloadError

Entropy = Literal["none", "zstd", "ans"]
PLAIN, ZSTD, ANS, COLUMNS = range(4)
MODEL_BITS = 9
"""Fewer than 2 ** 9 different symbols have a histogram; of more, the high bits are coded and the rest is packed."""
ZSTD_LEVEL = 9
CHUNK = 1 << 16
"""Elements that are worked on together: they stay in the processor's cache, and fill whole bytes."""
WIDE_CHUNK = 1 << 12
"""The same where each symbol takes many bytes in between."""
_HEAD = struct.Struct("<BBiI")  # mode, bits packed plainly beneath the coded ones, lowest symbol, span


def pack(symbols: np.ndarray, entropy: Entropy) -> bytes:
    """Returns the symbols as bytes; `ans` and `zstd` fall back to plain packing where that is shorter.

    Args:
        symbols: integers from 1 - 2 ** 31 to 2 ** 31 - 1, any shape; all equal ones take no bytes but the head's. With
            `ans` a matrix of int8 has histograms for groups of columns where that is shorter.
        entropy: how.
    """
    return Packing(symbols, entropy).coded() if symbols.size else b""


class Packing:
    """Symbols, at least one, that have been counted, but not yet coded.

    Attributes:
        size: about how many bytes they take; where no histogram tells, they are coded for it.
    """

    def __init__(self, symbols: np.ndarray, entropy: Entropy) -> None:
        self._symbols, self._entropy = symbols, entropy
        self._low, self._span, self._counts = _survey(symbols)
        self._plain_bytes = (symbols.size * self._span.bit_length() + 7) // 8
        self._columns: ColumnCoding | None = None
        self._done: bytes | None = None
        if not self._span or entropy != "ans" or not len(self._counts):
            self._done = self.coded()
            self.size: float = len(self._done)
            return
        columns, whole = _columns(symbols, self._low, self._counts), _expected_bytes(self._counts)
        if columns is not None and columns.bits / 8 < min(whole, self._plain_bytes):
            self._columns, self.size = columns, columns.bits / 8
        else:
            self.size = min(whole, _HEAD.size + self._plain_bytes)

    def coded(self) -> bytes:
        """Returns what `pack` does."""
        if self._done is not None:
            return self._done
        if self._columns is not None:
            return bytes([COLUMNS]) + self._columns.head + self._columns.words()
        offsets = _offsets(self._symbols, self._low, self._span)
        mode, shift, body = PLAIN, 0, None
        if self._span and self._entropy == "zstd":
            mode, body = ZSTD, compress(offsets, ZSTD_LEVEL)
        elif self._span and self._entropy == "ans":
            shift = _best_split(offsets, self._span)
            high = offsets >> shift if shift else offsets
            mode, body = ANS, _ans(high, self._span >> shift) + _plain(offsets & ((1 << shift) - 1), shift)
        if body is None or len(body) >= self._plain_bytes:
            mode, shift, body = PLAIN, 0, _plain(offsets, self._span.bit_length())
        return _HEAD.pack(mode, shift, self._low, self._span) + body


def plain_bytes(low: int, high: int, size: int) -> int:
    """Returns how many bytes `pack` takes without an entropy coder, for so many symbols between these two."""
    return _HEAD.size + (size * (high - low).bit_length() + 7) // 8


def _survey(symbols: np.ndarray) -> tuple[int, int, np.ndarray]:
    """Returns the lowest symbol, the span, and how often each comes, or nothing where a histogram is too long."""
    low, span = int(symbols.min()), int(symbols.max()) - int(symbols.min())
    if span >= 2**MODEL_BITS:
        return low, span, np.empty(0, np.int64)
    return low, span, _counted(_offsets(symbols, low, span), span)


def _counted(offsets: np.ndarray, span: int) -> np.ndarray:
    counts = np.zeros(span + 1, np.int64)
    for start in range(0, len(offsets), CHUNK):  # NumPy counts int64
        counts += np.bincount(offsets[start : start + CHUNK], minlength=span + 1)
    return counts


def _offsets(symbols: np.ndarray, low: int, span: int) -> np.ndarray:
    """Returns what each symbol is above the lowest, in the smallest unsigned type."""
    unsigned = np.ascontiguousarray(symbols).reshape(-1).view(f"u{symbols.itemsize}")
    return (unsigned - unsigned.dtype.type(low % 2 ** (8 * symbols.itemsize))).astype(_unsigned(span), copy=False)


def entropy_bits(counts: np.ndarray, total: int | None = None) -> float:
    """Returns the bits that symbols take at least which come so often, of `total` if others come too."""
    used = counts[counts > 0]
    return float((used * np.log2((total or used.sum()) / used)).sum())


def _expected_bytes(counts: np.ndarray) -> float:
    """Returns about how long symbols become that are coded with their histogram."""
    return _HEAD.size + len(varints(counts)) + entropy_bits(counts) / 8 + 8


def _columns(symbols: np.ndarray, low: int, counts: np.ndarray) -> ColumnCoding | None:
    """Returns the coding of a matrix by groups of columns, None where there is no matrix or little to learn."""
    highest = max(-low, low + len(counts) - 1)
    if symbols.dtype != np.int8 or symbols.ndim != 2 or len(symbols) < 2 or not 0 < highest <= HIGHEST:
        return None
    magnitudes = np.bincount(np.abs(np.arange(low, low + len(counts))), counts, highest + 1).astype(np.int64)
    return ColumnCoding(symbols, magnitudes, bytes([highest]) + varints(magnitudes))


def unpack(content: memoryview, size: int, columns: int = 1) -> np.ndarray:
    """Returns `size` symbols, as int8 where that is how they come cheapest, else as int32.

    Args:
        content: what `pack` returned.
        size: how many symbols.
        columns: of the matrix that they were.

    Raises:
        PayloadError: not what `pack` makes of so many symbols.
    """
    if not size:
        _require(not len(content), "symbols for an empty tensor")
        return np.zeros(0, np.int32)
    if len(content) and content[0] == COLUMNS:
        return _read_columns(content[1:], size, columns)
    _require(len(content) >= _HEAD.size, "symbols end within their head")
    mode, shift, low, span = _HEAD.unpack_from(content)
    body = content[_HEAD.size :]
    _require(low > -(2**31) and low + span < 2**31, "symbols exceed 32 bits")
    _require(shift == 0 or (mode == ANS and shift < span.bit_length()), "wrong split of symbols")
    if mode == PLAIN:
        offsets = _read_plain(body, size, span.bit_length())
    elif mode == ZSTD:
        offsets = decompress(body, size, np.dtype(_unsigned(span)))
    elif mode == ANS:
        low_bytes = (size * shift + 7) // 8
        _require(span > 0 and len(body) >= low_bytes, "symbols end early")
        offsets = _read_ans(body[: len(body) - low_bytes], size, span >> shift)
        if shift:
            offsets = offsets.astype(np.uint32, copy=False)
            offsets <<= np.uint32(shift)
            offsets |= _read_plain(body[len(body) - low_bytes :], size, shift)
    else:
        raise PayloadError(f"payload: unknown packing {mode}")
    _require(int(offsets.max()) <= span, "a symbol is outside of its range")
    kind = np.uint8 if offsets.itemsize == 1 and low >= -128 and low + span < 128 else np.uint32
    offsets = offsets.astype(kind, copy=False)
    offsets += kind(low % (np.iinfo(kind).max + 1))  # around the end of the type, which is how signed ones add
    return offsets.view(np.int8 if kind is np.uint8 else np.int32)


def _read_columns(content: memoryview, size: int, columns: int) -> np.ndarray:
    _require(len(content) > 0 and 0 < content[0] <= HIGHEST, "columns have no histogram")
    magnitudes, at = read_varints(content[1:], content[0] + 1)
    _require(int(magnitudes.sum(dtype=np.uint64)) == size, "the histogram is of another number of symbols")
    return decode_columns(content[1 + at :], (size // columns, columns), magnitudes).reshape(-1)


def compress(array: np.ndarray, level: int) -> bytes:
    """Returns zstandard's coding of the elements, first bytes first, second bytes next, and so on."""
    planes = np.ascontiguousarray(array).reshape(-1).view(np.uint8).reshape(array.size, array.itemsize).T
    return zstandard.ZstdCompressor(level=level, write_checksum=False).compress(np.ascontiguousarray(planes).data)


def decompress(content: memoryview, size: int, dtype: np.dtype) -> np.ndarray:
    """Returns what `compress` was given; allocates for `size` elements, whatever the content claims.

    Raises:
        PayloadError: the content is something else.
    """
    try:
        claimed = zstandard.get_frame_parameters(content[:18]).content_size
        _require(claimed == size * dtype.itemsize, "compressed data is of another length")
        planes = zstandard.ZstdDecompressor().decompress(content, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise PayloadError(f"payload: compressed data is damaged ({error})") from error
    _require(len(planes) == size * dtype.itemsize, "compressed data is of another length")
    return np.frombuffer(planes, np.uint8).reshape(dtype.itemsize, size).T.copy().view(dtype).reshape(size)


def _unsigned(span: int) -> type[np.unsignedinteger]:
    return np.uint8 if span < 2**8 else np.uint16 if span < 2**16 else np.uint32


def _plain(offsets: np.ndarray, width: int) -> bytes:
    """Packs unsigned integers, `width` bits each, least significant bit first."""
    if width in (0, 8, 16, 32):
        return offsets.astype(f"<u{width // 8}", copy=False).tobytes() if width else b""
    parts = []
    for start in range(0, len(offsets), CHUNK):
        part = offsets[start : start + CHUNK]
        if width > 8:
            bits = np.unpackbits(part.astype("<u4")[:, None].view(np.uint8), axis=1, bitorder="little")
            parts.append(np.packbits(bits[:, :width], bitorder="little").tobytes())
            continue
        eights = np.zeros(-(-len(part) // 8) * 8, np.uint8)
        eights[: len(part)] = part
        words = np.zeros(len(eights) // 8, "<u8")
        for place in range(8):  # eight symbols of `width` bits are `width` bytes
            words |= eights[place::8].astype(np.uint64) << np.uint64(place * width)
        packed = words.view(np.uint8).reshape(-1, 8)[:, :width].tobytes()
        parts.append(packed[: (len(part) * width + 7) // 8])
    return b"".join(parts)


def _read_plain(content: memoryview, size: int, width: int) -> np.ndarray:
    """Returns new unsigned integers of the smallest type that holds `width` bits."""
    _require(len(content) == (size * width + 7) // 8, "packed symbols are of another length")
    kind, packed = _unsigned(2**width - 1), np.frombuffer(content, np.uint8)
    if width == 0:
        return np.zeros(size, kind)
    if width in (8, 16, 32):
        return packed.view(f"<u{width // 8}").astype(kind)
    symbols, chunk = np.empty(size, kind), CHUNK if width <= 8 else WIDE_CHUNK
    for start in range(0, size, chunk):
        count = min(chunk, size - start)
        part = packed[start * width // 8 : (start * width + count * width + 7) // 8]
        if width > 8:
            whole = np.zeros((count, 8 * kind(0).itemsize), np.uint8)
            whole[:, :width] = np.unpackbits(part, count=count * width, bitorder="little").reshape(count, width)
            symbols[start : start + count] = np.packbits(whole, axis=1, bitorder="little").view(
                f"<u{kind(0).itemsize}"
            )[:, 0]
            continue
        eights = np.zeros((-(-count // 8), 8), np.uint8)
        padded = np.zeros(len(eights) * width, np.uint8)
        padded[: len(part)] = part
        eights[:, :width] = padded.reshape(-1, width)
        words, unpacked = eights.view("<u8")[:, 0], np.empty((len(eights), 8), np.uint8)
        for place in range(8):
            unpacked[:, place] = (words >> np.uint64(place * width)) & np.uint64(2**width - 1)
        symbols[start : start + count] = unpacked.reshape(-1)[:count]
    return symbols


def _best_split(offsets: np.ndarray, span: int) -> int:
    """Returns how many low bits are packed plainly at the least expected cost; none where a histogram holds all."""
    most = max(0, span.bit_length() - MODEL_BITS)
    if not most:
        return 0
    values, counts = np.unique(offsets, return_counts=True)
    costs = []
    for shift in range(most + 1):
        high, first = np.unique(values >> shift, return_index=True)
        if shift < most and not 2 <= len(high) <= _longest_list(len(offsets)):  # it would be refused
            costs.append(np.inf)
            continue
        merged = np.add.reduceat(counts, first)
        absent = (span >> shift) + 1 - len(high)  # a byte each, in a histogram
        model_bits = 8 * (len(_listed(high, merged)) if shift < most else absent + len(varints(merged)))
        costs.append(model_bits + shift * len(offsets) - float((merged * np.log2(merged / len(offsets))).sum()))
    return int(np.argmin(costs))


def _listed(symbols: np.ndarray, counts: np.ndarray) -> bytes:
    """How many symbols, each one's distance to the one before, and their counts."""
    distances = np.diff(symbols.astype(np.int64), prepend=0)
    return varints(np.concatenate([[len(symbols)], distances, counts]))


def _ans(symbols: np.ndarray, highest: int) -> bytes:
    """Histogram as variable-length counts, or a list of symbols and counts, then the coded words."""
    if highest < 2**MODEL_BITS:
        counts = _counted(symbols, highest)
        model = varints(counts)
    else:
        listed, symbols, counts = np.unique(symbols, return_inverse=True, return_counts=True)
        model = _listed(listed, counts)
    writer = Writer()
    writer.put_before(symbols, model_of(counts))
    return model + writer.words()


def _read_ans(content: memoryview, size: int, highest: int) -> np.ndarray:
    """Returns new symbols, unsigned."""
    listed = None
    if highest < 2**MODEL_BITS:
        counts, at = read_varints(content, highest + 1)
    else:
        (number,), at = read_varints(content, 1)
        most = min(_longest_list(size), (len(content) - at) // 2)
        _require(2 <= number <= most, "the list of symbols is damaged")
        listed, more = read_varints(content[at:], int(number))
        counts, last = read_varints(content[at + more :], int(number))
        at += more + last
        rising = bool((listed[1:] > 0).all()) and int(listed.sum(dtype=np.uint64)) <= highest
        _require(rising, "the list of symbols is damaged")
        np.cumsum(listed, out=listed)
    _require(int(counts.sum(dtype=np.uint64)) == size, "the histogram is of another number of symbols")
    reader, symbols = Reader(content[at:]), np.empty(size, _unsigned(highest))
    reader.fill(symbols, model_of(counts), listed)
    reader.end()
    return symbols


def _longest_list(size: int) -> int:
    """Returns how many different symbols of `size` a decoder has room for."""
    return size * 3 // 4


def varints(values: np.ndarray) -> bytes:
    """Seven bits a byte, least significant first, the highest bit says that more follow."""
    parts = values[:, None] >> np.arange(0, 35, 7)
    used = parts > 0
    more = np.pad(used[:, 1:], ((0, 0), (0, 1)))
    used[:, 0] = True
    return ((parts & 127) | (more << 7))[used].astype(np.uint8).tobytes()


def read_varints(content: memoryview, count: int) -> tuple[np.ndarray, int]:
    """Returns `count` integers, uint32, and where they end."""
    values, at = np.empty(count, np.uint32), 0
    for start in range(0, count, WIDE_CHUNK):
        part = values[start : start + WIDE_CHUNK]
        window = np.frombuffer(content[at : at + 5 * len(part)], np.uint8)
        ends = np.flatnonzero(window < 128)[: len(part)] + 1
        _require(len(ends) == len(part), "the histogram is incomplete")
        starts = np.concatenate([[0], ends[:-1]])
        _require(int((ends - starts).max()) <= 5, "the histogram is damaged")
        places = np.arange(ends[-1]) - np.repeat(starts, ends - starts)
        wide = np.add.reduceat((window[: ends[-1]].astype(np.int64) & 127) << 7 * places, starts)
        _require(int(wide.max()) < 2**32, "the histogram is damaged")
        part[:] = wide
        at += int(ends[-1])
    return values, at


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise PayloadError(f"payload: {otherwise}")
