"""MLflow: parameters, metrics, images and files of a run, in a SQLite file or on a server.

MLflow's own variables `MLFLOW_TRACKING_URI` and `MLFLOW_EXPERIMENT_NAME` choose the place. The default is `mlflow.db`
in the folder of the runs, with the files in `mlflow/`.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from command_line import hide_password
from experiment.run_folder import HISTORY, RunFolder
from utils import log, shown, sqlite_address

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

EXPERIMENT = "chest-radiographs"
FILES = ("config.yaml", "run.json", "history.csv", "curves.png", "best.pt")
STATUS = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED", "pruned": "KILLED"}
# Keep a server that is down from stopping an epoch: by default MLflow tries 7 times, 2 minutes each. Variables that are
# already set are respected.
PATIENCE = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}


class MLflow:
    """MLflow as a `Backend`.

    Args:
        run: the run folder; its run.json stores the id of the MLflow run, which a resumed run continues.
        parameters: the configuration, by dotted key.
    """

    def __init__(self, run: RunFolder, parameters: dict[str, Any]) -> None:
        self.run, self.parameters = run, parameters
        folder, given = run.path.resolve().parent, os.environ.get("MLFLOW_TRACKING_URI")
        self.uri = given or sqlite_address(folder / "mlflow.db")
        self.files = None if given else (folder / "mlflow").as_uri()  # a server has a place of its own
        self.place = hide_password(self.uri)
        self.remedy = "make room, or pass --track none"
        if given:
            self.remedy = "start the server, correct MLFLOW_TRACKING_URI, or unset it to use a file beside the runs"
        server = self.uri.startswith(("http:", "https:"))
        self.view = self.place if server else f"mlflow ui --backend-store-uri {shlex.quote(self.place)}"
        self.run_id = ""
        self._client: MlflowClient | None = None

    def open(self) -> set[int]:
        """As `Backend.open`."""
        os.environ.update(QUIET | {name: os.environ.get(name, value) for name, value in PATIENCE.items()})
        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # warns about every attempt
        if self.files and not (self.run.path.parent / "mlflow.db").exists():
            log.info(f"creating {shown(self.run.path.parent / 'mlflow.db')} (once; takes some seconds)")
        self._client = MlflowClient(self.uri)
        self.run_id = self.run.record.get("mlflow", {}).get("run_id", "")
        if self.run_id and self._reopen():
            return {metric.step for metric in self._client.get_metric_history(self.run_id, HISTORY[-1])}
        self._create()
        return set()

    def _reopen(self) -> bool:
        """Reopen the run that run.json names, and return whether MLflow still has it."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.update_run(self.run_id, status="RUNNING")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            log.info(f"{self.place} has no run {self.run_id}: creating a new one")
            return False
        return True

    def _create(self) -> None:
        """Create a run with its tags and parameters."""
        from mlflow.entities import Param

        name, record = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT), self.run.record
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name, self.files)
        tags = {key: str(record[key]) for key in ("model", "init", "data", "device", "precision", "size", "command")}
        tags |= {"mlflow.source.name": "train.py", "mlflow.source.type": "LOCAL"}
        if record.get("commit"):
            tags["mlflow.source.git.commit"] = record["commit"]
        self.run_id = self._client.create_run(number, tags=tags, run_name=self.run.path.name).info.run_id
        self._client.log_batch(self.run_id, params=[Param(key, str(value)) for key, value in self.parameters.items()])
        self.run.update(mlflow={"experiment": name, "run_id": self.run_id})

    def scalars(self, row: dict[str, Any]) -> None:
        """As `Backend.scalars`; the metrics have the names of history.csv's columns."""
        from mlflow.entities import Metric

        now, epoch = int(time.time() * 1000), row["epoch"]
        metrics = [Metric(name, float(row[name]), now, epoch) for name in HISTORY if name != "epoch"]
        self._client.log_batch(self.run_id, metrics=metrics)

    def image(self, name: str, pixels: np.ndarray, epoch: int) -> None:
        """As `Backend.image`; later epochs overwrite the file, as MLflow's view of images by epoch is hard to read."""
        group, stem = name.split("/", 1)
        stem = re.sub(r"[^\w -]", "_", stem)  # a class name may contain characters that paths must not
        self._client.log_image(self.run_id, pixels, f"{group}/{stem}.png")

    def close(self, status: str) -> None:
        """As `Backend.close`; a finished run's files are stored too."""
        for name in FILES if status == "finished" else ():
            self._client.log_artifact(self.run_id, str(self.run.path / name))
        self._client.set_terminated(self.run_id, STATUS[status])
