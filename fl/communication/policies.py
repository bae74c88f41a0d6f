"""When a server that is reached through contacts makes a new version, and which satellites it asks for it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass as group

from fl.core.groups import STRICT, Count, Positive

if TYPE_CHECKING:
    from fl.communication.clock import ContactClock

Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False, strict=True)]


@dataclass(frozen=True)
class Update:
    """What a satellite sent back.

    Attributes:
        satellite: its number.
        version: that it trained on.
        staleness: versions that came since.
        age_s: seconds since that version was made.
    """

    satellite: int
    version: int
    staleness: int
    age_s: float


def discount(staleness: int) -> float:
    """Returns what an update counts for that is so many versions behind: (1 + staleness) ** -0.5, polynomial decay."""
    return float((1 + staleness) ** -0.5)


@group(frozen=True, config=STRICT)
class Synchronous:
    """Waits for all that were asked (FedAvg, arXiv 1602.05629).

    Attributes:
        deadline_s: who has not answered so many seconds after the version was made has failed; None: all are awaited.
        select: "sampled" draws the clients of a round as `clock=rounds` does; "first" takes those that come into
            contact first (after FedAvgSat, arXiv 2511.14889).
    """

    deadline_s: Positive | None = None
    select: Literal["sampled", "first"] = "sampled"
    takes_stale = False

    def asks(self, clock: "ContactClock", satellite: int) -> bool:
        """Tells whether a satellite that is free is to be sent the newest version."""
        if self.select == "sampled":
            return satellite in clock.sampled
        return satellite in clock.asked or len(clock.asked) < clock.per_round

    def is_complete(self, clock: "ContactClock") -> bool:
        """Tells whether there is all that the next version is made of."""
        expected = clock.sampled if self.select == "sampled" else clock.asked
        return len(expected) >= clock.per_round and not expected - clock.done


@group(frozen=True, config=STRICT)
class FedBuff:
    """A new version of every `buffer_size` updates, whatever they were trained on (arXiv 2106.06639).

    Unlike there, clients are not sampled: each comes when it is in contact.

    Attributes:
        buffer_size: K.
        server_lr: η.
    """

    buffer_size: Count = 5
    server_lr: Positive = 1.0
    deadline_s = None
    takes_stale = True

    def asks(self, clock: "ContactClock", satellite: int) -> bool:
        """All of them, always."""
        return True

    def is_complete(self, clock: "ContactClock") -> bool:
        """When the buffer is full."""
        return len(clock.buffer) >= self.buffer_size


@group(frozen=True, config=STRICT)
class FedAsync:
    """A new version of every update, mixed in by `mixing` * (1 + staleness) ** -0.5 (arXiv 1903.03934, polynomial).

    Unlike there, clients add no proximal term.

    Attributes:
        mixing: α at staleness 0.
    """

    mixing: Share = 0.6
    deadline_s = None
    takes_stale = True

    def asks(self, clock: "ContactClock", satellite: int) -> bool:
        """All of them, always."""
        return True

    def is_complete(self, clock: "ContactClock") -> bool:
        """At every update."""
        return bool(clock.buffer)


@group(frozen=True, config=STRICT)
class IntraPlane:
    """Waits for all, as `Synchronous`, but satellites of a plane pass on what one of them receives and sends.

    After FedLEO (arXiv 2302.13447); `fl/communication/planes.py` says what goes when.
    """

    deadline_s = None
    takes_stale = False

    def asks(self, clock: "ContactClock", satellite: int) -> bool:
        """All of them, always."""
        return True

    def is_complete(self, clock: "ContactClock") -> bool:
        """When every plane's sum is there."""
        return clock.done == clock.sampled


Policy = Synchronous | FedBuff | FedAsync | IntraPlane
