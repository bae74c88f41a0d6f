"""The payload format (docs/payload.md): magic, version, codec, base, tensor table, bodies, length, checksum."""

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fl.core.errors import PayloadError

MAGIC, VERSION = b"QFPL", 2
NO_STATE = bytes(8)
"""As base: the payload says nothing of what its differences are added to, or holds values."""
_HEADER = struct.Struct("<4sBIB")  # magic, version, length of the whole payload, length of the codec's description
_MODEL = struct.Struct("<8sIH")  # base, signature of the model, number of tensors
_OLD_ROW = struct.Struct("<BI")  # of version 1: kind, length of the body
_CHECKSUM = struct.Struct("<I")
LONGEST, MOST_TENSORS = 2**32 - 1, 2**16 - 1
PLAIN, PLANES, SCALED_HALF, CODED, SCALED_BYTE = range(5)
"""How a body is laid out: bytes as they are; compressed; FP16 or a byte times a power of two; the codec's own."""

Tensors = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Spec:
    """What is known of a tensor before anything arrives."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def num_bytes(self) -> int:
        """Length of the elements in memory."""
        return self.size * self.dtype.itemsize


def specs_of(tensors: Tensors) -> dict[str, Spec]:
    """Returns names, shapes and dtypes, in order.

    Raises:
        PayloadError: a tensor of Python objects.
    """
    for name, array in tensors.items():
        if array.dtype.hasobject:
            raise PayloadError(f"payload: {name} holds Python objects")
    return {name: Spec(array.shape, array.dtype) for name, array in tensors.items()}


def signature(specs: Mapping[str, Spec]) -> int:
    """Returns the CRC-32 of `name:dtype:[d0,d1];` for each tensor in order, dtypes as NumPy writes them (`<f4`)."""
    types = {name: spec.dtype.newbyteorder("<").str for name, spec in specs.items()}
    text = "".join(f"{name}:{types[name]}:[{','.join(map(str, spec.shape))}];" for name, spec in specs.items())
    return zlib.crc32(text.encode())


@dataclass(frozen=True)
class Header:
    """What stands before the bodies.

    Attributes:
        codec: description of the codec, with all that a decoder must know of its settings.
        base: fingerprint of the tensors that the payload's differences are added to.
    """

    codec: str
    base: bytes = NO_STATE


def assemble(header: Header, specs: Mapping[str, Spec], bodies: Sequence[tuple[int, bytes]]) -> bytes:
    """Returns the payload.

    Args:
        header: see `Header`.
        specs: of the tensors, in order.
        bodies: kind and content for each.
    """
    codec = header.codec.encode("ascii")
    table = b"".join(bytes([kind]) + varint(len(body)) for kind, body in bodies)
    length = (
        _HEADER.size + len(codec) + _MODEL.size + len(table) + sum(len(body) for _, body in bodies) + _CHECKSUM.size
    )
    if length > LONGEST or len(specs) > MOST_TENSORS:
        raise PayloadError(f"payload: {length} bytes, {len(specs)} tensors; {LONGEST} and {MOST_TENSORS} fit into one")
    model = _MODEL.pack(header.base, signature(specs), len(specs))
    parts = [_HEADER.pack(MAGIC, VERSION, length, len(codec)), codec, model, table, *(body for _, body in bodies)]
    return seal(*parts)


def varint(number: int) -> bytes:
    """Returns seven bits a byte, least significant first; the highest bit says that more follow."""
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def seal(*parts: bytes) -> bytes:
    """Returns the parts, one after another, and the checksum of all of them."""
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    return b"".join([*parts, _CHECKSUM.pack(checksum)])


def dissect(payload: bytes, specs: Mapping[str, Spec]) -> tuple[Header, list[tuple[int, memoryview]]]:
    """Returns the header, and kind and body of each tensor; copies nothing.

    Raises:
        PayloadError: not a whole payload for this model.
    """
    version, header, at = _read_header(payload)
    view = memoryview(payload)
    try:
        base, received, count = _MODEL.unpack_from(payload, at)
    except struct.error as error:
        raise PayloadError("payload: ends within its header") from error
    if received != signature(specs) or count != len(specs):
        raise PayloadError(f"payload: is for another model ({count} tensors, signature {received:08x})")
    rows, body_at = (_read_old_table if version == 1 else _read_table)(view, at + _MODEL.size, count)
    bodies = []
    for kind, length in rows:
        bodies.append((kind, view[body_at : body_at + length]))
        body_at += length
    if body_at != len(payload) - _CHECKSUM.size:
        raise PayloadError("payload: the tensor table does not add up to its length")
    return Header(header, base), bodies


def _read_table(view: memoryview, at: int, count: int) -> tuple[list[tuple[int, int]], int]:
    """Returns kind and length of each body, and where the first begins."""
    rows = []
    try:
        for _ in range(count):
            kind, length, place = view[at], 0, 0
            while view[at := at + 1] > 127 and place < 28:
                length, place = length | (view[at] & 127) << place, place + 7
            length |= view[at] << place
            rows.append((kind, length))
            at += 1
    except IndexError as error:
        raise PayloadError("payload: ends within its tensor table") from error
    return rows, at


def _read_old_table(view: memoryview, at: int, count: int) -> tuple[list[tuple[int, int]], int]:
    end = at + count * _OLD_ROW.size
    if end > len(view):
        raise PayloadError("payload: ends within its tensor table")
    return list(_OLD_ROW.iter_unpack(view[at:end])), end


def _read_header(payload: bytes) -> tuple[int, str, int]:
    """Returns version, the codec's description and where it ends, after checking length and checksum."""
    if len(payload) < _HEADER.size + _CHECKSUM.size:
        raise PayloadError(f"payload: is {len(payload)} bytes, too short for one")
    magic, version, length, described = _HEADER.unpack_from(payload)
    if magic != MAGIC or not 1 <= version <= VERSION:
        raise PayloadError(f"payload: begins with {magic!r} version {version}, not {MAGIC!r} version 1 to {VERSION}")
    if length != len(payload):
        raise PayloadError(f"payload: says it is {length} bytes, but is {len(payload)}")
    (checksum,) = _CHECKSUM.unpack_from(payload, len(payload) - _CHECKSUM.size)
    if checksum != zlib.crc32(memoryview(payload)[: -_CHECKSUM.size]):
        raise PayloadError("payload: its checksum is wrong")
    end = _HEADER.size + described
    try:
        return version, payload[_HEADER.size : end].decode("ascii"), end
    except UnicodeDecodeError as error:
        raise PayloadError("payload: the codec's description is not ASCII") from error


def checksum_of(payload: bytes) -> int:
    """Returns the checksum at a payload's end (the CRC-32 of a payload with its own CRC-32 is the same for all)."""
    return int.from_bytes(payload[-_CHECKSUM.size :], "little")


def base_of(payload: bytes) -> bytes:
    """Returns the fingerprint of what a payload's differences are added to.

    Raises:
        PayloadError: not a whole payload.
    """
    _, _, at = _read_header(payload)
    try:
        base: bytes = _MODEL.unpack_from(payload, at)[0]
    except struct.error as error:
        raise PayloadError("payload: ends within its header") from error
    return base


@dataclass(frozen=True)
class Composition:
    """What a payload's bytes are.

    Attributes:
        coded_elements: elements of the tensors that the codec itself codes.
        coded_bytes: of their bodies, histograms, steps and scales included.
        small_bytes: of the bodies of all other tensors.
        frame_bytes: of header, tensor table and checksum.
    """

    coded_elements: int
    coded_bytes: int
    small_bytes: int
    frame_bytes: int

    @property
    def bits(self) -> float:
        """Bits for each element that the codec codes; 0 where it codes none."""
        return 8 * self.coded_bytes / self.coded_elements if self.coded_elements else 0.0


def composition(payload: bytes, specs: Mapping[str, Spec]) -> Composition:
    """Returns what the bytes of a payload for this model are; their sum is its length.

    Raises:
        PayloadError: not a whole payload for this model.
    """
    _, bodies = dissect(payload, specs)
    coded = [(spec.size, len(body)) for spec, (kind, body) in zip(specs.values(), bodies, strict=True) if kind == CODED]
    all_bytes, coded_bytes = sum(len(body) for _, body in bodies), sum(length for _, length in coded)
    elements = sum(size for size, _ in coded)
    return Composition(elements, coded_bytes, all_bytes - coded_bytes, len(payload) - all_bytes)
