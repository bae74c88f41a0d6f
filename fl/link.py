"""A link between ground and satellites: from payload bytes to wire bytes, seconds, money and energy.

Everything here is modelled (docs/measured-and-modelled.md): the payloads are measured, the link is not. Two directions:
`ground_to_sat` carries the broadcast, `sat_to_ground` the update.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, ConfigDict, Field, SkipValidation, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass

from fl.contacts import Contacts, Use, transfer
from fl.results import MIB

WINDOWS = Path(__file__).resolve().parents[1] / "conf" / "link" / "windows"
ALWAYS = "always"
LONGEST_S = 366 * 86400.0
"""No training takes longer, and no contact is so far away."""

Whole = Annotated[int, Field(ge=1, strict=True)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
Rate = Annotated[float, Field(ge=1, allow_inf_nan=False, strict=True)]
Text = Annotated[str, Field(min_length=1, strict=True)]
STRICT = ConfigDict(extra="forbid")


class Both(NamedTuple):
    """One figure for each direction."""

    ground_to_sat: float
    sat_to_ground: float

    def to_json(self) -> dict[str, float]:
        """Returns both and their sum."""
        return {**self._asdict(), "total": self.ground_to_sat + self.sat_to_ground}


@dataclass(frozen=True, config=STRICT)
class Framing:
    """What packets and frames add to a payload.

    Attributes:
        frame_bytes: length of a transfer frame on the wire.
        frame_data_bytes: of which data.
        pdu_bytes: payload in one packet (protocol data unit).
        pdu_header_bytes: that each packet adds.
        loss: share of frames that are lost and sent again, in [0, 1).
    """

    frame_bytes: Whole
    frame_data_bytes: Whole
    pdu_bytes: Whole
    pdu_header_bytes: Annotated[int, Field(ge=0, strict=True)]
    loss: Annotated[float, Field(ge=0, lt=1, strict=True)] = 0.0

    @field_validator("frame_data_bytes")
    @classmethod
    def _fits(cls, value: int, info: ValidationInfo) -> int:
        if value > info.data.get("frame_bytes", value):
            raise ValueError(f"is more than frame_bytes={info.data['frame_bytes']}; a frame holds less than its length")
        return value

    def wire_bytes(self, payload_bytes: int) -> float:
        """Returns `ceil(app / frame_data) * frame / (1 - loss)` with `app = payload + packets * header`."""
        packets = -(-payload_bytes // self.pdu_bytes)
        frames = -(-(payload_bytes + packets * self.pdu_header_bytes) // self.frame_data_bytes)
        return frames * self.frame_bytes / (1 - self.loss)


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


def _read_windows(value: Any) -> Contacts | None:
    """Reads "always", or the path of a file; a bare name is one of those shipped in conf/link/windows/."""
    if value == ALWAYS:
        return None
    if isinstance(value, Contacts):
        return value
    if not isinstance(value, str):
        raise ValueError(f"must be {ALWAYS} or the path of a file of contact windows")
    return Contacts.read(WINDOWS / value if Path(value).name == value else Path(value).expanduser())


@dataclass(frozen=True, config=ConfigDict(extra="forbid", arbitrary_types_allowed=True))
class Link:
    """A way between ground and satellites, as `conf/link/*.yaml` gives it.

    Attributes:
        name: how results call it.
        ground_to_sat_bps: rate of the broadcast; None for no limit.
        sat_to_ground_bps: rate of the update.
        ground_to_sat_framing: None for none.
        sat_to_ground_framing: see `ground_to_sat_framing`.
        windows: when satellites are in contact: "always" (None once read), or a file of `scripts/contact_windows.py`.
        acquisition_s: that every contact loses before data flows.
        billing: per MB, per started minute or per credit.
        tx_w: what the satellite's radio draws while it sends; None where unknown.
        rx_w: the same while it receives.
        train_s: of one client's training on board; None for the seconds measured where the clients really ran.
        price_source: where the price comes from.
        price_as_of: when it was so.
    """

    name: Text
    ground_to_sat_bps: Rate | None
    sat_to_ground_bps: Rate | None
    ground_to_sat_framing: Framing | None
    sat_to_ground_framing: Framing | None
    windows: Annotated[SkipValidation[Contacts | None], BeforeValidator(_read_windows)]
    acquisition_s: NotNegative
    billing: Billing
    tx_w: NotNegative | None
    rx_w: NotNegative | None
    train_s: Annotated[float, Field(ge=0, le=LONGEST_S, allow_inf_nan=False, strict=True)] | None
    price_source: Text
    price_as_of: Text

    @field_validator("acquisition_s")
    @classmethod
    def _leaves_time(cls, value: float, info: ValidationInfo) -> float:
        if "windows" not in info.data:  # refused already
            return value
        contacts = info.data["windows"]
        if contacts is None and value:
            raise ValueError(f"there is nothing to acquire with windows={ALWAYS}; set it to 0")
        for satellite in range(len(contacts.windows) if contacts else 0):
            if contacts.longest_s(satellite) <= value:
                raise ValueError(f"satellite {satellite} has no contact longer than that; nothing could be sent")
        return value


class Exchange(NamedTuple):
    """What one client received and sent in one round: payload bytes, and the seconds it trained in between.

    `update_bytes` is 0 for a client from which nothing arrived; the round does not wait for it. `evaluates`: it was
    sent what the round ended in, to evaluate it.
    """

    partition_id: int
    broadcast_bytes: int
    update_bytes: int
    train_s: float
    evaluates: bool = False


class Trip(NamedTuple):
    """One client's round over a link: when the model arrived and the update was back, and what that took."""

    partition_id: int
    answered: bool
    wire_bytes: Both
    received_s: float
    back_s: float
    train_s: float
    broadcast: tuple[Use, ...]
    update: tuple[Use, ...]

    @property
    def busy_s(self) -> float:
        """Seconds of transfer and training."""
        return sum(use.length_s for use in (*self.broadcast, *self.update)) + self.train_s


def send(link: Link, exchange: Exchange, start_s: float) -> Trip:
    """Returns a client's round: it receives, trains for `train_s`, and sends back.

    Args:
        link: the way.
        exchange: the payloads. Client k flies on satellite k modulo the number of satellites in the windows' file.
        start_s: of the round, since second 0 of the windows.
    """
    train_s = exchange.train_s if link.train_s is None or not exchange.update_bytes else link.train_s
    framings = (link.ground_to_sat_framing, link.sat_to_ground_framing)
    payloads = (exchange.broadcast_bytes, exchange.update_bytes)
    wire = Both(*(f.wire_bytes(size) if f else size for f, size in zip(framings, payloads, strict=True)))
    where = (link.windows, exchange.partition_id, link.acquisition_s)
    broadcast = transfer(start_s, wire.ground_to_sat, link.ground_to_sat_bps, *where)
    received_s = broadcast[-1].end_s if broadcast else start_s
    update = transfer(received_s + train_s, wire.sat_to_ground, link.sat_to_ground_bps, *where)
    back_s = update[-1].end_s if update else received_s
    answered = exchange.update_bytes > 0 and not exchange.evaluates
    return Trip(exchange.partition_id, answered, wire, received_s, back_s, train_s, broadcast, update)


def billed_minutes(trip: Trip, acquisition_s: float) -> Both:
    """Returns started minutes, `sum over contacts of ceil((use + acquisition) / 60)`.

    Where broadcast and update use the same contact, the antenna is held in between, or given back and booked again
    (then both pay their own acquisition): the cheaper one counts, and is shared out by seconds of transfer.
    """

    def started(seconds: float) -> int:
        return math.ceil(round(seconds + acquisition_s, 6) / 60)  # rounded: 60.00000000001 s is one minute

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


class LinkRound(NamedTuple):
    """One synchronous round over a link.

    Attributes:
        round_s: from its start to the slowest client's update.
        straggler_partition_id: that client; None when nobody answered.
        idle_share: of the round that the average answering client neither transfers nor trains, in [0, 1].
        wire_bytes: on the link, frames included.
        contacts: used by each direction; one used by both counts in both.
        distinct_contacts: used at all; a contact serves one satellite.
        billed_minutes: None unless billed by the minute.
        cost_usd: money.
        energy_j: of the satellites' radios; None where power or rate is unknown.
    """

    round_s: float
    straggler_partition_id: int | None
    idle_share: float
    wire_bytes: Both
    contacts: Both
    distinct_contacts: int
    billed_minutes: Both | None
    cost_usd: Both
    energy_j: Both | None


def simulate(link: Link, rounds: Sequence[Sequence[Exchange]]) -> list[LinkRound]:
    """Returns each round over the link; each begins when the one before it has ended, the first at second 0.

    What is sent for evaluation leaves when the round's updates are back; only a client that is sent nothing to train on
    in the next round, because it was sent that, waits for it.

    A lower bound of time and money: every satellite has the station's antenna to itself.
    """
    results: list[LinkRound] = []
    start_s, held_s = 0.0, dict[int, float]()
    for exchanges in rounds:
        trips = [
            send(link, each, start_s if each.broadcast_bytes else max(start_s, held_s.get(each.partition_id, 0.0)))
            for each in exchanges
            if not each.evaluates
        ]
        ends_s = max((trip.back_s for trip in trips if trip.answered), default=start_s)
        evaluations = [send(link, each, ends_s) for each in exchanges if each.evaluates]
        held_s |= {trip.partition_id: trip.received_s for trip in evaluations}
        result = _result(link, [*trips, *evaluations], start_s)
        results.append(result)
        start_s += result.round_s
    return results


def _result(link: Link, trips: Sequence[Trip], start_s: float) -> LinkRound:
    waited_for = [trip for trip in trips if trip.answered]
    slowest = max(waited_for, key=lambda trip: trip.back_s, default=None)
    round_s = slowest.back_s - start_s if slowest else 0.0
    busy = sum(trip.busy_s for trip in waited_for)
    by_minute = isinstance(link.billing, PerStartedMinute)
    return LinkRound(
        round_s=round_s,
        straggler_partition_id=slowest.partition_id if slowest else None,
        idle_share=max(0.0, 1 - busy / (len(waited_for) * round_s)) if round_s else 0.0,
        wire_bytes=_sum(trip.wire_bytes for trip in trips),
        contacts=_sum(Both(len(trip.broadcast), len(trip.update)) for trip in trips),
        distinct_contacts=sum(_distinct(trip) for trip in trips),
        billed_minutes=_sum(billed_minutes(trip, link.acquisition_s) for trip in trips) if by_minute else None,
        cost_usd=_sum(link.billing.cost(trip, link.acquisition_s) for trip in trips),
        energy_j=_energy(link, _sum(trip.wire_bytes for trip in trips)),
    )


def _distinct(trip: Trip) -> int:
    uses = [*trip.broadcast, *trip.update]
    numbered = {use.contact for use in uses if use.contact is not None}
    return len(numbered) + sum(use.contact is None for use in uses)


def _energy(link: Link, wire: Both) -> Both | None:
    """Returns `rx_w * 8 * bytes / rate` for what satellites receive, `tx_w * 8 * bytes / rate` for what they send."""
    if None in (link.tx_w, link.rx_w, link.ground_to_sat_bps, link.sat_to_ground_bps):
        return None
    received = link.rx_w * 8 * wire.ground_to_sat / link.ground_to_sat_bps  # type: ignore[operator]
    return Both(received, link.tx_w * 8 * wire.sat_to_ground / link.sat_to_ground_bps)  # type: ignore[operator]


def _sum(figures: Any) -> Both:
    return Both(*(sum(column) for column in zip(*figures, strict=True)))
