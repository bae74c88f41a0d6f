"""A client that never answers costs its own part of a round; what it says too late is bytes spent for nothing."""

import time

import pytest
from conftest import SMALL, composed
from federation.test_rounds import FEDAVG, SHARES, clients, mean, model, scores_of_value, value_of
from flwr.app import ConfigRecord
from flwr.serverapp import Grid

from fl.codec import ServerLink
from fl.communication.ledger import communication
from fl.core.errors import ConfigError
from fl.core.files import plain, read_jsonl
from fl.core.records import totals
from fl.core.targets import Target
from fl.experiment.run import run
from fl.federation.engine import InProcess, RemoteGrid
from fl.federation.rounds import Federation, RoundSettings, run_rounds
from fl.federation.strategy import Aggregator

LINK = Target.from_config("link", composed()["link"]).build()
ALL = range(len(SHARES))
TOO_LONG_S, PATIENCE_S = 1.25, 0.5


class Elsewhere(Grid):
    """A grid as Flower's are: messages are pushed, answers are pulled, and some are there later than others."""

    def __init__(self, inner, delay_s):
        self.inner, self.delay_s, self.ready = inner, delay_s, {}

    def get_node_ids(self):
        return self.inner.get_node_ids()

    def push_messages(self, messages):
        ids = []
        for message in messages:
            (reply,) = self.inner.send_and_receive([message])
            partition = message.metadata.dst_node_id - 2
            late = self.delay_s(partition, message) if message.metadata.message_type == "train" else 0
            ids.append(reply.metadata.reply_to_message_id)
            self.ready[ids[-1]] = time.monotonic() + late, reply
        return ids

    def pull_messages(self, message_ids):
        now = time.monotonic()
        return [
            self.ready.pop(each)[1] for each in list(message_ids) if each in self.ready and self.ready[each][0] <= now
        ]

    def send_and_receive(self, messages, *, timeout=None):
        raise AssertionError("waits for ever")

    set_run = run = create_message = None


def ran(delay_s, *, reply_timeout_s=None, round_timeout_s=None, num_rounds=3):
    """Runs rounds over clients whose answers come later; returns records, models and the seconds each round took."""
    wanted = {
        **{"seed": 1, "num_rounds": num_rounds, "num_clients": len(SHARES), "fraction_train": 1.0},
        **{"fraction_evaluate": 0.0, "min_completed": 1, "lr": 0.5, "lr_schedule": "linear"},
    }
    with InProcess().open(clients(), len(SHARES)) as inner:
        grid = RemoteGrid(Elsewhere(inner, delay_s))
        grid.reply_timeout_s = reply_timeout_s
        loop = run_rounds(
            Federation(
                grid,
                Aggregator(FEDAVG),
                ServerLink(None, None),
                RoundSettings(**wanted, round_timeout_s=round_timeout_s),
            ),
            model(),
            evaluate=scores_of_value,
        )
        return list(zip(*loop, strict=True))[:2]


def third_is_late(partition, message):
    return TOO_LONG_S if partition == 3 and message.content["config"]["server-round"] == 1 else 0


@pytest.mark.parametrize("setting", ["reply_timeout_s", "round_timeout_s"])
def test_who_answers_too_late_has_failed_and_the_others_go_on(setting):
    began = time.monotonic()
    (first, *_), (after, *_) = ran(third_is_late, **{setting: PATIENCE_S}, num_rounds=1)
    assert time.monotonic() - began < TOO_LONG_S
    (failure,) = first.clients_failed
    assert (failure.partition_id, failure.reason) == (3, "no reply in time")
    assert value_of(after) == pytest.approx(mean(lambda client: client + 1, [each for each in ALL if each != 3]))
    assert first.clients_completed == len(SHARES) - 1


def test_without_a_limit_everyone_is_waited_for():
    (first, *_), _ = ran(third_is_late, num_rounds=1)
    assert first.clients_failed == ()


def test_late_answers_are_spent_bytes_of_the_round_in_which_they_come():
    def slow(partition, message):
        return third_is_late(partition, message) or (PATIENCE_S / 2 if partition == 5 else 0)

    records, _ = ran(slow, reply_timeout_s=PATIENCE_S, num_rounds=6)
    came = [(record.round, late) for record in records for late in record.late]
    assert len(came) == 1
    server_round, late = came[0]
    usual = next(each for each in records[-1].clients if each.partition_id == 3)
    assert server_round > 1
    assert (late.partition_id, late.broadcast_payload_bytes, late.broadcast_message_bytes) == (3, 0, 0)
    assert (late.update_payload_bytes, late.update_message_bytes) == (
        usual.update_payload_bytes,
        usual.update_message_bytes,
    )
    assert records[0].update.payload_bytes == (len(SHARES) - 1) * usual.update_payload_bytes
    lines = [plain(record.to_json()) for record in records]
    assert ["late" in line for line in lines] == [record.round == server_round for record in records]
    assert totals(lines)["update"]["payload_bytes"] == 6 * len(SHARES) * usual.update_payload_bytes
    ledger = communication(lines, [LINK])["measured"]
    assert ledger["update"]["payload_bytes"] == sum(each["update_payload_bytes"] for each in ledger["clients"])
    assert ledger["clients"][3]["update_payload_bytes"] == 6 * usual.update_payload_bytes
    assert ledger["update"]["compression_ratio"] == 1


def test_answers_are_taken_as_they_come():
    """A slow client does not hold up what is shown of the others."""
    with InProcess().open(clients(), len(SHARES)) as inner:
        grid = RemoteGrid(Elsewhere(inner, third_is_late))
        messages = Aggregator(FEDAVG).configure_train(1, model(), ConfigRecord({"lr": 0.1}), list(grid.get_node_ids()))
        began, times = time.monotonic(), []
        for _ in grid.send_and_receive(messages):
            times.append(time.monotonic() - began)
    assert len(times) == len(SHARES)
    assert max(times[:-1]) < TOO_LONG_S <= times[-1]


@pytest.mark.parametrize("name", ["reply_timeout_s", "round_timeout_s"])
def test_in_this_process_a_timeout_is_refused_in_a_line_that_names_ray(name, refused):
    words = [f"{name}=30", "engine=ray"]
    refused("fl.train", "data.path=/does/not/exist.zip", f"{name}=30", words=words)


@pytest.mark.parametrize("value", [0, -1, "soon", ".inf"])
def test_a_timeout_is_a_number_of_seconds(value, tmp_path):
    with pytest.raises(ConfigError, match="reply_timeout_s"):
        run(composed(*SMALL, "engine=ray", f"reply_timeout_s={value}"), tmp_path)


HUNG = [
    *SMALL,
    "engine=ray",
    "num_rounds=3",
    "data.num_images=200",
    "faults=stragglers",
    "faults.delay_s=3600",
    "faults.rounds=2",
]


@pytest.mark.parametrize(
    "setting",
    [
        pytest.param("reply_timeout_s", marks=pytest.mark.long),
        pytest.param("round_timeout_s", marks=pytest.mark.exhaustive),
    ],
)
def test_on_ray_a_client_that_hangs_is_killed_and_the_next_round_has_all(tmp_path, command, setting):
    done = command("fl.train", *HUNG, f"{setting}=25", f"hydra.run.dir={tmp_path / 'run'}", check=0)
    records = read_jsonl(tmp_path / "run" / "rounds.jsonl")
    assert [record["clients_completed"] for record in records] == [4, 3, 4]
    (failure,) = records[1]["clients_failed"]
    assert failure["reason"] in ("raised: TimeoutError: no answer within reply_timeout_s=25", "no reply in time")
    lost = next(each for each in records[1]["clients"] if each["partition_id"] == failure["partition_id"])
    assert lost["broadcast_payload_bytes"] > 0
    assert lost["update_payload_bytes"] == 0
    assert "Traceback" not in done.stdout + done.stderr
