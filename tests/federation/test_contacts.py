"""Training that contacts drive: the figures of small cases by hand, today's bytes where nothing is stale, and kills."""

import json
import os
import random
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from communication.test_link import preset
from conftest import REPOSITORY, SMALL, composed, numbers_only, train
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from omegaconf import OmegaConf
from torch import nn

from fl.codec import Ecq, ServerLink, Uniform, codec_mod
from fl.codec.broadcast import BroadcastChain, Once
from fl.codec.changes import specs_of_difference
from fl.codec.client_mod import RESIDUAL
from fl.codec.payload import checksum_of
from fl.codec.wire import WIRE
from fl.communication.computer import Computer
from fl.communication.contacts import Contacts
from fl.communication.ledger import communication
from fl.communication.link import WINDOWS
from fl.communication.policies import FedAsync, FedBuff, Synchronous
from fl.core.errors import ConfigError, DataError, RunError
from fl.core.files import read_json, read_jsonl, write_json
from fl.core.records import Score, Scores
from fl.core.targets import Target
from fl.experiment.clock_checks import USUAL_COMPUTER
from fl.experiment.run import run
from fl.experiment.settings import settings_from
from fl.federation.buffer import Buffer
from fl.federation.checkpoint import held_once
from fl.federation.clock_settings import ClockSettings
from fl.federation.contacts import ContactLoop
from fl.federation.engine import InProcess
from fl.federation.messages import ARRAYS, CONFIG, METRICS, NUM_EXAMPLES, TRAIN_S
from fl.federation.planes import PlaneLoop
from fl.federation.rounds import Federation, RoundSettings, run_rounds
from fl.federation.strategy import Aggregator

FEDAVG = Target("flwr.serverapp.strategy.FedAvg")
IMAGES = (10, 40, 25, 5, 60, 30, 20, 15, 35, 50)
THREE = Contacts(1000.0, (((0.0, 1000.0),), ((0.0, 50.0), (400.0, 450.0)), ((0.0, 20.0), (700.0, 720.0))))
"""One that is always in contact, and two that seldom are."""
TRAIN_300_30_30 = (300.0, 30.0, 30.0)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))


def arrays_of(state):
    mask = {"mask": np.array([0.0, -np.inf], np.float32)}
    return {name: tensor.numpy().copy() for name, tensor in state.items()} | mask


def first():
    return arrays_of(network().state_dict())


def by_sgd(received, server_round, client):
    """Trains the network on a few random images; returns what the client answers with."""
    model = network()
    model.load_state_dict({name: torch.from_numpy(a.copy()) for name, a in received.items() if name != "mask"})
    images = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(100 * server_round + client))
    nn.functional.cross_entropy(model.train()(images), torch.arange(8)).backward()
    torch.optim.SGD(model.parameters(), 0.5).step()
    return arrays_of(model.state_dict())


def by_arithmetic(received, server_round, client):
    """The same in no time: weights move at random."""
    rng = np.random.default_rng((server_round, client))
    return {
        name: a + 0.1 * rng.standard_normal(a.shape).astype(a.dtype) if name.endswith(("weight", "bias")) else a
        for name, a in received.items()
    }


def clients(codecs=(None, None), learn=by_sgd, seen=None, fails=lambda server_round, client: False):
    """A ClientApp of clients that hold IMAGES; `seen` is filled with what each received and answered."""
    app = ClientApp(mods=[codec_mod(broadcast=codecs[0], update=codecs[1], initial=first, seed=3)])

    @app.train()
    def train(message, context):
        server_round, client = int(message.content[CONFIG]["server-round"]), context.node_config["partition-id"]
        if fails(server_round, client):
            raise ValueError("battery empty")
        received = {name: array.numpy() for name, array in message.content[ARRAYS].items()}
        trained = learn(received, server_round, client)
        if seen is not None:
            seen[client, server_round - 1] = received, trained, message.content[CONFIG]["lr"]
        metrics = {NUM_EXAMPLES: IMAGES[client], "train-loss": float(client), TRAIN_S: 1.0}
        arrays = ArrayRecord({name: Array(array) for name, array in trained.items()})
        return Message(RecordDict({ARRAYS: arrays, METRICS: MetricRecord(metrics)}), reply_to=message)

    @app.query()
    def partition(message, context):
        record = ConfigRecord({"partition-id": int(context.node_config["partition-id"])})
        return Message(RecordDict({CONFIG: record}), reply_to=message)

    return app


def link_over(windows, **changes):
    """Without limits of rate, unless they are given: what counts is when a station sees whom."""
    free = {f"{way}_{what}": None for way in ("ground_to_sat", "sat_to_ground") for what in ("bps", "framing")}
    return replace(preset("ttc_uhf"), **{**free, "windows": windows, "acquisition_s": 0.0, **changes})


def no_score(arrays):
    return Scores(Score(1.0, 0.5)), "float32"


class Ran:
    """A loop that ran to its end: records, versions, events, and what the grid and the loop remember."""

    def __init__(
        self, policy, link, train_s, codecs=(None, None), strategy=FEDAVG, max_days=None, rings=None, **settings
    ):
        self.codecs, self.seen, self.versions, self.events = codecs, {}, [], []
        given = {name: settings.pop(name) for name in ("learn", "fails") if name in settings}
        count, once = len(train_s), Once()
        usual = {"seed": 3, "num_rounds": 2, "num_clients": count, "fraction_train": 1.0, "fraction_evaluate": 0.0}
        usual |= {"min_completed": 1, "lr": 0.5, "lr_schedule": "linear", "images_of": IMAGES}
        rounds, clock = RoundSettings(**usual | settings), ClockSettings("contacts", policy, max_days=max_days)
        with InProcess().open(clients(codecs, seen=self.seen, **given), count) as grid:
            self.grid = grid
            self.loop = (PlaneLoop if rings else ContactLoop)(
                Federation(grid, Aggregator(strategy), ServerLink(None, None), rounds),
                clock,
                link,
                train_s,
                ArrayRecord({name: Array(array) for name, array in first().items()}),
                lambda: ServerLink(*codecs, initial=first, seed=3, once=None if rings else once),
                shares_start=codecs[0] is not None,
                **({"rings": rings, "update": codecs[1]} if rings else {}),
            )
            self.loop.on_event = self._note
            self.records, self.models = [], []
            for record, arrays, _ in self.loop.run(no_score):
                self.records.append(record)
                self.models.append(plain(arrays))

    def _note(self, event):
        self.events.append(event)
        if event.event == "version":
            self.versions.append(plain(self.loop.arrays))

    def times(self, *events):
        return [(each.time_s, each.satellite, each.event) for each in self.events if each.event in events]


def plain(arrays):
    return {name: array.numpy() for name, array in arrays.items()}


def same(one, other):
    return all(np.array_equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in other)


def close(one, other):
    for name, array in other.items():
        np.testing.assert_allclose(one[name], array, rtol=1e-5, atol=1e-6, err_msg=name)
    return True


def is_value(name):
    return "running" in name or "tracked" in name


# Cases by hand


def test_fedasync_mixes_each_update_in_by_its_staleness():
    ran = Ran(FedAsync(0.6), link_over(THREE), TRAIN_300_30_30)
    used = [(1, 0, 0), (0, 0, 1), (1, 1, 1), (1, 3, 0), (0, 2, 2), (2, 0, 5)]  # satellite, its version, staleness
    at_s = [30.0, 300.0, 400.0, 430.0, 600.0, 700.0]
    assert ran.times("arrived") == [(at, number, "arrived") for at, (number, *_) in zip(at_s, used, strict=True)]
    before = first()
    for (satellite, version, staleness), made in zip(used, ran.versions, strict=True):
        received, trained, _ = ran.seen[satellite, version]
        assert same(received, ([first(), *ran.versions])[version])
        a = 0.6 / np.sqrt(1 + staleness)
        expected = {n: before[n] if n == "mask" else (1 - a) * before[n] + a * trained[n] for n in before}
        tracked = "1.num_batches_tracked"
        assert made[tracked].dtype == np.int64
        assert made[tracked] == np.rint(expected.pop(tracked))
        assert close(made, expected)
        assert (made["1.running_var"] > 0).all()
        before = made
    assert [record.staleness_mean for record in ran.records] == [pytest.approx(2 / 3), pytest.approx(7 / 3)]
    assert [record.staleness_max for record in ran.records] == [1, 5]
    assert [record.simulated_s for record in ran.records] == [400.0, 700.0]


def test_trainings_take_the_energy_of_the_computer_on_board():
    ran = Ran(FedAsync(0.6), link_over(THREE), TRAIN_300_30_30)
    lines = [record.to_json() for record in ran.records]
    assert ran.loop.summary(lines)["train_energy_j"] is None
    ran.loop._settings = replace(ran.loop._settings, computer=Computer(watts=5.0, source="of a test"))
    trained = [each.satellite for each in ran.events if each.event == "trained"]
    assert ran.loop.summary(lines)["train_energy_j"] == 5.0 * sum(TRAIN_300_30_30[number] for number in trained) > 0


@pytest.mark.parametrize("server_lr", [1.0, 0.25])
def test_fedbuff_adds_discounted_changes_and_mixes_statistics_as_values(server_lr):
    ran = Ran(FedBuff(2, server_lr), link_over(THREE), TRAIN_300_30_30)
    used = [[(0, 0, 0), (1, 0, 0)], [(0, 1, 0), (1, 1, 0)], [(0, 2, 0), (2, 0, 2)]]
    assert ran.times("version") == [(at, None, "version") for at in (300.0, 600.0, 900.0)]
    before = first()
    for updates, made in zip(used, ran.versions, strict=True):
        images = np.array([IMAGES[satellite] for satellite, *_ in updates], float)
        s = np.array([(1 + staleness) ** -0.5 for *_, staleness in updates])
        answers = [ran.seen[satellite, version] for satellite, version, _ in updates]
        for name in before:
            if name == "mask":
                assert same({name: made[name]}, {name: before[name]})
            elif is_value(name):
                weights = images * s / (images * s).sum()
                mean = sum(w * trained[name] for w, (_, trained, _) in zip(weights, answers, strict=True))
                mean = np.rint(mean) if "tracked" in name else mean
                np.testing.assert_allclose(made[name], mean, rtol=1e-5)
            else:
                changes = [t[name].astype(float) - r[name] for r, t, _ in answers]
                step = sum(n * d * change for n, d, change in zip(images, s, changes, strict=True)) / images.sum()
                np.testing.assert_allclose(made[name], before[name] + server_lr * step, rtol=1e-5, atol=1e-6)
        before = made
    assert [record.clients_completed for record in ran.records] == [4, 2], "a line when 3 and 6 updates are used"
    assert [ran.seen[key][2] for key in ((0, 0), (0, 1), (0, 2))] == [0.5, 0.5, 0.25], "the rate of the round"


def test_a_server_optimizer_is_given_the_newest_model_plus_discounted_changes():
    """Also where three versions are made at one moment, and nobody was sent those between."""
    momentum = Target("fl.federation.nesterov.FedAvgNesterov", {"server_learning_rate": 1.0, "momentum": 0.5})
    ran = Ran(FedBuff(1), link_over("always"), (10.0,) * 3, strategy=momentum, num_rounds=1)
    assert ran.times("version") == [(10.0, None, "version")] * 3
    used, velocity, before = [[(0, 0, 0)], [(1, 0, 1)], [(2, 0, 2)]], 0.0, first()
    name = "4.weight"
    for updates, made in zip(used, ran.versions, strict=True):
        steps = [
            IMAGES[k] * (1 + staleness) ** -0.5 * (ran.seen[k, v][1][name].astype(float) - ran.seen[k, v][0][name])
            for k, v, staleness in updates
        ]
        change = sum(steps) / sum(IMAGES[satellite] for satellite, *_ in updates)
        velocity = 0.5 * velocity + change
        np.testing.assert_allclose(made[name], before[name] + change + 0.5 * velocity, rtol=1e-5, atol=1e-6)
        before = made


def test_who_is_late_has_spent_its_bytes_and_lost_its_update():
    ran = Ran(Synchronous(deadline_s=350.0), link_over(THREE), TRAIN_300_30_30, num_rounds=1)
    assert ran.times("version", "late") == [(350.0, None, "version"), (700.0, 2, "late"), (700.0, None, "version")]
    (record,) = ran.records
    assert (record.clients_asked, record.clients_completed) == (6, 4)
    late = (2, "no update within policy.deadline_s=350")
    assert [(each.partition_id, each.reason) for each in record.clients_failed] == [late, late]
    (spent,) = [each for each in record.clients if each.partition_id == 2]
    assert spent.update_payload_bytes > 0


def test_the_first_in_contact_are_taken():
    ran = Ran(Synchronous(select="first"), link_over(THREE), TRAIN_300_30_30, fraction_train=0.67, num_rounds=3)
    assert [sorted(each.partition_id for each in record.clients) for record in ran.records] == [[0, 1], [0, 1], [0, 2]]


# Nothing stale is today's


@pytest.mark.parametrize(("link", "codecs"), [("cubesat_sband", (Uniform(8), Uniform(8))), ("ttc_uhf", (None, None))])
def test_on_the_shipped_windows_rounds_take_what_they_took(link, codecs):
    """fedbuff with room for all makes the same models at the same seconds."""
    over, train_s = preset(link, train_s=1000.0), (1000.0,) * 10
    ran = Ran(Synchronous(), over, train_s, codecs, learn=by_arithmetic)
    rounds = communication([json.loads(json.dumps(each.to_json())) for each in ran.records], [over])
    took = [each["round_s"] for each in rounds["modelled"]["links"][link]["rounds"]]
    ends = [record.simulated_s for record in ran.records]
    assert np.diff([0.0, *ends]) == pytest.approx(took, abs=1e-6)
    buffered = Ran(FedBuff(10), over, train_s, codecs, learn=by_arithmetic)
    assert [record.simulated_s for record in buffered.records] == ends
    assert all(same(a, b) for a, b in zip(buffered.versions, ran.versions, strict=True))


QUICK = ["model=linear", "optimizer=sgd", "data.num_images=160"]
FEEDBACK = ["broadcast.error_feedback=true", "update.error_feedback=true"]
BOTH_WAYS = {
    "none": [],
    "int8": ["codec@broadcast=int8", "codec@update=int8", "broadcast.rounding=stochastic"],
    "ecq": ["codec@broadcast=ecq", "codec@update=ecq"],
}


configured = lru_cache(composed)


@pytest.fixture
def quick(tmp_path, drawn):
    """Runs the small run without pictures; returns its folder."""

    def ran(name, *overrides, resume=False):
        (tmp_path / name).mkdir(exist_ok=True)
        run(configured(*SMALL, *QUICK, *overrides), tmp_path / name, resume=resume)
        return tmp_path / name

    return ran


@pytest.mark.parametrize("codecs", BOTH_WAYS)
def test_in_contact_at_all_times_contacts_make_the_file_of_rounds(codecs, quick):
    folders = [
        quick(clock, f"clock={clock}", "link.train_s=100", *BOTH_WAYS[codecs]) for clock in ("rounds", "contacts")
    ]
    models = [(folder / "final_model.pt").read_bytes() for folder in folders]
    assert models[0] == models[1]
    ours, theirs = numbers_only(folders[1]), numbers_only(folders[0])
    for mine, other in zip(ours, theirs, strict=True):
        assert {key: other[key] for key in mine if "staleness" not in key} == {
            key: each for key, each in mine.items() if "staleness" not in key
        }
    assert not (folders[0] / "timeline.jsonl").exists()


def test_a_server_optimizer_moves_what_clients_hold_as_in_rounds():
    codecs = (Ecq(bits=2, error_feedback=True), Ecq(bits=2, error_feedback=True))
    adam = Target("flwr.serverapp.strategy.FedAdam", {"eta": 0.1})
    ran = Ran(Synchronous(), link_over("always"), (9.0,) * 3, codecs, adam, learn=by_arithmetic, num_rounds=3)
    rounds = RoundSettings(3, 3, 3, 1.0, 0.0, 1, 0.5, "linear", images_of=IMAGES)
    with InProcess().open(clients(codecs, by_arithmetic), 3) as grid:
        link = ServerLink(*codecs, initial=first, seed=3)
        start = ArrayRecord({name: Array(array) for name, array in first().items()})
        loop = run_rounds(Federation(grid, Aggregator(adam), link, rounds), start, evaluate=no_score)
        assert all(same(ours, plain(theirs)) for ours, (_, theirs, _) in zip(ran.versions, loop, strict=True))


# Codecs: each satellite has a chain of its own


def test_equal_frames_are_coded_once_and_one_frame_leads_over_versions_that_were_missed(monkeypatch):
    frames = []
    frame = BroadcastChain._frame
    monkeypatch.setattr(BroadcastChain, "_frame", lambda chain, exact: frames.append(1) or frame(chain, exact))
    codecs = (Uniform(8), Uniform(8))
    ran = Ran(Synchronous(), link_over("always"), (10.0,) * 5, codecs, learn=by_arithmetic, num_rounds=3)
    assert (len(frames), ran.loop.clock.version) == (2, 3), "the first model comes from the seed"
    ran = Ran(FedAsync(), link_over(THREE), TRAIN_300_30_30, codecs, learn=by_arithmetic, num_rounds=4)
    sent = [each.payload_bytes for each in ran.events if each.event == "sends" and each.version]
    skipped = [b - a for (k, a), (m, b) in zip(sorted(ran.seen), sorted(ran.seen)[1:], strict=False) if k == m]
    assert max(skipped) > 2
    assert max(sent) < 1.2 * min(sent)


@pytest.mark.parametrize(
    "seed", [0, 1, 2, *(pytest.param(each, marks=pytest.mark.exhaustive) for each in range(3, 30))]
)
def test_no_change_is_lost_whatever_is_late_lost_or_stale(seed, monkeypatch):
    """Used updates, the residual, and the last update if it was lost, sum to all changes of a client."""
    draw = random.Random(seed)
    windows = []
    for _ in range(3):
        cuts = sorted(draw.sample(range(1, 1000), 6))
        windows.append(tuple((float(a), float(b)) for a, b in zip(cuts[::2], cuts[1::2], strict=True)))
    policy = [FedBuff(2, 0.7), FedAsync(), Synchronous(deadline_s=950.0)][seed % 3]
    used = {}
    put = Buffer.put

    def noted(buffer, key, reply, model, *rest):
        used[key] = plain(reply.content[ARRAYS])["4.weight"].astype(float) - plain(model)["4.weight"]
        put(buffer, key, reply, model, *rest)

    monkeypatch.setattr(Buffer, "put", noted)
    codecs = (Uniform(6, error_feedback=bool(seed % 2)), Uniform(3, error_feedback=True))

    def fails(server_round, client):  # one of them: with two, no version might ever have enough updates
        return client == seed % 3 and random.Random(f"{seed} {server_round}").random() < 0.5

    train_s = tuple(draw.uniform(10, 900) for _ in range(3))
    ran = Ran(
        policy,
        link_over(Contacts(1000.0, tuple(windows))),
        train_s,
        codecs,
        learn=by_arithmetic,
        fails=fails,
        num_rounds=5,
    )
    name = "4.weight"
    for client in range(3):
        state, node = ran.grid.states.get(client + 2), client + 2
        sent = state.config_records[WIRE]["sent"]
        accepted = ran.loop._exchanges._links[client].state()["accepted"].get(node)
        changes = sum(t[name].astype(float) - r[name] for (k, _), (r, t, _) in ran.seen.items() if k == client)
        arrived = sum(each for (k, _), each in used.items() if k == client)
        missing = state.array_records[RESIDUAL][name].numpy().astype(float)
        if checksum_of(sent) != accepted:
            missing = missing + codecs[1].decode(sent, specs_of_difference(first()))[name]
        np.testing.assert_allclose(arrived + missing, changes, atol=2e-5)


# A run goes on where it was killed


class Killed(BaseException):
    pass


HARD = [
    *("clock=contacts", "link=cubesat_sband", "link.train_s=3000", *BOTH_WAYS["int8"], *FEEDBACK),
    *("faults=crash", "faults.probability=0.3", "faults.clients=2"),
]

OF_POLICY = {"fedbuff": ["policy.buffer_size=3"], "intraplane": ["constellation=plane_10", "num_clients=10"]}


def killed_at(number, monkeypatch, work):
    """Does work that is killed before its write of a number; returns how many writes there were."""
    done = 0
    with monkeypatch.context() as patched:
        for name in ("fsync", "replace"):
            write = getattr(os, name)

            def counted(*arguments, write=write):
                nonlocal done
                done += 1
                if done == number:
                    raise Killed
                return write(*arguments)

            patched.setattr(os, name, counted)
        with suppress(Killed):
            work()
    return done


@pytest.mark.parametrize(
    ("policy", "kills"),
    [
        ("fedbuff", 3),
        ("intraplane", 3),
        *(
            pytest.param(each, 10, marks=pytest.mark.exhaustive)
            for each in ("fedasync", "fedbuff", "intraplane", "synchronous")
        ),
    ],
)
def test_a_killed_run_goes_on_to_the_same_bytes(policy, kills, quick, monkeypatch):
    settings = [*HARD, f"policy={policy}", *OF_POLICY.get(policy, ())]
    whole = None

    def run_whole():
        nonlocal whole
        whole = quick("whole", *settings)

    writes = killed_at(0, monkeypatch, run_whole)
    for number in sorted(random.Random(7).sample(range(15, writes), kills)):
        killed_at(number, monkeypatch, lambda name=f"at{number}": quick(name, *settings))
        again = quick(f"at{number}", *settings, resume=True)
        for name in ("final_model.pt", "timeline.jsonl"):
            assert (again / name).read_bytes() == (whole / name).read_bytes(), f"{name}, killed at write {number}"
        assert numbers_only(again) == numbers_only(whole)
        times = [[record["simulated_s"] for record in read_jsonl(each / "rounds.jsonl")] for each in (again, whole)]
        assert times[0] == times[1]


def test_equal_tensors_are_saved_once():
    one, other = torch.ones(5), torch.ones(5)
    made = held_once({"a": one, "b": [other, torch.zeros(5)], "c": 3})
    assert made["a"] is made["b"][0]
    assert made["b"][1].sum() == 0
    assert made["c"] == 3


@pytest.mark.long
def test_on_ray_waiting_trainings_run_together_to_the_same_bytes(command, tmp_path):
    settings = [
        *QUICK,
        "report=false",
        "data=synthetic",
        "num_clients=4",
        "num_rounds=2",
        "threads_per_client=1",
        *HARD,
    ]
    models = []
    for engine in ("in_process", "ray"):
        (tmp_path / engine).mkdir()
        folder = train(
            command, *settings, "policy=fedbuff", "policy.buffer_size=2", f"engine={engine}", cwd=tmp_path / engine
        )
        models.append([(folder / name).read_bytes() for name in ("final_model.pt", "timeline.jsonl")])
    assert models[0] == models[1]


# How it ends


def test_a_run_ends_after_its_days_with_a_line_of_what_was_used(quick):
    settings = ("clock=contacts", "link=cubesat_sband", "link.train_s=100", "policy=fedasync", "max_days=0.137")
    folder = quick("run", *settings)
    summary, records = read_json(folder / "summary.json"), read_jsonl(folder / "rounds.jsonl")
    assert summary["state"] == "max_days"
    told = summary["contacts"]
    assert 0 < told["updates_used"] == sum(record["clients_completed"] for record in records) < 8
    arrived = {line["satellite"] for line in read_jsonl(folder / "timeline.jsonl") if line["event"] == "arrived"}
    assert told["never_returned"] == sorted(set(range(4)) - arrived)
    assert told["hours"] <= 24 * 0.137
    _refuses_to_go_on_with_other_contacts_or_another_timeline(quick, folder, settings)


def _refuses_to_go_on_with_other_contacts_or_another_timeline(quick, folder, settings):
    windows = read_json(WINDOWS / "svalbard_550km.json")
    windows["windows"][3][0][0] += 1.0
    write_json(folder / "other.json", windows)
    with pytest.raises(DataError, match="contacts_sha256"):
        quick("run", *settings, f"link.windows={folder / 'other.json'}", resume=True)
    timeline = folder / "timeline.jsonl"
    before = timeline.read_text()
    timeline.write_text(before.replace('"arrived"', '"late"', 1))
    with pytest.raises(RunError, match=r"timeline\.jsonl: is not what the checkpoint of round 2"):
        quick("run", *settings, resume=True)


def test_what_was_sent_before_the_days_were_over_is_in_a_last_line():
    """Version 1 leaves at 100 s, its updates would be there at 200."""
    ran = Ran(Synchronous(), link_over("always"), (100.0,) * 3, max_days=150 / 86_400)
    whole, rest = ran.records
    assert (whole.clients_completed, rest.clients_completed, rest.train_loss) == (3, 0, None)
    assert rest.broadcast.payload_bytes == whole.broadcast.payload_bytes > 0 == rest.update.payload_bytes
    told = ran.loop.summary([record.to_json() for record in ran.records])["payload_bytes"]
    for way, name in (("ground_to_sat", "broadcast"), ("sat_to_ground", "update")):
        assert told[way] == sum(getattr(record, name).payload_bytes for record in ran.records)


def test_a_line_without_training_says_so():
    """All train before the first update is used; between that and the second nobody trains."""
    windows = Contacts(1000.0, (((0, 5), (160, 165)), ((0, 5), (200, 205)), ((0, 5), (250, 255))))
    ran = Ran(FedAsync(), link_over(windows), (150.0, 30.0, 30.0), fraction_train=0.4, num_rounds=3)
    assert [record.update.payload_bytes > 0 for record in ran.records] == [True, False, True]
    assert [record.clients_completed for record in ran.records] == [1, 1, 1]


def test_a_buffer_that_never_fills_ends_the_run_and_names_who_never_returned():
    with pytest.raises(RunError, match=r"1 update of 2 .*battery empty.*never returned: satellites 1, 2") as told:
        Ran(FedBuff(2), link_over("always"), (1.0,) * 3, fails=lambda _, client: client > 0)
    assert "\n" not in str(told.value)


def test_too_few_updates_for_a_version_end_the_run_and_name_who_never_returned():
    with pytest.raises(RunError, match=r"1 of 3 satellites .*min_completed=2 .*never returned: satellites 1, 2"):
        Ran(Synchronous(), link_over("always"), (1.0,) * 3, min_completed=2, fails=lambda _, client: client > 0)
    with pytest.raises(RunError, match=r"max_days=0\.0001: not one update .*never returned: satellites 0, 1, 2"):
        Ran(FedAsync(), link_over("always"), (100.0,) * 3, max_days=0.0001)


# What is refused


CONTACTS = {"clock": "contacts"}


@pytest.fixture(scope="module")
def config():
    return composed("link.train_s=100", "codec@update=ecq")


POLICIES = {
    "fedbuff": {"_target_": "fl.communication.policies.FedBuff"},
    "fedasync": {"_target_": "fl.communication.policies.FedAsync"},
    "intraplane": {"_target_": "fl.communication.policies.IntraPlane"},
}
PLANE = {"_target_": "fl.communication.constellation.File", "station": "svalbard", "antennas": None}
PLANE |= {"path": "svalbard_550km.json"}
ALONG = CONTACTS | {"policy": POLICIES["intraplane"], "constellation": PLANE}
REFUSED = {
    "policy": ({"policy": POLICIES["fedbuff"]}, ["policy=FedBuff", "clock=contacts"]),
    "computer": ({"computer": {"_target_": "fl.communication.computer.Computer", "watts": 3.0}}, ["clock=contacts"]),
    "max_days": ({"max_days": 3.0}, ["max_days=3", "clock=contacts"]),
    "reference": (CONTACTS | {"server_model": "reference"}, ["server_model=reference", "exact"]),
    "evaluation": (CONTACTS | {"fraction_evaluate": 0.5}, ["fraction_evaluate=0.5"]),
    "timeout": (CONTACTS | {"round_timeout_s": 60.0}, ["round_timeout_s=60", "policy.deadline_s"]),
    "satellites": (CONTACTS | {"num_clients": 11}, ["num_clients=11", "link.windows", "10"]),
    "buffer": (CONTACTS | {"policy": POLICIES["fedbuff"] | {"buffer_size": 11}}, ["policy.buffer_size=11", "10 satel"]),
    "min_completed": (CONTACTS | {"policy": POLICIES["fedbuff"], "min_completed": 3}, ["min_completed=3"]),
    "fraction": (CONTACTS | {"policy": POLICIES["fedasync"], "fraction_train": 0.5}, ["fraction_train=0.5"]),
    "robust": (
        CONTACTS | {"policy": POLICIES["fedbuff"], "strategy": {"_target_": "flwr.serverapp.strategy.FedMedian"}},
        ["strategy=FedMedian", "policy=synchronous"],
    ),
    "optimizer": (
        CONTACTS | {"policy": POLICIES["fedasync"], "strategy": {"_target_": "flwr.serverapp.strategy.FedAdam"}},
        ["strategy=FedAdam", "strategy=fedavg"],
    ),
    "planes": (ALONG | {"constellation": None}, ["policy=intraplane", "constellation=plane_10"]),
    "ring": (ALONG | {"num_clients": 9}, ["num_clients=9", "the constellation has 10"]),
    "sum": (ALONG | {"strategy": {"_target_": "flwr.serverapp.strategy.Krum"}}, ["strategy=Krum", "policy=intraplane"]),
    "drawn": (ALONG | {"fraction_train": 0.5}, ["fraction_train=0.5", "policy=intraplane"]),
    "mixing": (CONTACTS | {"policy": POLICIES["fedasync"] | {"mixing": 1.5}}, ["policy.mixing=1.5"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_go_together_is_refused_in_a_line(case, config):
    changes, words = REFUSED[case]
    windows = {"link": config["link"] | {"windows": "svalbard_550km.json"}}
    with pytest.raises(ConfigError) as told:
        settings_from(config | windows | changes)
    assert all(word in str(told.value) for word in words), str(told.value)
    assert "\n" not in str(told.value)


def test_bits_by_weight_wall_clock_faults_and_unknown_training_times_are_refused(config):
    contacts = config | CONTACTS
    update = {"update": config["update"] | {"by_weight": True}}
    straggler = {"faults": {"_target_": "fl.federation.faults.Straggler"}}
    unknown = {"link": config["link"] | {"train_s": None}, "computer": preset_of("computer", "none")}
    for change, word in ((update, "update.by_weight"), (straggler, "stragglers"), (unknown, "computer.images_per_s")):
        with pytest.raises(ConfigError, match=word):
            settings_from(contacts | change)
    settings_from(contacts | unknown | {"computer": config["computer"]})


def test_the_usual_computer_is_no_wish_for_contacts(config):
    assert config["computer"] == preset_of("computer", USUAL_COMPUTER)
    for name in (USUAL_COMPUTER, "none"):
        settings_from(config | {"computer": preset_of("computer", name)})
    with pytest.raises(ConfigError, match="is for clock=contacts alone"):
        settings_from(config | {"computer": preset_of("computer", "raspberry_pi_cm4")})


def test_how_long_trainings_take_is_told_with_the_setting_that_says_so():
    clock = ClockSettings("contacts", computer=Computer(20.0, source="assumed, all of it"))
    found = clock.told(preset("flat_rate"), [5.0, 10.0])
    assert found == "5.0 to 10.0 s of simulated time (computer.images_per_s=20; assumed)"
    assert clock.told(preset("flat_rate", train_s=7.0), [7.0, 7.0]) == "7.0 s of simulated time (link.train_s=7)"


def preset_of(group, name):
    return OmegaConf.to_container(OmegaConf.load(REPOSITORY / "conf" / group / f"{name}.yaml"))


@pytest.mark.parametrize("group", ["policy", "computer"])
def test_every_choice_builds_and_the_default_is_what_old_runs_had(group):
    choices = {path.stem: preset_of(group, path.stem) for path in (REPOSITORY / "conf" / group).glob("*.yaml")}
    built = {name: Target.from_config(group, choice).build() for name, choice in choices.items()}
    assert built["none" if group == "computer" else "synchronous"] == getattr(ClockSettings(), group)
    assert all(each.source for each in built.values() if group == "computer")


def test_training_takes_images_over_the_computers_rate_unless_the_link_says():
    link = preset("flat_rate")
    board = {**preset_of("computer", "raspberry_pi_cm4"), "images_per_s": 20.0}
    clock = ClockSettings("contacts", computer=Target.from_config("computer", board).build())
    assert clock.train_s(link, 2, [100, 50]) == [10.0, 5.0]
    assert clock.train_s(preset("flat_rate", train_s=7.0), 2, [100, 50]) == [7.0, 7.0]


def test_clients_that_flower_runs_keep_no_simulated_time(config, tmp_path):
    with pytest.raises(ConfigError, match="clock=contacts: simulated time"):
        run(config | CONTACTS, tmp_path, grid=object())
