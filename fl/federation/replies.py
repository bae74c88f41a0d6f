"""What is taken of clients' answers: which can be aggregated, and why the others are left out."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord

from fl.codec import ServerLink
from fl.codec.tensors import not_finite
from fl.communication.link import LONGEST_S
from fl.core.console import say
from fl.core.errors import PayloadError, counted, printable
from fl.core.records import ClientFailure
from fl.federation.messages import (
    ARRAYS,
    METRICS,
    NUM_EXAMPLES,
    TRAIN_S,
    Content,
    arrays_of,
    metrics_of,
    number,
    weight,
    with_content,
)
from fl.federation.spool import Spool

LONGEST_REASON = 200

MOST_EXAMPLES = 2**40
"""Images of a client whose share is not known."""

LARGEST_SQUARE, LARGEST_METRIC = float(np.finfo(np.float32).max), 1e30

VARIANCE = ".running_var"


def of_asked(replies: Iterable[Message], asked: Collection[int], server_round: int) -> Iterator[Message]:
    """Yields the first reply of each node that was asked, and says which others there were."""
    waiting = set(asked)
    for reply in replies:
        if (node := reply.metadata.src_node_id) in waiting:
            waiting.remove(node)
            yield reply
        else:
            how = "answered twice" if node in asked else "answered without having been asked"
            say(f"note: round {server_round}: node {node} {how}; this is left out")


@dataclass
class Answers:
    """What came of a round's messages; replies are looked at as they come, and their arrays put away.

    Attributes:
        sampled: the node of each client that was asked.
        arrays: the model before the round.
        server_link: decodes them.
        images_of: how many images each client holds, by partition id, if that is known.
        spool: where arrays wait.
        arrived: payload and message bytes of each reply, by node.
    """

    sampled: Mapping[int, int]
    arrays: ArrayRecord
    server_link: ServerLink
    images_of: Sequence[int] | None
    spool: Spool
    arrived: dict[int, tuple[int, int]] = field(default_factory=dict)
    _usable: dict[int, Message] = field(default_factory=dict)  # by node
    _problems: dict[int, str] = field(default_factory=dict)

    def take(self, replies: Iterable[Message], on_reply: Callable[[], object]) -> None:
        """Looks at each reply: what it weighs, whether it can be used, and why not."""
        expected = {name: array.numpy() for name, array in self.arrays.items()}
        partition_of = {node: partition for partition, node in self.sampled.items()}
        for reply in replies:
            node = reply.metadata.src_node_id
            if not reply.has_error():
                self.arrived[node] = weight(reply)
            held = self.images_of[partition_of[node]] if self.images_of is not None else None
            problem = training_problem(reply, expected, self.server_link, held)
            if problem is None:
                arrays = arrays_of(reply)
                self._usable[node] = with_content(reply, Content(self.spool.put(arrays), metrics_of(reply)))
                arrays.clear()  # whoever looked at a content made a cycle that holds it until it is collected
            else:
                self._problems[node] = problem
            on_reply()

    def sorted_out(self) -> tuple[list[Message], list[ClientFailure]]:
        """Returns what can be aggregated, and failures, both by partition id."""
        valid, failures = [], []
        for partition, node in self.sampled.items():
            if (reply := self._usable.get(node)) is not None:
                self.server_link.accept(reply)
                valid.append(reply)
            else:
                problem = self._problems.get(node, "no reply in time")
                failures.append(ClientFailure(partition, shortened(problem)))
        return valid, failures


def shortened(text: str) -> str:
    """Returns the first line of what a client tells, not too much of it, as something that can be printed."""
    return printable(next(iter(text.splitlines()), ""))[:LONGEST_REASON]


def training_problem(
    reply: Message, expected: Mapping[str, np.ndarray], server_link: ServerLink, held: int | None
) -> str | None:
    """Decodes a training reply and returns what is wrong with it, None if it can be aggregated.

    An aggregation squares changes (FedAdam's second moment, Krum's distances): in FP32 they must not exceed it.
    """
    if (problem := _decoding_problem(reply, server_link)) is not None:
        return problem
    content = reply.content
    if set(content.array_records) != {ARRAYS} or set(content.metric_records) != {METRICS}:
        return f"wrong records: {sorted(content)} instead of {ARRAYS} and {METRICS}"
    received, metrics = arrays_of(reply), metrics_of(reply)
    if set(received) != set(expected):
        return f"wrong keys: {sorted(set(received) ^ set(expected))[:3]} missing or unexpected"
    for name, old in expected.items():
        try:
            new = received[name].numpy()
        except Exception as error:  # whatever NumPy makes of bytes it did not write
            return f"unreadable array {name}: {error}"
        if new.shape != old.shape or new.dtype != old.dtype:
            return f"wrong shape or type: {name} is {new.dtype}{list(new.shape)}, not {old.dtype}{list(old.shape)}"
        if not_finite(old) is not None:  # as in a mask: never aggregated
            if not np.array_equal(new, old, equal_nan=True):
                return f"{name}, which is constant, has changed"
            continue
        if not np.isfinite(new).all():
            return f"NaN or infinity in {name}"
        if name.endswith(VARIANCE) and (new < 0).any():
            return f"a negative variance in {name}"
        change = new.astype(np.float64) - old
        if (size := float(np.square(change).sum())) > LARGEST_SQUARE:
            return f"{name} has changed by {size**0.5:.3g}, more than an aggregation in FP32 can bear"
    return _metrics_problem(metrics, {NUM_EXAMPLES, "train-loss", TRAIN_S}, held)


def _decoding_problem(reply: Message, server_link: ServerLink) -> str | None:
    """Decodes a reply in place and returns why that cannot be done, None if it was."""
    if reply.has_error():
        return raised_text(reply)
    try:
        server_link.receive(reply)
    except PayloadError as error:
        return str(error)
    return None


def _metrics_problem(metrics: MetricRecord, expected: set[str], held: int | None) -> str | None:
    """Returns what is wrong with a reply's metrics, None if they can be averaged.

    Args:
        metrics: of the reply.
        expected: names.
        held: how many images the client has, if that is known.
    """
    if set(metrics) != expected:
        return f"wrong metrics: {sorted(metrics)} instead of {sorted(expected)}"
    for key in metrics:
        try:
            value = number(metrics, key)
        except ValueError as error:
            return f"metric {error}"
        wrong = key == TRAIN_S and not 0 <= value <= LONGEST_S
        if key == NUM_EXAMPLES and not (value >= 1 and value == value // 1 and value <= (held or MOST_EXAMPLES)):
            return f"metric {key} is {value}, and this client holds {counted(held, 'image') if held else 'fewer'}"
        if wrong or not np.isfinite(value) or abs(value) > LARGEST_METRIC:
            return f"metric {key} is {value}"
    return None


def evaluation_problem(reply: Message, server_link: ServerLink, held: int | None) -> str | None:
    """Returns what is wrong with an evaluation reply, None if it can be averaged."""
    if (problem := _decoding_problem(reply, server_link)) is not None:
        return problem
    if set(reply.content) != {METRICS}:
        return f"wrong records: {sorted(reply.content)} instead of {METRICS}"
    return _metrics_problem(metrics_of(reply), {NUM_EXAMPLES, "loss", "accuracy"}, held)


def raised_text(reply: Message) -> str:
    """Returns what a client that failed says of it."""
    wrapped = reply.error.reason or f"error {reply.error.code}"
    reason = wrapped.rpartition("occurred. Message: ")[2].strip() or wrapped  # Flower's words around a client's error
    return shortened(f"raised: {reason}")
