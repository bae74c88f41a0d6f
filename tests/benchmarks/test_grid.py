"""Grids of runs: which seeds are reported, what a mean of pairs says, bytes from the same start, adopted folders."""

import argparse
import shutil
import sys

import pytest
from conftest import REPOSITORY, SMALL, train

from fl.codec import Tcq
from fl.core.errors import ConfigError
from fl.core.files import read_json, write_json, write_jsonl
from fl.core.presets import preset
from fl.core.records import read_rounds
from fl.core.targets import RENAMED

sys.path.append(str(REPOSITORY / "benchmarks"))

import grid
import precision_table
import split_table
import traffic_table
from grid import REPORTED, Row
from pairs import Paired, paired, verdict, within


def test_the_reported_seeds_are_others_than_those_settings_were_chosen_with():
    seeds = {row.name: row.seeds for row in traffic_table.ROWS}
    five = "fp32", "ecq-1", "rising", "half", "dirichlet-fp32", "dirichlet-ecq-1"
    assert {name: seeds[name] for name in five} == dict.fromkeys(five, (101, 102, 103, 104, 105))
    assert seeds["int8"] == seeds["int4"] == (101, 102, 103)
    assert seeds["eden-1"] == seeds["stc"] == (101,)
    assert {row.seeds for row in precision_table.AFTER} == {REPORTED}
    assert not {seed for own in seeds.values() for seed in own} & {1, 2, 3, *grid.TUNED_ON}
    assert grid.THREADS == 1


def test_targets_are_those_that_were_set():
    targets = {row.name: (row.fewer, row.points) for row in traffic_table.ROWS if row.fewer}
    assert targets == {
        "ecq-1": ((33, "total"), 0.25),
        "rising": ((33, "total"), 0.25),
        "half": ((60, "total"), 1.0),
        "int8": ((5, "each"), 0.25),
        "int4": ((10, "update"), 0.5),
    }


def test_rising_bits_are_on_average_those_of_the_row_beside():
    rows = {row.name: row for row in traffic_table.ROWS}
    settings = dict(each.split("=", 1) for each in rows["rising"].overrides)
    assert settings["codec@update"] == settings["codec@broadcast"] == "tcq"
    ways = [(settings[f"{way}.bits"], settings[f"{way}.rise"]) for way in ("update", "broadcast")]
    assert ways == [("0.53", "1.13")] * 2
    updates = [Tcq(bits=0.53, rise=1.13).in_round(number).bits for number in range(1, 11)]
    assert sum(updates + updates[:9]) / 19 == pytest.approx(traffic_table.ONE, rel=0.01)


def test_how_far_behind_is_read_between_two_rounds_of_the_baselines_mean():
    plain = {("fp32", seed): {"accuracy_by_round": [0.4, 0.8, 0.9]} for seed in REPORTED}
    coded = [0.5, 0.6, 0.84], [0.5, 0.6, 0.80]
    runs = plain | {("ecq-1", seed): {"accuracy_by_round": coded[seed % 2]} for seed in REPORTED}
    mean = (2 * 0.84 + 3 * 0.80) / 5
    assert f"{100 * mean:.2f} % after 3 | after {2 + (mean - 0.8) / 0.1:.1f} |" in traffic_table.behind(runs)
    assert "| after 3 | after" not in traffic_table.behind(plain)
    del runs["ecq-1", 105]
    assert "ecq" not in traffic_table.behind(runs)
    better = plain | {("ecq-1", seed): {"accuracy_by_round": [0.5, 0.6, 0.9]} for seed in REPORTED}
    assert "ecq" not in traffic_table.behind(better)


def test_the_interval_is_students():
    """Differences 1 to 5: mean 3, standard error sqrt(2.5 / 5), t(0.975, 4) = 2.7764."""
    change = paired([(each / 100, 0.0) for each in (1, 2, 3, 4, 5)])
    assert change.n == 5
    assert change.mean == pytest.approx(3)
    assert change.standard_error == pytest.approx(0.70711, abs=1e-5)
    assert (change.low, change.high) == pytest.approx((3 - 1.96324, 3 + 1.96324), abs=1e-4)
    assert str(change) == "+3.00 [+1.04, +4.96]"
    assert paired([]) is None
    assert str(paired([(0.9, 0.91)])) == "-1.00"
    assert paired([(0.9, 0.91)]).low is None


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [
        (-0.25, 0.4, "met"),
        (-0.2500001, 0.4, "not resolved"),
        (-0.9, -0.25, "not resolved"),
        (-0.9, -0.2500001, "missed"),
    ],
)
def test_three_verdicts(low, high, told):
    assert verdict(Paired(5, (low + high) / 2, 0.1, low, high), 0.25) == told


def test_the_mean_judges_beside_the_verdict():
    assert within(Paired(5, -0.25, 0.2, -0.8, 0.3), 0.25)
    assert not within(Paired(5, -0.26, 0.2, -0.8, 0.3), 0.25)
    assert verdict(Paired(1, 0.0, None, None, None), 0.25) is None
    assert verdict(None, 0.25) is within(None, 0.25) is None


def run(row, seed, accuracy, payload=100, fp32=3300):
    sizes = {
        f"{way}_{kind}_bytes": n
        for way in ("broadcast", "update")
        for kind, n in (("payload", payload), ("fp32", fp32))
    }
    return (row, seed), {"test_accuracy": accuracy, "reference_accuracy": None, "shared_start_bytes": 0, **sizes}


def test_a_row_is_judged_when_all_its_seeds_are_there():
    row = Row("ecq-1", "ecq", (), (101, 102, 103), fewer=(33, "total"), points=0.25)
    losses = {101: 0.003, 102: 0.0, 103: -0.001}
    runs = dict(run("fp32", seed, 0.9) for seed in losses)
    runs |= dict(run("ecq-1", seed, 0.9 - loss) for seed, loss in losses.items())
    line = traffic_table.summarize(row, runs)
    assert (line["runs"], line["of"], line["fewer_total"]) == (3, 3, 33.0)
    assert line["change_points"] == pytest.approx(-0.2 / 3)
    assert (line["mean_within"], line["verdict"]) == (True, "not resolved")
    assert "| 3 of 3 |" in traffic_table.table([line])
    assert "| yes | not resolved |" in traffic_table.table([line])
    too_many = dict(runs) | dict(run("ecq-1", seed, 0.9, payload=101) for seed in losses)
    line = traffic_table.summarize(row, too_many)
    assert (line["mean_within"], line["verdict"]) == (False, "missed: 32.67x")
    del runs["ecq-1", 103]
    line = traffic_table.summarize(row, runs)
    assert (line["runs"], line["mean_within"], line["verdict"]) == (2, None, None)
    assert "| 2 of 3 |" in traffic_table.table([line])
    assert "| incomplete |" in traffic_table.table([line])


def test_a_change_is_over_pairs_and_says_how_many():
    row = Row("ecq-1", "ecq", (), (101, 102, 103), fewer=(33, "total"), points=0.25)
    runs = dict([run("fp32", 102, 0.8), *(run("ecq-1", seed, 0.9) for seed in row.seeds)])
    line = traffic_table.summarize(row, runs)
    assert (line["runs"], line["pairs"], line["verdict"]) == (3, 1, None)
    assert traffic_table.change_text(line) == "+10.00, n = 1"


def test_ratios_are_of_sums():
    runs = [run("a", 1, 0.9, payload=100, fp32=1000)[1], run("a", 2, 0.9, payload=300, fp32=1000)[1]]
    assert traffic_table.fewer(runs)["total"] == 5.0


@pytest.fixture
def figures():
    """The figures function of benchmarks/codecs.py, a file named as a module of Python."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("grid_of_codecs", REPOSITORY / "benchmarks" / "codecs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.figures


def records(version):
    """Two rounds of three clients with a model of 1,000 bytes: a shared start, then one that is sent nothing."""
    rounds = []
    for number, sizes in ((1, (0, 0, 0)), (2, (40, 0, 40))):
        messages = {"broadcast_message_bytes": 300, "update_message_bytes": 300}
        clients = [{"broadcast_payload_bytes": size, "update_payload_bytes": 50, **messages} for size in sizes]
        charged = 3000 if version == 1 else 1000 * sum(size > 0 for size in sizes)
        record = {
            "round": number, "test_accuracy": 0.5, "test_loss": 1.0, "train_loss": 1.0, "clients": clients,
            "train_s": 1.0, "evaluate_s": 1.0, "aggregate_s": 1.0, "clients_asked": 3, "clients_completed": 3,
            "broadcast": {"payload_bytes": sum(sizes), "message_bytes": 900, "fp32_payload_bytes": charged},
            "update": {"payload_bytes": 150, "message_bytes": 900, "fp32_payload_bytes": 3000},
        }  # fmt: skip
        if version == 2:
            record |= {"version": 2, "fp32_model_bytes": 1000, "shared_start_bytes": 3000 if number == 1 else 0}
        rounds.append(record)
    return rounds


@pytest.mark.parametrize("version", [1, 2])
def test_fp32_starts_where_the_coded_run_does(version, figures, tmp_path):
    write_jsonl(tmp_path / "rounds.jsonl", records(version))
    first, second = map(figures.__globals__["traffic_of"], read_rounds(tmp_path / "rounds.jsonl"))
    assert first == {
        "broadcast_payload_bytes": 0, "update_payload_bytes": 150, "broadcast_fp32_bytes": 0, "update_fp32_bytes": 3000,
        "shared_start_bytes": 3000,
    }  # fmt: skip
    assert (second["broadcast_fp32_bytes"], second["shared_start_bytes"]) == (2000, 0)


def test_folders_are_adopted_or_left_out_with_the_reason(figures, command, tmp_path, capsys):
    settings = [*SMALL, "num_rounds=1", "data.num_images=200"]
    overrides = [each for each in settings if not each.startswith("threads_per_client")]
    made = train(command, *settings, *traffic_table.both("ecq"), "seed=101", cwd=tmp_path)
    runs = tmp_path / "runs"
    shutil.copytree(made, runs / "coded-101")
    shutil.copytree(made, runs / "coded-102")  # has another seed than its name says
    (runs / "coded-103").mkdir()  # has only begun
    rows = [Row("coded", "coded", traffic_table.both("ecq"))]
    options = argparse.Namespace(
        only=None, jobs=1, threads=1, report=True, again=False, folder=tmp_path / "docs", runs=runs, overrides=overrides
    )
    found = grid.fill(options, rows, "kept.json", figures)
    assert set(found) == {("coded", 101)}
    assert "left out" in (said := capsys.readouterr().out)
    assert "coded-102: is a run with other settings (seed)" in said.replace("\n", "")
    entry = found["coded", 101]
    records, summary = (runs / "coded-101" / "rounds.jsonl").read_text(), read_json(runs / "coded-101" / "summary.json")
    assert entry["shared_start_bytes"] > 0 == entry["broadcast_payload_bytes"] == entry["broadcast_fp32_bytes"]
    assert entry["update_payload_bytes"] == sum(entry["update_payload_bytes_by_round"])
    assert entry["accuracy_by_round"] == [summary["final"]["test_accuracy"]]
    assert str(entry["update_payload_bytes"]) in records
    assert (entry["threads"], entry["split"]["test"]) == (1, 40)
    assert {"versions", "commit", "train_s", "model_sha256"} <= set(entry)

    shutil.rmtree(runs)  # figures stay when folders are gone, and on a machine that never had them
    assert grid.fill(options, rows, "kept.json", figures) == found
    other = [Row("coded", "coded", traffic_table.both("int8"))]  # a row that was changed has no figures yet
    assert grid.fill(options, other, "kept.json", figures) == {}
    two = argparse.Namespace(**{**vars(options), "threads": 2, "folder": tmp_path / "two"})
    shutil.copytree(made, runs / "coded-101")
    assert grid.fill(two, rows, "kept.json", figures) == {}
    assert "threads_per_client" in capsys.readouterr().out


def test_splits_are_compared_with_equally_many_training_images():
    by_name = {row.name: row for row in split_table.ROWS}
    assert by_name["random"].overrides == ("data.validation_fraction=0.25",)
    assert by_name["spatial"].overrides == ("data.split=spatial",)
    split = {"train": 16_200, "validation": 5_400, "test": 5_400}
    runs = {("spatial", 100 + n): {"test_accuracy": 0.9 + n / 100, "split": split} for n in (1, 2, 3)}
    table = split_table.table(runs)  # mean 92, standard error 1 / sqrt(3), t(0.975, 2) = 4.3027
    row = "| by longitude | 16,200 / 5,400 / 5,400 | 3 of 3 | 92.00 % [89.52, 94.48] | 91.00, 92.00, 93.00 |"
    assert row in table
    assert "| random |  | 0 of 3 |  |  |" in table
    runs.pop(("spatial", 103))
    assert "| 2 of 3 |" in split_table.table(runs)


def test_a_run_of_older_code_is_adopted_though_its_classes_have_other_names_now(command, tmp_path):
    """What fl.training.Fp32, fl.partition.Iid and others were called lies in the settings of runs that took an hour."""
    overrides = [*SMALL, "num_rounds=1", "data.num_images=200", "seed=101"]
    made = train(command, *overrides, cwd=tmp_path)
    settings, before = read_json(made / "settings.json"), {new: old for old, new in RENAMED.items()}
    for group in settings.values():
        if isinstance(group, dict) and group.get("_target_") in before:
            group["_target_"] = before[group["_target_"]]
    assert settings["training"]["_target_"] == "fl.training.Fp32"
    del settings["link"]["inter_satellite_bps"], settings["tracking"]  # there were none
    settings["computer"] = preset("computer", "none")
    write_json(made / "settings.json", settings)
    shutil.copytree(made, tmp_path / "runs" / "plain-101")
    own = [each for each in overrides if not each.startswith(("threads_per_client", "seed"))]
    found = grid.trained(Row("plain", "plain"), 101, tmp_path / "runs", own, threads=1)
    assert found == tmp_path / "runs" / "plain-101"


def test_figures_of_another_version_are_refused(tmp_path):
    write_json(tmp_path / "kept.json", [{"row": "fp32", "seed": 42}])
    with pytest.raises(ConfigError, match="another version"):
        grid.stored(tmp_path / "kept.json")


def test_the_first_seed_of_every_row_comes_before_the_second_of_any(tmp_path):
    rows = [Row("a", "a", seeds=(101, 102)), Row("b", "b", seeds=(101,))]
    options = argparse.Namespace(only=None, report=False, again=False, runs=tmp_path)
    order = [(row.name, seed) for row, seed in grid.missing_runs(options, rows, {})]
    assert order == [("a", 101), ("b", 101), ("a", 102)]
    options.only = ["b"]
    assert [row.name for row, _ in grid.missing_runs(options, rows, {})] == ["b"]
