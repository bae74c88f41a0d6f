"""What clients remember between their messages: in files, so that memory does not grow with every client ever asked."""

import hashlib
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict

from fl.core.errors import RunError
from fl.core.files import read_regular, write_bytes

NAME = re.compile(r"\d{5,}-([0-9a-f]{64})")
"""Of a file: the round in which it was written, and the SHA-256 of its content."""


class ClientStates:
    """Keeps every client's `Context.state`, each of its records in a file.

    What several clients remember alike, as the reference that all hold who were asked in one round, is one file. What
    was there at the last but one `settle` is deleted by the next, unless a client still remembers it: a checkpoint
    that lists the files, and the one before it, find theirs.

    Args:
        folder: of the files, made with the first; None: a temporary one, which goes with this object.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._files: dict[int, dict[str, str]] = {}
        self._settled: set[str] = set()
        self._written: set[str] = set()  # since the last `settle`
        self._round = 1

    def get(self, node: int) -> RecordDict:
        """Returns what a client remembers; nothing, if it was never asked.

        Raises:
            RunError: a file is missing or damaged.
        """
        state = RecordDict()
        if (folder := self._folder) is not None:
            for name in self._files.get(node, {}).values():
                state.update(_parsed(read_state(folder, name)))
        return state

    def put(self, node: int, state: RecordDict) -> None:
        """Keeps what a client remembers now."""
        before = self._files.get(node, {})
        self._files[node] = {key: self._write({key: state[key]}, before.get(key, "")) for key in state}

    def _write(self, record: dict[str, Any], before: str) -> str:
        """Returns the file of a record: the one of before, if nothing has changed."""
        content = recorddict_to_proto(RecordDict(record)).SerializeToString(deterministic=True)
        sha256 = hashlib.sha256(content).hexdigest()
        if before.endswith(f"-{sha256}"):
            return before
        name = f"{self._round:05d}-{sha256}"
        if name not in self._written:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="quantfl-"))
                weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
            self._folder.mkdir(exist_ok=True)
            write_bytes(self._folder / name, content)
            self._written.add(name)
        return name

    def listing(self) -> dict[int, dict[str, str]]:
        """Returns which files hold what, of clients that remember anything."""
        return {node: dict(files) for node, files in sorted(self._files.items()) if files}

    def restore(self, listing: Mapping[int, Mapping[str, str] | bytes], next_round: int) -> None:
        """Goes back to a listing whose files are there; what an older version kept, whole states, becomes files."""
        if self._folder is None and any(not isinstance(files, bytes) for files in listing.values()):
            raise RunError("what clients remember lies in files, and no folder of them was given")
        self._round, self._written = next_round, set()
        self._files = {node: dict(files) for node, files in listing.items() if not isinstance(files, bytes)}
        for node, state in listing.items():
            if isinstance(state, bytes):
                self.put(node, _parsed(state))
        self._settled = self._named()

    def settle(self) -> None:
        """Ends a round: deletes files that neither the last settled round named nor this one does."""
        named = self._named()
        if self._folder and self._folder.is_dir():
            for entry in os.scandir(self._folder):
                if NAME.fullmatch(entry.name) and entry.name not in named | self._settled:
                    os.unlink(entry.path)
        self._round, self._settled, self._written = self._round + 1, named, set()

    def _named(self) -> set[str]:
        return {name for files in self._files.values() for name in files.values()}


def _parsed(content: bytes) -> RecordDict:
    try:
        return recorddict_from_proto(ProtoRecordDict.FromString(content))
    except Exception as error:  # whatever protobuf and Flower make of bytes they did not write
        raise RunError(f"what a client remembers is damaged ({type(error).__name__})") from error


def read_state(folder: Path, name: str) -> bytes:
    """Returns the content of a file of a client's state.

    Raises:
        RunError: it is missing or damaged, or its name is none.
    """
    sha256 = NAME.fullmatch(name)
    if sha256 is None:
        raise RunError(f"{folder}: {name!r} is no name of a client's state")
    try:
        content = read_regular(folder / name)
    except OSError as error:
        raise RunError(f"{folder / name}: what a client remembers cannot be read ({error.strerror})") from error
    if hashlib.sha256(content).hexdigest() != sha256[1]:
        raise RunError(f"{folder / name}: is damaged (its content does not have its SHA-256)")
    return content
