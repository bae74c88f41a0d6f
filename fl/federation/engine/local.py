"""A Flower Grid whose clients run on this machine or cluster, without a SuperLink.

Every message is serialized to protobuf and parsed again in both directions: a client cannot touch the server's
arrays or its neighbours', and what is counted is what a network would carry.
"""

import traceback
import uuid
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fl.federation.client_states import ClientStates

SERVER_NODE_ID = 1

RUN_ID = 1


class LocalGrid(Grid):
    """Grid over `num_clients` virtual nodes; an engine says where a message is answered.

    A client's `Context.state` is kept between its messages, and only when it answered: a client that raised
    starts its next message from the state before.

    Args:
        num_clients: their partition ids are 0 to `num_clients` - 1.
        states_folder: of the files with what they remember; None: a temporary one.

    Attributes:
        states: what every client remembers.
        reply_timeout_s: how long a client's answer is waited for, in engines that can; None: until it answers or fails.
    """

    reply_timeout_s: float | None = None

    def __init__(self, num_clients: int, states_folder: Path | None = None) -> None:
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = RUN_ID, 1, SERVER_NODE_ID
        self._num_clients = num_clients
        self.states = ClientStates(states_folder)
        self._replies: dict[str, Message] = {}

    @abstractmethod
    def answer(self, message: Message, context: Context) -> tuple[Message, Context]:
        """Runs the client app, which may change the context, and returns its reply and the context afterwards.

        Whatever it raises becomes this client's failure.
        """

    def set_run(self, run: Any) -> None:
        """Part of Flower's interface; there is one run in a process."""

    @property
    def run(self) -> Any:
        """Part of Flower's interface; a local run has no record at a SuperLink."""
        raise RuntimeError("a local run is not registered at a SuperLink")

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Returns a new message to one node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Returns all node ids."""
        return [SERVER_NODE_ID + 1 + partition_id for partition_id in range(self._num_clients)]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Runs the clients and returns the ids under which their replies wait."""
        ids = []
        for message in messages:
            reply = self._deliver(message)
            ids.append(reply.metadata.reply_to_message_id)
            self._replies[ids[-1]] = reply
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Returns the waiting replies, each once."""
        return [self._replies.pop(each) for each in message_ids if each in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Yields each client's reply when it is there; the next client starts when the next reply is asked for.

        Args:
            messages: to the clients.
            timeout: ignored here, where a client cannot be left alone.
        """
        for message in messages:
            yield self._deliver(message)

    def _context(self, node: int) -> Context:
        """Returns what a client knows of itself, with a copy of what it remembers."""
        return Context(
            run_id=RUN_ID,
            node_id=node,
            node_config={"partition-id": node - SERVER_NODE_ID - 1, "num-partitions": self._num_clients},
            state=self.states.get(node),
            run_config={},
        )

    def _deliver(self, message: Message) -> Message:
        message.metadata.__dict__["_message_id"] = uuid.uuid4().hex  # as a SuperLink does
        received = _through_the_wire(message)
        node = message.metadata.dst_node_id
        context = self._context(node)
        try:
            reply, context = self.answer(received, context)
            reply = _through_the_wire(reply)
        except (Exception, SystemExit) as error:
            reason = "".join(traceback.format_exception_only(error)).strip()
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=received)
        self.states.put(node, context.state)
        return reply


def _through_the_wire(message: Message) -> Message:
    return message_from_proto(ProtoMessage.FromString(message_to_proto(message).SerializeToString()))
