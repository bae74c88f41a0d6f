"""A tracked run: TensorBoard reads back what rounds.jsonl says, W&B too, and no tracker ends or changes a training."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import REPOSITORY, compared, composed
from tracked import TINY, events_of, run_tiny, scalars_of, told, until, wandb_records

from fl.core.errors import ConfigError
from fl.core.files import read_json, read_jsonl
from fl.experiment.settings import settings_from
from fl.tracking import TensorBoard, beside, renew
from fl.tracking.base import figures, parameters
from fl.tracking.notes import begin


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same run without a tracker and with TensorBoard; read only."""
    folder = tmp_path_factory.mktemp("tracked")
    run_tiny(folder / "plain")
    run_tiny(folder / "tensorboard", "tracking=tensorboard")
    return folder


@pytest.fixture(scope="module")
def measured(runs):
    """What a comparison has added to the plain run."""
    folder = runs / "compared"
    shutil.copytree(runs / "plain", folder)
    compared(folder / "final_model.pt", "fp16")
    return [folder / f"quantization_comparison.{kind}" for kind in ("json", "png")]


@pytest.fixture
def untracked(runs, tmp_path):
    """A finished run that no tracker knows yet."""
    shutil.copytree(runs / "plain", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(autouse=True)
def _own_trackers(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY / "tests"))


def matches(scalars, folder, *, but=()):
    expected = {name: values for name, values in told(folder).items() if not name.endswith(tuple(but))}
    assert len(expected) > 15
    for name, values in expected.items():
        assert [step for step, _ in scalars[name]] == [number for number, _ in values]
        assert dict(scalars[name]) == pytest.approx(dict(values)), name  # which are float32 there


def test_names_are_those_of_the_files():
    record = {"lr": 0.1, "update": {"payload_bytes": 7, "compression_ratio": None}, "clients": [{"x": 1}], "on": True}
    assert figures(record) == {"lr": 0.1, "update/payload_bytes": 7}
    config = {"seed": 1, "data": {"path": None, "_target_": "a.B"}, "faults": {}, "rounds": [2, 5], "report": False}
    flat = {"seed": 1, "data.path": None, "data._target_": "a.B", "rounds": "[2, 5]", "report": False}
    assert parameters(config) == flat


def test_tensorboard_holds_the_rounds_and_the_run_is_the_same(runs):
    plain, folder = runs / "plain", runs / "tensorboard"
    assert (plain / "final_model.pt").read_bytes() == (folder / "final_model.pt").read_bytes()
    assert not (plain / "tracking.json").exists()
    matches(scalars_of(folder), folder)
    found = events_of(folder)
    assert {"rounds", "partition"} <= set(found.Tags()["images"])
    assert found.Images("rounds")[0].encoded_image_string == (folder / "rounds.png").read_bytes()
    assert found.Images("rounds")[0].width > 300
    told_of = str(found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content)
    assert "data.num_images" in told_of
    assert "strategy._target_" in told_of
    assert read_json(folder / "summary.json")["environment"]["commit"][:40] in told_of
    assert status_of(folder) == "STATUS_SUCCESS"
    total = read_json(folder / "summary.json")["totals"]["update"]["payload_bytes"]
    assert scalars_of(folder)["totals/update/payload_bytes"] == [(0, total)]


def status_of(folder):
    from tensorboard.plugins.hparams import api_pb2
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    content = events_of(folder).SummaryMetadata("_hparams_/session_end_info").plugin_data.content
    return api_pb2.Status.Name(HParamsPluginData.FromString(content).session_end_info.status)


def test_a_comparison_later_goes_to_the_same_tracked_run(runs, measured, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(runs / "tensorboard", folder)
    for path in measured:
        shutil.copy(path, folder)
    renew(folder / "final_model.pt")
    assert "Tracked: tensorboard run" in capsys.readouterr().out
    scalars = scalars_of(folder)
    entry = read_json(folder / "quantization_comparison.json")["precisions"]["fp16"]
    assert scalars["precisions/fp16/file_size_bytes"] == [(0, entry["file_size_bytes"])]
    assert scalars["precisions/fp16/accuracy"] == [(0, pytest.approx(entry["accuracy"]))]
    assert "quantization_comparison" in events_of(folder).Tags()["images"]
    matches(scalars, folder)
    sent = read_json(folder / "tracking.json")["sent"]
    assert {"final_model.pt", "rounds.jsonl", "summary.json", "quantization_comparison.json"} <= set(sent)


def test_rounds_are_sent_as_they_come_and_none_twice_after_a_kill(untracked, capsys):
    path, summary = untracked / "rounds.jsonl", untracked / "summary.json"
    first, second = path.read_text().splitlines(keepends=True)
    ended = summary.read_text()
    summary.unlink()
    path.write_text(first + second[:30])  # a line that is being written
    begin(untracked, {"_target_": "fl.tracking.TensorBoard"}, "/")
    process, _ = beside._sender(untracked)
    until(untracked, 1)
    process.kill()
    process.wait()
    process.stdin.close()
    noted = json.loads((untracked / "tracking.json").read_text())
    (untracked / "tracking.json").write_text(json.dumps(noted | {"rounds": 0}))  # killed before it had noted it
    process, listener = beside._sender(untracked)
    until(untracked, 1)
    path.write_text(first + second)
    until(untracked, 2)
    process.send_signal(signal.SIGINT)  # Ctrl-C is for who trains
    summary.write_text(ended)
    process.stdin.close()
    assert process.wait(60) == 0
    listener.join()
    assert capsys.readouterr().out == f"Tracked: tensorboard run {noted['key']}\n"
    matches(scalars_of(untracked), untracked)
    assert status_of(untracked) == "STATUS_SUCCESS"


def test_jobs_of_a_sweep_are_sub_folders_and_who_was_killed_has_not_ended(runs, tmp_path, capsys):
    sweep = tmp_path / "sweep"
    shutil.copytree(runs / "plain", sweep / "0")
    (sweep / "multirun.yaml").touch()
    (sweep / "0" / "summary.json").unlink()
    begin(sweep / "0", {"_target_": "fl.tracking.TensorBoard"}, "/")
    renew(sweep / "0")
    matches(scalars_of(sweep / "0"), sweep / "0")
    assert "_hparams_/session_end_info" not in events_of(sweep / "0").summary_metadata  # it may go on
    shutil.copy(runs / "plain" / "rounds.png", sweep / "sweep.png")
    (sweep / "sweep.json").write_text("{}")
    renew(sweep)
    assert events_of(sweep).Tags()["images"] == ["sweep"]
    assert capsys.readouterr().out.count("Tracked: tensorboard run") == 2


def test_a_tracker_that_hangs_is_a_line_and_changes_no_byte(runs, tmp_path, capsys):
    began = time.monotonic()
    model = run_tiny(tmp_path / "run", _target_="tracked.Hanging", wait_s=0.5, trusted=["tracked.Hanging"])
    assert time.monotonic() - began < 60
    assert model.read_bytes() == (runs / "plain" / "final_model.pt").read_bytes()
    (line,) = (each for each in capsys.readouterr().out.splitlines() if "track" in each)
    assert line.startswith("note: tracking=json: the process that sends has not ended within wait_s=0.5")


def test_who_hangs_ends_also_when_the_training_was_killed(untracked):
    begin(untracked, {"_target_": "tracked.Hanging", "wait_s": 0.5}, "/")
    process, _ = beside._sender(untracked)
    time.sleep(0.5)
    process.stdin.close()  # as the system does
    assert process.wait(60) == -signal.SIGALRM


def test_a_tracker_that_crashes_is_a_line(untracked, capsys):
    begin(untracked, {"_target_": "tracked.Crashing"}, "/")
    renew(untracked)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"note: tracking=json: the process that sends ended with {-signal.SIGABRT}")


def test_a_place_that_cannot_be_written_is_a_line(runs, untracked, capsys):
    (untracked / "tensorboard").write_text("in the way")
    begin(untracked, {"_target_": "fl.tracking.TensorBoard"}, "/")
    renew(untracked)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("note: tracking=tensorboard: ")
    assert str(untracked / "tensorboard") in line
    (untracked / "tensorboard").unlink()
    renew(untracked)  # what was missing comes later
    matches(scalars_of(untracked), untracked)


def test_a_full_disk_is_a_line(untracked, capsys):
    begin(untracked, {"_target_": "fl.tracking.TensorBoard"}, "/")
    process, listener = beside._sender(untracked)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (3000, 3000))  # of the process that sends
    beside._wait(process, listener, TensorBoard())
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("note: tracking=tensorboard: ")
    assert "File too large" in line
    renew(untracked)
    matches(scalars_of(untracked), untracked)


def test_a_folder_of_somebody_else_sends_nothing(runs, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(runs / "tensorboard", folder)
    shutil.rmtree(folder / "tensorboard")
    monkeypatch.setenv("QUANTFL_CACHE", str(tmp_path / "mine"))
    renew(folder)
    assert "was tracked from another account or machine" in capsys.readouterr().out
    (folder / "tracking.json").write_text('{"key": "../../other"}')
    renew(folder)
    assert "is damaged" in capsys.readouterr().out
    assert not (folder / "tensorboard").exists()


def test_what_cannot_be_tracked_is_refused_before_training(tmp_path):
    config = composed(*TINY)
    for target, setting, words in (
        ("Mlflow", {"url": "x"}, "tracking.url: .* did you mean uri"),
        ("Wandb", {"mode": "off"}, "tracking.mode=off: .* 'online' or 'offline'"),
        ("TensorBoard", {"wait_s": 0}, "tracking.wait_s=0: .* greater than 0"),
    ):
        with pytest.raises(ConfigError, match=words):
            settings_from(config | {"tracking": {"_target_": f"fl.tracking.{target}", **setting}})
    with pytest.raises(ConfigError, match="is not installed; install it with: pip install -c"):
        run_tiny(tmp_path / "run", _target_="tracked.Missing", trusted=["tracked.Missing"])
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.long
def test_wandb_offline_holds_the_rounds_and_the_comparison(measured, untracked):
    for path in measured:
        shutil.copy(path, untracked)
    settings = {"_target_": "fl.tracking.Wandb", "mode": "offline", "project": "p"}
    (untracked.parent / "multirun.yaml").touch()
    begin(untracked, settings, "/")
    renew(untracked)
    (path,) = untracked.glob("wandb/offline-run-*/*.wandb")
    records = wandb_records(path)
    rows = [
        {each.key or "/".join(each.nested_key): json.loads(each.value_json) for each in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    expected = told(untracked)
    for number, row in enumerate(rows, 1):
        assert row["_step"] == number
        assert {name: row[name] for name in expected} == {
            name: values[number - 1][1] for name, values in expected.items()
        }
    assert len(rows) == 2
    (run,) = (record.run for record in records if record.WhichOneof("record_type") == "run")
    config = {each.key: json.loads(each.value_json) for each in run.config.update}
    assert config["num_rounds"] == 2
    assert config["data.num_images"] == 100
    assert len(config["commit"]) >= 40
    assert (run.project, run.job_type, run.run_group) == (
        "p",
        "run",
        f"{untracked.parent.parent.name}/{untracked.parent.name}",
    )
    assert run.run_id == json.loads((untracked / "tracking.json").read_text())["name"]
    summary = {
        "/".join(each.nested_key) or each.key: each.value_json
        for record in records
        if record.WhichOneof("record_type") == "summary"
        for each in record.summary.update
    }
    entry = read_json(untracked / "quantization_comparison.json")["precisions"]["fp16"]
    assert json.loads(summary["precisions/fp16/accuracy"]) == entry["accuracy"]
    saved = {
        each.path for record in records if record.WhichOneof("record_type") == "files" for each in record.files.files
    }
    assert {"final_model.pt", "rounds.jsonl", "quantization_comparison.json", "rounds.png"} <= saved
    (ended,) = (record.exit for record in records if record.WhichOneof("record_type") == "exit")
    assert ended.exit_code == 0


@pytest.mark.long
def test_a_killed_training_goes_on_in_the_same_tracked_run(tmp_path, command):
    """The process of the training is killed; the one that sends ends by itself."""
    folder = tmp_path / "run"
    slow = ["num_rounds=40", "tracking=tensorboard", f"hydra.run.dir={folder}"]
    arguments = [sys.executable, "-P", "-m", "fl.train", *TINY, *slow]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(arguments, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL) as process:
        while not (folder / "rounds.jsonl").exists() or len((folder / "rounds.jsonl").read_text().splitlines()) < 2:
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    key = read_json(folder / "tracking.json")["key"]
    command("fl", "resume", folder, check=0)
    assert read_json(folder / "tracking.json")["key"] == key
    assert len(read_jsonl(folder / "rounds.jsonl")) == 40
    matches(scalars_of(folder), folder, but=("_s",))  # a round that was computed again took another time
    assert status_of(folder) == "STATUS_SUCCESS"
