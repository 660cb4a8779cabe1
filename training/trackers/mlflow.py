"""A run in MLflow: parameters, metrics, pictures, files and the model, in a SQLite file beside the runs or on a server.

Where: `MLFLOW_TRACKING_URI` and `MLFLOW_EXPERIMENT_NAME`, as everywhere with MLflow; by default `mlflow.db` in the
folder of the runs, its files in `mlflow/` beside it.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import shlex
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from experiment.checkpoint import load_checkpoint
from experiment.run_folder import HISTORY, RunFolder
from training.trackers.base import without_password
from utils import log, shown, sqlite_address

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

EXPERIMENT = "chest-radiographs"
FILES = ("config.yaml", "run.json", "history.csv", "curves.png", "best.pt")
STATUS = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED", "pruned": "KILLED"}
# MLflow's own are 7 tries of 2 minutes: an epoch does not wait for a server that is down. Who sets his own keeps them.
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
        folder = run.path.resolve().parent
        given = os.environ.get("MLFLOW_TRACKING_URI")
        self.uri = given or sqlite_address(folder / "mlflow.db")
        self.files = None if given else (folder / "mlflow").as_uri()  # a server knows its own place
        self.place = without_password(self.uri)
        self.remedy = "make room, or leave it out with --track none"
        self.look = f"mlflow ui --backend-store-uri {shlex.quote(self.place)}"
        if given:
            self.remedy = "start the server there, correct MLFLOW_TRACKING_URI, or unset it for a file beside the runs"
        if self.uri.startswith(("http:", "https:")):
            self.look = self.place
        self.id = ""
        self._client: MlflowClient | None = None

    def open(self) -> set[int]:
        """As `Backend.open`."""
        os.environ.update(QUIET)
        for name, value in PATIENCE.items():
            os.environ.setdefault(name, value)
        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it warns of each try, we of the last
        if self.files and not (self.run.path.parent / "mlflow.db").exists():
            log.info(f"making {shown(self.run.path.parent / 'mlflow.db')}: MLflow takes some seconds, once")
        self._client = MlflowClient(self.uri)
        if self._take_up():
            return {metric.step for metric in self._client.get_metric_history(self.id, HISTORY[-1])}
        self._begin()
        return set()

    def _take_up(self) -> bool:
        """Go on with the run that run.json names, if this store has it."""
        from mlflow.exceptions import MlflowException

        known = self.run.record.get("mlflow", {}).get("run_id")
        if known is None:
            return False
        try:
            self._client.update_run(known, status="RUNNING")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            log.info(f"{self.place} knows no run {known}: a new one is made")
            return False
        self.id = known
        return True

    def _begin(self) -> None:
        from mlflow.entities import Param

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name, self.files)
        record = self.run.record
        facts = {key: str(record[key]) for key in ("model", "init", "data", "device", "precision", "size", "command")}
        source = {"mlflow.source.name": "train.py", "mlflow.source.type": "LOCAL"}
        commit = {"mlflow.source.git.commit": record["commit"]} if record.get("commit") else {}
        found = self._client.create_run(number, tags=facts | source | commit, run_name=self.run.path.name)
        self.id = found.info.run_id
        self._client.log_batch(self.id, params=[Param(key, str(value)) for key, value in self.parameters.items()])
        self.run.update(mlflow={"experiment": name, "run_id": self.id})

    def scalars(self, row: dict[str, Any]) -> None:
        """As `Backend.scalars`: metrics are called as the columns of history.csv."""
        from mlflow.entities import Metric

        now, epoch = int(time.time() * 1000), row["epoch"]
        metrics = [Metric(name, float(row[name]), now, epoch) for name in HISTORY if name != "epoch"]
        self._client.log_batch(self.id, metrics=metrics)

    def picture(self, name: str, png: bytes, epoch: int) -> None:
        """As `Backend.picture`, as a file that the next epoch's replaces: in MLflow's charts of pictures by epoch the
        parameters cover the pictures.
        """
        from PIL import Image

        group, own = name.split("/", 1)
        own = re.sub(r"[^\w -]", "_", own)  # class names may hold what no path may
        self._client.log_image(self.id, Image.open(io.BytesIO(png)), f"{group}/{own}.png")

    def end(self, status: str) -> None:
        """As `Backend.end`: of a run that is finished, its files and its model are kept too."""
        if status == "finished":
            for name in FILES:
                self._client.log_artifact(self.id, str(self.run.path / name))
            self._log_model()
        self._client.set_terminated(self.id, STATUS[status])

    def _log_model(self) -> None:
        """best.pt as a model that MLflow can serve: a traced graph, which executes no pickled code when it is read.

        Its input is (n, channels, side, side) float32, normalised as the metadata say; its output are class scores.
        """
        import numpy as np
        import torch

        checkpoint = load_checkpoint(self.run.path / "best.pt")
        a = checkpoint.architecture
        with _current(self.uri) as mlflow, mlflow.start_run(run_id=self.id):
            import mlflow.pytorch

            try:
                mlflow.pytorch.log_model(
                    checkpoint.model().to(memory_format=torch.contiguous_format),
                    name="model",
                    input_example=np.zeros((2, len(a.mean), checkpoint.size, checkpoint.size), np.float32),
                    pip_requirements=[f"torch=={torch.__version__.split('+')[0]}"],  # else MLflow tries for minutes
                    serialization_format="pt2",
                    step=checkpoint.epoch,
                    metadata={
                        "classes": checkpoint.classes,
                        "mean": list(a.mean),
                        "std": list(a.std),
                        "fit": checkpoint.fit,
                    },
                )
            except Exception as error:  # tracing may fail in as many ways as there are models
                reason = " ".join(str(error).split())[:200]
                log.warning(f"--track mlflow: {self.place} has best.pt, but no model to serve: {reason}")


@contextlib.contextmanager
def _current(uri: str) -> Iterator[Any]:
    """`mlflow` with `uri` as its current store in the block: logging a model knows no other way."""
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield mlflow
    finally:
        mlflow.set_tracking_uri(None)  # which forgets the environment's too
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before
