"""A file of JSON lines that grows: each line is there whole or not at all, whenever its writer dies."""

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from fl.core.errors import RunError
from fl.core.files import MOST_LINES_BYTES, plain, regular, write_bytes

CHUNK = 1 << 20


class Lines:
    """Lines that are added at the end, and a hash of all of them that takes no second reading.

    Args:
        path: of the file; need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._size, self._hash = 0, hashlib.sha256()
        if path.exists():
            self._size = self._complete()
            self._hash = self._hash_of(self._size)

    @property
    def mark(self) -> tuple[int, str]:
        """How many bytes there are, and their SHA-256: what `agrees` and `cut` are given later."""
        return self._size, self._hash.hexdigest()

    def append(self, record: Any) -> None:
        """Adds one line, see `extend`."""
        self.extend([record])

    def extend(self, records: Iterable[Any]) -> None:
        """Adds lines in one writing; what cannot be written whole is taken back.

        Raises:
            RunError: lines that were there are gone.
        """
        line = "".join(json.dumps(plain(record), allow_nan=False) + "\n" for record in records).encode()
        with open(self.path, "r+b" if self.path.exists() else "w+b", buffering=0, opener=regular) as file:
            if file.seek(0, os.SEEK_END) < self._size:
                raise RunError(f"{self.path}: has become shorter while the run goes on; does another program write it?")
            file.seek(self._size)
            try:
                done = 0
                while done < len(line):
                    done += file.write(line[done:]) or 0
                file.truncate()  # of a line whose writer died
                os.fsync(file.fileno())
            except BaseException as error:
                file.truncate(self._size)
                if isinstance(error, OSError):
                    error.filename = str(self.path)
                raise
        self._size += len(line)
        self._hash.update(line)

    def agrees(self, mark: tuple[int, str]) -> bool:
        """Tells whether the file begins with what was there when `mark` was taken."""
        size, digest = mark
        return size <= self._size and self._hash_of(size).hexdigest() == digest

    def cut(self, size: int) -> None:
        """Removes all but the first bytes, a number that a `mark` began with."""
        if self.path.exists() and size < self.path.stat().st_size:
            with open(self.path, "rb", opener=regular) as file:
                write_bytes(self.path, file.read(size))
        self._size, self._hash = size, self._hash_of(size)

    def last(self) -> Any:
        """Returns the last complete line, parsed; None if there is none, or it is no JSON."""
        if not self._size:
            return None
        with open(self.path, "rb", opener=regular) as file, suppress(ValueError):
            return json.loads(file.read(self._size).splitlines()[-1])
        return None

    def count(self, size: int | None = None) -> int:
        """Returns the number of complete lines, or of those in the first bytes, a number that a `mark` began with."""
        if not (size := self._size if size is None else size):
            return 0
        with open(self.path, "rb", opener=regular) as file:
            return file.read(size).count(b"\n")

    def _complete(self) -> int:
        """Returns where the last complete line ends."""
        end = self.path.stat().st_size
        if end > MOST_LINES_BYTES:
            raise RunError(f"{self.path}: has {end:,} bytes; at most {MOST_LINES_BYTES:,} are read")
        with open(self.path, "rb", opener=regular) as file:
            while end:
                start = max(0, end - CHUNK)
                file.seek(start)
                if (at := file.read(end - start).rfind(b"\n")) >= 0:
                    return start + at + 1
                end = start
        return 0

    def _hash_of(self, size: int) -> "hashlib._Hash":
        found = hashlib.sha256()
        if size:
            with open(self.path, "rb", opener=regular) as file:
                for start in range(0, size, CHUNK):
                    found.update(file.read(min(CHUNK, size - start)))
        return found
