"""Training along planes: sums are the means of what their satellites sent, and every hop is counted."""

import numpy as np
import pytest
from federation.test_contacts import (
    ALONG,
    FEDAVG,
    IMAGES,
    Ran,
    by_arithmetic,
    close,
    composed,
    first,
    is_value,
    link_over,
    plain,
    preset_of,
    same,
)

from fl.codec import Ecq, Uniform
from fl.communication.contacts import Contacts
from fl.communication.ledger import measured
from fl.communication.policies import IntraPlane, Synchronous
from fl.core.errors import ConfigError, RunError
from fl.core.files import plain as as_json
from fl.core.records import over_planes
from fl.core.targets import Target
from fl.experiment.settings import settings_from
from fl.federation import planes
from fl.federation.messages import ARRAYS, NUM_EXAMPLES, metrics_of
from fl.federation.planes import coding_error

PLANE = ((0, 1, 2),)
TWO_PLANES = ((0, 1, 2), (3, 4))
THREE = Contacts(1000.0, (((0.0, 8.0), (400.0, 460.0)), ((5.0, 30.0),), ((50.0, 100.0),)))
FREE = {"inter_satellite_bps": 8e6}


def ran(codecs=(None, None), rings=PLANE, windows="always", train_s=20.0, **settings):
    count = sum(map(len, rings))
    return Ran(IntraPlane(), link_over(windows, **FREE), (train_s,) * count, codecs, rings=rings, **settings)


@pytest.mark.parametrize("strategy", [FEDAVG, Target("flwr.serverapp.strategy.FedAdam", {"eta": 0.1})])
def test_without_a_codec_a_planes_sum_makes_the_versions_of_synchronous(strategy):
    along = ran(strategy=strategy, num_rounds=3)
    alone = Ran(Synchronous(), link_over("always"), (20.0,) * 3, strategy=strategy, num_rounds=3)
    assert len(along.versions) == 3
    assert all(same(*both) for both in zip(along.versions, alone.versions, strict=True))
    assert [record.planes.coding_errors for record in along.records] == [(0.0,)] * 3


def test_versions_of_several_planes_are_means_by_images():
    along = ran(rings=TWO_PLANES)
    alone = Ran(Synchronous(), link_over("always"), (20.0,) * 5)
    assert all(close(*both) for both in zip(along.versions, alone.versions, strict=True))
    assert [len(record.planes.coding_errors) for record in along.records] == [2, 2]


@pytest.mark.parametrize("codec", [Uniform(3), Ecq(bits=2, error_feedback=True)])
def test_a_sum_is_the_mean_of_the_decoded_updates_within_its_second_codings_error(codec, monkeypatch):
    made, summed = [], planes.summed

    def noted(fedavg, codec, model, replies, rng):
        answers = [(plain(each.content[ARRAYS]), int(metrics_of(each)[NUM_EXAMPLES])) for each in replies]
        made.append((plain(model), answers, summed(fedavg, codec, model, replies, rng)))
        return made[-1][-1]

    monkeypatch.setattr(planes, "summed", noted)
    along = ran((codec, codec), learn=by_arithmetic, rings=TWO_PLANES)
    assert [record.planes.coding_errors for record in along.records] == [
        tuple(each.coding_error for *_, each in made[start : start + 2]) for start in (0, 2)
    ]
    for model, answers, found in made:
        images = sum(n for _, n in answers)
        assert metrics_of(found.reply)[NUM_EXAMPLES] == images
        decoded, missed, moved = found.reply.content[ARRAYS], 0.0, 0.0
        for name in set(model) - {"mask"}:
            mean = sum(n / images * trained[name].astype(float) for trained, n in answers)
            if is_value(name):
                np.testing.assert_allclose(decoded[name].numpy(), mean, rtol=1e-3, atol=1e-3)
            else:
                missed += np.square(decoded[name].numpy() - mean).sum()
                moved += np.square(mean - model[name]).sum()
        assert 0.01 < found.coding_error < 1
        assert found.coding_error == pytest.approx((missed / moved) ** 0.5, rel=1e-3)


def test_the_documents_error_is_computed():
    base, exact, decoded = ({"w": np.array(each, np.float32)} for each in ([0, 0], [3, 4], [3, 3.5]))
    assert coding_error(Uniform(8), base, exact, decoded) == pytest.approx(0.1)
    assert coding_error(Uniform(8), base, base, base) == 0


def test_statistics_are_mixed_as_values_by_images():
    along = ran(num_rounds=1)
    (made,), images = along.versions, np.array(IMAGES[:3])
    for name in ("1.running_mean", "1.running_var"):
        mean = sum(n / images.sum() * along.seen[number, 0][1][name] for number, n in enumerate(images))
        np.testing.assert_allclose(made[name], mean, rtol=1e-5)
    assert made["1.num_batches_tracked"].dtype == np.int64
    assert same({"mask": made["mask"]}, {"mask": first()["mask"]})


def test_every_hop_counts():
    """Two versions of three satellites, the first from the seed: a hop for each update but the sink's."""
    along = ran((Uniform(8), Uniform(8)), windows=THREE, learn=by_arithmetic)
    lines = [as_json(each.to_json()) for each in along.records]
    told = over_planes(lines)
    hops = [each for each in along.events if each.event == "relayed"]
    hops += [each for each in along.events if each.event == "received" and each.version]
    entry = next(each for each in along.events if each.event == "sends" and each.version)
    assert len(hops) == 2 * 2 + 3
    sent = sum(each.payload_bytes for each in hops) - entry.payload_bytes
    assert told["inter_satellite_bytes"] == sent > 0
    assert told["ground_to_sat_bytes"] == entry.payload_bytes
    summed = [each.payload_bytes for each in along.events if each.event == "summed"]
    assert told["sat_to_ground_bytes"] == sum(summed) > 0
    assert measured(lines)["planes"] == told
    summary = along.loop.summary(lines)
    assert summary["inter_satellite_bytes"] == sent
    assert summary["coding_error"] == told["coding_error"]
    assert summary["updates_of_satellites"] == [2, 2, 2]
    assert summary["payload_bytes"]["total"] == told["ground_to_sat_bytes"] + told["sat_to_ground_bytes"]
    assert [len(each["clients"]) for each in lines] == [3, 3]


def test_who_fails_is_left_out_and_what_it_missed_goes_up_with_the_next_version():
    """A satellite keeps nothing of a version on which it failed: its plane is then sent the frames of two."""
    codecs = Uniform(8), Uniform(8, error_feedback=True)
    along = ran(codecs, learn=by_arithmetic, fails=lambda version, client: (version, client) == (2, 1), num_rounds=3)
    failed = [(each.partition_id, each.reason) for record in along.records for each in record.clients_failed]
    assert [(number, "battery empty" in why) for number, why in failed] == [(1, True)]
    assert along.loop.clock.updates()[1] == [0, 1, 2, 0, 2, 0, 1, 2, 0, 1, 2]
    lengths = [each.payload_bytes for each in along.events if each.event == "sends"]
    assert lengths[0] == 0
    assert 1.8 < lengths[2] / lengths[1] < 2.2
    assert 0.8 < lengths[3] / lengths[1] < 1.2
    for version in (0, 2, 3):
        assert same(along.seen[0, version][0], along.seen[1, version][0]), "one reference"


def test_an_update_that_cannot_be_used_is_left_out_of_the_sum():
    def diverged(received, server_round, client):
        trained = by_arithmetic(received, server_round, client)
        return trained | {"4.bias": trained["4.bias"] * np.nan} if client == 2 else trained

    along = ran(learn=diverged, num_rounds=1)
    (record,) = along.records
    failed = [(each.partition_id, each.reason) for each in record.clients_failed]
    assert failed == [(2, "NaN or infinity in 4.bias")] * 2, "in both versions that it takes to use three updates"
    images, name = np.array(IMAGES[:2], float), "4.weight"
    mean = sum(n / images.sum() * along.seen[number, 0][1][name] for number, n in enumerate(images))
    np.testing.assert_allclose(along.versions[0][name], mean, rtol=1e-5)


def test_too_few_updates_end_the_run():
    with pytest.raises(RunError, match=r"1 of 3 satellites .*min_completed=2 .*never returned: satellites 1, 2"):
        ran(min_completed=2, fails=lambda _, client: client > 0)


@pytest.fixture(scope="module")
def config():
    return composed("link.train_s=100", "codec@update=ecq") | ALONG


def test_planes_need_neighbours_that_see_each_other_over_a_link(config):
    link = config["link"] | {"windows": "svalbard_550km.json"}
    settings_from(config | {"link": link | {"inter_satellite_bps": 1000000}})
    with pytest.raises(ConfigError, match=r"link\.inter_satellite_bps=null: link=flat_rate has nothing between"):
        settings_from(config | {"link": link})
    far = {"constellation": preset_of("constellation", "walker_12_3_1"), "num_clients": 12}
    with pytest.raises(ConfigError, match="4 satellites in a plane at 550 km do not see their neighbours"):
        settings_from(config | far | {"link": link | {"inter_satellite_bps": 1000000}})
