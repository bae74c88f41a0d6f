"""Records that are written and read: JSON and JSONL that appear whole."""

import errno
import hashlib
import io
import json
import math
import os
import stat
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fl.core.errors import ConfigError
from fl.core.units import MIB

LONGEST_NUMBER = 300
"""Digits of a whole number in JSON; a longer one is beyond every float."""

DEEPEST = 50
"""Levels of a YAML or JSON file; deeper ones take time without end, and more frames than Python has."""

MOST_BYTES, MOST_LINES_BYTES = 1 << 30, 1 << 32
"""Of a JSON file, and of one of JSON lines, which grows by the round."""

PARTIAL = ".partial"
"""End of the names of files that are being written."""


def plain(value: Any) -> Any:
    """Returns `value` as what JSON knows: dataclasses become dicts, arrays lists, paths strings."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file that appears whole or not at all.

    Raises:
        OSError: names this file, whatever the system refused.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder, not a file", str(path))
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):  # which names the temporary file, or none
            raise type(error)(error.errno, error.strerror or str(error), str(path)) from error
        raise


def remove_partial_files(*folders: Path) -> None:
    """Removes what `write_bytes` left in processes that were killed; only for who alone writes there."""
    for folder in folders:
        for path in folder.glob(f".*{PARTIAL}"):
            path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON, whole. NaN and infinity are refused (`ValueError`): JSON has no such numbers."""
    write_bytes(path, (json.dumps(plain(value), indent=2, allow_nan=False) + "\n").encode())


def write_jsonl(path: Path, records: Iterable[Any]) -> None:
    """Writes one JSON document per line, whole."""
    write_bytes(path, "".join(json.dumps(plain(record), allow_nan=False) + "\n" for record in records).encode())


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes named arrays in NumPy's `.npz` format, whole."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    write_bytes(path, buffer.getvalue())


def regular(path: str, flags: int) -> int:
    """Opens a file that somebody else may have put there, as the `opener` of `open`: no pipe or device is waited for.

    Raises:
        OSError: names it: it cannot be opened, or is a pipe, a device or another that is no regular file.
    """
    handle = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):  # of folders Python says it
        return handle
    os.close(handle)
    raise OSError(errno.EINVAL, "is no regular file", str(path))


def read_regular(path: Path, most_bytes: int = MOST_BYTES) -> bytes:
    """Returns the content of a file that somebody else may have put there, as long as it was when it was opened.

    Raises:
        OSError: names it: see `regular`, or it has more bytes.
    """
    with open(path, "rb", opener=regular) as file:
        if (size := os.fstat(file.fileno()).st_size) > most_bytes:
            raise OSError(errno.EFBIG, f"has {size:,} bytes; at most {most_bytes:,} are read", str(path))
        return file.read(size)


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays that `write_npz` wrote, by name, in no more memory than the file has bytes.

    Raises:
        ValueError: it is no such file, or claims more than it holds. `OSError`: it cannot be read.
    """
    try:
        with open(path, "rb", opener=regular) as file, zipfile.ZipFile(file) as archive:
            size, entries = os.fstat(file.fileno()).st_size, archive.infolist()
            if any(each.compress_type != zipfile.ZIP_STORED for each in entries):
                raise ValueError("has compressed entries, which may unpack to as much as one likes")
            if sum(each.file_size for each in entries) > size:
                raise ValueError(f"claims more than its {size:,} bytes")
            return {each.filename.removesuffix(".npy"): _array(archive.read(each)) for each in entries}
    except (OSError, ValueError):
        raise
    except Exception as error:  # whatever zipfile and NumPy make of bytes that they did not write
        raise ValueError(f"is no such file ({error!r:.200})") from error


def _array(content: bytes) -> np.ndarray:
    """Returns an array of numbers in NumPy's `.npy` format without a copy (`ValueError`: there is none)."""
    file = io.BytesIO(content)
    old = np.lib.format.read_magic(file) == (1, 0)
    read = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read(file)
    if dtype.kind not in "biuf" or math.prod(shape) * dtype.itemsize != len(content) - file.tell():
        raise ValueError(f"its {len(content):,} bytes are no array of {dtype} and shape {list(shape)}")
    return np.frombuffer(content, dtype, offset=file.tell()).reshape(shape, order="F" if is_fortran else "C")


def read_json(path: Path) -> Any:
    """Returns the parsed file.

    Raises:
        ConfigError: it is no JSON.
        OSError: see `read_regular`.
    """
    try:
        return parsed(read_regular(path).decode())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is not valid JSON ({error})") from error


def yaml_text(path: Path) -> str:
    """Returns a YAML file that does not grow when it is read: of bounded size, without aliases.

    Raises:
        ValueError: it is none.
    """
    try:
        text, depth = read_regular(path, MIB).decode(), 0
    except OSError as error:
        raise ValueError(error.strerror) from error
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("has an alias, which may stand for as much as one likes; write out what it stands for")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise ValueError(f"has more than {DEEPEST} levels")
    except yaml.YAMLError as error:
        raise ValueError(str(error).splitlines()[0]) from error
    return text


def read_jsonl(path: Path) -> list[Any]:
    """Returns one parsed document per line.

    Raises:
        ConfigError: a line is no JSON.
        OSError: see `read_regular`.
    """
    try:
        lines = read_regular(path, MOST_LINES_BYTES).decode().splitlines()
    except ValueError as error:
        raise ConfigError(f"{path}: is damaged ({error})") from error
    documents = []
    for number, line in enumerate(lines, start=1):
        try:
            documents.append(parsed(line))
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path}: is damaged (line {number}: {error})") from error
    return documents


def parsed(text: str) -> Any:
    """Returns what a JSON document says.

    Raises:
        ValueError: it is none: NaN, Infinity and numbers beyond every float are not, whatever Python's parser says, nor
            is what has more than `DEEPEST` levels. `RecursionError`: it has too many to be parsed.
    """

    def whole(digits: str) -> int:
        if len(digits) > LONGEST_NUMBER:
            raise ValueError(f"a number of {len(digits)} digits")
        return int(digits)

    def refuse(word: str) -> Any:
        raise ValueError(f"{word} is no number of JSON")

    def real(digits: str) -> float:
        if not math.isfinite(value := float(digits)):
            raise ValueError(f"{digits:.20} is beyond every number")
        return value

    document = json.loads(text, parse_constant=refuse, parse_int=whole, parse_float=real)
    if text.count("[") + text.count("{") > DEEPEST:
        _refuse_depth(document)
    return document


def _refuse_depth(document: Any) -> None:
    level = [document]
    for _ in range(DEEPEST):
        inside = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list)]
        level = [each for values in inside for each in values if isinstance(each, dict | list)]
        if not level:
            return
    raise ValueError(f"more than {DEEPEST} levels")


def sha256(*parts: bytes | np.ndarray) -> str:
    """Returns the hex SHA-256 of the parts one after another."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(np.ascontiguousarray(part).data if isinstance(part, np.ndarray) else part)
    return digest.hexdigest()
