"""Pictures of several runs: their points are the files' figures, seeds are one, and what is missing is not drawn."""

import shutil

import numpy as np
import pytest
from scipy.stats import t as student

from fl.core.files import read_json, read_jsonl, write_json, write_jsonl
from fl.report.plots import draw, groups_of
from fl.report.records import RunRecords

MIB = 1024**2


@pytest.fixture
def runs(small_run, tmp_path):
    """Three seeds of one run and one with other bits, their accuracies 0.50, 0.60, 0.70 and 0.90."""
    found = []
    for name, seed, accuracy, bits in (("a-1", 1, 0.5, 1), ("a-2", 2, 0.6, 1), ("a-3", 3, 0.7, 1), ("b", 1, 0.9, 4)):
        folder = shutil.copytree(small_run, tmp_path / name)
        settings, records = read_json(folder / "settings.json"), read_jsonl(folder / "rounds.jsonl")
        write_json(folder / "settings.json", settings | {"seed": seed, "update": {"_target_": "x.Ecq", "bits": bits}})
        records[-1]["test_accuracy"] = accuracy
        write_jsonl(folder / "rounds.jsonl", records)
        found.append(folder)
    return found


def names(folders):
    return [group.name for group in groups_of([RunRecords(folder) for folder in folders])]


def drawings(folders, drawn, tmp_path):
    """Returns the figures of some runs by the names of their files."""
    paths = [path.stem for path, _ in draw(folders, tmp_path)]
    return dict(zip(paths, drawn, strict=True))


def test_runs_that_differ_in_their_seeds_alone_are_one_with_its_interval(runs, drawn, tmp_path):
    assert names(runs) == ["update.bits 1 (n = 3)", "update.bits 4"]
    figures = drawings(runs, drawn, tmp_path)
    group, single = figures["accuracy_and_megabytes"].axes[0].containers
    sent = np.mean(
        [
            sum(
                each[way]["payload_bytes"]
                for each in read_jsonl(run / "rounds.jsonl")
                for way in ("broadcast", "update")
            )
            for run in runs[:3]
        ]
    )
    assert np.allclose(group.lines[0].get_xydata(), [[sent / MIB, 60]])
    ends = np.array(group.lines[2][0].get_segments())[0, :, 1]
    half = student.ppf(0.975, 2) * 10 / 3**0.5
    assert np.allclose(ends, np.clip([60 - half, 60 + half], 0, 100))
    assert not single.has_yerr
    curve = figures["accuracy_over_rounds"].axes[0].lines[0]
    assert np.isclose(curve.get_ydata()[-1], 60)


def test_bits_and_days_are_those_of_the_ledger(runs, drawn, tmp_path):
    for run, payload in zip(runs, (1000, 2000, 3000, 9000), strict=True):
        ledger = read_json(run / "communication.json")
        ledger["measured"]["total"] |= {"payload_bytes": payload, "fp32_payload_bytes": 64000}
        for link in ledger["modelled"]["links"].values():
            link["reached"] = {"70": {"elapsed_s": 86400 * payload / 1000}, "90": None}
        write_json(run / "communication.json", ledger)
    figures = drawings(runs, drawn, tmp_path)
    points = [each.lines[0].get_xydata()[0] for each in figures["accuracy_and_bits"].axes[0].containers]
    assert np.allclose(points, [[1, 60], [4.5, 90]])
    panels = figures["days_to_accuracy"].axes
    assert [axes.get_title() for axes in panels] == ["flat_rate", "cubesat_sband", "ttc_uhf"]
    assert np.allclose(panels[0].collections[0].get_offsets(), [[2, 0], [9, 1]])
    assert {text.get_text() for text in panels[0].texts} == {"70 %"}


def test_names_are_short_and_differ(runs):
    for run in runs:
        settings = read_json(run / "settings.json")
        settings |= {"partition": {"_target_": f"x.{run.name[0]}", "alpha": 0.3}, "lr_schedule": run.name[0] * 30}
        write_json(run / "settings.json", settings)
    assert names(runs) == ["a (n = 3)", "b"]


def test_a_run_alone_and_one_without_a_round(runs, drawn, tmp_path):
    (runs[0] / "rounds.jsonl").unlink()
    assert not drawings(runs[:1], drawn, tmp_path)
    assert "accuracy_over_rounds" in drawings(runs[3:], drawn, tmp_path)


def test_the_command_draws_and_says_from_which_files(runs, command, refused, tmp_path):
    done = command("fl", "plot", *runs, "--style", "paper", "--output", "out", check=0)
    assert "out/accuracy_and_bits.png, accuracy_and_bits.svg: from communication.json" in done.stdout
    pictures = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert [name for name in pictures if name.endswith(".svg")] == [
        f"accuracy_{name}.svg" for name in ("and_bits", "and_megabytes", "over_megabytes", "over_rounds")
    ]
    refused("fl", "plot", tmp_path, words=[tmp_path, "is no folder of a run"])
    refused("fl", "plot", runs[0], "--style", "poster", words=["--style", "poster", "paper"])
