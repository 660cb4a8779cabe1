"""One epoch: finite losses, batches that can be normalised, patience."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from experiment.checkpoint import load_checkpoint
from tests.helpers.training_case import small_config
from training import loop
from training.loop import still_improving
from training.trainer import train
from utils import UserError


def test_a_loss_that_is_not_finite_names_epoch_and_step(
    phantom: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    original = loop._step

    def poisoned(*arguments: object) -> torch.Tensor:
        steps.append(1)
        return original(*arguments) * (math.nan if len(steps) == 7 else 1)

    monkeypatch.setattr(loop, "_step", poisoned)
    with pytest.raises(UserError, match="epoch 2, step 2 of 5"):
        train(small_config(phantom, cache_dir, tmp_path), "bad")
    record = json.loads((tmp_path / "bad" / "run.json").read_text())
    assert record["status"] == "failed"
    assert "epoch 2, step 2" in record["reason"]
    assert load_checkpoint(tmp_path / "bad" / "last.pt").epoch == 1  # the earlier checkpoint is intact


def test_a_real_divergence_is_caught(phantom: Path, cache_dir: Path, tmp_path: Path) -> None:
    words = ("train.lr=1e30", "train.warmup=0", "train.clip_norm=null", "train.optimizer=sgd")
    with pytest.raises(UserError, match="not finite"):
        train(small_config(phantom, cache_dir, tmp_path, *words), "diverged")


def test_a_batch_that_cannot_be_normalised_is_explained(phantom: Path, cache_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--batch 1: batch normalisation"):
        train(small_config(phantom, cache_dir, tmp_path, "data.size=32", "train.batch=1"), "one")


def test_patience() -> None:
    def history(*losses: float) -> list[dict]:
        return [{"epoch": epoch, "valid_loss": loss} for epoch, loss in enumerate(losses, 1)]

    assert still_improving(history(3, 2, 2.5), 2)
    assert not still_improving(history(3, 2, 2.5, 2.1), 2)
    assert still_improving(history(3, 2, 2.5, 1.9), 2)
    assert still_improving(history(1, *[2] * 50), None)
