"""The client's end in a Flower app: a mod that decodes what arrives and codes what is answered."""

import logging
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable, Mod

from fl.codec.base import Codec, Shared
from fl.codec.broadcast import NOTHING, follow
from fl.codec.changes import difference, fitted, lost, specs_of_difference, specs_of_earlier_difference
from fl.codec.payload import Tensors, checksum_of, specs_of
from fl.codec.tensors import fingerprint, is_value
from fl.codec.wire import (
    BITS,
    CANNOT,
    WIRE,
    Initial,
    Names,
    bytes_in,
    checked,
    is_coded,
    model_key,
    payload_array,
    record_of,
    settings_of,
    start_of,
    tensors_of,
)
from fl.core.errors import ConfigError, PayloadError, QuantflError
from fl.core.seeds import numpy_generator

LOG = logging.getLogger("flwr")
REFERENCE, RESIDUAL = "quantfl.reference", "quantfl.residual"
"""Records in a client's state."""
SERVER_ROUND = "server-round"
"""Flower's own key in the configuration of a round."""


def codec_mod(
    *uncalled: object,
    broadcast: Codec | None = None,
    update: Codec | None = None,
    initial: Initial | None = None,
    seed: int = 0,
    statistics: Mapping[str, str] | None = None,
) -> Mod:
    """Returns a mod that decodes what a client receives and codes what it answers.

    `ClientApp(mods=[codec_mod(...)])` with the arguments of the server's `CodecStrategy`, before all other mods that
    look at arrays. The app itself sees and returns plain arrays. What a client remembers (the reference, what was lost,
    what it sent last) is in `Context.state` and changes only when it answers.

    Args:
        uncalled: nothing; what Flower passes to a mod that was not called.
        broadcast: how the model arrives; None for plain arrays.
        update: how the change is sent back; None for plain arrays.
        initial: the model before the first message; without it the first message is a whole model.
        seed: of random rounding and rotation.
        statistics: which arrays are BatchNorm's, where their names do not say so: {"3": "running_mean", ...}.
    """
    if uncalled:
        raise ConfigError(f"{CANNOT}: it is given to mods as it is; call it: mods=[codec_mod(...)]")
    checked("codec_mod", broadcast, update, initial, seed, statistics)
    client = _Client(broadcast, update, initial, seed, statistics)

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        if WIRE not in message.content.config_records:
            with _in_its_name():
                client.refuse_plain(message)
            return call_next(message, context)
        told = message.content.config_records[WIRE]
        with _in_its_name():
            key, received, held = client.received(message, told, context)
        if received is None:
            return Message(RecordDict({WIRE: ConfigRecord({"holds": held})}), reply_to=message)
        message.content = RecordDict({**message.content, key: client.names.record_of(received)})
        del message.content[WIRE]
        stream = _stream(message, context)
        reply = call_next(message, context)
        if not reply.has_error():
            with _in_its_name():
                client.code(reply, key, received, told, context, stream)
        return reply

    return mod


class _Client:
    """What `codec_mod` was told, and what it does on both sides of the app."""

    def __init__(
        self,
        broadcast: Codec | None,
        update: Codec | None,
        initial: Initial | None,
        seed: int,
        statistics: Mapping[str, str] | None,
    ) -> None:
        self._broadcast, self._update, self._initial, self._seed = broadcast, update, initial, seed
        self._settings, self.names = settings_of(broadcast, update, initial, statistics), Names(statistics)

    def refuse_plain(self, message: Message) -> None:
        """Says that nothing is coded, where a model arrives that no `CodecStrategy` sent."""
        coding = self._broadcast is not None or self._update is not None
        if coding and message.content.array_records and not message.metadata.message_type.startswith("query"):
            raise ConfigError(
                "the server sent plain arrays; wrap its strategy, CodecStrategy(strategy, ...), or leave codec_mod out "
                "where that cannot be done (legacy strategies, SecAgg+)"
            )

    def received(
        self, message: Message, told: ConfigRecord, context: Context
    ) -> tuple[str, dict[str, np.ndarray] | None, bytes]:
        """Returns the model's key, the model, None if this client lacks its base, and what this client held."""
        if (theirs := told.get("settings")) != self._settings:
            raise ConfigError(
                f"it has {self._settings}, the server's CodecStrategy {theirs!r}; give both the same arguments"
            )
        chosen = told.get("record")
        key = model_key(message.content.array_records, chosen if isinstance(chosen, str) else None)
        record = message.content.array_records[key]
        if self._broadcast is None or not is_coded(record):
            return key, self.names.tensors_of(record), NOTHING
        held: Tensors | None = None
        if REFERENCE in context.state.array_records:
            held = tensors_of(context.state.array_records[REFERENCE])
        elif self._initial is not None:
            held = self.names.inside(start_of(self._initial))
        if held is None:
            return key, None, NOTHING
        before, reference = fingerprint(held), told.get("reference")
        if before == reference:  # nothing is new, or the last answer was lost
            return key, dict(held), before
        model = follow(self._broadcast, held, [array.data for array in record.values() if array.data])
        arrived = model is not None and fingerprint(model) == reference
        return key, (model if arrived else None), before

    def code(
        self,
        reply: Message,
        sent_as: str,
        received: Tensors,
        told: ConfigRecord,
        context: Context,
        stream: tuple[int, int],
    ) -> None:
        """Remembers the reference, and puts a payload in the place of the answer's model."""
        if self._broadcast is not None and told.get("chain", True):
            context.state[REFERENCE] = record_of(received)
        evaluates = reply.metadata.message_type.startswith("evaluate")  # whose arrays are no trained model
        if self._update is None or not reply.content.array_records or evaluates:
            reply.content[WIRE] = ConfigRecord()  # so that the server sees that this mod was there
            return
        key = model_key(reply.content.array_records, sent_as)
        trained = fitted(self.names.tensors_of(reply.content.array_records[key]), received)
        if _is_no_model(trained, received):
            LOG.warning(
                "codec_mod: the answer is much shorter than the model that was received, as gradients or differences "
                "are; answer with the trained model, for what is coded is its change"
            )
        rng = numpy_generator(self._seed, "rounding", *stream)
        payload = _coded(_codecs(self._update, told, stream[0]), trained, received, told, context, rng)
        reply.content[key] = ArrayRecord({"update": payload_array(payload)})


def _codecs(update: Codec, told: ConfigRecord, server_round: int) -> list[Codec]:
    """Returns the codec of a round with the bits that the server gives this client, and the usual one.

    The second is for bits that are not enough to say anything.
    """
    bits, number = told.get(BITS), max(1, server_round)
    usual = [update.in_round(number)]
    if isinstance(update, Shared) and isinstance(bits, float):
        with suppress(PayloadError):
            return [update.at(bits).in_round(number), *usual]
    return usual


def _coded(
    codecs: Sequence[Codec],
    trained: Tensors,
    received: Tensors,
    told: ConfigRecord,
    context: Context,
    rng: np.random.Generator,
) -> bytes:
    """Returns the payload of an update, and puts what it loses into the client's state."""
    update = codecs[-1]
    change = difference(update, trained, received)
    if not update.error_feedback:
        return _encoded(codecs, change, rng, received)
    missing, decay = _undelivered(context, told, update, received), update.decay
    fed_back = {name for name, array in change.items() if not update.travels_as_value(name, array.dtype)}
    for name in fed_back & set(missing):
        change[name] = change[name] + np.asarray(decay * missing[name], change[name].dtype)
    payload = _encoded(codecs, change, rng, received)
    arriving = update.decode(payload, specs_of_difference(received))
    context.state[RESIDUAL] = record_of({n: lost(a, arriving[n]) for n, a in change.items() if n in fed_back})
    context.state[WIRE] = ConfigRecord({"sent": payload})
    return payload


def _encoded(codecs: Sequence[Codec], change: Tensors, rng: np.random.Generator, received: Tensors) -> bytes:
    """Returns the payload of the first codec that can say something."""
    base = fingerprint(received)
    for codec in codecs[:-1]:
        with suppress(PayloadError):
            return codec.encode(change, rng, base=base)
    return codecs[-1].encode(change, rng, base=base)


def _undelivered(context: Context, told: ConfigRecord, update: Codec, received: Tensors) -> dict[str, np.ndarray]:
    """Returns what earlier updates lost, and the last one itself if it never arrived; nothing of another model."""
    if RESIDUAL not in context.state.array_records:
        return {}
    missing, specs = tensors_of(context.state.array_records[RESIDUAL]), specs_of(received)
    if any(specs.get(name) != spec for name, spec in specs_of(missing).items()):
        return {}
    sent = bytes_in(context.state.config_records[WIRE], "sent")
    if checksum_of(sent) != told.get("accepted"):
        arrived = update.decode(sent, specs_of_earlier_difference(received, missing))
        missing = {name: array + arrived[name] for name, array in missing.items()}
    return missing


def _is_no_model(trained: Tensors, received: Tensors) -> bool:
    """Tells an answer of less than half the length of a model: whoever trains one moves it, and not so far."""

    def energy(tensors: Tensors) -> float:
        names = [name for name, array in received.items() if not is_value(name, array.dtype)]
        with np.errstate(over="ignore", invalid="ignore"):
            return sum(float(np.vdot(tensors[name], tensors[name]).real) for name in names)

    return energy(trained) < energy(received) / 4


def _stream(message: Message, context: Context) -> tuple[int, int]:
    """Returns round and client, which decide a client's random numbers."""
    rounds = [record[SERVER_ROUND] for record in message.content.config_records.values() if SERVER_ROUND in record]
    client = context.node_config.get("partition-id", context.node_id)
    try:
        number = int(client)
    except ValueError:  # any text may tell partitions apart
        number = zlib.crc32(str(client).encode())
    return int(rounds[0]) if rounds and isinstance(rounds[0], int) else 0, number


@contextmanager
def _in_its_name() -> Iterator[None]:
    """Puts the mod's name before its errors: what a server hears of a client is one line."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{CANNOT}: {error}") from error
    except QuantflError as error:
        raise type(error)(f"codec_mod: {error}") from error
