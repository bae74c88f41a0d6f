"""Faults that are put into a run to see what it bears; drawn from the seed, the same in every engine."""

import time
from abc import ABC, abstractmethod
from typing import Annotated, ClassVar

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MessageType
from flwr.clientapp.typing import ClientAppCallable, Mod
from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from fl.codec.tensors import is_statistic
from fl.core.errors import counted
from fl.core.seeds import numpy_generator
from fl.core.units import DAY_S
from fl.federation.messages import ARRAYS, arrays_of, config_of, number

Strength = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _as_many(rounds: object) -> object:
    return [rounds] if isinstance(rounds, int) else rounds


class InjectedFault(Exception):
    """What a client tells whose answer was taken away."""


@dataclass(frozen=True, kw_only=True)
class Fault(ABC):
    """One kind of misbehaviour in training; evaluation on clients is left alone.

    Args:
        clients: how many clients can misbehave, the same ones in all rounds; None: all.
        probability: that one of them does in a round.
        rounds: in which they do; None: all.
    """

    outside_codec: ClassVar[bool] = False
    """Whether it strikes what travels, after the codec; else what the client trained."""

    clients: Annotated[int, Field(ge=1)] | None = None
    probability: Annotated[float, Field(ge=0, le=1)] = 1.0
    rounds: Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(_as_many)] | None = None

    def faulty_clients(self, seed: int, num_clients: int) -> tuple[int, ...]:
        """Returns the partition ids of those who can misbehave."""
        chosen = numpy_generator(seed, "faulty clients").permutation(num_clients)
        return tuple(sorted(int(client) for client in chosen[: self.clients]))

    def told(self, seed: int, num_clients: int) -> str:
        """Returns in words what is put into whom."""
        faulty = ", ".join(map(str, self.faulty_clients(seed, num_clients)))
        who = "every client" if self.clients is None else f"{counted(self.clients, 'client')} ({faulty})"
        when = "all rounds" if self.rounds is None else f"rounds {', '.join(map(str, self.rounds))}"
        return f"{type(self).__name__} in {who}, with probability {self.probability:g} in {when}"

    @abstractmethod
    def answer(self, train: ClientAppCallable, message: Message, context: Context, rng: np.random.Generator) -> Message:
        """Returns the answer of a client that misbehaves.

        Args:
            train: answers as a sound client does.
            message: what the client received.
            context: the client's.
            rng: of this round and client.
        """

    def mod(self, seed: int, num_clients: int) -> Mod:
        """Returns the mod that lets the chosen clients misbehave."""
        faulty = self.faulty_clients(seed, num_clients)

        def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
            client = int(context.node_config["partition-id"])
            if message.metadata.message_type != MessageType.TRAIN or client not in faulty:
                return call_next(message, context)
            server_round = int(number(config_of(message), "server-round"))
            rng = numpy_generator(seed, "faults", server_round, client)
            strikes = rng.random() < self.probability and (self.rounds is None or server_round in self.rounds)
            return self.answer(call_next, message, context, rng) if strikes else call_next(message, context)

        return mod


@dataclass(frozen=True, kw_only=True)
class Dropout(Fault):
    """The client is not reached: it does not train, and nothing comes back."""

    def answer(self, train: ClientAppCallable, message: Message, context: Context, rng: np.random.Generator) -> Message:
        raise InjectedFault("no answer")


@dataclass(frozen=True, kw_only=True)
class Crash(Fault):
    """The client trains, and dies before it answers: what it has learned and remembered of this round is lost."""

    def answer(self, train: ClientAppCallable, message: Message, context: Context, rng: np.random.Generator) -> Message:
        train(message, context)
        raise InjectedFault("crashed after training")


@dataclass(frozen=True, kw_only=True)
class Straggler(Fault):
    """The client answers later, by wall clock; with `reply_timeout_s` below that, it counts as failed."""

    delay_s: Annotated[float, Field(gt=0, le=DAY_S)] = 10.0

    def answer(self, train: ClientAppCallable, message: Message, context: Context, rng: np.random.Generator) -> Message:
        time.sleep(self.delay_s)
        return train(message, context)


@dataclass(frozen=True, kw_only=True)
class _Altered(Fault):
    """The client answers with other parameters than it trained; BatchNorm's statistics, counters and masks stay."""

    @abstractmethod
    def altered(self, received: np.ndarray, trained: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Returns what is answered in the place of one trained tensor, in its type."""

    def answer(self, train: ClientAppCallable, message: Message, context: Context, rng: np.random.Generator) -> Message:
        received = {name: array.numpy() for name, array in arrays_of(message).items()}
        reply = train(message, context)
        if reply.has_error():
            return reply
        arrays = dict(arrays_of(reply))
        for name, before in received.items():
            if not is_statistic(name) and before.dtype != np.bool_:
                values = self.altered(before, arrays[name].numpy(), rng)
                arrays[name] = Array(np.asarray(values, before.dtype))
        reply.content[ARRAYS] = ArrayRecord(arrays)
        return reply


@dataclass(frozen=True, kw_only=True)
class NotANumber(_Altered):
    """One value of each tensor is NaN."""

    def altered(self, received: np.ndarray, trained: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        values = trained.copy()
        values.flat[rng.integers(values.size)] = np.nan
        return values


@dataclass(frozen=True, kw_only=True)
class SignFlip(_Altered):
    """The change is turned round: the model moves away from what the client learned, `scale` times as far."""

    scale: Strength = 1.0

    def altered(self, received: np.ndarray, trained: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return received - self.scale * (trained - received)


@dataclass(frozen=True, kw_only=True)
class Noise(_Altered):
    """Normal noise is added, `scale` times as long as the root mean square of each tensor's change."""

    scale: Strength = 1.0

    def altered(self, received: np.ndarray, trained: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        rms = float(np.sqrt(np.mean(np.square(trained - received, dtype=np.float64))))
        return trained + self.scale * rms * rng.standard_normal(trained.shape)


@dataclass(frozen=True, kw_only=True)
class CorruptedPayload(Fault):
    """Bits of what travels back are flipped, anywhere in the arrays' bytes."""

    outside_codec: ClassVar[bool] = True

    bits: Annotated[int, Field(ge=1, le=1_000_000)] = 1

    def answer(self, train: ClientAppCallable, message: Message, context: Context, rng: np.random.Generator) -> Message:
        reply = train(message, context)
        if reply.has_error():
            return reply
        arrays = dict(arrays_of(reply))
        lengths = [len(array.data) for array in arrays.values()]
        names = list(arrays)
        for position in rng.integers(sum(lengths), size=self.bits):
            place = int(np.searchsorted(np.cumsum(lengths), position, side="right"))
            name, offset = names[place], int(position) - sum(lengths[:place])
            data = bytearray(arrays[name].data)
            data[offset] ^= 1 << int(rng.integers(8))
            old = arrays[name]
            arrays[name] = Array(dtype=old.dtype, shape=old.shape, stype=old.stype, data=bytes(data))
        reply.content[ARRAYS] = ArrayRecord(arrays)
        return reply
