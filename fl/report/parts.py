"""What a page is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fl.report.charts import Picture


@dataclass(frozen=True)
class Figure:
    """A number at the top, what it means, and where it stands."""

    name: str
    value: str
    meaning: str
    source: str


@dataclass(frozen=True)
class Table:
    """Rows under columns; cells are text, numbers first where a column is to be sorted by them."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    source: str


@dataclass(frozen=True)
class Shown:
    """A test image with what was answered."""

    png: str
    text: str


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    title: str
    texts: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    images: Sequence[Shown] = ()

    @property
    def name(self) -> str:
        """For links to it."""
        return self.title.lower().replace(" ", "-")


@dataclass(frozen=True)
class Content:
    """A whole page."""

    title: str
    sentence: str
    synthetic: bool
    figures: Sequence[Figure]
    sections: Sequence[Section]
    notes: Sequence[str] = field(default_factory=list)


def at(record: Any, *keys: str) -> Any:
    """Returns what lies at the end of some keys, None where one is missing."""
    for key in keys:
        record = record.get(key) if isinstance(record, Mapping) else None
    return record
