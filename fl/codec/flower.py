"""The codecs in a Flower app: a mod for the ClientApp, a wrapper for the strategy, and what both remember."""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp.typing import ClientAppCallable, Mod
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fl.codec.base import Codec, fingerprint, is_value
from fl.codec.chain import NOTHING, BroadcastChain, as_type, follow
from fl.codec.payload import Tensors, base_of, checksum_of, specs_of
from fl.errors import PayloadError
from fl.seeds import numpy_generator

LINK, REFERENCE, RESIDUAL = "quantfl.link", "quantfl.reference", "quantfl.residual"
"""Records in messages and in a client's state."""
STYPE = "quantfl.payload"
"""Serialization type of an array that is a payload: whoever does not decode it fails loudly."""
SERVER_ROUND = "server-round"
"""Flower's own key in the configuration of a round."""

Initial = Callable[[], Tensors]
"""Returns the model that server and clients hold before anything was sent; the same everywhere, to the bit."""


def codec_mod(
    *, broadcast: Codec | None = None, update: Codec | None = None, initial: Initial | None = None, seed: int = 0
) -> Mod:
    """Returns a mod that decodes what a client receives and codes what it answers.

    `ClientApp(mods=[codec_mod(...)])` with the arguments of the server's `CodecStrategy`. The app itself sees and
    returns plain arrays. What a client remembers (the reference, what was lost, what it sent last) is in
    `Context.state` and changes only when it answers.

    Args:
        broadcast: how the model arrives; None for plain arrays.
        update: how the change is sent back; None for plain arrays.
        initial: the model before the first message; without it the first message is a whole model.
        seed: of random rounding and rotation.
    """

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        if LINK not in message.content.config_records:
            return call_next(message, context)
        told = message.content.config_records[LINK]
        (key,) = message.content.array_records
        received, held = _received(message.content.array_records[key], told, context, broadcast, initial)
        if received is None:
            return Message(RecordDict({LINK: ConfigRecord({"holds": held})}), reply_to=message)
        message.content = RecordDict({**message.content, key: _record(received)})
        del message.content[LINK]
        stream = _stream(message, context)
        reply = call_next(message, context)
        if reply.has_error():
            return reply
        if broadcast is not None:
            context.state[REFERENCE] = _record(received)
        if update is not None and reply.content.array_records:
            _code_reply(reply, received, told, context, update, numpy_generator(seed, "rounding", *stream))
        return reply

    return mod


def _received(
    record: ArrayRecord, told: ConfigRecord, context: Context, broadcast: Codec | None, initial: Initial | None
) -> tuple[dict[str, np.ndarray] | None, bytes]:
    """Returns the model that was sent, None if this client lacks what it is based on, and what the client held."""
    if broadcast is None or any(array.stype != STYPE for array in record.values()):
        return {name: array.numpy() for name, array in record.items()}, NOTHING
    held: Tensors | None = None
    if REFERENCE in context.state.array_records:
        held = {name: array.numpy() for name, array in context.state.array_records[REFERENCE].items()}
    elif initial is not None:
        held = initial()
    before = fingerprint(held) if held is not None else NOTHING
    received = follow(broadcast, held, [array.data for array in record.values()])
    arrived = received is not None and fingerprint(received) == told.get("reference")
    return (received if arrived else None), before


def _code_reply(
    reply: Message,
    received: Tensors,
    told: ConfigRecord,
    context: Context,
    update: Codec,
    rng: np.random.Generator,
) -> None:
    """Puts the payload in the place of the client's arrays, and what it loses into the client's state."""
    (key,) = reply.content.array_records
    trained = {name: array.numpy() for name, array in reply.content.array_records[key].items()}
    specs = specs_of(received)
    if set(trained) == set(specs):
        trained = {name: trained[name] for name in specs}
    if specs_of(trained) != specs:
        raise PayloadError("the client's answer has other names, shapes or types than the model it received")
    change = update.differences(trained, received)
    if update.error_feedback:
        lost = _undelivered(context, told, update, received)
        change = {n: a + np.asarray(update.decay * lost[n], a.dtype) if n in lost else a for n, a in change.items()}
    payload = update.encode(change, rng, base=fingerprint(received))
    if update.error_feedback:
        decoded = update.decode(payload, specs)
        residual = {name: array - decoded[name] for name, array in change.items() if _feeds_back(update, name, array)}
        context.state[RESIDUAL] = _record(residual)
        context.state[LINK] = ConfigRecord({"sent": payload})
    reply.content[key] = ArrayRecord({"update": _payload_array(payload)})


def _undelivered(context: Context, told: ConfigRecord, update: Codec, received: Tensors) -> dict[str, np.ndarray]:
    """Returns what earlier updates lost, and the last one itself if it never arrived."""
    if RESIDUAL not in context.state.array_records:
        return {}
    lost = {name: array.numpy() for name, array in context.state.array_records[RESIDUAL].items()}
    sent = _bytes(context.state.config_records[LINK], "sent")
    if checksum_of(sent) != told.get("accepted"):
        decoded = update.decode(sent, specs_of(received))
        lost = {name: array + decoded[name] for name, array in lost.items()}
    return lost


def _feeds_back(codec: Codec, name: str, array: np.ndarray) -> bool:
    return not codec.travels_as_value(name, array.dtype)


def _stream(message: Message, context: Context) -> tuple[int, int]:
    """Returns round and client, which decide a client's random numbers."""
    rounds = [record[SERVER_ROUND] for record in message.content.config_records.values() if SERVER_ROUND in record]
    client = context.node_config.get("partition-id", context.node_id)
    return int(rounds[0]) if rounds and isinstance(rounds[0], int) else 0, int(client)


def _record(tensors: Tensors) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in tensors.items()})


def _payload_array(payload: bytes) -> Array:
    return Array(dtype="uint8", shape=(len(payload),), stype=STYPE, data=payload)


def _bytes(record: ConfigRecord, key: str) -> bytes:
    value = record.get(key)
    if not isinstance(value, bytes):
        raise PayloadError(f"{key}: {value!r} is not bytes")
    return value


class ServerLink:
    """The server's end: codes what is sent, decodes what arrives, knows what each node holds.

    Args:
        broadcast: how the model is sent; None for plain arrays.
        update: how changes arrive; None for plain arrays.
        initial: the model before the first message; without it the first message is a whole model.
        seed: of random rounding and rotation.
    """

    def __init__(
        self, broadcast: Codec | None, update: Codec | None, *, initial: Initial | None = None, seed: int = 0
    ) -> None:
        self._broadcast, self._update = broadcast, update
        start = initial() if initial is not None else None
        self._chain = BroadcastChain(broadcast, start, seed) if broadcast is not None else None
        self._at_first = fingerprint(start) if start is not None else NOTHING
        self._holds: dict[int, bytes] = {}  # fingerprint, by node
        self._arrived: dict[int, int] = {}  # checksum of the last update, by node
        self._accepted: dict[int, int] = {}  # checksum of the last update that was used, by node
        self._dtypes: dict[str, np.dtype] = {}
        self._sent: Tensors = {}
        self._unsent: Tensors = {}
        self._sent_id = NOTHING

    def reference(self, arrays: ArrayRecord) -> dict[str, np.ndarray]:
        """Returns the model as clients will hold it; codes the next frame if this model is new."""
        exact = self._typed(arrays)
        return exact if self._chain is None else self._chain.advance(exact)

    def _typed(self, arrays: ArrayRecord) -> dict[str, np.ndarray]:
        """Returns the arrays in the types of the first model: Flower's mean makes float64 of integers."""
        exact = {name: array.numpy() for name, array in arrays.items()}
        self._dtypes = self._dtypes or {name: array.dtype for name, array in exact.items()}
        return {name: as_type(array, self._dtypes[name]) for name, array in exact.items()}

    def begin(self, arrays: ArrayRecord) -> ArrayRecord:
        """Codes the next frame if this model is new, and returns the model that a strategy is to move.

        That is what clients hold, plus what the broadcast's error feedback keeps for later frames: with all of it the
        exact model again, and without feedback the reference, for then what a frame lost is given up.
        """
        if self._chain is None and self._update is None:
            return arrays
        exact = self._typed(arrays)
        self._sent = exact if self._chain is None else self._chain.advance(exact)
        self._sent_id = fingerprint(self._sent)
        self._unsent = {}
        if self._broadcast is not None and self._broadcast.error_feedback:
            lost = {n: exact[n] - sent for n, sent in self._sent.items() if not is_value(n, sent.dtype)}
            self._unsent = {n: np.asarray(self._broadcast.decay * each, each.dtype) for n, each in lost.items()}
        return _record(self._with_unsent(self._sent))

    def _with_unsent(self, model: Tensors) -> dict[str, np.ndarray]:
        return {name: array + self._unsent[name] if name in self._unsent else array for name, array in model.items()}

    def send(self, messages: Iterable[Message]) -> list[Message]:
        """Returns a strategy's messages with payloads in the place of plain arrays; `begin` comes first."""
        coded = list(messages)
        if self._chain is None and self._update is None:
            return coded
        for message in coded:
            node = message.metadata.dst_node_id
            (key,) = message.content.array_records
            told = ConfigRecord({"reference": self._sent_id, "accepted": self._accepted.get(node, -1)})
            content = RecordDict({**message.content, LINK: told})  # one for each: strategies share theirs
            content[key] = self._broadcast_to(node)
            message.content = content
        return coded

    def _broadcast_to(self, node: int) -> ArrayRecord:
        held = self._holds.get(node, self._at_first)
        payloads = self._chain.payloads_for(held) if self._chain is not None else None
        if payloads is None:
            return _record(self._sent)
        return ArrayRecord({str(number): _payload_array(payload) for number, payload in enumerate(payloads)})

    def receive(self, reply: Message) -> None:
        """Decodes a reply in place: what it holds then is the model that `begin` returned plus the client's change.

        Raises:
            PayloadError: what is wrong with it; the client counts as failed.
        """
        if (self._chain is None and self._update is None) or reply.has_error():
            return
        node, content = reply.metadata.src_node_id, reply.content
        if LINK in content.config_records:
            self._holds[node] = _bytes(content.config_records[LINK], "holds")
            raise PayloadError("the client lacked the reference; it is sent what it lacks when it is asked again")
        self._holds[node] = self._sent_id
        if len(content.array_records) != 1:
            return
        (key,) = content.array_records
        trained = self._trained(content.array_records[key], node)
        if self._unsent:
            if specs_of(trained) != specs_of(self._sent):
                raise PayloadError("the answer has other names, shapes or types than the model that was sent")
            trained = self._with_unsent(trained)
        content[key] = _record(trained)

    def accept(self, reply: Message) -> None:
        """Notes that an update is used; until a client hears so, it takes its last one for lost."""
        node = reply.metadata.src_node_id
        if node in self._arrived:
            self._accepted[node] = self._arrived[node]

    def state(self) -> dict[str, Any]:
        """Returns what it remembers between rounds, as what torch saves and loads with `weights_only=True`."""
        return {
            "chain": self._chain.state() if self._chain is not None else None,
            "holds": {node: held.hex() for node, held in self._holds.items()},
            "accepted": dict(self._accepted),
            "dtypes": {name: dtype.str for name, dtype in self._dtypes.items()},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restores what `state` returned."""
        if self._chain is not None:
            self._chain.load_state(state["chain"])
        self._holds = {node: bytes.fromhex(held) for node, held in state["holds"].items()}
        self._accepted = dict(state["accepted"])
        self._dtypes = {name: np.dtype(dtype) for name, dtype in state["dtypes"].items()}

    def _trained(self, record: ArrayRecord, node: int) -> dict[str, np.ndarray]:
        """Returns the client's model, as if it had come in plain arrays."""
        if self._update is None:
            try:
                return {name: array.numpy() for name, array in record.items()}
            except Exception as error:  # whatever NumPy makes of bytes it did not write
                raise PayloadError(f"unreadable array: {error}") from error
        arrays = list(record.values())
        if len(arrays) != 1 or arrays[0].stype != STYPE:
            raise PayloadError("the answer is not one payload")
        payload = arrays[0].data
        if base_of(payload) != self._sent_id:
            raise PayloadError("the update is based on another model than was sent")
        trained = self._update.applied(self._sent, self._update.decode(payload, specs_of(self._sent)))
        self._arrived[node] = checksum_of(payload)
        return trained


class CodecStrategy(Strategy):
    """Wraps a Flower strategy: what it sends and receives crosses the link as payloads.

    The inner strategy sees plain arrays, as if nothing were coded; clients need the `codec_mod` with the same
    arguments. A reply that cannot be decoded is left out with a warning.

    Args:
        inner: any Flower strategy whose messages hold one array record.
        broadcast: how the model is sent; None for plain arrays.
        update: how changes arrive; None for plain arrays.
        initial: the model before the first message; without it the first message is a whole model.
        seed: of random rounding and rotation.
    """

    def __init__(
        self,
        inner: Strategy,
        *,
        broadcast: Codec | None = None,
        update: Codec | None = None,
        initial: Initial | None = None,
        seed: int = 0,
    ) -> None:
        self.inner = inner
        self.link = ServerLink(broadcast, update, initial=initial, seed=seed)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Returns the inner strategy's messages, coded."""
        basis = self.link.begin(arrays)
        return self.link.send(self.inner.configure_train(server_round, basis, config, grid))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Returns what the inner strategy makes of the decoded replies."""
        return self.inner.aggregate_train(server_round, self._decoded(replies))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Returns the inner strategy's messages, coded."""
        self.link.begin(arrays)
        return self.link.send(self.inner.configure_evaluate(server_round, arrays, config, grid))

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Returns what the inner strategy makes of the replies."""
        return self.inner.aggregate_evaluate(server_round, self._decoded(replies))

    def summary(self) -> None:
        """Logs the inner strategy's settings."""
        self.inner.summary()

    def _decoded(self, replies: Iterable[Message]) -> list[Message]:
        readable = []
        for reply in replies:
            try:
                self.link.receive(reply)
            except PayloadError as error:
                logging.getLogger("flwr").warning("node %s: %s", reply.metadata.src_node_id, error)
                continue
            self.link.accept(reply)
            readable.append(reply)
        return readable
