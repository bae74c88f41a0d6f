"""The round loop: sample, send, collect, aggregate, evaluate, record."""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from pydantic import Field
from pydantic.dataclasses import dataclass as group

from fl.codec import ServerLink
from fl.codec.tensors import not_finite
from fl.core.console import progress
from fl.core.errors import RunError, counted
from fl.core.groups import STRICT, Count, Fraction, Positive
from fl.core.records import ClientFailure, ClientRecord, RoundRecord, Score, Scores, Traffic
from fl.core.seeds import numpy_generator
from fl.federation.messages import (
    ARRAYS,
    CONFIG,
    TRAIN_S,
    config_of,
    message_bytes,
    metrics_of,
    number,
    payload_bytes,
    weight,
)
from fl.federation.replies import Answers, evaluation_problem, of_asked, raised_text, shortened
from fl.federation.spool import Spool
from fl.federation.strategy import Aggregator
from fl.training.local import Schedule, learning_rate

LONGEST_WAIT_S = 30.0
"""For clients to connect."""

ATTEMPTS = 3
"""To learn who a client is."""


@group(frozen=True, config=STRICT)
class RoundSettings:
    """What the round loop obeys.

    Attributes:
        images_of: how many images each client holds, by partition id: more it cannot have trained on.
        spool_folder: where answers wait that are too large for memory; None for the system's.
    """

    seed: Annotated[int, Field(ge=0, strict=True)]
    num_rounds: Count
    num_clients: Count
    fraction_train: Annotated[float, Field(gt=0, le=1, strict=True)]
    fraction_evaluate: Fraction
    min_completed: Count | None
    lr: Positive
    lr_schedule: Schedule
    reply_timeout_s: Positive | None = None
    round_timeout_s: Positive | None = None
    images_of: Sequence[int] | None = field(default=None, metadata={"setting": False})
    spool_folder: Path | None = field(default=None, metadata={"setting": False})

    @property
    def needed(self) -> int:
        """How many valid answers a round needs: `min_completed`, else half of the clients asked."""
        return self.min_completed or max(1, (self.clients_per_round + 1) // 2)

    @property
    def clients_per_round(self) -> int:
        """How many clients are asked to train in each round."""
        return sample_size(self.fraction_train, self.num_clients)


def sample_size(fraction: float, num_clients: int) -> int:
    """Returns how many of `num_clients` a fraction in (0, 1] is: rounded, at least one."""
    return max(1, round(fraction * num_clients))


@dataclass(frozen=True)
class Federation:
    """Who takes part in every round, and by which rules.

    Attributes:
        grid: reaches `settings.num_clients` clients.
        aggregator: the strategy.
        server_link: codes what is sent and decodes what arrives.
        settings: see `RoundSettings`.
    """

    grid: Grid
    aggregator: Aggregator
    server_link: ServerLink
    settings: RoundSettings


def run_rounds(
    federation: Federation,
    arrays: ArrayRecord,
    *,
    evaluate: Callable[[ArrayRecord], tuple[Scores, str]],
    first_round: int = 1,
    on_reply: Callable[[], object] = lambda: None,
) -> Iterator[tuple[RoundRecord, ArrayRecord, str]]:
    """Yields of each round its record, the aggregated model, and the type that this was evaluated in.

    Args:
        federation: see `Federation`.
        arrays: the model before `first_round`.
        evaluate: returns the scores of a model, and the type they were computed in.
        first_round: above 1 in a run that is resumed.
        on_reply: called after every client's reply.

    Raises:
        RunError: fewer than `settings.needed` valid replies in a round, or an aggregated model that is not
            finite.
    """
    settings = federation.settings
    nodes, asked_bytes = node_of_partition(federation.grid, settings.num_clients)
    control_bytes = asked_bytes if first_round == 1 else 0  # a resumed run has the records of one that was not killed
    for server_round in range(first_round, settings.num_rounds + 1):
        lr = learning_rate(settings.lr, settings.lr_schedule, server_round, settings.num_rounds)
        trained = _train_on_clients(federation, nodes, arrays, server_round, lr, on_reply)
        arrays, fp32_bytes, began = trained.arrays, trained.fp32_bytes, time.perf_counter()
        scores, evaluated_in = evaluate(arrays)
        refuse_no_score(scores, server_round)
        evaluation = _evaluate_on_clients(federation, nodes, arrays, server_round)
        record = RoundRecord(
            round=server_round,
            lr=lr,
            test=scores.test,
            validation=scores.validation,
            exact=scores.exact,
            reference=scores.reference,
            federated=evaluation.score,
            train_loss=trained.loss,
            fp32_model_bytes=fp32_bytes,
            shared_start_bytes=start_bytes(server_round, trained.sent, fp32_bytes),
            clients_asked=len(trained.clients),
            clients_completed=len(trained.clients) - len(trained.failed),
            clients_failed=trained.failed,
            broadcast=total_of(trained.sent, fp32_bytes),
            update=total_of(trained.arrived, fp32_bytes),
            control_message_bytes=control_bytes,
            late=_late(federation.grid, nodes),
            clients=trained.clients,
            evaluated=evaluation.clients,
            evaluation_traffic=evaluation.traffic,
            evaluation_failed=evaluation.failed,
            train_s=trained.train_s,
            evaluate_s=time.perf_counter() - began,
            aggregate_s=trained.aggregate_s,
        )
        control_bytes = 0
        yield record, arrays, evaluated_in


@dataclass(frozen=True)
class _Training:
    """What came of the training of one round.

    Attributes:
        arrays: the aggregated model.
        loss: weighted mean of the clients'.
        fp32_bytes: of one model as plain serialized tensors.
        sent: payload and message bytes of each message.
        arrived: the same of each reply.
        clients: who was asked.
        failed: who of them is not in the mean.
        train_s: seconds until the last reply.
        aggregate_s: seconds after that.
    """

    arrays: ArrayRecord
    loss: float
    fp32_bytes: int
    sent: Collection[tuple[int, int]]
    arrived: Collection[tuple[int, int]]
    clients: tuple[ClientRecord, ...]
    failed: tuple[ClientFailure, ...]
    train_s: float
    aggregate_s: float


def _train_on_clients(
    federation: Federation,
    nodes: Mapping[int, int],
    arrays: ArrayRecord,
    server_round: int,
    lr: float,
    on_reply: Callable[[], object],
) -> _Training:
    """Sends the model to clients of the round, and aggregates what they make of it."""
    settings, server_link, began = federation.settings, federation.server_link, time.perf_counter()
    sampled = drawn(settings, settings.fraction_train, nodes, server_round, "sampling")
    arrays, asked = server_link.begin(arrays), ConfigRecord({"lr": lr})
    messages = federation.aggregator.configure_train(server_round, arrays, asked, list(sampled.values()))
    messages = server_link.send(messages)
    sent = {message.metadata.dst_node_id: weight(message) for message in messages}
    with Spool(arrays, settings.spool_folder) as spool:
        answers = Answers(sampled, arrays, server_link, settings.images_of, spool)
        replies = federation.grid.send_and_receive(messages, timeout=settings.round_timeout_s)
        with progress(f"round {server_round}/{settings.num_rounds}", len(sent), "client") as step:
            answers.take(step.over(of_asked(replies, sent, server_round)), on_reply)
        valid, failures = answers.sorted_out()
        if len(valid) < settings.needed:
            raise RunError(_too_few(server_round, valid, failures, settings))
        trained = time.perf_counter()
        fp32_bytes = payload_bytes(RecordDict({ARRAYS: arrays}))
        clients = _client_records(sampled, sent, answers.arrived, valid)
        before = arrays
        arrays, metrics = federation.aggregator.aggregate_train(server_round, arrays, valid)
    refuse_broken(before, arrays, server_round)
    return _Training(
        arrays=arrays,
        loss=number(metrics, "train-loss"),
        fp32_bytes=fp32_bytes,
        sent=sent.values(),
        arrived=answers.arrived.values(),
        clients=clients,
        failed=tuple(failures),
        train_s=trained - began,
        aggregate_s=time.perf_counter() - trained,
    )


def node_of_partition(grid: Grid, num_clients: int) -> tuple[dict[int, int], int]:
    """Asks every node for its partition id; node ids are random in most engines, partition ids are not.

    Returns the node of each partition, and the bytes of the messages that it took.

    Nodes may still be connecting, and a process may die on the first message: who does not answer is asked again.

    Raises:
        RunError: the answers are not the partitions 0 to `num_clients` - 1, each once.
    """
    waiting_since, nodes = time.monotonic(), list(grid.get_node_ids())
    while len(nodes) < num_clients and time.monotonic() - waiting_since < LONGEST_WAIT_S:
        time.sleep(0.1)
        nodes = list(grid.get_node_ids())
    partition_of: dict[int, int] = {}
    problem, control_bytes = "", 0
    for _ in range(ATTEMPTS):
        silent = [node for node in nodes if node not in partition_of]
        messages = [Message(RecordDict({CONFIG: ConfigRecord()}), node, MessageType.QUERY) for node in silent]
        control_bytes += sum(message_bytes(message.content) for message in messages)
        for reply in grid.send_and_receive(messages) if messages else ():
            if reply.has_error():
                problem = f"; {raised_text(reply)}"
                continue
            control_bytes += message_bytes(reply.content)
            try:
                partition = number(config_of(reply), "partition-id")
                if not float(partition).is_integer():
                    raise ValueError(f"partition-id is {partition}")
            except (KeyError, ValueError) as error:
                problem = f"; node {reply.metadata.src_node_id}: {shortened(str(error))}"
                continue
            if reply.metadata.src_node_id in silent:
                partition_of[reply.metadata.src_node_id] = int(partition)
    found = sorted(partition_of.values())
    if found != list(range(num_clients)):
        told = f"{len(nodes)} nodes are connected, {len(found)} answered, with partitions {found}{problem}"
        raise RunError(f"num_clients={num_clients}: {told}")
    return {partition: node for node, partition in partition_of.items()}, control_bytes


def total_of(weights: Iterable[tuple[int, int]], fp32_bytes: int) -> Traffic:
    """Returns sums; FP32 from the same start sends a model where a payload was sent, and nothing where none was."""
    told = list(weights)
    payloads = [payload for payload, _ in told]
    return Traffic(sum(payloads), sum(message for _, message in told), fp32_bytes * sum(map(bool, payloads)))


def start_bytes(server_round: int, sent: Iterable[tuple[int, int]], fp32_bytes: int) -> int:
    """Returns the FP32 bytes that did not travel because clients make the first model from the seed."""
    return fp32_bytes * sum(payload == 0 for payload, _ in sent) if server_round == 1 else 0


def _client_records(
    sampled: Mapping[int, int],
    sent: Mapping[int, tuple[int, int]],
    arrived: Mapping[int, tuple[int, int]],
    valid: Sequence[Message],
) -> tuple[ClientRecord, ...]:
    train_s = {reply.metadata.src_node_id: number(metrics_of(reply), TRAIN_S) for reply in valid}
    return tuple(
        ClientRecord(partition, *sent[node], *arrived.get(node, (0, 0)), train_s.get(node, 0.0))
        for partition, node in sampled.items()
    )


def drawn(
    settings: RoundSettings, fraction: float, nodes: Mapping[int, int], server_round: int, concern: str
) -> dict[int, int]:
    """Returns {partition id: node id} of the clients asked in this round, by partition id."""
    rng = numpy_generator(settings.seed, concern, server_round)
    chosen = rng.choice(settings.num_clients, size=sample_size(fraction, settings.num_clients), replace=False)
    return {int(partition): nodes[int(partition)] for partition in sorted(chosen)}


def _late(grid: Grid, nodes: Mapping[int, int]) -> tuple[ClientRecord, ...]:
    """Returns what arrived after nobody waited for it any more: bytes that were spent for nothing."""
    partition_of = {node: partition for partition, node in nodes.items()}
    replies: list[Message] = getattr(grid, "late_replies", list)()
    known = [r for r in replies if r.has_content() and r.metadata.src_node_id in partition_of]
    return tuple(ClientRecord(partition_of[r.metadata.src_node_id], 0, 0, *weight(r), 0.0) for r in known)


def _too_few(
    server_round: int, valid: Sequence[Any], failures: Sequence[ClientFailure], settings: RoundSettings
) -> str:
    are = "is" if settings.needed == 1 else "are"
    reasons = "; ".join(f"client {failure.partition_id}: {failure.reason}" for failure in failures[:3])
    return (
        f"round {server_round}: {len(valid)} of {counted(len(valid) + len(failures), 'client')} completed, "
        f"min_completed={settings.needed} {are} needed ({reasons}{', ...' if len(failures) > 3 else ''})"
    )


def refuse_broken(before: ArrayRecord, arrays: ArrayRecord, server_round: int) -> None:
    """Raises `RunError` where an aggregation made of finite arrays what is not finite."""
    for name, array in arrays.items():
        if not_finite(array.numpy()) is not None and not_finite(before[name].numpy()) is None:
            raise RunError(
                f"round {server_round}: the aggregated {name} is not finite; lower lr or the strategy's own rate"
            )


def refuse_no_score(scores: Scores, server_round: int) -> None:
    """Raises `RunError` where a loss is not finite."""
    for name, score in vars(scores).items():
        if score is not None and not np.isfinite(score.loss):
            raise RunError(
                f"round {server_round}: the {name} loss of the aggregated model is {score.loss}; lower lr or the "
                "strategy's own rate, or look for a client that answers nonsense"
            )


@dataclass(frozen=True)
class _Evaluation:
    """What clients found on their own images, what asking cost, and who failed."""

    score: Score | None = None
    clients: tuple[ClientRecord, ...] = ()
    traffic: Traffic | None = None
    failed: tuple[ClientFailure, ...] = ()


def _evaluate_on_clients(
    federation: Federation, nodes: Mapping[int, int], arrays: ArrayRecord, server_round: int
) -> _Evaluation:
    """Asks for the weighted mean of clients' scores on their own training images."""
    settings, server_link, aggregator = federation.settings, federation.server_link, federation.aggregator
    if settings.fraction_evaluate == 0:
        return _Evaluation()
    sampled = drawn(settings, settings.fraction_evaluate, nodes, server_round, "evaluation")
    server_link.begin(arrays)
    messages = aggregator.configure_evaluate(server_round, arrays, ConfigRecord(), list(sampled.values()))
    messages = server_link.send(messages)
    partition_of = {node: partition for partition, node in sampled.items()}
    sent = {message.metadata.dst_node_id: weight(message) for message in messages}
    replies, failures, arrived = [], [], {}
    asked = federation.grid.send_and_receive(messages, timeout=settings.round_timeout_s)
    answers = of_asked(asked, partition_of, server_round)
    with progress(f"evaluation of round {server_round} by clients", len(sent), "client") as step:
        answered = list(step.over(answers))
    for reply in sorted(answered, key=lambda reply: partition_of[reply.metadata.src_node_id]):
        if not reply.has_error():
            arrived[reply.metadata.src_node_id] = weight(reply)
        partition = partition_of[reply.metadata.src_node_id]
        problem = evaluation_problem(reply, server_link, settings.images_of[partition] if settings.images_of else None)
        if problem is None:
            replies.append(reply)
        else:
            failures.append(ClientFailure(partition, shortened(f"evaluation: {problem}")))
    fp32_bytes = payload_bytes(RecordDict({ARRAYS: arrays}))
    metrics: MetricRecord | None = aggregator.aggregate_evaluate(server_round, replies)
    score = None if metrics is None else Score(number(metrics, "loss"), number(metrics, "accuracy"))
    clients = _client_records(sampled, sent, arrived, ())
    traffic = total_of([*sent.values(), *arrived.values()], fp32_bytes)
    return _Evaluation(score, clients, traffic, tuple(failures))
