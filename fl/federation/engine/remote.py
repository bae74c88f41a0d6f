"""A Flower Grid whose clients run elsewhere: Flower's own, asked more often, and with an end to waiting."""

import time
from collections.abc import Iterable, Iterator
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 3.0
"""Between two looks for answers; it grows while there are none."""


class RemoteGrid(Grid):
    """Yields answers as they come, and keeps those that come after nobody waited for them any more.

    Args:
        inner: Flower's.

    Attributes:
        reply_timeout_s: how long an answer is waited for; None: as long as Flower keeps a message.
    """

    def __init__(self, inner: Grid) -> None:
        self._inner = inner
        self.reply_timeout_s: float | None = None
        self._overdue: set[str] = set()
        self._late: list[Message] = []

    def set_run(self, run: Any) -> None:
        """See Flower's Grid."""
        self._inner.set_run(run)

    @property
    def run(self) -> Any:
        """The run's record at the SuperLink."""
        return self._inner.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Returns a new message to one node."""
        return self._inner.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Returns the nodes that are connected."""
        return self._inner.get_node_ids()

    def get_nodes(self) -> Iterable[Any]:
        """Returns what is known of them."""
        return self._inner.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Sends messages and returns their ids."""
        return self._inner.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Returns the answers that are there."""
        return self._inner.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Yields each answer when it is there, and ends when all are, or when time is over.

        Args:
            messages: to the clients.
            timeout: seconds for all of them; `reply_timeout_s` ends it too.
        """
        limits = [limit for limit in (timeout, self.reply_timeout_s) if limit is not None]
        deadline = time.monotonic() + min(limits, default=float("inf"))
        waiting, pause = {each for each in self._inner.push_messages(list(messages)) if each}, FIRST_PAUSE_S
        try:
            while waiting:
                answers = list(self._inner.pull_messages(waiting | self._overdue))
                for answer in answers:
                    asked = answer.metadata.reply_to_message_id
                    if asked in waiting:
                        waiting.remove(asked)
                        yield answer
                    else:
                        self._overdue.discard(asked)
                        self._late.append(answer)
                if not waiting or (left := deadline - time.monotonic()) <= 0:
                    break
                pause = FIRST_PAUSE_S if answers else min(1.5 * pause, LONGEST_PAUSE_S)
                time.sleep(min(pause, left))
        finally:
            self._overdue |= waiting

    def late_replies(self) -> list[Message]:
        """Returns answers that came after nobody waited for them any more, each once."""
        late, self._late = self._late, []
        return late
