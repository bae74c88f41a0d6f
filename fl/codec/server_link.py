"""The server link: codes what is sent, decodes what arrives, knows what each node holds."""

import logging
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from fl.codec.base import Codec, Shared
from fl.codec.broadcast import NOTHING, BroadcastChain, Once
from fl.codec.changes import applied, as_type, fitted, lost
from fl.codec.payload import Tensors, base_of, checksum_of
from fl.codec.shares import shared_bits
from fl.codec.tensors import fingerprint, is_value
from fl.codec.wire import (
    BITS,
    CANNOT,
    NEEDED,
    STYPE,
    WIRE,
    Initial,
    Names,
    bytes_in,
    examples_in,
    model_key,
    payload_array,
    settings_of,
    start_of,
)
from fl.core.errors import ConfigError, PayloadError, RunError

LOG = logging.getLogger("flwr")


@dataclass(frozen=True)
class _Sent:
    """The model in a message.

    Attributes:
        key: of its record.
        model: as the client holds it then.
        id: its fingerprint.
        on_chain: whether it is the reference, which a client keeps; else a model of its own, sent in plain arrays.
        offset: what the strategy's model is beyond it.
    """

    key: str
    model: Tensors
    id: bytes
    on_chain: bool
    offset: Tensors = field(default_factory=dict)


class ServerLink:
    """The server's end: codes what is sent, decodes what arrives, knows what each node holds.

    A message whose arrays are the model that `begin` was given, or returned, is coded. Any other model, of one client
    or for evaluation, is sent as it is, and the client's update is a change to it.

    Args:
        broadcast: how the model is sent; None for plain arrays.
        update: how changes arrive; None for plain arrays.
        initial: the model before the first message; without it the first message is a whole model.
        seed: of random rounding and rotation.
        statistics: which arrays are BatchNorm's, where their names do not say so.
        once: given to links that serve one client each, from `initial` on, with a chain of its own: all of them share
            what they make alike. None for one link, and one chain, for all clients.
    """

    def __init__(
        self,
        broadcast: Codec | None,
        update: Codec | None,
        *,
        initial: Initial | None = None,
        seed: int = 0,
        statistics: Mapping[str, str] | None = None,
        once: Once | None = None,
    ) -> None:
        self._broadcast, self._update, self._seed = broadcast, update, seed
        self._settings, self._names = settings_of(broadcast, update, initial, statistics), Names(statistics)
        start = self._names.inside(start_of(initial)) if initial is not None else None
        self._once = once
        self._chain = BroadcastChain(broadcast, start, seed, once) if broadcast is not None else None
        self._at_first = fingerprint(start) if start is not None else NOTHING
        self._holds: dict[int, bytes] = {}  # fingerprint, by node
        self._arrived: dict[int, int] = {}  # checksum of the last update, by node
        self._accepted: dict[int, int] = {}  # checksum of the last update that was used, by node
        self._examples: dict[int, float] = {}  # that the last update was trained on, by node
        self._dtypes: dict[str, np.dtype] = {}
        self._given, self._exact = ArrayRecord(), dict[str, np.ndarray]()
        self._basis: ArrayRecord | None = None
        self._reference: Tensors = {}
        self._reference_id = NOTHING
        self._unsent: Tensors = {}
        self._begun = once is not None
        self._asked: dict[int, _Sent] = {}  # by node
        self.key = "arrays"
        """Of the record that holds the model, where a message has several; Flower's own at first."""

    @property
    def active(self) -> bool:
        """Whether anything is coded."""
        return self._chain is not None or self._update is not None

    def reference(self, arrays: ArrayRecord) -> dict[str, np.ndarray]:
        """Returns the model as clients will hold it; codes the next frame if this model is new."""
        exact = self._typed(arrays)
        return exact if self._chain is None else self._chain.advance(exact)

    def _typed(self, arrays: ArrayRecord) -> dict[str, np.ndarray]:
        """Returns the arrays in the types of the first model: Flower's mean makes float64 of integers."""
        exact = self._names.tensors_of(arrays)
        self._dtypes = self._dtypes or {name: array.dtype for name, array in exact.items()}
        return {name: as_type(array, self._dtypes.get(name, array.dtype)) for name, array in exact.items()}

    def begin(self, arrays: ArrayRecord) -> ArrayRecord:
        """Codes the next frame if this model is new, and returns the model that a strategy is to move.

        That is what clients hold, plus what the broadcast's error feedback keeps for later frames: with all of it the
        exact model again, and without feedback the reference, for then what a frame lost is given up.

        Raises:
            RunError: a model without floating-point numbers, of which there is nothing to code.
            PayloadError: a model that the broadcast's codec cannot hold, or with other tensors than the one before.
        """
        if not self.active:
            return arrays
        exact = self._typed(arrays)
        if not any(np.issubdtype(array.dtype, np.floating) for array in exact.values()):
            held = ", ".join(sorted({str(array.dtype) for array in exact.values()})) or "nothing"
            raise RunError(
                f"codec: the model's arrays hold {held} and no floating-point numbers, so there is nothing to code; "
                "use the strategy without CodecStrategy, and clients without codec_mod"
            )
        first, self._begun = not self._begun, True
        if first and self._broadcast is not None and self._chain is not None and not self._chain.begins_with(exact):
            LOG.warning("codec: training begins with another model than initial returns, so it is sent whole once")
            self._chain, self._at_first = BroadcastChain(self._broadcast, None, self._seed), NOTHING
        self._given, self._asked = arrays, {}
        self._exact = self._alike(exact, "exact", lambda: exact)
        self._reference = self._exact if self._chain is None else self._chain.advance(self._exact)
        self._reference_id = fingerprint(self._reference)
        self._unsent, self._basis = self._alike(exact, ("basis", self._reference_id), self._to_move)
        return self._basis

    def _alike(self, exact: Tensors, key: Hashable, make: Callable[[], Any]) -> Any:
        return make() if self._once is None else self._once(fingerprint(exact), key, make)

    def _to_move(self) -> tuple[Tensors, ArrayRecord]:
        """Returns what is kept for later frames, and the model with it."""
        unsent: Tensors = {}
        if self._broadcast is not None and self._broadcast.error_feedback:
            decay = self._broadcast.decay
            unsent = {n: np.asarray(decay * each, each.dtype) for n, each in self._not_sent().items()}
        return unsent, self._names.record_of(_moved(self._reference, unsent))

    def basis_of(self, node: int) -> ArrayRecord:
        """Returns what `begin` did before the model was sent that a node's answer is still to come to."""
        sent = self._asked[node]
        return self._names.record_of(_moved(sent.model, sent.offset))

    def _not_sent(self) -> dict[str, np.ndarray]:
        """Returns the exact model minus the reference, where a difference may be taken."""
        return {n: lost(self._exact[n], each) for n, each in self._reference.items() if not is_value(n, each.dtype)}

    def send(self, messages: Iterable[Message]) -> list[Message]:
        """Returns a strategy's messages with payloads in the place of plain arrays; `begin` comes first.

        Raises:
            ConfigError: a message holds several array records, and none of them is the model.
        """
        coded = list(messages)
        bits = self._bits_of([each.metadata.dst_node_id for each in coded if not _evaluates(each)])
        for message in coded if self.active else ():
            node, records = message.metadata.dst_node_id, message.content.array_records
            self._asked.pop(node, None)
            if not records or WIRE in message.content:
                continue
            sent = self._recognized(records)
            told = ConfigRecord({"reference": sent.id, "accepted": self._accepted.get(node, -1)})
            told["settings"] = self._settings
            if node in bits and not _evaluates(message):
                told[BITS] = bits[node]
            if not sent.on_chain:
                told["chain"] = False
            if len(records) > 1:
                told["record"] = sent.key
            content = RecordDict({**message.content, WIRE: told})  # one for each: strategies share theirs
            content[sent.key] = self._broadcast_to(node) if sent.on_chain else records[sent.key]
            message.content = content
            self._asked[node], self.key = sent, sent.key
        return coded

    def _bits_of(self, nodes: Sequence[int]) -> dict[int, float]:
        """Returns what each client has for an element of its update, where they share by weight and a weight is known.

        Who has not answered yet is taken for an average client.
        """
        known = [self._examples[node] for node in nodes if node in self._examples]
        if not isinstance(self._update, Shared) or not self._update.by_weight or not known:
            return {}
        usual = sum(known) / len(known)
        return dict(
            zip(nodes, shared_bits(self._update.bits, [self._examples.get(node, usual) for node in nodes]), strict=True)
        )

    def _recognized(self, records: Mapping[str, ArrayRecord]) -> _Sent:
        """Returns the model among a message's records, and what the client will hold of it."""
        for key in sorted(records, key=lambda each: each != self.key):
            record = records[key]
            if self._basis is not None and _same(record, self._basis):
                return _Sent(key, self._reference, self._reference_id, True, self._unsent)
            if _same(record, self._given):
                return _Sent(key, self._reference, self._reference_id, True, self._not_sent() if self._chain else {})
        key = model_key(records, self.key)
        model = self._names.tensors_of(records[key])
        return _Sent(key, model, fingerprint(model), on_chain=False)

    def _broadcast_to(self, node: int) -> ArrayRecord:
        held = self._holds.get(node, self._at_first)
        payloads = self._chain.payloads_for(held) if self._chain is not None else None
        if payloads is None:
            return self._names.record_of(self._reference)
        payloads = payloads or [b""]  # nothing is new; an app without the mod is to fail at it
        return ArrayRecord({str(number): payload_array(payload) for number, payload in enumerate(payloads)})

    def receive(self, reply: Message) -> None:
        """Decodes a reply in place: what it holds then is the model that the strategy sent plus the client's change.

        Raises:
            PayloadError: what is wrong with it; the client counts as failed.
        """
        if not self.active or reply.has_error():
            return
        node, content = reply.metadata.src_node_id, reply.content
        told = content.config_records.get(WIRE)
        if told is not None:
            del content[WIRE]
        if told is not None and "holds" in told:
            known, self._holds[node] = node in self._holds, bytes_in(told, "holds")
            why = "" if known or not self._at_first else "; initial must return the same bits in every process"
            raise PayloadError(f"the client lacked the reference; it is sent what it lacks when it is asked again{why}")
        sent, payloads = self._asked.get(node), _payloads_in(content)
        if sent is None and (payloads or told is not None):
            raise PayloadError("an answer to an earlier message")
        if sent is None:
            return
        if told is None and not payloads:
            raise PayloadError(f"{CANNOT}: the answer came without it; {NEEDED}")
        if sent.on_chain:
            self._holds[node] = sent.id
            if self._once is not None and self._chain is not None:
                self._chain.forget_before(sent.id)
        if content.array_records and not _evaluates(reply):
            try:
                self._decode(content, sent, payloads, node)
            except ConfigError as error:
                raise PayloadError(str(error)) from error

    def _decode(self, content: RecordDict, sent: _Sent, payloads: Mapping[str, bytes], node: int) -> None:
        if self._update is None:
            key = model_key(content.array_records, sent.key)
            trained = self._names.tensors_of(content.array_records[key])
        else:
            if len(payloads) != 1:
                raise PayloadError("the answer is not one payload")
            ((key, payload),) = payloads.items()
            if base_of(payload) != sent.id:
                raise PayloadError("the update is based on another model than was sent")
            trained = applied(self._update, payload, sent.model)
            self._arrived[node] = checksum_of(payload)
        if sent.offset:
            trained = _moved(fitted(trained, sent.model), sent.offset)
        content[key] = self._names.record_of(trained)

    def accept(self, reply: Message) -> None:
        """Notes that an update is used; until a client hears so, it takes its last one for lost."""
        node = reply.metadata.src_node_id
        if node in self._arrived:
            self._accepted[node] = self._arrived[node]
        by_weight = self._update is not None and self._update.by_weight and not _evaluates(reply)
        if by_weight and (examples := examples_in(reply.content)):
            self._examples[node] = examples

    def state(self, waiting: Collection[int] = ()) -> dict[str, Any]:
        """Returns what it remembers between rounds, as what torch saves and loads with `weights_only=True`.

        Args:
            waiting: nodes whose answers are still to come; what they were sent is remembered too.
        """
        return {
            "asked": {node: _saved(self._asked[node]) for node in waiting if node in self._asked},
            "chain": self._chain.state() if self._chain is not None else None,
            "holds": {node: held.hex() for node, held in self._holds.items()},
            "accepted": dict(self._accepted),
            "examples": dict(self._examples),
            "dtypes": {name: dtype.str for name, dtype in self._dtypes.items()},
        }

    def forget_clients(self) -> None:
        """Takes every client for one that remembers nothing, as after a start of a new Flower run."""
        self._holds, self._arrived, self._accepted, self._examples = {}, {}, {}, {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restores what `state` returned."""
        self._begun = True
        if self._chain is not None:
            self._chain.load_state(state["chain"])
        self._holds = {node: bytes.fromhex(held) for node, held in state["holds"].items()}
        self._accepted = {node: int(checksum) % 2**32 for node, checksum in state["accepted"].items()}
        self._examples = {node: float(number) for node, number in state.get("examples", {}).items()}  # older: none
        self._dtypes = {name: np.dtype(dtype) for name, dtype in state["dtypes"].items()}
        if not all(dtype.kind in "biufc" for dtype in self._dtypes.values()):
            raise ValueError("arrays of no numbers")
        self._asked = {node: _restored(sent) for node, sent in state.get("asked", {}).items()}


def _saved(sent: _Sent) -> dict[str, Any]:
    tensors = {n: {name: torch.from_numpy(a) for name, a in getattr(sent, n).items()} for n in ("model", "offset")}
    return {"key": sent.key, "id": sent.id.hex(), "on_chain": sent.on_chain, **tensors}


def _restored(saved: Mapping[str, Any]) -> _Sent:
    arrays = {n: {name: tensor.numpy() for name, tensor in saved[n].items()} for n in ("model", "offset")}
    return _Sent(saved["key"], arrays["model"], bytes.fromhex(saved["id"]), saved["on_chain"], arrays["offset"])


def _evaluates(message: Message) -> bool:
    return message.metadata.message_type.startswith("evaluate")


def _moved(model: Tensors, by: Tensors) -> dict[str, np.ndarray]:
    return {name: array + by[name] if name in by else array for name, array in model.items()}


def _same(record: ArrayRecord, other: ArrayRecord) -> bool:
    """Tells whether two records hold the same arrays, in the same order; no element is looked at if they are one."""
    if record is other:
        return True
    if list(record) != list(other):
        return False
    return all(a.stype == b.stype and a.data == b.data for a, b in zip(record.values(), other.values(), strict=True))


def _payloads_in(content: RecordDict) -> dict[str, bytes]:
    records = content.array_records.items()
    coded = {key: list(record.values()) for key, record in records if len(record) == 1}
    return {key: arrays[0].data for key, arrays in coded.items() if arrays[0].stype == STYPE}
