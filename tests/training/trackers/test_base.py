"""Any tracker: no change of weights, no failure that ends a training, and a status at the end."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from config import Config
from experiment.checkpoint import load_checkpoint
from experiment.run_folder import RunFolder
from tests.helpers.tracking import Tracked, one_warning
from training.record import Pruned
from training.trackers import base as trackers
from utils import UserError


class _Fake:
    """A backend that records its calls, draws random numbers as libraries do, and may fail."""

    place, remedy, view = "nowhere", "do nothing", "true"

    def __init__(self, fails_at: str = "") -> None:
        self.fails_at, self.calls = fails_at, []

    def _do(self, name: str) -> None:
        self.calls.append(name)
        random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
        if name == self.fails_at:
            raise RuntimeError("two\nlines")

    def open(self) -> set[int]:
        self._do("open")
        return set()

    def scalars(self, row: dict[str, Any]) -> None:
        self._do(f"epoch {row['epoch']}")

    def image(self, name: str, pixels: np.ndarray, epoch: int) -> None:
        self._do(name)

    def close(self, status: str) -> None:
        self._do(status)


@pytest.mark.slow
def test_tracking_changes_no_weight_and_a_failure_is_the_last_call(
    tracked: Tracked, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    untracked = tracked("none", 2)
    assert not list(untracked.glob("events.*"))
    fake = _Fake(fails_at="epoch 2")
    monkeypatch.setattr(trackers, "make_backend", lambda training: fake)
    run = tracked("tensorboard", 2, "fake")
    assert fake.calls == ["open", "epoch 1", "validation/confusion matrix", "epoch 2"]
    assert "nowhere failed (RuntimeError: two lines): do nothing" in one_warning(run, capfd)
    states = [load_checkpoint(folder / "last.pt").state for folder in (untracked, run)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt, "interrupted"), (UserError, "failed"), (Pruned, "pruned")]
)
def test_a_tracker_is_closed_with_the_status(
    error: type[BaseException], status: str, monkeypatch: pytest.MonkeyPatch, tiny_run: Path
) -> None:
    fake = _Fake()
    monkeypatch.setattr(trackers, "make_backend", lambda training: fake)
    history, learner = [{"epoch": 1, "valid_loss": 2.0}], SimpleNamespace(config=Config())
    training = SimpleNamespace(run=RunFolder(tiny_run), learner=learner, history=history, improved=False)
    with pytest.raises(error), trackers.tracking(training) as track_epoch:
        history.append({"epoch": 2, "valid_loss": 3.0})
        track_epoch()
        raise error("no more")
    assert fake.calls == ["open", "epoch 1", "epoch 2", status]


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_missing_package_is_reported_before_anything_starts(
    name: str, tracked: Tracked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == name else real(n, *a))
    with pytest.raises(UserError, match=f"--track {name}: not installed; run pip install {name}"):
        tracked(name, save=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    trackers.check_tracker("none")
