"""The server's end in a Flower app: a wrapper that any of its strategies goes on working in."""

from collections.abc import Iterable, Mapping
from typing import Any, Self, cast

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvgM, Strategy

from fl.codec.base import Codec
from fl.codec.server_link import LOG, ServerLink
from fl.codec.tensors import fingerprint
from fl.codec.wire import CANNOT, NEEDED, STYPE, Initial, array_bytes, checked, start_of
from fl.core.errors import ConfigError, PayloadError, QuantflError, RunError

WRAPPED = ("configure_train", "aggregate_train", "configure_evaluate", "aggregate_evaluate", "start")


class CodecStrategy(Strategy):
    """Wraps a Flower strategy: what it sends and receives crosses the link as payloads.

    The result is an object of a class between this one and the inner strategy's, and shares the inner one's attributes:
    it is an instance of both, its attributes can be read and set, and a `start` of its own runs, with the codecs
    around the messages. The inner strategy sees plain arrays, as if nothing were coded; clients need the `codec_mod`
    with the same arguments.

    A reply that cannot be decoded is left out with a warning. Training ends with a `RunError` when no client of a round
    can take part as it is set up, or when no round had an answer at all.

    Args:
        inner: any of `flwr.serverapp.strategy`, or derived from its `Strategy`.
        broadcast: how the model is sent; None for plain arrays.
        update: how changes arrive; None for plain arrays.
        initial: the model before the first message; without it the first message is a whole model.
        seed: of random rounding and rotation.
        statistics: which arrays are BatchNorm's, where their names do not say so: {"3": "running_mean", ...}.
    """

    _codec_inner: Strategy
    _codec_run: "_Run"

    def __new__(cls, inner: Strategy, **settings: Any) -> Self:
        """Returns an object of a class derived from this one and the inner strategy's."""
        _check(inner)
        mixed = type(f"{cls.__name__}[{type(inner).__name__}]", (cls, type(inner)), {})
        wrapper: Self = object.__new__(mixed)
        wrapper.__dict__ = inner.__dict__
        return wrapper

    def __init__(
        self,
        inner: Strategy,
        *,
        broadcast: Codec | None = None,
        update: Codec | None = None,
        initial: Initial | None = None,
        seed: int = 0,
        statistics: Mapping[str, str] | None = None,
    ) -> None:
        checked("CodecStrategy", broadcast, update, initial, seed, statistics)
        if initial is not None and fingerprint(start_of(initial)) != fingerprint(start_of(initial)):
            raise ConfigError("CodecStrategy(initial=...): returned two different models; seed it")
        self._codec_inner = inner
        server_link = ServerLink(broadcast, update, initial=initial, seed=seed, statistics=statistics)
        server_link.key = getattr(inner, "arrayrecord_key", server_link.key)
        self._codec_run = _Run(server_link)

    @property
    def _codec_next(self) -> Strategy:
        """The inner strategy's methods, of this object."""
        return cast(Strategy, super())

    def start(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the inner strategy's own `start`.

        Raises:
            RunError: clients were asked to train, and no round had an answer that could be used.
        """
        run = self._codec_run
        run.begin()
        result = super().start(*args, **kwargs)
        run.end()
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Returns the inner strategy's messages, coded."""
        run = self._codec_run
        basis = run.model(arrays, server_round)
        move(self._codec_inner, basis)
        messages = run.sent(self._codec_next.configure_train(server_round, basis, config, grid), server_round)
        run.asked |= bool(messages)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Returns what the inner strategy makes of the decoded replies."""
        run = self._codec_run
        readable = run.decoded(replies, server_round)
        run.trained |= any(not reply.has_error() for reply in readable)
        return self._codec_next.aggregate_train(server_round, readable)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Returns the inner strategy's messages, coded."""
        run = self._codec_run
        run.model(arrays, server_round)
        return run.sent(self._codec_next.configure_evaluate(server_round, arrays, config, grid), server_round)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Returns what the inner strategy makes of the replies."""
        readable = self._codec_run.decoded(replies, server_round)
        return self._codec_next.aggregate_evaluate(server_round, readable)


def move(strategy: object, arrays: ArrayRecord) -> None:
    """Has a strategy, or those that it wraps, move the model that is sent, where it keeps one of its own.

    Flower's FedAvgM takes the first model that it sees and moves that one for ever: what a broadcast lost would count
    as something that clients learned, and build up in the momentum. Its relatives take the model of each round.
    """
    while strategy is not None:
        if isinstance(strategy, FedAvgM):
            strategy.current_arrays = arrays
        strategy = getattr(strategy, "strategy", None)


def _check(inner: object) -> None:
    """Raises `ConfigError` unless `inner` can be wrapped."""
    if isinstance(inner, type):
        raise ConfigError(f"CodecStrategy(inner={inner.__name__}): is a class; pass an object, {inner.__name__}(...)")
    if not isinstance(inner, Strategy):
        described = f"{type(inner).__module__}.{type(inner).__name__}"
        raise ConfigError(
            f"CodecStrategy(inner={described}): is no strategy of flwr.serverapp.strategy; legacy strategies "
            "(flwr.server.strategy) and SecAgg+ cannot be coded, use Flower's message API or leave the codecs out"
        )
    if isinstance(inner, CodecStrategy):
        raise ConfigError("CodecStrategy(inner=CodecStrategy): is coded already; wrap it once")
    if own := [name for name in WRAPPED if name in vars(inner)]:
        raise ConfigError(f"CodecStrategy(inner=...): {own[0]} was set on the object; define it in its class")


class _Run:
    """What a wrapped strategy's messages went through in one training."""

    def __init__(self, server_link: ServerLink) -> None:
        self.server_link, self.log = server_link, LOG
        self.begin()

    def begin(self) -> None:
        """Forgets an earlier training's counts."""
        self.asked = self.trained = False
        self.problems: list[str] = []
        self.bytes = {"sent": [0, 0], "received": [0, 0]}  # coded, plain

    def model(self, arrays: ArrayRecord, server_round: int) -> ArrayRecord:
        """Returns the model that the strategy is to move; see `ServerLink.begin`."""
        try:
            return self.server_link.begin(arrays)
        except PayloadError as error:
            raise RunError(f"round {server_round}: the strategy's model cannot be sent: {error}") from error

    def sent(self, messages: Iterable[Message], server_round: int) -> list[Message]:
        """Returns the messages, coded."""
        plain = list(messages)
        before = array_bytes(plain)
        try:
            coded = self.server_link.send(plain)
        except QuantflError as error:
            raise RunError(f"round {server_round}: the strategy's messages cannot be sent: {error}") from error
        self._count("sent", array_bytes(coded), before)
        return coded

    def decoded(self, replies: Iterable[Message], server_round: int) -> list[Message]:
        """Returns what the strategy is to see: decoded replies, and errors of clients.

        Raises:
            RunError: nobody answered as codecs need it, which the next round would not change.
        """
        arrived, readable, problems, hopeless = list(replies), [], [], True
        for reply in arrived:
            coded = array_bytes([reply])
            problem = self._problem(reply)
            if problem is None or reply.has_error():
                readable.append(reply)
            if problem is None:
                self.server_link.accept(reply)
                self._count("received", coded, array_bytes([reply]))
                hopeless = False
                continue
            problems.append(f"node {reply.metadata.src_node_id}: {problem}")
            hopeless &= CANNOT in problem
            if not reply.has_error() or CANNOT in problem:
                self.log.warning(problems[-1])
        if arrived and hopeless:
            raise RunError(f"round {server_round}: no client takes part as it is set up ({_some(problems)})")
        self.problems = problems or self.problems
        return readable

    def _problem(self, reply: Message) -> str | None:
        """Decodes a reply; returns what is wrong with it, None if it can be used."""
        if not reply.has_error():
            try:
                self.server_link.receive(reply)
            except PayloadError as error:
                return str(error)
            return None
        reason = (reply.error.reason or f"error {reply.error.code}").strip().splitlines()[-1]
        reason = reason.rpartition("occurred. Message: ")[2].removesuffix("'>")  # Flower's words around it
        if reply.error.code == ErrorCode.MOD_FAILED_PRECONDITION:
            return f"{CANNOT} where it stands: {reason} It must be the first of mods"
        if "secagg" in reason:
            return f"{CANNOT} beside SecAgg+, which adds up masked integers; take one of the two mods out ({reason})"
        return f"{CANNOT}: {reason}; {NEEDED}" if STYPE in reason else reason

    def _count(self, direction: str, coded: int, plain: int) -> None:
        self.bytes[direction][0] += coded
        self.bytes[direction][1] += plain

    def end(self) -> None:
        """Says how many bytes the arrays took.

        Raises:
            RunError: nothing was trained.
        """
        if self.asked and not self.trained:
            why = _some(self.problems) or "nobody answered"
            raise RunError(f"no round had an answer that could be used, so there is no model ({why})")
        for direction, (coded, plain) in self.bytes.items():
            self.log.info("codec: %s bytes of arrays %s, %s as plain arrays", f"{coded:,}", direction, f"{plain:,}")


def _some(problems: list[str]) -> str:
    return "; ".join(problems[:3]) + ("; ..." if len(problems) > 3 else "")
