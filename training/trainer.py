"""A whole training run: data, model, precision, epochs, checkpoints, curves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from command_line import log_to
from config import Config, TrainConfig, load_run_config, set_value
from dataset.cache import cache_folder
from dataset.loading import Dataset, load_dataset
from dataset.transforms import Augment
from evaluation.figures.plots import learning_curves_figure, save_figure
from evaluation.predictions import Predictions, prediction_table
from experiment.checkpoint import Checkpoint, hashes_to_tensor, load_checkpoint, save_checkpoint
from experiment.run_folder import RunFolder, best_epoch, now, runs_folder
from pretrained_models import Architecture, build_model, canonical_name, check_size, default_size
from training.compilation import training_forward
from training.distributed import Ranks, job, synchronise_norms
from training.loop import Learner, steady_learning, train_epoch, validate
from training.optimisation import build_optimizer
from training.precision import choose_precision
from training.trackers.base import check_tracker, tracking
from utils import UserError, device_name, interrupts_wait, log, make_folder, seed_everything, shown

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
    learner, dataset, init = prepare(config, ranks)
    run = RunFolder.create(runs_folder(config), config.model, name) if ranks.leads else None
    if run is not None:
        run.start(
            config,
            dataset.records,
            {
                "model": config.model,
                "seed": config.seed,
                "device": device_name(learner.device),
                "ranks": ranks.world,
                "precision": learner.precision,
                "init": init,
                "classes": dataset.classes,
                "size": dataset.side,
                "data": config.data.path or "phantom",
                "unreadable": len(dataset.unreadable),
            },
        )
    path = Path(ranks.broadcast(run and str(run.path)))
    _run_epochs(run, learner, dataset, [], report)
    return path


def prepare(config: Config, ranks: Ranks | None = None) -> tuple[Learner, Dataset, str]:
    """What the first epoch needs: the model on its device with its optimiser, the data in the cache, and in words where
    the weights came from. Completes names and paths in `config`. Raises: `UserError`.
    """
    ranks = ranks or Ranks()
    micro = ranks.micro_batch(config.train)
    device = ranks.device(config.device)
    config.model = canonical_name(config.model)
    for key in ("path", "lung_masks", "lesion_masks"):  # the run's configuration must mean the same from any folder
        if (given := getattr(config.data, key)) is not None:
            setattr(config.data, key, str(Path(given).expanduser().resolve()))
    if config.init not in ("auto", "imagenet", "none") and not Path(config.init).is_file():
        raise UserError(f"--init {config.init}: no such file (nor one of auto, imagenet, none)")
    seed_everything(config.seed)
    # The head's size needs the classes, the pictures' size the model: the data is read before the model is built.
    size = config.data.size or default_size(config.model)
    with ranks.leading():
        dataset = load_dataset(config.data, size)
        model, architecture, init = build_model(config.model, len(dataset.classes), config.init)
        check_size(model, architecture, size)
        model.to(device, memory_format=torch.channels_last)
        precision = config.precision
        if ranks.leads:
            precision = choose_precision(
                config.precision,
                model,
                architecture.name,
                size,
                len(architecture.mean),
                device,
                cache_folder(config.data),
                micro,
            )
    precision = ranks.broadcast(precision)
    seed_everything(config.seed)
    return _learner(model, architecture, size, config, device, precision, ranks), dataset, init


def _learner(
    model: nn.Module,
    architecture: Architecture,
    size: int,
    config: Config,
    device: torch.device,
    precision: str,
    ranks: Ranks,
) -> Learner:
    """A model on `device` with a fresh optimiser, and the augmentation of pictures to `size` × `size`."""
    torch.backends.cudnn.benchmark = True  # the batches of a training have one shape
    augment = Augment(config.augment, config.seed, config.augment.resize or size, size)
    model = synchronise_norms(model, config.train.sync_batch_norm, ranks, device)
    optimizer = build_optimizer(model, config.train)
    return Learner(model, architecture, optimizer, augment, config, device, precision, model, ranks)


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
    history = checkpoint.resume["history"]
    ranks.micro_batch(config.train, fixed=True)
    device = ranks.device(config.device)
    data = replace(config.data, path=None)  # the images are those of the run's split.csv
    with ranks.leading():
        dataset = load_dataset(data, checkpoint.size, classes=checkpoint.classes, run_split=folder / "split.csv")
    trained = hashes_to_tensor(list(dataset.images("train").records["sha256"]))
    if not torch.equal(trained, checkpoint.train_hashes):
        raise UserError(f"--resume {folder}: its training images have changed since; restore them, or train a new run")
    model = checkpoint.model().to(device)
    learner = _learner(model, checkpoint.architecture, checkpoint.size, config, device, checkpoint.precision, ranks)
    learner.optimizer.load_state_dict(checkpoint.resume["optimizer"])
    run = RunFolder.open(folder) if ranks.leads else None
    if run is not None:
        resumed = {"epoch": checkpoint.epoch, "time": now(), "ranks": ranks.world}
        run.write_config(config)
        for said in ("finished", "reason"):  # how its last part ended
            run.record.pop(said, None)
        run.update(
            status="running",
            device=device_name(device),
            ranks=ranks.world,
            resumed=[*run.record.get("resumed", []), resumed],
        )
        log.info(f"resuming {shown(folder)} after epoch {checkpoint.epoch}")
    _run_epochs(run, learner, dataset, history)


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


def _run_epochs(
    run: RunFolder | None,
    learner: Learner,
    dataset: Dataset,
    history: list[dict[str, Any]],
    report: Report | None = None,
) -> None:
    """Train the epochs that `history` does not hold yet; where there is a `run`, on the first rank, write them down.
    run.json says how it ended, whatever happens.
    """
    if run is None:
        for _ in _epochs(learner, dataset, history):
            pass
        return
    learner.ranks.last_words = partial(_end_badly, run)
    with log_to(run.path / "train.log"):
        _log_start(run, learner, dataset)
        hashes = hashes_to_tensor(list(dataset.images("train").records["sha256"]))
        with tracking(run, learner, dataset, history) as track_epoch:
            for row in _epochs(learner, dataset, history):
                run.update(compiled=learner.forward is not learner.model)
                _save_epoch(run, learner, dataset, history, hashes)
                _log_epoch(row, history, learner.config.train)
                track_epoch()
                if report is not None:
                    table = prediction_table(dataset.images("val").records, learner.validated, dataset.classes)
                    report(row, Predictions(table, dataset.classes))
            _finish(run, history)


def _end_badly(run: RunFolder, status: str, reason: str) -> None:
    run.update(status=status, reason=reason, finished=now())
    with log_to(run.path / "train.log"):
        log.info(f"{status}: {reason}")
        if status == "interrupted" and (run.path / "last.pt").exists():
            log.info(f"go on with: python train.py --resume {shown(run.path)}")


def _log_start(run: RunFolder, learner: Learner, dataset: Dataset) -> None:
    record = run.record
    log.info(
        f"run {shown(run.path)}: {record['model']} at {record['size']}×{record['size']}, {learner.precision} on "
        f"{record['device']}, weights: {record['init']}"
    )
    train, ranks = learner.config.train, learner.ranks
    if ranks.world * train.accumulate > 1:
        log.info(
            f"batch of {train.batch}: {ranks.world} ranks × {train.accumulate} micro-batches of "
            f"{ranks.micro_batch(train)} images; the learning rate is the batch's, whatever the ranks"
        )
    for path, reason in dataset.unreadable.items():
        log.debug(f"unreadable, left out: {path} ({reason})")
    log.info(dataset.table().to_string())


def _epochs(learner: Learner, dataset: Dataset, history: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The epochs that `history` does not hold yet, entered there and yielded as they end, on every rank alike."""
    config, ranks = learner.config, learner.ranks
    with ranks.leading():
        training = dataset.images("train", learner.augment.source_side)
    validation = dataset.images("val")
    if not len(training) or not len(validation):
        raise UserError(f"--data: no {'validation' if len(training) else 'training'} images; change data.split")
    share = ranks.share(validation, config.train.eval_batch)
    steps = config.train.epochs * -(-len(training) // config.train.batch)
    micro = ranks.micro_batch(config.train)
    shape = (micro, len(learner.architecture.mean), learner.augment.side, learner.augment.side)
    learner.model.train()
    learner.forward = training_forward(
        learner.model, config.train.compile, learner.precision, shape, learner.device, steps
    )
    for epoch in range(len(history) + 1, config.train.epochs + 1):
        began = time.perf_counter()
        row = {"epoch": epoch, **train_epoch(learner, training, epoch)}
        seconds = time.perf_counter() - began
        row |= validate(learner, validation, share)
        row |= {"seconds": time.perf_counter() - began, "images_per_second": len(training) / seconds}
        history.append(row)
        yield row
        if not steady_learning(history, config.train.patience):
            log.info(f"stopped early: no lower validation loss for {config.train.patience} epochs")
            break


def _log_epoch(row: dict[str, Any], history: list[dict[str, Any]], train: TrainConfig) -> None:
    log.info(
        f"epoch {row['epoch']}/{train.epochs}  loss {row['train_loss']:.4f}  accuracy {row['train_accuracy']:.4f}"
        f"  valid loss {row['valid_loss']:.4f}  accuracy {row['valid_accuracy']:.4f}  macro F1 "
        f"{row['valid_macro_f1']:.4f}  {row['images_per_second']:.0f} images/s  {row['seconds']:.1f} s"
        + ("  *" if best_epoch(history) is row else "")
    )


@interrupts_wait()
def _save_epoch(
    run: RunFolder, learner: Learner, dataset: Dataset, history: list[dict[str, Any]], hashes: torch.Tensor
) -> None:
    """Write last.pt, best.pt where this epoch is the best, history.csv and curves.png: all of them or none, but for a
    disk that is full.
    """
    row, config = history[-1], learner.config
    checkpoint = Checkpoint(
        architecture=learner.architecture,
        classes=dataset.classes,
        size=dataset.side,
        fit=config.data.fit,
        precision=learner.precision,
        epoch=row["epoch"],
        train_hashes=hashes,
        config=asdict(config),
        state=learner.model.state_dict(),
        resume={},
        path=run.path / "best.pt",
    )
    if best_epoch(history) is row:
        save_checkpoint(checkpoint)
    resume = {"optimizer": learner.optimizer.state_dict(), "history": history}
    save_checkpoint(replace(checkpoint, path=run.path / "last.pt", resume=resume))
    run.write_history(history)
    figure = learning_curves_figure(history, best_epoch(history)["epoch"])
    figure.suptitle(f"{config.model}, {run.path.name}", fontsize=10)
    save_figure(figure, run.path / "curves.png")


def _finish(run: RunFolder, history: list[dict[str, Any]]) -> None:
    best = best_epoch(history)
    seconds = sum(row["seconds"] for row in history)
    run.update(
        status="finished",
        finished=now(),
        epochs=len(history),
        best_epoch=best["epoch"],
        best={k: best[k] for k in ("valid_loss", "valid_accuracy", "valid_macro_f1")},
        timings={
            "train_seconds": round(seconds, 2),
            "images_per_second": round(sum(r["images_per_second"] for r in history) / len(history), 2),
        },
    )
    folder = shown(run.path)
    log.info(
        f"best epoch {best['epoch']}: validation loss {best['valid_loss']:.4f}, accuracy {best['valid_accuracy']:.4f}; "
        f"{seconds:.0f} s in all\nrun folder: {folder}\nnext:\n"
        f"  python test.py --weights {folder}/best.pt\n  python draw_cam.py --weights {folder}/best.pt --save"
    )
