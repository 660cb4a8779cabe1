"""A whole training run, from the data to the finished run folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from command_line import log_to
from config import Config, load_run_config, set_value
from dataset.cache import cache_folder
from dataset.loading import load_dataset
from evaluation.predictions import Predictions, prediction_table
from experiment.checkpoint import Checkpoint, load_checkpoint
from experiment.run_folder import RunFolder, runs_folder
from pretrained_models import build_model, canonical_name, check_size, default_size
from training.compilation import training_forward
from training.distributed import Ranks, job
from training.loop import Learner, still_improving, train_epoch, validate
from training.precision import choose_precision
from training.record import SAVED, Training
from training.trackers.base import check_tracker, tracking
from utils import UserError, count, log, make_folder, seed_everything

Report = Callable[[dict[str, Any], Predictions], None]
# Keys that may change when a run is resumed: its length and the machine. Others would make it another experiment.
RESUMABLE = {
    *("device", "track", "train.sync_batch_norm", "data.workers", "data.cache_dir", "data.device_memory"),
    *("train.epochs", "train.patience", "train.eval_batch", "train.compile", "train.accumulate"),
}


def train(config: Config, name: str | None = None, report: Report | None = None) -> Path:
    """Train a model as described by `config` and return its new run folder. Under torchrun this is one rank of the job.

    Args:
        name: of the run folder; default: MODEL-YYYYMMDD-HHMMSS.
        report: called by rank 0 after each epoch with the epoch's row of history.csv and the validation predictions.
            If it raises `Pruned`, the training ends with status `pruned` in run.json.

    Raises: `UserError`; if the run folder exists by then, its run.json gets the status `failed`.
    """
    with job() as ranks:
        check_tracker(config.track)
        make_folder(runs_folder(config), "--save")  # fail early, before minutes of decoding
        training = prepare(config, ranks)
        if ranks.leads:
            training.start(name)
        path = Path(ranks.broadcast(training.run and str(training.run.path)))
        _run_epochs(training, report)
    return path


def prepare(config: Config, ranks: Ranks | None = None) -> Training:
    """Return a training that is ready for its first epoch, with the model on its device and the images in the cache.

    `learner.config` is `config` with the canonical name of the model and absolute paths. Raises: `UserError`.
    """
    ranks = ranks or Ranks()
    micro = ranks.micro_batch(config.train)
    device = ranks.device(config.device)
    config = _resolved(config)
    seed_everything(config.seed)
    # The head needs the number of classes, and the cache the model's input size: load the data, then build the model.
    size = config.data.size or default_size(config.model)
    with ranks.leader_first():
        dataset = load_dataset(config.data, size)
        model, architecture, init = build_model(config.model, len(dataset.classes), config.init)
        check_size(model, architecture, size)
        model.to(device, memory_format=torch.channels_last)
        precision = config.precision
        if precision == "auto" and ranks.leads:
            shape = (micro, len(architecture.mean), size, size)
            precision = choose_precision(model, architecture.name, shape, device, cache_folder(config.data))
    precision = ranks.broadcast(precision)
    seed_everything(config.seed)
    saved = {"architecture": architecture, "size": size, "precision": precision}
    learner = Learner(model=model, config=config, device=device, ranks=ranks, **saved)
    return Training(learner=learner, dataset=dataset, init=init)


def _resolved(config: Config) -> Config:
    """Return `config` with the canonical name of the model, and with paths that are valid in any working folder."""
    if config.init not in ("auto", "imagenet", "none") and not Path(config.init).is_file():
        raise UserError(f"--init {config.init}: no such file; give a file, auto, imagenet or none")
    paths = {key: getattr(config.data, key) for key in ("path", "lung_masks", "lesion_masks")}
    absolute = {key: str(Path(path).expanduser().resolve()) for key, path in paths.items() if path is not None}
    return replace(config, model=canonical_name(config.model), data=replace(config.data, **absolute))


def resume(path: Path, changes: dict[str, Any]) -> Path:
    """Continue a run from its last.pt and return its folder. The number of ranks may differ from before.

    Args:
        path: the run folder, or a file in it.
        changes: the configuration keys to change (`RESUMABLE`), by dotted name.

    Raises: `UserError` for a folder without last.pt, a key that would make it another experiment, or a finished run.
    """
    folder = path.parent if path.is_file() else path
    with job() as ranks:
        config, checkpoint = _read_run(folder, changes)
        ranks.micro_batch(config.train)
        device = ranks.device(config.device)
        data = replace(config.data, path=None)  # use the images of the run's split.csv
        with ranks.leader_first():
            dataset = load_dataset(data, checkpoint.size, classes=checkpoint.classes, run_split=folder / "split.csv")
        saved = {name: getattr(checkpoint, name) for name in SAVED}
        learner = Learner(model=checkpoint.model().to(device), config=config, device=device, ranks=ranks, **saved)
        learner.optimizer.load_state_dict(checkpoint.resume["optimizer"])
        training = Training(learner=learner, dataset=dataset, init="", history=checkpoint.resume["history"])
        if not torch.equal(training.train_hashes, checkpoint.train_hashes):
            raise UserError(f"--resume {folder}: its training images have changed; restore them, or train a new run")
        if ranks.leads:
            training.reopen(checkpoint)
        _run_epochs(training)
    return folder


def _read_run(folder: Path, changes: dict[str, Any]) -> tuple[Config, Checkpoint]:
    """Return the configuration of a run, with `changes`, and its last.pt. Raises: `UserError` as `resume` does."""
    if fixed := sorted(set(changes) - RESUMABLE):
        keys = ", ".join(sorted(RESUMABLE))
        raise UserError(f"--resume {folder}: {fixed[0]} cannot change in a resumed run; only {keys} can")
    RunFolder.open(folder)
    checkpoint = load_checkpoint(folder / "last.pt", "--resume")
    config = load_run_config(folder / "config.yaml")
    for dotted, value in changes.items():
        set_value(config, dotted, value)
    check_tracker(config.track)
    history = checkpoint.resume.get("history")
    if not history or "optimizer" not in checkpoint.resume:
        raise UserError(f"--resume {folder}: its last.pt has no optimiser state; train a new run")
    if checkpoint.epoch >= config.train.epochs:
        epochs = count(checkpoint.epoch, "epoch")
        raise UserError(f"--resume {folder}: already trained for {epochs}; pass a larger --epochs")
    if not still_improving(history, config.train.patience):
        raise UserError(f"--resume {folder}: it stopped early; pass a --patience larger than {config.train.patience}")
    return config, checkpoint


def _run_epochs(training: Training, report: Report | None = None) -> None:
    """Train the epochs that are missing in the history; rank 0 records each of them, and how the training ends."""
    if training.run is None:
        for _ in _epochs(training):
            pass
        return
    training.learner.ranks.on_failure = training.fail
    with log_to(training.run.path / "train.log"):
        training.log_start()
        with tracking(training) as track_epoch:
            for row in _epochs(training):
                training.save_epoch()
                training.log_epoch()
                track_epoch()
                if report is not None:
                    images = training.validation
                    table = prediction_table(images.records, training.learner.validated, images.classes)
                    report(row, Predictions(table, images.classes))
            training.finish()


def _epochs(training: Training) -> Iterator[dict[str, Any]]:
    """Train the epochs that are missing in the history, on every rank; add each row to the history and yield it."""
    learner, history = training.learner, training.history
    train, ranks = learner.config.train, learner.ranks
    with ranks.leader_first():
        images = training.dataset.images("train", learner.augment.source_side)
    if not len(images) or not len(training.validation):
        raise UserError(f"--data: no {'validation' if len(images) else 'training'} images; change data.split")
    share = ranks.share(training.validation, train.eval_batch)
    learner.forward = training_forward(learner, steps=train.epochs * -(-len(images) // train.batch))
    for epoch in range(len(history) + 1, train.epochs + 1):
        began = time.perf_counter()
        row = {"epoch": epoch, **train_epoch(learner, images, epoch)}
        seconds = time.perf_counter() - began
        row |= validate(learner, training.validation, share)
        row |= {"seconds": time.perf_counter() - began, "images_per_second": len(images) / seconds}
        history.append(row)
        yield row
        if not still_improving(history, train.patience):
            log.info(f"stopped early: no lower validation loss for {count(train.patience, 'epoch')}")
            break
