"""MLflow on its own server, read back by its own client; the server stops, comes back and goes."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from conftest import compared
from tracked import run_tiny, told, until

from fl.core.files import read_json
from fl.tracking import beside, renew
from fl.tracking.notes import begin, tracker_of

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """MLflow's server, in a process that can be stopped; its address is in `uri`."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{folder}/store.db",
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(folder / "artifacts"),
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }  # what `mlflow server` hands to the program below; itself it starts five more
    command = [sys.executable, "-m", "uvicorn", "--port", str(port), "mlflow.server.fastapi_app:app"]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log) as process,
    ):
        process.uri = f"http://127.0.0.1:{port}"
        while process.poll() is None:
            try:
                urllib.request.urlopen(f"{process.uri}/health", timeout=5)
                break
            except OSError:
                time.sleep(0.2)
        assert process.poll() is None, (folder / "log").read_text()
        yield process
        process.kill()


@pytest.fixture(scope="module")
def client(server):
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    from mlflow import MlflowClient

    return MlflowClient(server.uri)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that no tracker knows yet; read only."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    run_tiny(folder)
    return folder


def settings(server, **others):
    return {"_target_": "fl.tracking.Mlflow", "uri": server.uri, "wait_s": 100.0, **others}


def test_a_server_that_hangs_loses_nothing_and_holds_nobody(server, client, finished, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    first, second = (folder / "rounds.jsonl").read_text().splitlines(keepends=True)
    (folder / "rounds.jsonl").write_text(first)
    tracking = settings(server, wait_s=2.0)
    begin(folder, tracking, "/")
    process, listener = beside._sender(folder)
    until(folder, 1)
    (run,) = client.search_runs([client.get_experiment_by_name("quantfl").experiment_id])
    assert run.info.status == "RUNNING"
    server.send_signal(signal.SIGSTOP)
    (folder / "rounds.jsonl").write_text(first + second)
    began = time.monotonic()
    beside._wait(process, listener, tracker_of(tracking))
    assert time.monotonic() - began < 10
    server.send_signal(signal.SIGCONT)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("note: tracking=mlflow: the process that sends has not ended within wait_s=2")

    begin_again = read_json(folder / "tracking.json") | {"rounds": 0}  # as if it had been killed before it noted one
    (folder / "tracking.json").write_text(json.dumps(begin_again))
    note = Path(os.environ["QUANTFL_CACHE"]) / "tracked" / f"{begin_again['key']}.json"
    note.write_text(note.read_text().replace("2.0", "100.0"))
    compared(folder / "final_model.pt", "fp16")
    renew(folder)
    assert capsys.readouterr().out.splitlines()[-1] == f"Tracked: mlflow run {run.info.run_id}"
    assert len(client.search_runs([run.info.experiment_id])) == 1
    run = client.get_run(run.info.run_id)
    for name, values in told(folder).items():
        history = client.get_metric_history(run.info.run_id, name)
        assert [(each.step, each.value) for each in history] == values, name
    assert run.data.params["data.num_images"] == "100"
    assert run.data.params["strategy._target_"].endswith("FedAvg")
    assert run.data.tags["mlflow.source.git.commit"] == read_json(folder / "summary.json")["environment"]["commit"]
    assert run.info.status == "FINISHED"
    entry = read_json(folder / "quantization_comparison.json")["precisions"]["fp16"]
    assert run.data.metrics["precisions/fp16/accuracy"] == entry["accuracy"]
    names = {"final_model.pt", "rounds.jsonl", "summary.json", "rounds.png", "quantization_comparison.json"}
    assert names <= {each.path for each in client.list_artifacts(run.info.run_id)}
    copy = client.download_artifacts(run.info.run_id, "final_model.pt", str(tmp_path))
    assert Path(copy).read_bytes() == (folder / "final_model.pt").read_bytes()


def test_jobs_of_a_sweep_are_children_of_one_run(server, client, finished, tmp_path, capsys):
    sweep = tmp_path / "sweep"
    for number in "01":
        shutil.copytree(finished, sweep / number)
        begin(sweep / number, settings(server, experiment="sweeps"), "/")
    (sweep / "multirun.yaml").touch()
    started = [(beside._sender(sweep / number)) for number in "01"]  # both at once
    for process, listener in started:
        beside._wait(process, listener, tracker_of(settings(server)))
    (sweep / "sweep.json").write_text("{}")
    renew(sweep)
    assert capsys.readouterr().out.count("Tracked: mlflow run") == 3
    found = client.search_runs([client.get_experiment_by_name("sweeps").experiment_id])
    (parent,) = (run for run in found if "mlflow.parentRunId" not in run.data.tags)
    children = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert sorted(run.info.run_name for run in children) == ["sweep/0", "sweep/1"]
    assert {run.info.status for run in found} == {"FINISHED"}
    assert [each.path for each in client.list_artifacts(parent.info.run_id)] == ["sweep.json"]


def test_a_server_that_is_not_there_is_a_line_without_its_password(finished, tmp_path, capsys):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        uri = f"http://me:secret@127.0.0.1:{nobody.getsockname()[1]}"
        model = run_tiny(tmp_path / "run", "tracking=mlflow", f"tracking.uri={uri}")
    assert model.read_bytes() == (finished / "final_model.pt").read_bytes()
    (line,) = (each for each in capsys.readouterr().out.splitlines() if "tracking" in each)
    assert line.startswith("note: tracking=mlflow: ")
    assert "secret" not in line
    assert "127.0.0.1" in line
