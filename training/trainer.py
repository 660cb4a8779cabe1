"""A whole training run: data, model, precision, epochs, checkpoints, curves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
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
from training.loop import Learner, steady_learning, train_epoch, validate
from training.precision import choose_precision
from training.record import Training, end_badly, finish_run, log_epoch, log_start, reopen_run, save_epoch, start_run
from training.trackers.base import check_tracker, tracking
from utils import UserError, log, make_folder, seed_everything

Report = Callable[[dict[str, Any], Predictions], None]
# What may change when a run goes on: how long, and on what machine. Anything else would be another experiment.
RESUMABLE = {
    *("device", "train.sync_batch_norm"),
    *("train.epochs", "train.patience", "train.eval_batch", "train.compile", "train.accumulate"),
    *("data.workers", "data.cache_dir", "data.device_memory", "track"),
}


def train(config: Config, name: str | None = None, report: Report | None = None) -> Path:
    """Train as `config` says into a new run folder and return it. Under torchrun this is one rank of the job.

    After each epoch rank 0 calls `report` with the epoch's row of history.csv and the validation predictions. Where
    `report` raises `Pruned` the training ends there, and run.json says `pruned`.

    Raises: `UserError`; once the folder is there, its run.json then says `failed`.
    """
    return job(lambda ranks: _train(ranks, config, name, report))


def _train(ranks: Ranks, config: Config, name: str | None, report: Report | None) -> Path:
    check_tracker(config.track)
    make_folder(runs_folder(config), "--save")  # found out now, not after minutes of decoding
    training = prepare(config, ranks)
    if ranks.leads:
        training.run = start_run(training, name)
    path = Path(ranks.broadcast(training.run and str(training.run.path)))
    _run_epochs(training, report)
    return path


def prepare(config: Config, ranks: Ranks | None = None) -> Training:
    """Return a training before its first epoch: the model on its device with its optimiser, the data in the cache.

    Its configuration (`learner.config`) is `config` with the model's full name and absolute paths. Raises: `UserError`.
    """
    ranks = ranks or Ranks()
    micro = ranks.micro_batch(config.train)
    device = ranks.device(config.device)
    config = _completed(config)
    seed_everything(config.seed)
    # The head's size needs the classes, the images' size the model: the data is read before the model is built.
    size = config.data.size or default_size(config.model)
    with ranks.leading():
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
    learner = Learner(
        model=model,
        architecture=architecture,
        config=config,
        size=size,
        device=device,
        precision=precision,
        ranks=ranks,
    )
    return Training(learner=learner, dataset=dataset, init=init)


def _completed(config: Config) -> Config:
    """Return `config` with the model's full name, and with paths that mean the same from any folder."""
    if config.init not in ("auto", "imagenet", "none") and not Path(config.init).is_file():
        raise UserError(f"--init {config.init}: no such file (nor one of auto, imagenet, none)")
    paths = {key: getattr(config.data, key) for key in ("path", "lung_masks", "lesion_masks")}
    absolute = {key: str(Path(path).expanduser().resolve()) for key, path in paths.items() if path is not None}
    return replace(config, model=canonical_name(config.model), data=replace(config.data, **absolute))


def resume(path: Path, changes: dict[str, Any]) -> Path:
    """Go on with an interrupted run from its `last.pt`; `changes` are the configuration keys given with it. The job may
    have another number of ranks than before.

    Raises: `UserError` for a folder without `last.pt`, a key that would make it another experiment, or a finished run.
    """
    folder = path.parent if path.is_file() else path
    job(lambda ranks: _resume(ranks, folder, changes))
    return folder


def _resume(ranks: Ranks, folder: Path, changes: dict[str, Any]) -> None:
    config, checkpoint = _resumable(folder, changes)
    ranks.micro_batch(config.train, fixed=True)
    device = ranks.device(config.device)
    data = replace(config.data, path=None)  # the images are those of the run's split.csv
    with ranks.leading():
        dataset = load_dataset(data, checkpoint.size, classes=checkpoint.classes, run_split=folder / "split.csv")
    learner = Learner(
        model=checkpoint.model().to(device),
        architecture=checkpoint.architecture,
        config=config,
        size=checkpoint.size,
        device=device,
        precision=checkpoint.precision,
        ranks=ranks,
    )
    learner.optimizer.load_state_dict(checkpoint.resume["optimizer"])
    training = Training(learner=learner, dataset=dataset, init="", history=checkpoint.resume["history"])
    if not torch.equal(training.train_hashes, checkpoint.train_hashes):
        raise UserError(f"--resume {folder}: its training images have changed since; restore them, or train a new run")
    if ranks.leads:
        training.run = reopen_run(training, checkpoint)
    _run_epochs(training)


def _resumable(folder: Path, changes: dict[str, Any]) -> tuple[Config, Checkpoint]:
    """The configuration of the run in `folder` with `changes`, and its `last.pt`. Raises: `UserError` as `resume`."""
    forbidden = sorted(set(changes) - RESUMABLE)
    if forbidden:
        raise UserError(
            f"--resume {folder}: {forbidden[0]} cannot change in a run that goes on (only "
            f"{', '.join(sorted(RESUMABLE))} can)"
        )
    RunFolder.open(folder)
    checkpoint = load_checkpoint(folder / "last.pt", "--resume")
    config = load_run_config(folder / "config.yaml")
    for dotted, value in changes.items():
        set_value(config, dotted, value)
    check_tracker(config.track)
    history = checkpoint.resume.get("history")
    if not history or "optimizer" not in checkpoint.resume:
        raise UserError(f"--resume {folder}: its last.pt holds no state of a training")
    if checkpoint.epoch >= config.train.epochs:
        raise UserError(f"--resume {folder}: its {checkpoint.epoch} epochs are done; give --epochs N with a larger N")
    if not steady_learning(history, config.train.patience):
        raise UserError(
            f"--resume {folder}: it stopped early; give --patience N with an N over {config.train.patience}"
        )
    return config, checkpoint


def _run_epochs(training: Training, report: Report | None = None) -> None:
    """Train the epochs that the history does not hold yet; rank 0 writes each down, and how the training ended."""
    if training.run is None:
        for _ in _epochs(training):
            pass
        return
    training.learner.ranks.last_words = partial(end_badly, training.run)
    with log_to(training.run.path / "train.log"):
        log_start(training)
        with tracking(training) as track_epoch:
            for row in _epochs(training):
                save_epoch(training)
                log_epoch(training)
                track_epoch()
                if report is not None:
                    classes = training.dataset.classes
                    table = prediction_table(training.validation.records, training.learner.validated, classes)
                    report(row, Predictions(table, classes))
            finish_run(training)


def _epochs(training: Training) -> Iterator[dict[str, Any]]:
    """The epochs that the history does not hold yet, entered there and yielded as they end, on every rank alike."""
    learner, history = training.learner, training.history
    train, ranks = learner.config.train, learner.ranks
    with ranks.leading():
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
        if not steady_learning(history, train.patience):
            log.info(f"stopped early: no lower validation loss for {train.patience} epochs")
            break
