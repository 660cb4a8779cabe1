"""Where the course of a training is shown beside its run folder: TensorBoard, MLflow, or nowhere.

A tracker looks on. It leaves every random state as it was, and one that fails (a full disk, a server that is down) is
let go with one warning: the training goes on, and its run folder holds the same numbers. Of several ranks the first
alone has one.
"""

from __future__ import annotations

import contextlib
import importlib.util
import random
import re
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch

from config import Config, all_keys, get_value
from dataset.loading import Dataset
from evaluation.metrics.confusion import confusion_matrix
from experiment.checkpoint import load_checkpoint
from experiment.run_folder import Pruned, RunFolder, best_epoch
from training.loop import Learner
from training.trackers.previews import confusion_picture, sample_cams
from utils import UserError, log


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

    def picture(self, name: str, png: bytes, epoch: int) -> None:
        """Show a PNG as what `name` (`group/name`) was after an epoch."""

    def end(self, status: str) -> None:
        """The run is `finished`, `interrupted`, `failed` or `pruned`."""


def check_tracker(name: str) -> None:
    """Raises: `UserError` where the package behind a `track` is not installed (it has the tracker's name)."""
    if name != "none" and importlib.util.find_spec(name) is None:
        raise UserError(f"--track {name}: not installed: pip install {name}, or leave tracking out with --track none")


def _backend(run: RunFolder, config: Config) -> Backend | None:
    parameters = {dotted: get_value(config, dotted) for dotted in all_keys()}
    if config.track == "tensorboard":
        from training.trackers.tensorboard import TensorBoard

        return TensorBoard(run, parameters)
    if config.track == "mlflow":
        from training.trackers.mlflow import MLflow

        return MLflow(run, parameters)
    return None


@contextlib.contextmanager
def tracking(
    run: RunFolder, learner: Learner, dataset: Dataset, history: list[dict[str, Any]]
) -> Iterator[Callable[[], None]]:
    """Track the training in the block, which calls what it is given after every epoch that it added to `history`."""
    tracker = Tracker(_backend(run, learner.config), run, learner, dataset, history)
    tracker.start()
    try:
        yield tracker.epoch
    except BaseException as error:
        status = "pruned" if isinstance(error, Pruned) else "failed" if isinstance(error, Exception) else "interrupted"
        tracker.end(status)
        raise
    tracker.finish()


class Tracker:
    """What is shown of a run, by a backend that is let go where it fails.

    Args:
        backend: None: nothing is shown.
        history: as it grows.
    """

    def __init__(
        self,
        backend: Backend | None,
        run: RunFolder,
        learner: Learner,
        dataset: Dataset,
        history: list[dict[str, Any]],
    ) -> None:
        self.backend, self.run, self.learner, self.dataset, self.history = backend, run, learner, dataset, history

    def start(self) -> None:
        """Open the backend, and show what it lacks of the epochs before: it may have failed in an earlier part."""
        self._guarded(self._open)

    def _open(self, backend: Backend) -> None:
        known = backend.open()
        for row in self.history:
            if row["epoch"] not in known:
                backend.scalars(row)
        log.info(f"tracked: {backend.look}")

    def epoch(self) -> None:
        """Show the last epoch; its confusion matrix too where it is the best so far."""
        row = self.history[-1]
        self._guarded(lambda backend: backend.scalars(row))
        if self.learner.validated is not None and row is best_epoch(self.history):
            self._guarded(self._show_confusion)

    def _show_confusion(self, backend: Backend) -> None:
        epoch, part = self.history[-1]["epoch"], self.dataset.images("val")
        counts = confusion_matrix(part.labels, self.learner.validated.argmax(1), len(part.classes))
        png = confusion_picture(counts, part.classes, f"{self.run.path.name}, validation, epoch {epoch}")
        backend.picture("validation/confusion matrix", png, epoch)

    def finish(self) -> None:
        """Show sample CAMs of best.pt, and close."""
        self._guarded(self._show_cams)
        self.end("finished")

    def _show_cams(self, backend: Backend) -> None:
        checkpoint = load_checkpoint(self.run.path / "best.pt")
        config, device = self.learner.config, self.learner.device
        try:
            cams = sample_cams(checkpoint, self.dataset, config.data, device, config.seed)
        except (UserError, RuntimeError) as error:  # no Grad-CAM, or no memory for it: no fault of the backend's
            log.warning(f"--track {config.track}: no sample CAMs: {_line(error)}")
            return
        for name, png in cams:
            backend.picture(f"sample Grad-CAM/{name}", png, checkpoint.epoch)

    def end(self, status: str) -> None:
        """Close: the run is `finished`, `interrupted`, `failed` or `pruned`."""
        self._guarded(lambda backend: backend.end(status))
        self.backend = None

    def _guarded(self, action: Callable[[Backend], None]) -> None:
        """Do it; where that fails, say so and let the backend go. Any error at all: none is worth a training."""
        if self.backend is None:
            return
        try:
            with _random_state_kept():
                action(self.backend)
        except Exception as error:
            log.warning(
                f"--track {self.learner.config.track}: {self.backend.place} failed ({_line(error)}): "
                f"{self.backend.remedy}; the training goes on untracked, its numbers are in history.csv"
            )
            self.backend = None


def _line(error: Exception) -> str:
    """The error in one line of at most 200 characters: what was tried stands first, why it failed last."""
    text = without_password(" ".join(str(error).split()))
    text = text if len(text) <= 200 else f"{text[:99].rstrip()}…{text[-100:].lstrip()}"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def without_password(text: str) -> str:
    """The text, its addresses without user and password: it is for screens and logs."""
    return re.sub(r"(?<=://)[^/@\s]*@", "", text)


@contextlib.contextmanager
def _random_state_kept() -> Iterator[None]:
    """Nothing in the block moves the generators of Python, NumPy and torch (of the CPU: no tracker draws elsewhere)."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the libraries' global generator
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
