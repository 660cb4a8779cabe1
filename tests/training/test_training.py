"""Training: exact resume, schedules, the finite-loss guard, freezing, early stopping, and what a run folder holds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from config import Config, TrainConfig, compose_config, load_run_config
from experiment.checkpoint import load_checkpoint
from experiment.run_folder import HISTORY, finished_runs
from training import loop, trainer
from training.loop import steady_learning
from training.optimisation import build_optimizer, freeze_backbone, learning_rate
from training.precision import CANDIDATES, choose_precision
from training.trainer import resume, train
from utils import UserError, interrupts_wait


def _config(phantom: Path, cache_dir: Path, save: Path, *words: str) -> Config:
    return compose_config(
        ["data.size=64", f"data.cache_dir={cache_dir}", "data.split=0.6,0.2,0.2", *words],
        {
            "data.path": str(phantom),
            "init": "none",
            "precision": "fp32",
            "train.epochs": 4,
            "train.batch": 16,
            "save": str(save),
        },
    )


def test_run_folder_holds_the_contract(tiny_run: Path, phantom: Path) -> None:
    names = {"config.yaml", "run.json", "split.csv", "history.csv", "best.pt", "last.pt", "curves.png", "train.log"}
    assert names <= {p.name for p in tiny_run.iterdir()}
    record = json.loads((tiny_run / "run.json").read_text())
    assert (record["status"], record["model"], record["precision"], record["seed"]) == (
        "finished",
        "resnet18",
        "fp32",
        0,
    )
    assert (
        record["versions"]["torch"] == torch.__version__.split("+")[0]
        or record["versions"]["torch"] == torch.__version__
    )
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


@pytest.mark.parametrize("fails", [False, True])
def test_an_interruption_waits_and_is_not_lost(fails: bool, ctrl_c: Callable[[], None]) -> None:
    """Also where the block fails meanwhile; after it signals are heard at once again."""
    reached = []
    with pytest.raises(KeyboardInterrupt):
        with interrupts_wait(), interrupts_wait():
            ctrl_c()
            ctrl_c()  # two are one
            reached.append(True)
            if fails:
                raise ValueError
        reached.append("after")
    assert reached == [True]
    with pytest.raises(KeyboardInterrupt):
        ctrl_c()
    with interrupts_wait():
        pass


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_two_and_two_epochs_are_four(
    optimizer: str, phantom: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit: weights, history and checkpoint, with an interruption in the middle of an epoch."""
    words = [f"train.optimizer={optimizer}", "train.freeze_epochs=1", "train.lr=0.002"]
    whole = train(_config(phantom, cache_dir, tmp_path, *words), "whole")
    steps = []
    original = loop._step

    def stop_in_third(*arguments: object) -> torch.Tensor:
        steps.append(1)
        if len(steps) == 13:  # of five an epoch
            torch.manual_seed(99)  # an interruption leaves generators anywhere
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(loop, "_step", stop_in_third)
    with pytest.raises(KeyboardInterrupt):
        train(_config(phantom, cache_dir, tmp_path, *words), "halves")
    halves = tmp_path / "halves"
    assert json.loads((halves / "run.json").read_text())["status"] == "interrupted"
    assert finished_runs(tmp_path) == [whole]
    resume(halves, {})
    assert json.loads((halves / "run.json").read_text())["status"] == "finished"
    for name in ("best.pt", "last.pt"):
        a, b = load_checkpoint(whole / name), load_checkpoint(halves / name)
        assert a.epoch == b.epoch
        assert all(torch.equal(a.state[k], b.state[k]) for k in a.state)
    columns = [
        "epoch",
        "learning_rate",
        "train_loss",
        "train_accuracy",
        "valid_loss",
        "valid_accuracy",
        "valid_macro_f1",
    ]
    pd.testing.assert_frame_equal(*(pd.read_csv(run / "history.csv")[columns] for run in (whole, halves)))


def test_resume_refuses_changed_images(phantom: Path, cache_dir: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(phantom, tmp_path / "data")
    run = train(_config(tmp_path / "data", cache_dir, tmp_path, "train.patience=9"), "a")
    split = pd.read_csv(run / "split.csv")
    first, second = split[split["split"] == "train"]["path"][:2]
    shutil.copy(first, second)
    with pytest.raises(UserError, match="training images have changed"):
        resume(run, {"train.epochs": 6})


def test_resume_refuses_another_experiment(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.lr cannot change"):
        resume(tiny_run, {"train.lr": 1.0})
    with pytest.raises(UserError, match="2 epochs are done"):
        resume(tiny_run, {})
    with pytest.raises(UserError, match="no run folder"):
        resume(tmp_path, {})


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
        train(_config(phantom, cache_dir, tmp_path), "bad")
    record = json.loads((tmp_path / "bad" / "run.json").read_text())
    assert record["status"] == "failed"
    assert "epoch 2, step 2" in record["reason"]
    assert load_checkpoint(tmp_path / "bad" / "last.pt").epoch == 1  # what was written before is whole


def test_a_real_divergence_is_caught(phantom: Path, cache_dir: Path, tmp_path: Path) -> None:
    words = ("train.lr=1e30", "train.warmup=0", "train.clip_norm=null", "train.optimizer=sgd")
    with pytest.raises(UserError, match="not finite"):
        train(_config(phantom, cache_dir, tmp_path, *words), "diverged")


def test_unreadable_images_are_named_and_limited(
    phantom: Path, cache_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    import shutil

    from command_line import start_logging

    start_logging()
    copy = tmp_path / "data"
    shutil.copytree(phantom, copy)
    images = sorted((copy / "Normal" / "images").iterdir())
    images[0].write_text("no image")
    images[1].write_bytes(images[1].read_bytes()[:500])
    config = _config(copy, cache_dir, tmp_path / "runs", "train.epochs=1")
    config.train.epochs = 1
    run = train(config, "some")
    log = (run / "train.log").read_text()
    assert all(image.name in log for image in images[:2])
    assert "2 of 120 images cannot be read" in capsys.readouterr().out
    assert json.loads((run / "run.json").read_text())["unreadable"] == 2
    assert not {str(i) for i in images[:2]} & set(pd.read_csv(run / "split.csv")["path"])
    for image in images[2:8]:
        image.write_text("no image")
    with pytest.raises(UserError, match=r"8 of 120 images cannot be read.*max_unreadable"):
        train(_config(copy, cache_dir, tmp_path / "runs"), "many")
    assert not (tmp_path / "runs" / "many").exists()


def test_schedules_by_hand() -> None:
    cosine = TrainConfig(lr=1.0, epochs=5, warmup=0.2, schedule="cosine")
    rates = [learning_rate(cosine, step, 4) for step in range(20)]
    np.testing.assert_allclose(rates[:4], [0.25, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(rates[4:], [0.5 * (1 + math.cos(math.pi * i / 16)) for i in range(16)])
    step = TrainConfig(lr=3e-5, schedule="step", step_epochs=7, step_gamma=0.1, epochs=10)
    reference = torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.zeros(1)], lr=3e-5), 7, 0.1)
    for epoch in range(10):
        assert learning_rate(step, epoch * 9 + 5, 9) == pytest.approx(reference.get_last_lr()[0])
        reference.optimizer.step()
        reference.step()
    assert learning_rate(TrainConfig(lr=2.0, schedule="constant", warmup=0), 77, 4) == 2.0


def test_weight_decay_reaches_weights_alone() -> None:
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Flatten(), torch.nn.Linear(2, 2)
    )
    optimizer = build_optimizer(model, TrainConfig(lr=0.1, weight_decay=0.5, optimizer="adamw"))
    before = [p.detach().clone() for p in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for old, new in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(new.detach(), old * (1 - 0.1 * 0.5) if old.ndim > 1 else old)


def test_a_frozen_backbone_does_not_move() -> None:
    model = torch.nn.Sequential()
    model.add_module(
        "body",
        torch.nn.Sequential(
            torch.nn.Conv2d(1, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
        ),
    )
    model.add_module("head", torch.nn.Linear(3, 2))
    optimizer = build_optimizer(model, TrainConfig(lr=0.1))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for frozen in (True, False):
        freeze_backbone(model, "head", frozen)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(8, 1, 6, 6)).square().sum().backward()
            optimizer.step()
        moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
        assert {k for k in moved if k.startswith("head")} == {"head.weight", "head.bias"}
        assert any(k.startswith("body") for k in moved) is not frozen


def test_patience() -> None:
    def history(*losses: float) -> list[dict]:
        return [{"epoch": epoch, "valid_loss": loss} for epoch, loss in enumerate(losses, 1)]

    assert steady_learning(history(3, 2, 2.5), 2)
    assert not steady_learning(history(3, 2, 2.5, 2.1), 2)
    assert steady_learning(history(3, 2, 2.5, 1.9), 2)
    assert steady_learning(history(1, *[2] * 50), None)


def test_early_stopping_ends_a_run_well(
    phantom: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([1.0, 2.0, 3.0, 0.5])
    monkeypatch.setattr(
        trainer, "validate", lambda *_: {"valid_loss": next(losses), "valid_accuracy": 0.5, "valid_macro_f1": 0.5}
    )
    run = train(_config(phantom, cache_dir, tmp_path, "train.patience=2"), "early")
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["epochs"], record["best_epoch"]) == ("finished", 3, 1)


def test_precision_is_measured_once_and_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from training import precision

    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 2)
    )
    device = torch.device("cpu")
    seconds = precision.measure_precisions(model, (32, 3, 32, 32), device)
    assert set(seconds) == set(CANDIDATES)
    assert all(s > 0 for s in seconds.values())
    for fastest in CANDIDATES:
        monkeypatch.setattr(
            precision, "measure_precisions", lambda *_, f=fastest: {p: 1.0 + (p != f) for p in CANDIDATES}
        )
        assert choose_precision(model, f"net-{fastest}", (32, 3, 32, 32), device, tmp_path) == fastest
    monkeypatch.setattr(precision, "measure_precisions", lambda *_: pytest.fail("measured again"))
    assert choose_precision(model, "net-bf16", (32, 3, 32, 32), device, tmp_path) == "bf16"


@pytest.mark.parametrize("batch", [10, 4, 2])
def test_no_training_batch_of_one(batch: int, tiny_run: Path) -> None:
    """So many images that batches would leave one over: every image comes once, at its own place of the epoch."""
    from dataset.image_set import Schedule
    from dataset.loading import load_dataset
    from dataset.transforms import Augment, Normalisation

    config = load_run_config(tiny_run / "config.yaml")
    part = load_dataset(config.data, 64, run_split=tiny_run / "split.csv").images("train")
    order = np.arange((len(part) - 1) // batch * batch + 1)
    augment = Augment(config.augment, 0, 64, 64)
    device, grey = torch.device("cpu"), Normalisation((0.5,), (0.5,))
    schedule = Schedule(order, augment=augment, epoch=1)
    batches = list(part.batches(device, batch, grey, schedule))
    assert min(len(b.indices) for b in batches) > 1
    np.testing.assert_array_equal(np.concatenate([b.indices for b in batches]), order)
    whole = next(part.batches(device, 1000, grey, schedule))
    torch.testing.assert_close(torch.cat([b.inputs for b in batches]), whole.inputs)


def test_a_batch_that_cannot_be_normalised_is_explained(phantom: Path, cache_dir: Path, tmp_path: Path) -> None:
    config = _config(phantom, cache_dir, tmp_path, "data.size=32")
    config.data.size, config.train.batch = 32, 1
    with pytest.raises(UserError, match="--batch 1"):
        train(config, "one")
