"""One client's round over a link: what it exchanges, and when that was there."""

from typing import NamedTuple

from fl.communication.contacts import Use


class Both(NamedTuple):
    """One figure for each direction."""

    ground_to_sat: float
    sat_to_ground: float

    def to_json(self) -> dict[str, float]:
        """Returns both and their sum."""
        return {**self._asdict(), "total": self.ground_to_sat + self.sat_to_ground}


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
