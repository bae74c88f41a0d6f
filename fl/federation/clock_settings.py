"""By which clock a run goes."""

from collections.abc import Sequence
from typing import Literal

from pydantic import SkipValidation
from pydantic.dataclasses import dataclass as group

from fl.communication.computer import Computer
from fl.communication.link import Link
from fl.communication.policies import Policy, Synchronous
from fl.core.groups import STRICT, Positive


@group(frozen=True, config=STRICT)
class ClockSettings:
    """What decides when satellites receive, train and send.

    Attributes:
        clock: "rounds": all at once, as fast as they compute; "contacts": when a station sees them, in simulated time.
        policy: when the server makes a new version, with clock=contacts.
        computer: what satellites train with.
        max_days: simulated ones, after which the run ends; None: when it has used all its updates.
    """

    clock: Literal["rounds", "contacts"] = "rounds"
    policy: SkipValidation[Policy] = Synchronous()
    computer: SkipValidation[Computer] = Computer()
    max_days: Positive | None = None

    @property
    def by_contacts(self) -> bool:
        """Whether contacts drive the run."""
        return self.clock == "contacts"

    def train_s(self, link: Link, local_epochs: int, images_of: Sequence[int]) -> list[float]:
        """Returns how long each satellite trains: `link.train_s` where it is given, else by its computer and images."""
        if link.train_s is not None:
            return [link.train_s for _ in images_of]
        assert self.computer.images_per_s is not None
        return [local_epochs * images / self.computer.images_per_s for images in images_of]

    def told(self, link: Link, train_s: Sequence[float]) -> str:
        """Returns in words how long trainings take, and by which setting."""
        least, most = min(train_s), max(train_s)
        seconds = f"{least:,.1f} s" if least == most else f"{least:,.1f} to {most:,.1f} s"
        rate = f"computer.images_per_s={self.computer.images_per_s:g}; {self.computer.source.partition(',')[0]}"
        return f"{seconds} of simulated time ({rate if link.train_s is None else f'link.train_s={link.train_s:g}'})"
