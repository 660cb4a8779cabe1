"""A run in MLflow: parameters, metrics, images and files, in a SQLite file beside the runs or on a server.

Where: `MLFLOW_TRACKING_URI` and `MLFLOW_EXPERIMENT_NAME`, as everywhere with MLflow; by default `mlflow.db` in the
folder of the runs, its files in `mlflow/` beside it.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from experiment.run_folder import HISTORY, RunFolder
from training.trackers.base import without_password
from utils import log, shown, sqlite_address

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

EXPERIMENT = "chest-radiographs"
FILES = ("config.yaml", "run.json", "history.csv", "curves.png", "best.pt")
STATUS = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED", "pruned": "KILLED"}
# MLflow's own are 7 tries of 2 minutes: an epoch does not wait for a server that is down. Variables that are set stay.
PATIENCE = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}


class MLflow:
    """A `Backend` of `training.trackers`.

    Args:
        run: whose run.json keeps the run's id, so that a run that goes on is the same one there.
        parameters: the configuration, flat.
    """

    def __init__(self, run: RunFolder, parameters: dict[str, Any]) -> None:
        self.run, self.parameters = run, parameters
        folder, given = run.path.resolve().parent, os.environ.get("MLFLOW_TRACKING_URI")
        self.uri = given or sqlite_address(folder / "mlflow.db")
        self.files = None if given else (folder / "mlflow").as_uri()  # a server knows its own place
        self.place = without_password(self.uri)
        self.remedy = "make room, or leave it out with --track none"
        if given:
            self.remedy = "start the server there, correct MLFLOW_TRACKING_URI, or unset it for a file beside the runs"
        server = self.uri.startswith(("http:", "https:"))
        self.look = self.place if server else f"mlflow ui --backend-store-uri {shlex.quote(self.place)}"
        self.id = ""
        self._client: MlflowClient | None = None

    def open(self) -> set[int]:
        """As `Backend.open`."""
        os.environ.update(QUIET | {name: os.environ.get(name, value) for name, value in PATIENCE.items()})
        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it warns of each try, we of the last
        if self.files and not (self.run.path.parent / "mlflow.db").exists():
            log.info(f"making {shown(self.run.path.parent / 'mlflow.db')}: MLflow takes some seconds, once")
        self._client = MlflowClient(self.uri)
        self.id = self.run.record.get("mlflow", {}).get("run_id", "")
        if self.id and self._reopened():
            return {metric.step for metric in self._client.get_metric_history(self.id, HISTORY[-1])}
        self._begin()
        return set()

    def _reopened(self) -> bool:
        """Go on with the run that run.json names, if this store has it."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.update_run(self.id, status="RUNNING")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            log.info(f"{self.place} knows no run {self.id}: a new one is made")
            return False
        return True

    def _begin(self) -> None:
        from mlflow.entities import Param

        name, record = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT), self.run.record
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name, self.files)
        tags = {key: str(record[key]) for key in ("model", "init", "data", "device", "precision", "size", "command")}
        tags |= {"mlflow.source.name": "train.py", "mlflow.source.type": "LOCAL"}
        if record.get("commit"):
            tags["mlflow.source.git.commit"] = record["commit"]
        self.id = self._client.create_run(number, tags=tags, run_name=self.run.path.name).info.run_id
        self._client.log_batch(self.id, params=[Param(key, str(value)) for key, value in self.parameters.items()])
        self.run.update(mlflow={"experiment": name, "run_id": self.id})

    def scalars(self, row: dict[str, Any]) -> None:
        """As `Backend.scalars`: metrics are called as the columns of history.csv."""
        from mlflow.entities import Metric

        now, epoch = int(time.time() * 1000), row["epoch"]
        metrics = [Metric(name, float(row[name]), now, epoch) for name in HISTORY if name != "epoch"]
        self._client.log_batch(self.id, metrics=metrics)

    def image(self, name: str, pixels: np.ndarray, epoch: int) -> None:
        """As `Backend.image`, as a file that the next epoch's replaces: in MLflow's charts of images by epoch the
        parameters cover the images.
        """
        group, own = name.split("/", 1)
        own = re.sub(r"[^\w -]", "_", own)  # class names may hold what no path may
        self._client.log_image(self.id, pixels, f"{group}/{own}.png")

    def end(self, status: str) -> None:
        """As `Backend.end`: of a run that is finished, its files are kept too."""
        for name in FILES if status == "finished" else ():
            self._client.log_artifact(self.id, str(self.run.path / name))
        self._client.set_terminated(self.id, STATUS[status])
