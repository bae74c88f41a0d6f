"""Faults strike those and then whom the seed says, do what they are called, and whole runs bear them."""

import numpy as np
import pytest
from conftest import SMALL, composed, train
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fl.core.errors import ConfigError
from fl.core.files import read_json, read_jsonl
from fl.experiment.settings import settings_from
from fl.federation.engine import InProcess
from fl.federation.faults import CorruptedPayload, Crash, Dropout, InjectedFault, Noise, NotANumber, SignFlip, Straggler
from fl.federation.messages import ARRAYS, CONFIG

BEFORE = {
    "w": np.linspace(-1, 1, 1000, dtype=np.float32),
    "bn.running_var": np.full(3, 0.01, np.float32),
    "bn.num_batches_tracked": np.array(7, np.int64),
}
CHANGE = np.float32(0.125)


@pytest.fixture(autouse=True)
def _at_a_server():
    with InProcess().open(ClientApp(), 10):
        yield


def plain(tensors):
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in tensors.items()})


def answered(fault, client=0, server_round=1, seed=1, kind="train"):
    """Returns what a client answers that adds CHANGE to everything but counters."""
    content = RecordDict({ARRAYS: plain(BEFORE), CONFIG: ConfigRecord({"server-round": server_round})})
    message = Message(content, dst_node_id=client + 2, message_type=kind)
    context = Context(1, client + 2, {"partition-id": client, "num-partitions": 10}, RecordDict(), {})

    def sound(message, context):
        after = {
            name: a.numpy() + (CHANGE if a.dtype == "float32" else 0) for name, a in message.content[ARRAYS].items()
        }
        return Message(RecordDict({ARRAYS: plain(after)}), reply_to=message)

    reply = fault.mod(seed, 10)(message, context, sound)
    return {name: array.numpy() for name, array in reply.content[ARRAYS].items()}


def struck(fault, seed=1, rounds=40):
    """Returns the (client, round) pairs that gave no answer."""
    found = set()
    for client in range(10):
        for server_round in range(1, rounds + 1):
            try:
                answered(fault, client, server_round, seed)
            except InjectedFault:
                found.add((client, server_round))
    return found


def test_who_is_struck_when_follows_from_the_seed_alone():
    fault = Dropout(probability=0.3)
    first = struck(fault)
    assert first == struck(fault)
    assert first != struck(fault, seed=2)
    assert len(first) / 400 == pytest.approx(0.3, abs=0.1)
    assert {client for client, _ in first} == set(range(10))
    assert len({number for _, number in first}) > 30, "clients are struck apart, so hardly a round goes without"


def test_a_number_of_clients_is_faulty_in_all_rounds_and_others_never():
    fault = Dropout(clients=3)
    assert struck(fault) == {(client, number) for client in fault.faulty_clients(1, 10) for number in range(1, 41)}
    assert len(fault.faulty_clients(1, 10)) == 3
    assert len({fault.faulty_clients(seed, 10) for seed in range(20)}) > 5
    assert Dropout().faulty_clients(1, 10) == tuple(range(10))


def test_rounds_are_those_that_are_named():
    assert {number for _, number in struck(Dropout(rounds=(2, 5)))} == {2, 5}
    assert struck(Dropout(probability=0)) == set()


@pytest.mark.parametrize("fault", [Dropout(), Crash(), NotANumber(), SignFlip(), Noise(), CorruptedPayload()])
def test_evaluation_is_left_alone(fault):
    after = answered(fault, kind="evaluate")
    np.testing.assert_array_equal(after["w"], BEFORE["w"] + CHANGE)


def test_a_crash_comes_after_training_and_a_dropout_before():
    for fault, trains in ((Crash(), 1), (Dropout(), 0)):
        trained = []
        with pytest.raises(InjectedFault):
            fault.answer(lambda *given, trained=trained: trained.append(given), None, None, np.random.default_rng(0))
        assert len(trained) == trains


@pytest.mark.parametrize(
    ("fault", "expected"),
    [(SignFlip(), -CHANGE), (SignFlip(scale=3.0), -3 * CHANGE), (Straggler(delay_s=0.01), CHANGE)],
)
def test_a_flipped_sign_turns_the_change_round_and_leaves_statistics(fault, expected):
    after = answered(fault)
    np.testing.assert_allclose(after["w"] - BEFORE["w"], expected, rtol=1e-5)
    np.testing.assert_array_equal(after["bn.running_var"], BEFORE["bn.running_var"] + CHANGE)
    assert after["bn.num_batches_tracked"] == 7


def test_noise_is_as_long_as_it_says_and_another_one_each_time():
    one, other = (answered(Noise(scale=2.0), server_round=number)["w"] - BEFORE["w"] for number in (1, 2))
    assert (one - CHANGE).std() == pytest.approx(2 * CHANGE, rel=0.1)
    assert (one - CHANGE).mean() == pytest.approx(0, abs=0.05)
    assert np.abs(one - other).max() > CHANGE
    assert one.dtype == np.float32


def test_one_value_is_no_number():
    assert np.isnan(answered(NotANumber())["w"]).sum() == 1


@pytest.mark.parametrize("bits", [1, 5])
def test_as_many_bits_are_flipped_as_it_says(bits):
    sound, damaged = answered(Dropout(probability=0)), answered(CorruptedPayload(bits=bits))
    flipped = sum(
        np.unpackbits(
            np.frombuffer(sound[name].tobytes(), np.uint8) ^ np.frombuffer(damaged[name].tobytes(), np.uint8)
        ).sum()
        for name in BEFORE
    )
    assert flipped == bits


# Whole runs

RUN = [*SMALL, "num_clients=5", "data.num_images=150", "num_rounds=2"]
HEARD = {
    "dropout": "no answer",
    "crash": "crashed after training",
    "nan_values": "holds NaN or infinity",
    "corrupted_payloads": "its checksum is wrong",
}


@pytest.mark.parametrize(
    "fault", [pytest.param(each, marks=pytest.mark.long) if each in ("crash", "nan_values") else each for each in HEARD]
)
def test_a_run_bears_it_and_says_so(tmp_path, command, fault):
    wanted = [
        *RUN,
        f"faults={fault}",
        "faults.probability=1",
        "faults.clients=2",
        "faults.rounds=2",
        "codec@update=int8",
    ]
    done = command("fl.train", *wanted, f"hydra.run.dir={tmp_path / 'run'}", check=0)
    assert f"in 2 clients ({', '.join(map(str, Dropout(clients=2).faulty_clients(42, 5)))})" in done.stdout
    first, second = read_jsonl(tmp_path / "run" / "rounds.jsonl")
    assert first["clients_failed"] == []
    assert [each["partition_id"] for each in second["clients_failed"]] == list(Dropout(clients=2).faulty_clients(42, 5))
    assert all(HEARD[fault] in each["reason"] for each in second["clients_failed"])
    assert read_json(tmp_path / "run" / "summary.json")["config"]["faults"]["clients"] == 2


@pytest.mark.long
def test_a_robust_mean_is_nearer_to_the_sound_one_than_the_mean(tmp_path, command):
    """With two of five clients turned round, the median stays with the three, and the mean goes nowhere."""
    folders = {}
    for name, strategy, faults in [
        ("sound", "fedavg", "none"),
        ("mean", "fedavg", "sign_flip"),
        ("median", "median", "sign_flip"),
    ]:
        options = [
            f"strategy={strategy}",
            f"faults={faults}",
            *(["faults.clients=2", "faults.scale=2"] if faults != "none" else []),
        ]
        (tmp_path / name).mkdir()
        folders[name] = train(command, *RUN, *options, cwd=tmp_path / name)
    loss = {name: read_jsonl(folder / "rounds.jsonl")[-1]["test_loss"] for name, folder in folders.items()}
    assert loss["sound"] < loss["median"] < loss["mean"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["faults=noise", "faults.clients=20"], "faults.clients=20: there are 10 clients"),
        (["faults=crash", "faults.rounds=[11]"], "faults.rounds=[11]: there are 10 rounds"),
        (["faults=dropout", "faults.probability=1.5"], "faults.probability=1.5"),
        (["faults=dropout", "faults.rounds=often"], "faults.rounds=often"),
        (["faults=noise", "faults.scale=0"], "faults.scale=0"),
    ],
)
def test_what_cannot_be_is_refused(overrides, words):
    with pytest.raises(ConfigError) as told:
        settings_from(composed("data=synthetic", *overrides))
    assert words in str(told.value)
