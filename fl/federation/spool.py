"""Answers wait for their aggregation outside of memory, however many there are."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
from flwr.app import Array, ArrayRecord

from fl.federation.messages import LazyArrays

MOST_IN_MEMORY = 64 * 2**20
"""Bytes of a round's answers; beyond it all of them lie in a file."""


class _Place(NamedTuple):
    start: int
    bytes: int
    dtype: np.dtype
    shape: tuple[int, ...]


class Spool:
    """The arrays of a round's answers: in memory while they are few, else in a file without a name.

    No kill leaves such a file behind. Its disk has to take a model for each answer.

    Args:
        model: with the names, shapes and types of every answer.
        folder: of the file; None: the system's own.
    """

    def __init__(self, model: ArrayRecord, folder: Path | None = None) -> None:
        self._places: dict[str, _Place] = {}
        self._size = self._end = 0
        for name, array in model.items():
            like = array.numpy()
            self._places[name] = _Place(self._size, like.nbytes, like.dtype, like.shape)
            self._size += like.nbytes
        self._folder = folder
        self._file = tempfile.SpooledTemporaryFile(MOST_IN_MEMORY, dir=str(folder) if folder else None)  # noqa: SIM115 (see `__exit__`)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Frees what waits; nothing of it can be read any more."""
        self._file.close()

    def put(self, arrays: Mapping[str, Array]) -> LazyArrays:
        """Writes an answer's arrays down and returns them as they are read again.

        Raises:
            OSError: names the folder, whatever the system refused.
        """
        begin = self._end
        try:
            self._file.seek(begin)
            for name in self._places:
                self._file.write(arrays[name].numpy().tobytes())
        except OSError as error:
            raise type(error)(error.errno, f"{error.strerror} (a round's answers)", str(self._folder)) from error
        self._end = begin + self._size
        return LazyArrays(tuple(self._places), lambda name: self._read(begin, name))

    def _read(self, begin: int, name: str) -> Array:
        place = self._places[name]
        self._file.seek(begin + place.start)
        content = self._file.read(place.bytes)
        return Array(np.frombuffer(content, place.dtype).reshape(place.shape))
