"""A few clients cannot decide a robust aggregation, BatchNorm's statistics included; too few clients are refused."""

import numpy as np
import pytest
from conftest import SMALL, composed
from federation.test_strategy import answer, numpy_of, record
from flwr.app import ConfigRecord
from flwr.clientapp import ClientApp

from fl.core.errors import ConfigError, RunError
from fl.core.targets import Target
from fl.experiment.settings import settings_from
from fl.federation.engine import InProcess
from fl.federation.strategy import Aggregator, check_strategy

FLOWER = "flwr.serverapp.strategy"
CLIENTS = 9
COUNTER = "bn.num_batches_tracked"
RULES = {
    "krum": Target(f"{FLOWER}.Krum", {"num_malicious_nodes": 1}),
    "multikrum": Target(f"{FLOWER}.MultiKrum", {"num_malicious_nodes": 1, "num_nodes_to_select": 4}),
    "bulyan": Target(f"{FLOWER}.Bulyan", {"num_malicious_nodes": 1}),
    "median": Target(f"{FLOWER}.FedMedian"),
    "trimmed": Target(f"{FLOWER}.FedTrimmedAvg", {"beta": 0.2}),
    "clipping": Target("fl.federation.robust.NormClipping"),
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


@pytest.fixture(autouse=True)
def _at_a_server():
    """Flower's messages want to know who writes them."""
    with InProcess().open(ClientApp(), CLIENTS):
        yield


def before(center=0.0):
    rng = np.random.default_rng(0)
    return {
        "conv.weight": (center + rng.normal(size=(3, 4))).astype(np.float32),
        "bn.running_mean": rng.normal(size=3).astype(np.float32),
        "bn.running_var": rng.lognormal(size=3).astype(np.float32),
        COUNTER: np.array(40, np.int64),
        "fc.weight": (center + rng.normal(size=5)).astype(np.float32),
    }


def trained(client, start, step=0.1):
    """Returns what a sound client answers: small changes of its own, and as many batches as its share has."""
    rng = np.random.default_rng(100 + client)
    moved = {n: (a + step * rng.normal(size=a.shape)).astype(np.float32) for n, a in start.items() if n != COUNTER}
    moved["bn.running_var"] = np.abs(moved["bn.running_var"]) + np.float32(0.01)
    return {name: moved.get(name, np.array(40 + 7 * client, np.int64)) for name in start}


def combined(rule, answers, start=None, shares=None):
    """Returns the model that a rule makes of answers to `start`."""
    arrays = record(before() if start is None else start)
    aggregator = Aggregator(rule)
    aggregator.configure_train(1, arrays, ConfigRecord({"lr": 0.1}), list(range(11, 11 + len(answers))))
    shares = shares or [10 * (1 + number) for number in range(len(answers))]
    replies = [
        answer(11 + number, tensors, share, **{"train-loss": 1.0, "train-s": 1.0})
        for number, (tensors, share) in enumerate(zip(answers, shares, strict=True))
    ]
    result = numpy_of(aggregator.aggregate_train(1, arrays, replies)[0])
    assert list(result) == list(arrays)
    assert {name: array.dtype for name, array in result.items()} == {n: arrays[n].numpy().dtype for n in arrays}
    return result


def sound(number=CLIENTS, start=None):
    return [trained(client, before() if start is None else start) for client in range(number)]


def poisoned(names, factor):
    """Returns an answer that is far away in some tensors only; variances stay positive, as replies are checked for."""
    tensors = trained(3, before())
    return {
        name: np.abs(array * factor).astype(array.dtype) if name in names else array for name, array in tensors.items()
    }


def test_median_and_trimmed_mean_are_taken_of_each_coordinate_of_all_tensors():
    answers = sound()
    median, mean = combined(RULES["median"], answers), combined(RULES["trimmed"], answers)
    for name in before():
        values = np.sort(np.stack([tensors[name] for tensors in answers]), axis=0)
        np.testing.assert_allclose(median[name], values[4], rtol=1e-6)
        expected = values[1:-1].mean(axis=0)  # int(0.2 * 9) = 1 at either end
        np.testing.assert_allclose(mean[name], np.rint(expected) if name == COUNTER else expected, rtol=1e-5)


def by_distance(answers, start, f):
    """Returns clients by Krum's score, from the paper's words: summed squares to the n - f - 2 nearest others."""
    floats = [name for name in start if name != COUNTER]
    vectors = [np.concatenate([(each[n].astype(np.float64) - start[n]).ravel() for n in floats]) for each in answers]
    scores = []
    for one, vector in enumerate(vectors):
        squares = sorted(float(((vector - other) ** 2).sum()) for two, other in enumerate(vectors) if two != one)
        scores.append(sum(squares[: len(answers) - f - 2]))
    return list(np.argsort(scores))


def test_krum_takes_one_client_whole_with_its_statistics_and_counters():
    answers = sound()
    best = by_distance(answers, before(), f=1)[0]
    for name, array in combined(RULES["krum"], answers).items():
        np.testing.assert_array_equal(array, answers[best][name])


def test_multikrum_takes_the_weighted_mean_of_those_it_chooses():
    answers = sound()
    best, result = sorted(by_distance(answers, before(), f=1)[:4]), combined(RULES["multikrum"], answers)
    weights = [10 * (1 + client) for client in best]
    for name, array in result.items():
        expected = np.average([answers[client][name] for client in best], axis=0, weights=weights)
        np.testing.assert_allclose(array, np.rint(expected) if name == COUNTER else expected, rtol=1e-5, atol=1e-6)


def test_bulyan_is_the_papers():
    answers = sound()
    f, chosen = 1, by_distance(answers, before(), f=1)[: CLIENTS - 2]
    result = combined(RULES["bulyan"], answers)
    for name, array in result.items():
        stack = np.stack([answers[client][name] for client in chosen]).astype(np.float64)
        distance = np.abs(stack - np.median(stack, axis=0))
        nearest = np.take_along_axis(stack, np.argsort(distance, axis=0)[: CLIENTS - 4 * f], axis=0).mean(axis=0)
        np.testing.assert_allclose(array, np.rint(nearest) if name == COUNTER else nearest, rtol=1e-5, atol=1e-6)


def test_distances_are_between_changes_and_counters_do_not_count():
    """Far from zero, FP32 cannot tell models apart that changes tell apart; shares of any size change nothing."""
    start = before(center=3000.0)
    answers = [trained(client, start, step=0.01) for client in range(CLIENTS)]
    best = by_distance(answers, start, f=1)[0]
    answers[best][COUNTER] = np.array(10**12, np.int64)
    np.testing.assert_array_equal(combined(RULES["krum"], answers, start)["fc.weight"], answers[best]["fc.weight"])


@every_rule
@pytest.mark.parametrize("names", [("conv.weight",), ("bn.running_mean",), ("bn.running_var",)])
@pytest.mark.parametrize("factor", [1e3, 1e15])
@pytest.mark.long
def test_one_client_moves_nothing_far(rule, names, factor):
    answers = sound()
    answers[3] = poisoned(names, factor)
    result = combined(rule, answers, shares=[10, 10, 10, 500, 10, 10, 10, 10, 10])
    for name, array in result.items():
        assert np.abs(array.astype(np.float64) - before()[name]).max() < (100 if name == COUNTER else 3), name
    assert result["bn.running_var"].min() > 0


@every_rule
@pytest.mark.parametrize("factor", [1e-3, 1e6])
def test_variances_stay_positive(rule, factor):
    rng = np.random.default_rng(5)
    answers = sound()
    for client in rng.choice(CLIENTS, size=6, replace=False):
        answers[client] = {n: a if n == COUNTER else np.abs(a * np.float32(factor)) for n, a in answers[client].items()}
    assert combined(rule, answers)["bn.running_var"].min() > 0


def test_changes_are_shortened_as_a_whole():
    answers, start = sound(), before()
    floats = [name for name in start if name != COUNTER]
    lengths = [np.sqrt(sum(((each[n].astype(np.float64) - start[n]) ** 2).sum() for n in floats)) for each in answers]
    weights = [10 * (1 + number) for number in range(CLIENTS)]
    for max_norm in (None, 0.25):
        bound = np.median(lengths) if max_norm is None else max_norm
        rule = Target("fl.federation.robust.NormClipping", {"max_norm": max_norm})
        result = combined(rule, answers)
        for name in start:
            shortened = [
                s + min(1, bound / length) * (e[name] - s)
                for e, s, length in zip(answers, [start[name]] * 9, lengths, strict=True)
            ]
            expected = np.average(shortened, axis=0, weights=weights)
            np.testing.assert_allclose(
                result[name], np.rint(expected) if name == COUNTER else expected, rtol=1e-5, atol=1e-6
            )


def test_a_mask_is_no_change_that_could_be_shortened():
    start = {**before(), "mask": np.array([True, False])}
    answers = [{**trained(client, before()), "mask": start["mask"]} for client in range(CLIENTS)]
    result = combined(Target("fl.federation.robust.NormClipping", {"max_norm": 0.01}), answers, start)
    np.testing.assert_array_equal(result["mask"], start["mask"])


def test_a_bound_that_nobody_reaches_changes_no_bit():
    wide = combined(Target("fl.federation.robust.NormClipping", {"max_norm": 1e6}), sound())
    for name, array in combined(Target(f"{FLOWER}.FedAvg"), sound()).items():
        np.testing.assert_array_equal(wide[name], array)


BOUNDS = {
    "krum": (["strategy=krum", "strategy.num_malicious_nodes=4"], "Krum needs 2 x 4 + 3 = 11 clients or more"),
    "multikrum": (
        ["strategy=multikrum", "strategy.num_nodes_to_select=8"],
        "may choose 10 - 1 - 2 of 10 clients at most",
    ),
    "bulyan": (["strategy=bulyan", "strategy.num_malicious_nodes=2"], "Bulyan needs 4 x 2 + 3 = 11 clients or more"),
    "trimmed": (["strategy=trimmed_mean", "strategy.beta=0.09"], "strategy.beta=0.09: leaves out none of 10 clients"),
    "median": (["strategy=median", "num_clients=2"], "FedMedian needs 3 clients or more"),
    "sampled": (
        ["strategy=krum", "fraction_train=0.4"],
        "2 x 1 + 3 = 5 clients or more in each round; 4 clients are asked",
    ),
    "half": (["strategy=krum", "strategy.num_malicious_nodes=1.5"], "num_malicious_nodes=1.5: must be a whole number"),
    "norm": (["strategy=norm_clipping", "strategy.max_norm=0"], "max_norm=0: must be above 0, or null"),
}


@pytest.mark.parametrize("case", BOUNDS)
def test_a_bound_that_is_exceeded_is_refused_before_anything_is_opened(case):
    overrides, words = BOUNDS[case]
    with pytest.raises(ConfigError) as told:
        settings_from(composed("data=synthetic", *overrides))
    assert words in str(told.value)


@pytest.mark.parametrize(
    ("rule", "clients"), [("krum", 5), ("multikrum", 7), ("bulyan", 7), ("median", 3), ("trimmed", 5), ("clipping", 1)]
)
def test_a_round_with_as_many_answers_as_the_bound_goes_on_and_with_one_less_ends(rule, clients):
    check_strategy(RULES[rule], clients)
    combined(RULES[rule], sound(clients))
    if clients > 1:
        with pytest.raises(ConfigError, match="asked"):
            check_strategy(RULES[rule], clients - 1)
        with pytest.raises(RunError, match=f"round 1: strategy.*; {clients - 1} clients completed"):
            combined(RULES[rule], sound(clients - 1))


@pytest.mark.parametrize("strategy", ["krum", "bulyan", "median", "trimmed_mean", "multikrum", "norm_clipping"])
def test_every_choice_of_the_configuration_is_built(strategy):
    settings_from(composed(*SMALL, f"strategy={strategy}", "num_clients=10"))
