"""MLflow: a run of an experiment, on a server or in a local store; a sweep's jobs are its children."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic.dataclasses import dataclass

from fl.core.groups import STRICT
from fl.tracking.base import Tracked, Tracker

USUAL = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""Of MLflow's own settings in the environment, where the user has set none: a dead server is noticed soon."""
STATUS = {"completed": "FINISHED", "time_limit": "FINISHED", "failed": "FAILED"}
TESTED = "test_accuracy"
"""Which every round has."""


@dataclass(config=STRICT, kw_only=True)
class Mlflow(Tracker):
    """Metrics by round, parameters, artifacts, the commit as MLflow's own tag.

    Args:
        experiment: made where it does not exist.
        uri: of the server or store; None: as MLflow finds it.
    """

    package: ClassVar[str] = "mlflow"
    experiment: str = "quantfl"
    uri: str | None = None

    def create(self, run: Tracked) -> str:
        mlflow = self._library()
        experiment = mlflow.set_experiment(self.experiment)  # which several jobs may do at once
        told = {"mlflow.source.git.commit": run.commit, "mlflow.parentRunId": run.parent}
        tags = {"quantfl.folder": str(run.folder), **{key: each for key, each in told.items() if each is not None}}
        made = mlflow.MlflowClient().create_run(experiment.experiment_id, tags=tags, run_name=run.name)
        return str(made.info.run_id)

    def open(self, run: Tracked, name: str, rounds: int) -> int:
        mlflow = self._library()
        self._client, self._name, self._metric = mlflow.MlflowClient(), name, mlflow.entities.Metric
        told = [mlflow.entities.Param(key, str(value)) for key, value in run.parameters.items()]
        if not rounds:
            self._client.log_batch(name, params=told)
        if self._client.get_run(name).info.status in ("FAILED", "KILLED"):  # which goes on
            self._client.update_run(name, "RUNNING")
        return max((each.step for each in self._client.get_metric_history(name, TESTED)), default=0)

    def round(self, number: int, figures: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        metrics = [self._metric(key, value, now, number) for key, value in figures.items()]
        self._client.log_batch(self._name, metrics=metrics)

    def result(self, figures: Mapping[str, float]) -> None:
        self.round(0, figures)

    def artifact(self, path: Path) -> None:
        self._client.log_artifact(self._name, str(path))

    def close(self, state: str | None) -> None:
        status = STATUS.get(state or "", "KILLED")
        if self._client.get_run(self._name).info.status != status:  # else it keeps the time when it ended
            self._client.set_terminated(self._name, status)

    def _library(self) -> Any:
        for key, value in USUAL.items():
            os.environ.setdefault(key, value)
        import mlflow

        if self.uri:
            mlflow.set_tracking_uri(self.uri)
        return mlflow
