"""Where the course of a training is shown beside its run folder: TensorBoard, MLflow, or nowhere.

A tracker looks on: if it fails (a full disk, a server that is down), it is disabled with a warning, the training goes
on, and its run folder holds the same numbers. Of several ranks the first alone has one.
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

from config import all_keys, get_value
from evaluation.metrics.confusion import confusion_matrix
from experiment.checkpoint import load_checkpoint
from training.ending import status_of
from training.record import Training
from training.trackers.previews import confusion_image, sample_cams
from utils import UserError, elide, log


class Backend(Protocol):
    """One way to show a run. Any of the methods may raise anything.

    Attributes:
        place: where it writes, for people; without passwords.
        remedy: what to do where that fails.
        look: the command that shows it.
    """

    place: str
    remedy: str
    look: str

    def open(self) -> set[int]:
        """Begin, or go on where an earlier part of the run ended. Returns: the epochs that it has already."""

    def scalars(self, row: dict[str, Any]) -> None:
        """Show a row of the history."""

    def image(self, name: str, pixels: np.ndarray, epoch: int) -> None:
        """Show `pixels` (h, w, 3) uint8 as what `name` (`group/name`) was after an epoch."""

    def end(self, status: str) -> None:
        """The run is `finished`, `interrupted`, `failed` or `pruned`."""


def check_tracker(name: str) -> None:
    """Raises: `UserError` where the package behind a `track` is not installed (it has the tracker's name)."""
    if name != "none" and importlib.util.find_spec(name) is None:
        raise UserError(f"--track {name}: not installed: pip install {name}, or leave tracking out with --track none")


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
    """Track the training in the block, which calls the function it is given after every epoch."""
    tracker = _Tracker(training, make_backend(training))
    tracker.attempt(tracker.open)
    try:
        yield lambda: tracker.attempt(tracker.show_epoch)
        tracker.attempt(tracker.show_cams)
    except BaseException as error:
        status = status_of(error)
        tracker.attempt(lambda backend: backend.end(status))
        raise
    tracker.attempt(lambda backend: backend.end("finished"))


class _Tracker:
    """What is shown of a training by a backend that is disabled if it fails; None: nothing is shown."""

    def __init__(self, training: Training, backend: Backend | None) -> None:
        self.training, self.backend = training, backend

    def attempt(self, action: Callable[[Backend], None]) -> None:
        """Do it; if that fails, warn and disable the backend. Any error at all: none is worth a training."""
        if self.backend is None:
            return
        try:
            action(self.backend)
        except Exception as error:
            log.warning(
                f"--track {self.training.learner.config.track}: {self.backend.place} failed ({_line(error)}): "
                f"{self.backend.remedy}; the training goes on untracked, its numbers are in history.csv"
            )
            self.backend = None

    def open(self, backend: Backend) -> None:
        """Open the backend, and show what it lacks of the epochs before: it may have failed in an earlier part."""
        shown = backend.open()
        for row in self.training.history:
            if row["epoch"] not in shown:
                backend.scalars(row)
        log.info(f"tracked: {backend.look}")

    def show_epoch(self, backend: Backend) -> None:
        """Show the newest epoch; its confusion matrix too where it is the best so far."""
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
        except (UserError, RuntimeError) as error:  # no Grad-CAM, or no memory for it: no fault of the backend's
            log.warning(f"--track {learner.config.track}: no sample CAMs: {_line(error)}")
            return
        for name, pixels in cams:
            backend.image(f"sample Grad-CAM/{name}", pixels, checkpoint.epoch)


def _line(error: Exception) -> str:
    """Return the error in one line: what was tried stands first, why it failed last."""
    text = elide(without_password(" ".join(str(error).split())), 200)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def without_password(text: str) -> str:
    """Return the text, its addresses without user and password: it is for screens and logs."""
    return re.sub(r"(?<=://)[^/@\s]*@", "", text)
