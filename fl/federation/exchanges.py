"""What is on the way between the server and each satellite: a model, its training, an update."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto, recorddict_from_proto, recorddict_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from torch import Tensor

from fl.codec import ServerLink
from fl.federation.messages import weight
from fl.federation.replies import of_asked, training_problem
from fl.federation.rounds import Federation


@dataclass
class Exchange:
    """One model that a satellite trains.

    Attributes:
        node: of the satellite.
        version: of the model.
        model: as the strategy was given it for this satellite.
        content: of the message, until it was trained on.
        reply: that came of it; None before, and where none came.
    """

    node: int
    version: int
    model: ArrayRecord
    content: RecordDict | None
    reply: Message | None = None


class Exchanges:
    """At most one exchange with each satellite, and the server's end of its link: its own, or its plane's.

    Nobody trains before an answer must be known; then all who wait for it train together. What comes out does not
    depend on it: a client knows its own messages alone.

    Args:
        federation: its grid and strategy.
        new_link: makes the server's end for a satellite that is sent its first model, or for those of a plane.
        on_reply: called after every client's reply.

    Attributes:
        nodes: of every satellite.
        train_s: that the grid took so far, measured.
    """

    def __init__(
        self, federation: Federation, new_link: Callable[[], ServerLink], on_reply: Callable[[], object]
    ) -> None:
        self._grid, self._aggregator = federation.grid, federation.aggregator
        self._images_of = federation.settings.images_of
        self._new_link, self._on_reply = new_link, on_reply
        self._links: dict[int, ServerLink] = {}  # by the first of those that share it
        self._link_of: dict[int, int] = {}
        self._open: dict[int, Exchange] = {}
        self.nodes: Mapping[int, int] = {}
        self.train_s = 0.0

    def send(self, satellites: Sequence[int], version: int, arrays: ArrayRecord, lr: float) -> list[tuple[int, int]]:
        """Freezes a version for satellites of one link, and returns payload and message bytes of what each is sent."""
        number = satellites[0]
        if number not in self._links:
            self._links[number] = self._new_link()
        self._link_of |= dict.fromkeys(satellites, number)
        link, nodes = self._links[number], [self.nodes[satellite] for satellite in satellites]
        model = link.begin(arrays)
        told = ConfigRecord({"lr": lr})
        messages = link.send(self._aggregator.configure_train(version + 1, model, told, nodes))
        for satellite, node, message in zip(satellites, nodes, messages, strict=True):
            self._open[satellite] = Exchange(node, version, model, message.content)
        return [weight(message) for message in messages]

    def version(self, satellite: int) -> int:
        """Returns which version a satellite has been sent."""
        return self._open[satellite].version

    def reply(self, satellite: int) -> Message | None:
        """Returns what a satellite answers; None where it failed."""
        if self._open[satellite].content is not None:
            self._train()
        reply = self._open[satellite].reply
        return None if reply is None or reply.has_error() else reply

    def _train(self) -> None:
        """Has all train who were sent a model since the last time."""
        waiting = {each.node: each for _, each in sorted(self._open.items()) if each.content is not None}
        messages = [Message(each.content, node, MessageType.TRAIN) for node, each in waiting.items() if each.content]
        began, newest = time.perf_counter(), max(each.version for each in waiting.values())
        for reply in of_asked(self._grid.send_and_receive(messages), waiting, newest + 1):
            waiting[reply.metadata.src_node_id].reply = reply
            self._on_reply()
        for each in waiting.values():
            each.content = None
        self.train_s += time.perf_counter() - began

    def end(self, satellite: int, *, used: bool) -> tuple[Exchange, str | None]:
        """Decodes and checks an answer, and returns it with what is wrong with it, None if it can be aggregated.

        Args:
            satellite: its number.
            used: it will be aggregated if it can be; else its client is to take it for lost.
        """
        exchange, link = self._open.pop(satellite), self._links[self._link_of[satellite]]
        if exchange.reply is None:
            return exchange, "no reply"
        expected = {name: array.numpy() for name, array in exchange.model.items()}
        held = self._images_of[satellite] if self._images_of is not None else None
        problem = training_problem(exchange.reply, expected, link, held)
        if problem is None and used:
            link.accept(exchange.reply)
        return exchange, problem

    def state(self) -> dict[str, Any]:
        """Returns all of it as what torch saves and loads with `weights_only=True`."""
        waiting: dict[int, list[int]] = {}
        for satellite, each in self._open.items():
            waiting.setdefault(self._link_of[satellite], []).append(each.node)
        return {
            "links": {number: link.state(waiting.get(number, ())) for number, link in self._links.items()},
            "link_of": self._link_of,
            "open": {number: self._saved(number) for number in self._open},
        }

    def _saved(self, satellite: int) -> dict[str, Any]:
        each = self._open[satellite]
        model = None if self._links[self._link_of[satellite]].active else each.model.to_torch_state_dict()
        content = (
            None
            if each.content is None
            else _to_tensor(recorddict_to_proto(each.content).SerializeToString(deterministic=True))
        )
        reply = None if each.reply is None else _to_tensor(message_to_proto(each.reply).SerializeToString())
        return {"node": each.node, "version": each.version, "model": model, "content": content, "reply": reply}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restores what `state` returned."""
        self._links, self._open = {}, {}
        for satellite, each in state["links"].items():
            self._links[satellite] = self._new_link()
            self._links[satellite].load_state(each)
        self._link_of = dict(state.get("link_of") or {number: number for number in state["links"]})
        for satellite, each in state["open"].items():
            link, node, model = self._links[self._link_of[satellite]], each["node"], each["model"]
            content, reply = each["content"], each["reply"]
            self._open[satellite] = Exchange(
                node,
                each["version"],
                link.basis_of(node) if model is None else _record_of(model),
                None if content is None else recorddict_from_proto(ProtoRecordDict.FromString(_to_bytes(content))),
                None if reply is None else message_from_proto(ProtoMessage.FromString(_to_bytes(reply))),
            )


def _record_of(model: Mapping[str, Tensor]) -> ArrayRecord:
    return ArrayRecord({name: Array(tensor.numpy()) for name, tensor in model.items()})


def _to_tensor(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def _to_bytes(tensor: Tensor) -> bytes:
    return tensor.numpy().tobytes()
