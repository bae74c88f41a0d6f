"""Rounds over a link, one after another: seconds, contacts, money and energy of each."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from fl.communication.billing import PerStartedMinute, billed_minutes
from fl.communication.contacts import transfer
from fl.communication.link import Link
from fl.communication.trip import Both, Exchange, Trip


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
        energy_j=energy_j(link, _sum(trip.wire_bytes for trip in trips)),
    )


def _distinct(trip: Trip) -> int:
    uses = [*trip.broadcast, *trip.update]
    numbered = {use.contact for use in uses if use.contact is not None}
    return len(numbered) + sum(use.contact is None for use in uses)


def energy_j(link: Link, wire: Both) -> Both | None:
    """Returns `rx_w * 8 * bytes / rate` for what satellites receive, `tx_w * 8 * bytes / rate` for what they send."""
    up_bps, down_bps = link.ground_to_sat_bps, link.sat_to_ground_bps
    if link.tx_w is None or link.rx_w is None or up_bps is None or down_bps is None:
        return None
    return Both(link.rx_w * 8 * wire.ground_to_sat / up_bps, link.tx_w * 8 * wire.sat_to_ground / down_bps)


def _sum(figures: Any) -> Both:
    return Both(*(sum(column) for column in zip(*figures, strict=True)))
