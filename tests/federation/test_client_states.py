"""What clients remember, and what they answer, waits in files: memory does not grow with their number."""

import errno
import hashlib
import tracemalloc

import numpy as np
import pytest
from federation.test_strategy import STRATEGIES, answer, every_strategy, model, numpy_of, record
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.common.serde import recorddict_to_proto

from fl.codec import ServerLink
from fl.core.errors import RunError
from fl.core.targets import Target
from fl.federation import spool as spool_module
from fl.federation.client_states import ClientStates, read_state
from fl.federation.engine import InProcess
from fl.federation.messages import Content, metrics_of, with_content
from fl.federation.replies import Answers
from fl.federation.spool import Spool
from fl.federation.strategy import Aggregator


def state(number, shared=0):
    return RecordDict({"reference": record(model(shared)), "sent": ConfigRecord({"payload": bytes([number] * 50)})})


def files(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_what_clients_hold_alike_is_one_file_and_each_gets_back_its_own(tmp_path):
    states = ClientStates(tmp_path / "clients")
    assert files(tmp_path) == [], "nothing is remembered"
    assert dict(states.get(2)) == {}
    for number in range(2, 12):
        states.put(number, state(number))
    assert len(files(tmp_path / "clients")) == 1 + 10
    for number in range(2, 12):
        assert states.get(number) == state(number)
    states.settle()
    states.put(2, state(2))
    assert len(files(tmp_path / "clients")) == 1 + 10, "nothing has changed"
    states.get(2)["sent"]["payload"] = b"changed by a client that then raises"
    assert states.get(2) == state(2)
    for name in files(tmp_path / "clients"):
        assert name == "00001-" + hashlib.sha256((tmp_path / "clients" / name).read_bytes()).hexdigest()


def test_two_checkpoints_find_their_files_and_nothing_else_stays(tmp_path):
    states, folder = ClientStates(tmp_path / "clients"), tmp_path / "clients"
    listings = []
    for number in range(1, 8):
        for client in (number % 3, 5):
            states.put(client, state(10 * number + client, shared=number))
        states.put(5, state(100 + number, shared=number))  # asked twice in a round
        listings.append(states.listing())
        states.settle()
        named = [{name for kept in each.values() for name in kept.values()} for each in listings[-2:]]
        assert set(files(folder)) == set.union(*named)
    assert all(name.startswith(("00004", "00005", "00006", "00007")) for name in files(folder))

    again = ClientStates(folder)
    again.restore(listings[-2], 7)
    assert again.get(5) == state(106, shared=6)
    again.put(5, state(107, shared=7))
    assert again.listing()[5] == listings[-1][5], "the same round, the same file"


def test_what_an_older_version_kept_becomes_files(tmp_path):
    states = ClientStates(tmp_path / "clients")
    states.restore({4: recorddict_to_proto(state(4)).SerializeToString()}, 3)
    assert states.get(4) == state(4)
    assert all(name.startswith("00003-") for name in files(tmp_path / "clients"))


def test_a_grid_without_a_folder_leaves_nothing_behind(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    states = ClientStates()
    states.put(2, state(2))
    states.settle()
    assert states.get(2) == state(2)
    assert len(files(tmp_path)) == 1
    del states
    assert files(tmp_path) == []


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "00001-abc", "", f"00001-{'g' * 64}", f"1-{'a' * 64}"])
def test_only_files_of_states_are_read(name, tmp_path):
    with pytest.raises(RunError, match="is no name of a client's state"):
        read_state(tmp_path, name)


def test_a_missing_or_damaged_file_is_named(tmp_path):
    states = ClientStates(tmp_path / "clients")
    states.put(2, state(2))
    path = tmp_path / "clients" / files(tmp_path / "clients")[0]
    content = path.read_bytes()
    path.write_bytes(content[:9] + bytes([content[9] ^ 1]) + content[10:])
    with pytest.raises(RunError, match=rf"{path.name}: is damaged"):
        states.get(2)
    path.unlink()
    with pytest.raises(RunError, match=rf"{path.name}: what a client remembers cannot be read \(No such file"):
        states.get(2)


@pytest.mark.parametrize("in_memory", [1, 2**30], ids=["in a file", "in memory"])
def test_answers_come_back_from_the_spool_as_they_were(in_memory, monkeypatch, tmp_path):
    monkeypatch.setattr(spool_module, "MOST_IN_MEMORY", in_memory)
    like = model(0) | {"none": np.zeros((0, 3), np.float32), "half": np.ones((2, 2), np.float16)}
    with Spool(record(like), tmp_path) as spool:
        made = [model(n) | {"none": like["none"], "half": np.full((2, 2), n, np.float16).T} for n in range(5)]
        kept = [spool.put(record(each)) for each in made]
        assert files(tmp_path) == [], "the file has no name, so no kill leaves it"
        for arrays, tensors in zip(reversed(kept), reversed(made), strict=True):
            assert list(arrays) == list(like)
            assert len(arrays) == len(like)
            for name, tensor in tensors.items():
                found = arrays[name].numpy()
                assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
                np.testing.assert_array_equal(found, tensor)
            with pytest.raises(KeyError):
                arrays["other"]


def test_a_full_disk_is_named(tmp_path):
    with Spool(record(model(0)), tmp_path) as spool:

        class Full:
            def seek(self, *_):
                pass

            def write(self, *_):
                raise OSError(errno.ENOSPC, "No space left on device")

            def close(self):
                pass

        spool._file.close()
        spool._file = Full()
        with pytest.raises(OSError, match=r"No space left on device \(a round's answers\)") as told:
            spool.put(record(model(1)))
    assert told.value.filename == str(tmp_path)


EVERY = STRATEGIES | {
    "median": Target("flwr.serverapp.strategy.FedMedian"),
    "clipping": Target("fl.federation.robust.NormClipping"),
    "krum": Target("flwr.serverapp.strategy.MultiKrum", {"num_malicious_nodes": 0, "num_nodes_to_select": 2}),
}


@pytest.mark.parametrize("strategy", EVERY.values(), ids=EVERY)
def test_a_strategy_makes_the_same_bits_of_answers_wherever_they_wait(strategy, tmp_path):
    with InProcess().open(None, 3):
        arrays, results = record(model(0)), []
        for spooled in (False, True):
            aggregator = Aggregator(strategy)
            aggregator.configure_train(1, arrays, ConfigRecord({"lr": 0.1}), [11, 12, 13, 14])
            replies = [answer(10 + n, model(n), 7 * n, **{"train-loss": 1.0 * n, "train-s": 1.0}) for n in (1, 2, 3, 4)]
            with Spool(arrays, tmp_path) as spool:
                if spooled:
                    replies = [
                        with_content(each, Content(spool.put(each.content["arrays"]), metrics_of(each)))
                        for each in replies
                    ]
                results.append(aggregator.aggregate_train(1, arrays, replies))
    (plain, told), (other, also_told) = results
    assert dict(told) == dict(also_told)
    for name, array in numpy_of(plain).items():
        assert array.tobytes() == numpy_of(other)[name].tobytes()


@every_strategy
@pytest.mark.long
def test_a_mean_takes_as_much_memory_of_many_answers_as_of_few(strategy, monkeypatch, tmp_path):
    monkeypatch.setattr(spool_module, "MOST_IN_MEMORY", 2**16)
    start = {f"layer{n}.weight": np.full((50, 1000), n, np.float32) for n in range(10)}
    whole = sum(array.nbytes for array in start.values())

    def peak(number):
        arrays, aggregator = record(start), Aggregator(strategy)
        aggregator.configure_train(1, arrays, ConfigRecord({"lr": 0.1}), list(range(number)))
        tracemalloc.start()
        try:
            with Spool(arrays, tmp_path) as spool:
                answers = Answers({n: n for n in range(number)}, arrays, ServerLink(None, None), None, spool)
                told = {"train-loss": 1.0, "train-s": 1.0}
                trained = ({name: array + n for name, array in start.items()} for n in range(number))
                answers.take((answer(n, each, 1 + n, **told) for n, each in enumerate(trained)), lambda: None)
                valid, failures = answers.sorted_out()
                assert (len(valid), failures) == (number, [])
                aggregator.aggregate_train(1, arrays, valid)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    with InProcess().open(None, 3):
        few, many = peak(4), peak(40)
    assert many < few + 0.5 * whole, "forty answers are 36 models more than four"


def test_memory_of_rounds_does_not_grow_with_the_clients_that_were_ever_asked(tmp_path):
    states = ClientStates(tmp_path / "clients")
    big = RecordDict({"residual": ArrayRecord({"w": Array(np.zeros(250_000, np.float32))})})
    tracemalloc.start()
    try:
        for number in range(30):
            states.put(number, big)
            states.settle()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 500_000, "30 million bytes lie on disk"
