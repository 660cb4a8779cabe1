"""MLflow: parameters, metrics, images and files of a run, in a SQLite file or on a server.

MLflow's own variables `MLFLOW_TRACKING_URI` and `MLFLOW_EXPERIMENT_NAME` choose the place. The default is `mlflow.db`
in the folder of the runs, with the files in `mlflow/`.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
from typing import Any

import numpy as np

from experiment.run_folder import HISTORY, RunFolder
from utils import log, shown, sqlite_address

EXPERIMENT = "chest-radiographs"
FILES = ("config.yaml", "run.json", "history.csv", "curves.png", "best.pt")
STATUS = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED", "pruned": "KILLED"}
# Variables that are already set are respected. A server that is down must not stop an epoch: by default MLflow tries 7
# times, 2 minutes each.
VARIABLES = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    **dict.fromkeys(("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR"), "1"),
    **dict.fromkeys(("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "DO_NOT_TRACK"), "true"),
}


class Tracker:
    """MLflow as a `Backend`.

    Args:
        run: the run folder; its run.json stores the id of the MLflow run, which a resumed run continues.
        parameters: the configuration, by dotted key.
    """

    remedy = "make room or start the server, correct or unset MLFLOW_TRACKING_URI, or pass --track none"

    def __init__(self, run: RunFolder, parameters: dict[str, Any]) -> None:
        self.run, self.parameters = run, parameters
        folder, server = run.path.resolve().parent, os.environ.get("MLFLOW_TRACKING_URI")
        self.place = server or sqlite_address(folder / "mlflow.db")
        self.files = None if server else (folder / "mlflow").as_uri()  # a server has a place of its own
        web = self.place.startswith(("http:", "https:"))
        self.view = self.place if web else f"mlflow ui --backend-store-uri {shlex.quote(self.place)}"

    def open(self) -> set[int]:
        """As `Backend.open`."""
        os.environ.update(VARIABLES | os.environ)
        from mlflow import MlflowClient, MlflowException

        for name in ("mlflow", "urllib3.connectionpool"):  # they report every attempt
            logging.getLogger(name).setLevel(logging.ERROR)
        if self.files and not (self.run.path.parent / "mlflow.db").exists():
            log.info(f"creating {shown(self.run.path.parent / 'mlflow.db')} (once; takes some seconds)")
        self._client = MlflowClient(self.place)
        if stored := self.run.record.get("mlflow"):
            self.run_id = stored["run_id"]
            try:
                self._client.update_run(self.run_id, status="RUNNING")
                return {metric.step for metric in self._client.get_metric_history(self.run_id, HISTORY[-1])}
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                log.info(f"MLflow has no run {self.run_id}: creating a new one")
        self._create()
        return set()

    def _create(self) -> None:
        """Create a run with its tags and parameters."""
        from mlflow.entities import Param

        name, record = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT), self.run.record
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name, self.files)
        tags = {key: str(record[key]) for key in ("model", "init", "data", "device", "precision", "size", "command")}
        tags |= {"mlflow.source.name": "train.py", "mlflow.source.git.commit": record["commit"] or "unknown"}
        self.run_id = self._client.create_run(number, tags=tags, run_name=self.run.path.name).info.run_id
        self._client.log_batch(self.run_id, params=[Param(key, str(value)) for key, value in self.parameters.items()])
        self.run.update(mlflow={"experiment": name, "run_id": self.run_id})

    def scalars(self, row: dict[str, Any]) -> None:
        """As `Backend.scalars`; the metrics have the names of history.csv's columns."""
        for name in HISTORY[1:]:
            self._client.log_metric(self.run_id, name, row[name], step=row["epoch"])

    def image(self, name: str, pixels: np.ndarray, epoch: int) -> None:
        """As `Backend.image`; later epochs overwrite the file, as MLflow's view of images by epoch is hard to read."""
        path = re.sub(r"[^\w /-]", "_", name)  # a class name may contain characters that paths must not
        self._client.log_image(self.run_id, pixels, f"{path}.png")

    def close(self, status: str) -> None:
        """As `Backend.close`; a finished run's files are stored too."""
        for name in FILES if status == "finished" else ():
            self._client.log_artifact(self.run_id, str(self.run.path / name))
        self._client.set_terminated(self.run_id, STATUS[status])
