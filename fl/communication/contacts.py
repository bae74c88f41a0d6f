"""Contacts: when satellites see a ground station, and how a transfer goes through them."""

import itertools
import math
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from fl.core.errors import ConfigError
from fl.core.files import read_json

Made = TypeVar("Made")
MOST_CONTACTS = 100_000
"""Of one transfer: a whole year of low orbits has some 5,000."""
SHORTEST_PERIOD_S, LONGEST_PERIOD_S = 1.0, 1e9


@dataclass(frozen=True)
class Contacts:
    """When each of some satellites sees the ground station.

    Attributes:
        period_s: after which the windows repeat.
        windows: for each satellite its (start, end) in seconds within [0, `period_s`], in order, none overlapping.
    """

    period_s: float
    windows: tuple[tuple[tuple[float, float], ...], ...]

    def __post_init__(self) -> None:
        if not (_is_number(self.period_s) and SHORTEST_PERIOD_S <= self.period_s <= LONGEST_PERIOD_S):
            raise ValueError(
                f"period_s={self.period_s!r}: must be seconds from {SHORTEST_PERIOD_S:g} to {LONGEST_PERIOD_S:g}"
            )
        if not self.windows:
            raise ValueError("windows: holds no satellite")
        for satellite, windows in enumerate(self.windows):
            place, before = f"windows of satellite {satellite}", 0.0
            if not windows:
                raise ValueError(f"{place}: there is none; it would wait for ever")
            for start, end in windows:
                if not (_is_number(start) and _is_number(end)):
                    raise ValueError(f"{place}: [{start!r}, {end!r}] is no pair of seconds")
                if end <= start:
                    raise ValueError(f"{place}: [{start}, {end}] ends before it starts")
                if start < before or end > self.period_s:
                    raise ValueError(
                        f"{place}: [{start}, {end}] overlaps the one before it or leaves [0, {self.period_s}]"
                    )
                before = end

    @classmethod
    def read(cls, path: Path) -> "Contacts":
        """Returns the contacts of a file as `scripts/contact_windows.py` writes it.

        Raises:
            ValueError: the file cannot be read, or is not such a file; says what is wrong.
        """
        return from_file(path, cls.of)

    @classmethod
    def of(cls, content: Any) -> "Contacts":
        """Returns the contacts of such a file's content."""
        windows = tuple(tuple((start, end) for start, end in each) for each in content["windows"])
        return cls(content["period_s"], windows)

    def after(self, satellite: int, time_s: float) -> Iterator[tuple[int, float, float]]:
        """Yields (number, start, end) of every contact that ends after `time_s`, for ever.

        Args:
            satellite: 0 or more; from the number in the file on they begin again at the first.
            time_s: seconds since the start of the file; numbers go on through its repetitions.
        """
        satellite %= len(self.windows)
        windows = self.windows[satellite]
        cycle, within = divmod(time_s, self.period_s)
        first = int(cycle) * len(windows) + bisect_right(self._ends[satellite], within)
        for number in itertools.count(first):
            cycle, index = divmod(number, len(windows))
            start, end = windows[index]
            yield number, start + cycle * self.period_s, end + cycle * self.period_s

    def at(self, satellite: int, time_s: float) -> list[int]:
        """Returns the numbers, as in `after`, of the contacts that a moment is in, ends included."""
        near = self.after(satellite, max(0.0, time_s - 1.0))  # one that has just closed among them
        begun = itertools.takewhile(lambda each: each[1] <= time_s, near)
        return [number for number, _, end in begun if end >= time_s]

    def longest_s(self, satellite: int) -> float:
        """Returns the length of the longest contact of one satellite."""
        return max(end - start for start, end in self.windows[satellite])

    @property
    def total_s(self) -> float:
        """Seconds of all contacts."""
        return math.fsum(end - start for windows in self.windows for start, end in windows)

    @cached_property
    def _ends(self) -> list[list[float]]:
        return [[end for _, end in windows] for windows in self.windows]


@dataclass(frozen=True)
class Use:
    """The part of one contact that one transfer takes. `contact` is None where there are no windows."""

    contact: int | None
    start_s: float
    end_s: float

    @property
    def length_s(self) -> float:
        """Seconds of transfer."""
        return self.end_s - self.start_s


def transfer(
    start_s: float,
    wire_bytes: float,
    rate_bps: float | None,
    contacts: Contacts | None = None,
    satellite: int = 0,
    acquisition_s: float = 0.0,
) -> tuple[Use, ...]:
    """Returns the contacts a transfer uses, in order; none where there is nothing to transfer.

    Each contact loses its first `acquisition_s`; a transfer that does not fit resumes in the next contact.

    Args:
        start_s: when the data is ready, since the start of the contacts' file.
        wire_bytes: with framing, as in `Framing.wire_bytes`.
        rate_bps: bits per second; None for no limit.
        contacts: None for always connected.
        satellite: whose contacts.
        acquisition_s: less than the satellite's longest contact.

    Raises:
        ConfigError: it is not through after `MOST_CONTACTS`.
    """
    if wire_bytes <= 0:
        return ()
    left_s = 0.0 if rate_bps is None else 8 * wire_bytes / rate_bps
    if contacts is None:
        return (Use(None, start_s, start_s + left_s),)
    uses = []
    for contact, opens_s, closes_s in itertools.islice(contacts.after(satellite, start_s), MOST_CONTACTS):
        begins_s = max(start_s, opens_s + acquisition_s)
        if begins_s >= closes_s:
            continue
        ends_s = min(closes_s, begins_s + left_s)
        uses.append(Use(contact, begins_s, ends_s))
        if begins_s + left_s <= closes_s:
            return tuple(uses)
        left_s -= closes_s - begins_s
    raise ConfigError(
        f"{wire_bytes:,.0f} bytes for satellite {satellite} are not through after {MOST_CONTACTS:,} contacts; give "
        "smaller payloads, a faster link or longer contacts"
    )


def from_file(path: Path, make: Callable[[Any], Made]) -> Made:
    """Returns what is made of a JSON file's content; a mistake in it is a `ValueError` that names the file."""
    try:
        return make(read_json(path))
    except OSError as error:
        told = f"{path} cannot be read ({error.strerror}); scripts/contact_windows.py makes one"
        raise ValueError(told) from error
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is no file of contact windows ({error!r})") from error
    except ConfigError as error:
        raise ValueError(str(error)) from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
