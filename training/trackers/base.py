"""Trackers show a training outside its run folder: in TensorBoard, in MLflow, or not at all.

A tracker never ends a training: if it fails (a full disk, a server that is down), it is disabled with a warning, and
the run folder still has all the numbers. Only rank 0 has a tracker.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

from command_line import hide_password
from config import all_keys, get_value
from evaluation.metrics.confusion import confusion_matrix
from experiment.checkpoint import load_checkpoint
from training.ending import status_of
from training.record import Training
from training.trackers.previews import confusion_image, sample_cams
from utils import UserError, elide, log


class Backend(Protocol):
    """A program that can show a run. All methods may raise any exception.

    Attributes:
        place: the file or address it writes to, without passwords.
        remedy: what the user can do if that fails.
        view: the command or address that shows the run.
    """

    place: str
    remedy: str
    view: str

    def open(self) -> set[int]:
        """Start, or continue a resumed run. Returns: the epochs that it has already."""

    def scalars(self, row: dict[str, Any]) -> None:
        """Show a row of history.csv."""

    def image(self, name: str, pixels: np.ndarray, epoch: int) -> None:
        """Show `pixels` (h, w, 3) uint8, made after `epoch`, under `name` (`group/name`)."""

    def close(self, status: str) -> None:
        """End the run as `finished`, `interrupted`, `failed` or `pruned`."""


def check_tracker(name: str) -> None:
    """Raise a `UserError` if the tracker's package, which has the same name, is not installed."""
    if name != "none" and importlib.util.find_spec(name) is None:
        raise UserError(f"--track {name}: not installed; run pip install {name}, or pass --track none")


def make_backend(training: Training) -> Backend | None:
    """Return the backend that `track` names; None for `none`."""
    config = training.learner.config
    if config.track == "none":
        return None
    if config.track == "tensorboard":
        from training.trackers.tensorboard import TensorBoard as Tracker
    else:
        from training.trackers.mlflow import MLflow as Tracker
    return Tracker(training.run, {dotted: get_value(config, dotted) for dotted in all_keys()})


@contextlib.contextmanager
def tracking(training: Training) -> Iterator[Callable[[], None]]:
    """Track the training that runs in the block, and give it a function to call after every epoch."""
    tracker = _Tracker(training, make_backend(training))
    tracker.attempt(tracker.open)
    try:
        yield lambda: tracker.attempt(tracker.show_epoch)
        tracker.attempt(tracker.show_cams)
    except BaseException as error:
        status = status_of(error)
        tracker.attempt(lambda backend: backend.close(status))
        raise
    tracker.attempt(lambda backend: backend.close("finished"))


class _Tracker:
    """Shows a training in a backend and disables the backend if it fails."""

    def __init__(self, training: Training, backend: Backend | None) -> None:
        self.training, self.backend = training, backend

    def attempt(self, action: Callable[[Backend], None]) -> None:
        """Run `action`; if it fails for any reason, warn and disable the backend."""
        if self.backend is None:
            return
        try:
            action(self.backend)
        except Exception as error:
            log.warning(
                f"--track {self.training.learner.config.track}: {self.backend.place} failed ({_line(error)}): "
                f"{self.backend.remedy}; training continues without it, all numbers are in history.csv"
            )
            self.backend = None

    def open(self, backend: Backend) -> None:
        """Open the backend and show earlier epochs that it lacks, for example because it had failed."""
        recorded = backend.open()
        for row in self.training.history:
            if row["epoch"] not in recorded:
                backend.scalars(row)
        log.info(f"tracking: {backend.view}")

    def show_epoch(self, backend: Backend) -> None:
        """Show the newest epoch, with its confusion matrix if it is the best so far."""
        training = self.training
        row, images = training.history[-1], training.validation
        backend.scalars(row)
        if training.improved:
            counts = confusion_matrix(images.labels, training.learner.validated.argmax(1), len(images.classes))
            title = f"{training.run.path.name}, validation, epoch {row['epoch']}"
            backend.image("validation/confusion matrix", confusion_image(counts, images.classes, title), row["epoch"])

    def show_cams(self, backend: Backend) -> None:
        """Show sample CAMs of best.pt."""
        learner = self.training.learner
        checkpoint = load_checkpoint(self.training.run.path / "best.pt")
        try:
            cams = sample_cams(checkpoint, self.training.dataset, learner.config, learner.device)
        except (UserError, RuntimeError) as error:  # no Grad-CAM or no memory for it: the backend has not failed
            log.warning(f"--track {learner.config.track}: no sample CAMs: {_line(error)}")
            return
        for name, pixels in cams:
            backend.image(f"sample Grad-CAM/{name}", pixels, checkpoint.epoch)


def _line(error: Exception) -> str:
    """Return the error in one line. Of a long one the ends matter: the action comes first, the reason last."""
    text = elide(hide_password(" ".join(str(error).split())), 200)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
