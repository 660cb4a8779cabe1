"""Fixtures of the trackers' tests: no MLflow server, and a function that trains a tracked run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from command_line import start_logging
from tests.helpers.tracking import Tracked
from tests.helpers.training_case import small_config
from training.trainer import train


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hide the machine's MLflow variables, and delete those that a test sets."""
    start_logging()
    for name in [name for name in os.environ if name.startswith("MLFLOW")]:
        monkeypatch.delenv(name)
    before = set(os.environ)
    yield
    for name in set(os.environ) - before:
        del os.environ[name]


@pytest.fixture
def tracked(phantom: Path, cache_dir: Path, tmp_path: Path) -> Tracked:
    """`tracked("mlflow", epochs=2)` trains a small model and returns its run folder."""

    def run(track: str, epochs: int = 1, name: str = "a", save: Path = tmp_path) -> Path:
        words = (
            "model=timm/test_resnet",
            f"track={track}",
            f"train.epochs={epochs}",
            "train.batch=24",
            "train.patience=9",
        )
        return train(small_config(phantom, cache_dir, save, *words), name)

    return run
