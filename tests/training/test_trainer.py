"""Whole trainings: the run folder, exact resuming, unreadable images, early stopping."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

from command_line import start_logging
from config import load_run_config
from experiment.checkpoint import load_checkpoint
from experiment.run_folder import HISTORY, finished_runs
from tests.helpers.training_case import small_config
from training import loop, trainer
from training.trainer import resume, train
from utils import UserError


def test_run_folder_holds_the_contract(tiny_run: Path, phantom: Path) -> None:
    names = {"config.yaml", "run.json", "split.csv", "history.csv", "best.pt", "last.pt", "curves.png", "train.log"}
    assert names <= {p.name for p in tiny_run.iterdir()}
    record = json.loads((tiny_run / "run.json").read_text())
    expected = {"status": "finished", "model": "resnet18", "precision": "fp32", "seed": 0}
    assert expected.items() <= record.items()
    assert record["versions"]["torch"] in (torch.__version__, torch.__version__.split("+")[0])
    assert {"command", "commit", "device", "init", "timings", "best_epoch"} <= set(record)
    split = pd.read_csv(tiny_run / "split.csv", dtype=str, keep_default_na=False)
    assert split.columns.tolist() == ["path", "sha256", "label", "group", "source", "lung_mask", "lesion_mask", "split"]
    assert len(split) == 120
    assert (split.groupby("group")["split"].nunique() == 1).all()
    assert split["group"].nunique() < 120
    assert split["source"].nunique() > 1
    history = pd.read_csv(tiny_run / "history.csv")
    assert history.columns.tolist() == HISTORY
    assert history["epoch"].tolist() == [1, 2]
    assert load_run_config(tiny_run / "config.yaml").data.path == str(phantom)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_an_interrupted_and_resumed_run_is_an_uninterrupted_one(
    optimizer: str, phantom: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights and history are equal bit for bit after an interruption in the middle of an epoch."""
    words = [f"train.optimizer={optimizer}", "train.freeze_epochs=1", "train.lr=0.002"]
    whole = train(small_config(phantom, cache_dir, tmp_path, *words), "whole")
    steps = []
    original = loop._step

    def stop_in_third(*arguments: object) -> torch.Tensor:
        steps.append(1)
        if len(steps) == 13:  # in the third epoch of five steps
            torch.manual_seed(99)  # random states are lost
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(loop, "_step", stop_in_third)
    with pytest.raises(KeyboardInterrupt):
        train(small_config(phantom, cache_dir, tmp_path, *words), "halves")
    halves = tmp_path / "halves"
    assert json.loads((halves / "run.json").read_text())["status"] == "interrupted"
    assert finished_runs(tmp_path) == [whole]
    resume(halves, {})
    assert json.loads((halves / "run.json").read_text())["status"] == "finished"
    for name in ("best.pt", "last.pt"):
        a, b = load_checkpoint(whole / name), load_checkpoint(halves / name)
        assert a.epoch == b.epoch
        assert all(torch.equal(a.state[k], b.state[k]) for k in a.state)
    columns = [column for column in HISTORY if column not in ("seconds", "images_per_second")]
    pd.testing.assert_frame_equal(*(pd.read_csv(run / "history.csv")[columns] for run in (whole, halves)))


@pytest.mark.slow
def test_resume_refuses_changed_images(phantom: Path, cache_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(phantom, tmp_path / "data")
    run = train(small_config(tmp_path / "data", cache_dir, tmp_path, "train.patience=9"), "a")
    split = pd.read_csv(run / "split.csv")
    first, second = split[split["split"] == "train"]["path"][:2]
    shutil.copy(first, second)
    with pytest.raises(UserError, match="training images have changed"):
        resume(run, {"train.epochs": 6})


def test_resume_refuses_another_experiment(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.lr cannot change"):
        resume(tiny_run, {"train.lr": 1.0})
    with pytest.raises(UserError, match="already trained for 2 epochs; pass a larger --epochs"):
        resume(tiny_run, {})
    with pytest.raises(UserError, match="not a run folder"):
        resume(tmp_path, {})


@pytest.mark.slow
def test_unreadable_images_are_named_and_limited(
    phantom: Path, cache_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    start_logging()
    copy = tmp_path / "data"
    shutil.copytree(phantom, copy)
    images = sorted((copy / "Normal" / "images").iterdir())
    images[0].write_text("no image")
    images[1].write_bytes(images[1].read_bytes()[:500])
    run = train(small_config(copy, cache_dir, tmp_path / "runs", "train.epochs=1"), "some")
    log = (run / "train.log").read_text()
    assert all(image.name in log for image in images[:2])
    assert "2 of 120 images cannot be read" in capsys.readouterr().out
    assert json.loads((run / "run.json").read_text())["unreadable"] == 2
    assert not {str(i) for i in images[:2]} & set(pd.read_csv(run / "split.csv")["path"])
    for image in images[2:8]:
        image.write_text("no image")
    with pytest.raises(UserError, match=r"8 of 120 images cannot be read.*max_unreadable"):
        train(small_config(copy, cache_dir, tmp_path / "runs"), "many")
    assert not (tmp_path / "runs" / "many").exists()


@pytest.mark.slow
def test_early_stopping_finishes_a_run(
    phantom: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([1.0, 2.0, 3.0, 0.5])
    monkeypatch.setattr(
        trainer, "validate", lambda *_: {"valid_loss": next(losses), "valid_accuracy": 0.5, "valid_macro_f1": 0.5}
    )
    run = train(small_config(phantom, cache_dir, tmp_path, "train.patience=2"), "early")
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["epochs"], record["best_epoch"]) == ("finished", 3, 1)
