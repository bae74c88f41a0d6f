"""What a link's provider charges: by volume, by started minutes of antenna time, by short messages."""

import math
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from fl.communication.trip import Both, Trip
from fl.core.units import MIB

Whole = Annotated[int, Field(ge=1, le=2**63 - 1, strict=True)]

NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]

STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=STRICT)
class PerMb:
    """Billing by volume: US$ for each 1024 ** 2 wire bytes, either way."""

    unit: Literal["mb"]
    usd_per_mb: NotNegative

    def cost(self, trip: "Trip", acquisition_s: float) -> Both:
        """Returns US$ of one client's round."""
        return Both(*(wire / MIB * self.usd_per_mb for wire in trip.wire_bytes))


@dataclass(frozen=True, config=STRICT)
class PerStartedMinute:
    """Billing by antenna time: every contact is rounded up to whole minutes, acquisition included."""

    unit: Literal["started_minute"]
    usd_per_minute: NotNegative

    def cost(self, trip: "Trip", acquisition_s: float) -> Both:
        """Returns US$ of one client's round."""
        return Both(*(minutes * self.usd_per_minute for minutes in billed_minutes(trip, acquisition_s)))


@dataclass(frozen=True, config=STRICT)
class PerCredit:
    """Billing by short messages (as Iridium SBD): `ceil(bytes / message) * ceil(message / credit)` credits.

    Attributes:
        unit: "credit".
        ground_to_sat_message_bytes: longest message to the satellite.
        sat_to_ground_message_bytes: longest message from it.
        credit_bytes: that one credit carries.
        usd_per_credit: price.
    """

    unit: Literal["credit"]
    ground_to_sat_message_bytes: Whole
    sat_to_ground_message_bytes: Whole
    credit_bytes: Whole
    usd_per_credit: NotNegative

    def cost(self, trip: "Trip", acquisition_s: float) -> Both:
        """Returns US$ of one client's round."""
        longest = (self.ground_to_sat_message_bytes, self.sat_to_ground_message_bytes)
        credits = (
            math.ceil(wire / message) * math.ceil(message / self.credit_bytes)
            for wire, message in zip(trip.wire_bytes, longest, strict=True)
        )
        return Both(*(number * self.usd_per_credit for number in credits))


Billing = Annotated[PerMb | PerStartedMinute | PerCredit, Field(discriminator="unit")]


def started_minutes(seconds: float, acquisition_s: float) -> int:
    """Returns the minutes of one booking."""
    return math.ceil(round(seconds + acquisition_s, 6) / 60)  # rounded: 60.00000000001 s is one minute


def billed_minutes(trip: Trip, acquisition_s: float) -> Both:
    """Returns started minutes, `sum over contacts of ceil((use + acquisition) / 60)`.

    Where broadcast and update use the same contact, the antenna is held in between, or given back and booked again
    (then both pay their own acquisition): the cheaper one counts, and is shared out by seconds of transfer.
    """

    def started(seconds: float) -> int:
        return started_minutes(seconds, acquisition_s)

    updates = {use.contact: use for use in trip.update}
    up = down = 0.0
    for use in trip.broadcast:
        apart = started(use.length_s)
        later = None if use.contact is None else updates.pop(use.contact, None)
        if later is None:
            up += apart
            continue
        held, both = started(later.end_s - use.start_s), use.length_s + later.length_s
        if held < apart + started(later.length_s):
            share = round(1024 * use.length_s / both) / 1024 if both else 0.5  # a binary fraction: sums stay whole
            up, down = up + held * share, down + held * (1 - share)
        else:
            up, down = up + apart, down + started(later.length_s)
    return Both(up, down + sum(started(use.length_s) for use in updates.values()))
