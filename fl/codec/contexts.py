"""Symbols of a matrix, coded with a histogram for each group of columns that is learned from the rows before."""

from collections.abc import Iterator
from dataclasses import dataclass

import constriction
import numpy as np

from fl.core.errors import PayloadError

BOUNDS = (3, 4, 6, 8, 12, 18, 24, 36, 48)
"""Columns are grouped anew after so many 48ths of the rows."""
GROUPS, WINDOW, CAP = 6, 9, 3
"""Groups; neighbouring columns that count; a magnitude beyond counts as this one."""
PRIOR, SEEN = 640, 16
"""The sum of a group's first histogram, about, and how much a symbol adds to it that was seen."""
HIGHEST = 15
"""Higher magnitudes make histograms too long to be learned from few rows."""
BLOCK, CHUNK = 1 << 20, 1 << 18
"""Symbols that are worked on together; symbols that the coder gets at a time, as int32."""


def model_of(counts: np.ndarray) -> constriction.stream.model.Categorical:
    """Returns the coder's distribution for a histogram."""
    return constriction.stream.model.Categorical(counts.astype(np.float64), perfect=False)


class Writer:
    """Codes symbols from the last to the first, as asymmetric numeral systems do."""

    def __init__(self) -> None:
        self._coder = constriction.stream.stack.AnsCoder()

    def put_before(self, symbols: np.ndarray, model: constriction.stream.model.Categorical) -> None:
        """Codes symbols, in an array of one axis, which a reader gets before all those so far."""
        for start in reversed(range(0, len(symbols), CHUNK)):
            self._coder.encode_reverse(symbols[start : start + CHUNK].astype(np.int32), model)

    def words(self) -> bytes:
        """Returns what was coded."""
        return self._coder.get_compressed().astype("<u4").tobytes()


class Reader:
    """Decodes the words of a `Writer`; bytes of anything else end in PayloadError."""

    def __init__(self, words: memoryview) -> None:
        if len(words) % 4:
            raise PayloadError("payload: coded words are incomplete")
        try:
            self._coder = constriction.stream.stack.AnsCoder(np.frombuffer(words, "<u4").astype(np.uint32))
        except Exception as error:  # whatever the library makes of bytes it did not write
            raise PayloadError(f"payload: coded symbols are damaged ({error})") from error

    def fill(
        self, symbols: np.ndarray, model: constriction.stream.model.Categorical, listed: np.ndarray | None = None
    ) -> None:
        """Fills an array of one axis with the next symbols, or with those of a list that they stand for."""
        for start in range(0, len(symbols), CHUNK):
            part = symbols[start : start + CHUNK]
            try:
                found = self._coder.decode(model, len(part))
            except Exception as error:  # as above
                raise PayloadError(f"payload: coded symbols are damaged ({error})") from error
            part[:] = found if listed is None else listed[found]

    def end(self) -> None:
        """Refuses words that are left."""
        if not self._coder.is_empty():
            raise PayloadError("payload: coded symbols do not end where they should")


@dataclass(frozen=True)
class Block:
    """Rows that are coded with the same histograms.

    Attributes:
        rows: which.
        order: the columns, group after group.
        groups: of each its number, its place in that order, and its histogram; -1 is the one that all begin with.
    """

    rows: slice
    order: np.ndarray
    groups: list[tuple[int, slice, np.ndarray]]


class Columns:
    """What the rows so far tell of a matrix's columns: which are alike, and how often each symbol came in them.

    Encoder and decoder go through `blocks` and show each to `saw`. All of it is integers, so that every machine comes
    to the same groups and histograms. A symbol is an integer plus the highest magnitude.

    Args:
        shape: of the matrix.
        magnitudes: how often each magnitude occurs in all of it.
    """

    def __init__(self, shape: tuple[int, int], magnitudes: np.ndarray) -> None:
        self._shape, self._counts = shape, np.empty((GROUPS, len(magnitudes)), np.int64)
        self._magnitude = np.abs(np.arange(1 - len(magnitudes), len(magnitudes)))  # of each symbol
        self._capped = np.minimum(self._magnitude, CAP).astype(np.uint8)
        self._whole = magnitudes.astype(np.int64)
        self._counts[:] = PRIOR * self._whole // max(1, int(self._whole.sum())) + 1
        self._sums = np.zeros(shape[1], np.int64)

    def blocks(self) -> Iterator[Block]:
        """Yields all rows, a few at a time."""
        rows, columns = self._shape
        first, step = 0, max(1, BLOCK // columns)
        for bound in BOUNDS:
            last = -(-rows * bound // 48)
            if last == first:
                continue
            order, parts = self._grouped() if first else (np.arange(columns), [slice(0, columns)])
            counts = self._counts if first else [self._whole]
            groups = [
                (number if first else -1, part, _both_signs(counts[number]))
                for number, part in enumerate(parts)
                if part.stop > part.start
            ]
            for start in range(first, last, step):
                yield Block(slice(start, min(start + step, last)), order, groups)
            first = last

    def _grouped(self) -> tuple[np.ndarray, list[slice]]:
        """Returns the columns, those with small sums first, and the groups' places in this order.

        A column counts with its own sum and twice the mean around it; beyond an end stands the last one again.
        """
        before = np.pad(np.cumsum(np.pad(self._sums, WINDOW // 2, "edge")), (1, 0))
        likely = WINDOW * self._sums + 2 * (before[WINDOW:] - before[:-WINDOW])
        order = np.argsort(likely, kind="stable")
        ranked = likely[order]
        firsts = [np.searchsorted(ranked, ranked[len(ranked) * n // GROUPS]) for n in range(GROUPS)]
        return order, [slice(int(a), int(b)) for a, b in zip(firsts, [*firsts[1:], len(ranked)], strict=True)]

    def saw(self, block: Block, symbols: np.ndarray) -> float:
        """Learns from a block's symbols, columns in its order, and returns about how many bits they take."""
        self._sums[block.order] += self._capped[symbols].sum(axis=0, dtype=np.int64)
        bits = 0.0
        for number, part, histogram in block.groups:
            found = np.bincount(symbols[:, part].reshape(-1), minlength=len(histogram))
            bits -= float((found * np.log2(np.maximum(histogram, 1) / histogram.sum())).sum())
            if number >= 0:
                np.add.at(self._counts[number], self._magnitude, SEEN * found)
        return bits


def _both_signs(counts: np.ndarray) -> np.ndarray:
    """Returns the histogram of symbols for one of magnitudes, twice as large: both signs are equally likely."""
    return np.concatenate([counts[:0:-1], 2 * counts[:1], counts[1:]])


class ColumnCoding:
    """A matrix of int8 as it would be coded.

    Attributes:
        head: what stands before the words.
        bits: about how many both take.
    """

    def __init__(self, matrix: np.ndarray, magnitudes: np.ndarray, head: bytes) -> None:
        self.head, self.bits = head, 8.0 * len(head) + 72
        self._matrix, self._highest, self._blocks = matrix, np.int8(len(magnitudes) - 1), list[Block]()
        columns = Columns((matrix.shape[0], matrix.shape[1]), magnitudes)
        for block in columns.blocks():
            self.bits += columns.saw(block, self._symbols(block))
            self._blocks.append(block)

    def _symbols(self, block: Block) -> np.ndarray:
        symbols = np.take(self._matrix[block.rows], block.order, axis=1)
        symbols += self._highest
        return symbols.view(np.uint8)

    def words(self) -> bytes:
        """Returns what was coded."""
        writer = Writer()
        for block in reversed(self._blocks):
            symbols = self._symbols(block)
            for _, part, histogram in reversed(block.groups):
                writer.put_before(symbols[:, part].reshape(-1), model_of(histogram))
        return writer.words()


def decode_columns(words: memoryview, shape: tuple[int, int], magnitudes: np.ndarray) -> np.ndarray:
    """Returns the matrix, int8.

    Raises:
        PayloadError: not what `ColumnCoding` makes of such a matrix.
    """
    reader, columns, matrix = Reader(words), Columns(shape, magnitudes), np.empty(shape, np.int8)
    for block in columns.blocks():
        rows = block.rows.stop - block.rows.start
        symbols = np.empty((rows, shape[1]), np.uint8)
        for _, part, histogram in block.groups:
            group = np.empty(rows * (part.stop - part.start), np.uint8)
            reader.fill(group, model_of(histogram))
            symbols[:, part] = group.reshape(rows, -1)
        columns.saw(block, symbols)
        inverse = np.empty_like(block.order)
        inverse[block.order] = np.arange(len(inverse))
        matrix[block.rows] = np.take(symbols.view(np.int8), inverse, axis=1)
    matrix -= np.int8(len(magnitudes) - 1)
    reader.end()
    return matrix
