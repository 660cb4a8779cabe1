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
from training.record import Training, status_of
from training.trackers.previews import confusion_image, sample_cams
from utils import UserError, elide, log


class Backend(Protocol):
    """A program that can show a run. All methods may raise any exception.

    Attributes:
        place: the file or address it writes to.
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
    """Return the backend that `track` names: the class `Tracker` of the module of that name; None for `none`."""
    config = training.learner.config
    if config.track == "none":
        return None
    module = importlib.import_module(f"training.trackers.{config.track}")
    return module.Tracker(training.run, {key: get_value(config, key) for key in all_keys()})


@contextlib.contextmanager
def tracking(training: Training) -> Iterator[Callable[[], None]]:
    """Track the training that runs in the block, and give it a function to call after every epoch."""
    backend, option = make_backend(training), f"--track {training.learner.config.track}"

    def attempt(action: Callable[[Training, Backend], None]) -> None:
        """Run `action`; if it fails for any reason, warn and disable the backend."""
        nonlocal backend
        try:
            if backend is not None:
                action(training, backend)
        except Exception as error:
            log.warning(
                f"{option}: {hide_password(backend.place)} failed ({_line(error)}): {backend.remedy}; training "
                "continues without it, all numbers are in history.csv"
            )
            backend = None

    attempt(_open)
    status = "finished"
    try:
        yield lambda: attempt(_show_epoch)
        attempt(_show_cams)
    except BaseException as error:
        status = status_of(error)
        raise
    finally:
        attempt(lambda training, backend: backend.close(status))


def _open(training: Training, backend: Backend) -> None:
    """Open the backend and show earlier epochs that it lacks, for example because it had failed."""
    recorded = backend.open()
    for row in training.history:
        if row["epoch"] not in recorded:
            backend.scalars(row)
    log.info(f"tracking: {hide_password(backend.view)}")


def _show_epoch(training: Training, backend: Backend) -> None:
    """Show the newest epoch, with its confusion matrix if it is the best so far."""
    row = training.history[-1]
    backend.scalars(row)
    if training.improved:
        backend.image("validation/confusion matrix", confusion_image(training), row["epoch"])


def _show_cams(training: Training, backend: Backend) -> None:
    """Show sample CAMs of best.pt."""
    try:
        cams = sample_cams(training)
    except (UserError, RuntimeError) as error:  # no Grad-CAM or no memory for it: the backend has not failed
        log.warning(f"--track {training.learner.config.track}: no sample CAMs: {_line(error)}")
        return
    for name, pixels in cams.items():
        backend.image(f"sample Grad-CAM/{name}", pixels, training.best["epoch"])


def _line(error: Exception) -> str:
    """Return the error in one line. Of a long one the ends matter: the action comes first, the reason last."""
    text = elide(hide_password(" ".join(str(error).split())), 200)
    return f"{type(error).__name__}: {text}".removesuffix(": ")
