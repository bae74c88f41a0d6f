"""Multiruns: a folder per job, one table at the end whatever happens to jobs, and pictures redrawn from the folder."""

import csv
import json
import shutil

import pytest
from PIL import Image

from fl.experiment.sweep import read_jobs, swept_settings

TINY = ["data=synthetic", "data.num_images=200", "local_epochs=1", "batch_size=16", "threads_per_client=1"]
ONE = [*TINY, "num_clients=2", "num_rounds=1"]


@pytest.fixture(scope="module")
def failing_sweep(tmp_path_factory, preloaded):
    """A sweep over two settings and two seeds, with jobs that cannot run; returns its process and folder."""
    folder = tmp_path_factory.mktemp("sweep") / "with a space"
    swept = ["num_rounds=1,2", "num_clients=2,100000", "seed=1,2", f"hydra.sweep.dir={folder}"]
    done = preloaded.run(["-m", "fl.train", "-m", *TINY, *swept, "hydra/launcher=parallel"], folder.parent)
    return done, folder


def rows_of(folder):
    with (folder / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.exhaustive
def test_failed_jobs_are_rows_and_the_others_run(failing_sweep):
    done, folder = failing_sweep
    assert done.returncode == 1, done.stdout + done.stderr
    rows = rows_of(folder)
    assert [row["state"] for row in rows] == ["completed"] * 2 + ["failed"] * 2 + ["completed"] * 2 + ["failed"] * 2
    assert [row["num_rounds"] for row in rows] == ["1"] * 4 + ["2"] * 4
    for row in rows:
        run = folder / row["folder"]
        if row["num_clients"] == "100000":
            assert "num_clients=100000: there are only 160 training images" in row["error"]
            assert f"error: job {row['job']}: num_clients=100000" in done.stderr
            continue
        last = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
        assert float(row["test_accuracy"]) == last[-1]["test_accuracy"]
        for direction in ("broadcast", "update"):
            travelled = sum(record[direction]["payload_bytes"] for record in last)
            assert int(row[f"{direction}_payload_bytes"]) == travelled > 0
        seconds = sum(record[key] for record in last for key in ("train_s", "evaluate_s", "aggregate_s"))
        assert float(row["rounds_s"]) == pytest.approx(seconds)
        assert json.loads((run / "summary.json").read_text())["seed"] == int(row["seed"])
    for word in ("num_rounds", "num_clients", "broadcast", "completed", "failed", "SYNTHETIC", "standard deviation"):
        assert word in done.stdout
    assert "error: 4 of 8 jobs did not complete" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_document_has_seeds_and_the_pareto_front(failing_sweep):
    _, folder = failing_sweep
    document = json.loads((folder / "sweep.json").read_text())
    assert document["swept"] == ["num_rounds", "num_clients", "seed"]
    assert [(row["num_rounds"], row["num_clients"], row["seeds"]) for row in document["over_seeds"]] == [
        ("1", "2", 2),
        ("2", "2", 2),
    ]
    first = [row["test_accuracy"] for row in document["jobs"][:2]]
    assert document["over_seeds"][0]["mean_test_accuracy"] == pytest.approx(sum(first) / 2)
    assert document["over_seeds"][0]["std_test_accuracy"] == pytest.approx(abs(first[0] - first[1]) / 2**0.5)
    assert document["plots"] == ["sweep_heatmap.png", "sweep_pareto.png"]
    for name in document["plots"]:
        with Image.open(folder / name) as picture:
            assert picture.size[0] > 300


def test_an_unfinished_sweep_can_be_redrawn(failing_sweep, command, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(failing_sweep[1], folder)
    shutil.rmtree(folder / "5")
    (folder / "4" / "summary.json").unlink()
    (folder / "0" / "summary.json").unlink()
    shutil.rmtree(folder / "0" / ".hydra")
    done = command("fl", "sweep", folder, check=0)
    states = [row["state"] for row in rows_of(folder)]
    assert states == ["not started", "completed", "failed", "failed", "unfinished", "not started", "failed", "failed"]
    assert rows_of(folder)[4]["test_accuracy"], "an unfinished job shows what it reached"
    assert "unfinished" in done.stdout


def test_curves_for_one_swept_setting_and_the_folders_default(command, tmp_path):
    done = command("fl.train", "-m", *ONE, "lr=0.001,0.003", check=0)
    (folder,) = tmp_path.glob("outputs/multirun/*/*")
    assert json.loads((folder / "sweep.json").read_text())["plots"] == ["sweep_curves.png", "sweep_pareto.png"]
    assert len(list(folder.glob("*/final_model.pt"))) == 2
    assert "sweep_curves.png" in done.stdout


def test_a_sweep_that_cannot_be_composed_is_refused_before_any_job(refused, tmp_path):
    refused("fl.train", "-m", *ONE, "partition=iid,nope", words=["partition=nope", "dirichlet"])
    refused("fl", "sweep", tmp_path, words=[tmp_path, "multirun.yaml"])
    assert not list(tmp_path.glob("outputs/multirun/*/*")), "an empty folder is left"


def test_the_documented_sweep_is_a_multirun(command, tmp_path):
    overrides = [*ONE, "experiment=rounds_by_clients", f"hydra.sweep.dir={tmp_path / 's'}"]
    command("fl.train", *overrides, check=0)
    (job,) = read_jobs(tmp_path / "s")
    assert job.state == "completed"
    assert swept_settings([job]) == []


def test_values_hydra_reads_in_its_own_way_keep_their_rows(command, tmp_path):
    odd = [
        "batch_size=${local_epochs}",
        "data.path='/no/[/where]',/nowhere",
        "seed=1,1",
        "optimizer=glob(*,exclude=ada*)",
    ]
    done = command("fl.train", "-m", "data=folder", *odd, "hydra.sweep.dir=odd", check=1)
    rows = rows_of(tmp_path / "odd")
    assert [row["state"] for row in rows] == ["failed"] * 8
    assert [row["optimizer"] for row in rows] == ["muon", "sgd"] * 4
    assert "/no/[/where]" in done.stdout
    again = command("fl.train", "-m", "data=folder", "seed=3,4", "hydra.sweep.dir=odd", check=2)
    assert again.stderr.strip() == "error: hydra.sweep.dir=odd: holds a multirun already; choose another folder"
    (tmp_path / "odd" / "0" / "rounds.jsonl").write_text("{")
    done = command("fl", "sweep", "odd", check=2)
    assert done.stderr.startswith("error: odd/0/rounds.jsonl: is damaged")
