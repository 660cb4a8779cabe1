"""One epoch of training, and the validation after it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from config import Config
from dataset.image_set import Batch, ImageSet, Schedule
from dataset.sampling import Share, epoch_order, epoch_steps, share_of
from dataset.transforms import Augment
from evaluation.metrics.calibration import log_losses
from evaluation.metrics.confusion import confusion_matrix, overall_values
from inference.predict import Runtime, predict_logits, softmax
from pretrained_models import Architecture
from training.distributed import Ranks, synchronise_norms
from training.optimisation import build_optimizer, freeze_backbone, learning_rate
from utils import UserError, autocast, best_epoch, derived_seed

LOSS_SECONDS = 0.5  # show and check the loss at most this often: reading it waits for the device
Forward = Callable[[torch.Tensor], torch.Tensor]


@dataclass(kw_only=True)
class Learner:
    """A model in training, with its optimiser and augmentation.

    Attributes:
        size: side in pixels of the model's input.
        forward: the forward pass of training steps; it may be compiled.
        validated: probabilities (n, classes) of the validation images after the newest epoch.
    """

    model: nn.Module
    architecture: Architecture
    config: Config
    size: int
    device: torch.device
    precision: str
    ranks: Ranks = field(default_factory=Ranks)
    optimizer: torch.optim.Optimizer = field(init=False)
    augment: Augment = field(init=False)
    forward: Forward = field(init=False)
    validated: np.ndarray | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        config = self.config
        torch.backends.cudnn.benchmark = True  # training batches have one shape
        self.model = synchronise_norms(self.model, config.train.sync_batch_norm, self.ranks, self.device)
        self.optimizer = build_optimizer(self.model, config.train)
        self.augment = Augment(config.augment, config.seed, config.augment.resize or self.size, self.size)
        self.forward = self.model


def train_epoch(learner: Learner, images: ImageSet, epoch: int) -> dict[str, float]:
    """Train one epoch (from 1) and return `learning_rate` (of its last step), `train_loss` and `train_accuracy`.

    Order and augmentation depend only on (seed, epoch, position), dropout only on (seed, epoch, rank), so an epoch can
    be repeated exactly. All ranks follow the same order and share every batch.

    Raises: `UserError` that names epoch and step, if the loss is not finite.
    """
    config, train, model, ranks = learner.config, learner.config.train, learner.model, learner.ranks
    order = epoch_order(images.labels, train.sampler, config.seed, epoch)
    micro = ranks.micro_batch(train)
    steps = epoch_steps(len(order), train.batch)
    shares = [share_of(step, micro, ranks.rank, ranks.world, train.accumulate) for step in steps]
    positions = [positions for share in shares for positions in share.micro_batches]
    schedule = Schedule(order, positions, learner.augment, epoch)
    batches = images.batches(learner.device, micro, learner.architecture, schedule)
    freeze_backbone(model, learner.architecture.head, epoch <= train.freeze_epochs)
    forward = ranks.parallel(model, learner.forward)
    torch.manual_seed(derived_seed(config.seed, epoch, *([] if ranks.leads else [ranks.rank])))
    # One column per step, in the dtype of the weights: the sum of the losses, the number of correct predictions.
    tally = torch.zeros((2, len(steps)), dtype=next(model.parameters()).dtype, device=learner.device)
    title, quiet = f"epoch {epoch}/{train.epochs}", not ranks.leads
    with tqdm(total=len(order), desc=title, unit="image", leave=False, disable=quiet, mininterval=LOSS_SECONDS) as bar:
        for step, share in enumerate(shares):
            rate = learning_rate(train, (epoch - 1) * len(steps) + step, len(steps))
            for group in learner.optimizer.param_groups:
                group["lr"] = rate
            tally[:, step] = ranks.sum(_step(learner, forward, share, batches))
            if bar.update(share.images) or step + 1 == len(steps):  # the bar was redrawn, or its last state follows
                _check_finite(tally[0], epoch)
                loss, accuracy = (float(row.sum()) / steps[step].stop for row in tally)
                bar.set_postfix(loss=f"{loss:.4f}", accuracy=f"{accuracy:.4f}")
    ranks.share_buffers(model)
    return {"learning_rate": rate, "train_loss": loss, "train_accuracy": accuracy}


def _step(learner: Learner, forward: Forward, share: Share, batches: Iterator[Batch]) -> torch.Tensor:
    """Take one step of the optimiser and return this rank's sum of losses and number of correct predictions, (2,).

    Every micro-batch is weighted by its fraction of the step's images, so that the gradient is that of the mean over
    the whole batch, however it is divided. The factor `world` undoes the mean that DistributedDataParallel takes over
    the ranks.
    """
    train, ranks = learner.config.train, learner.ranks
    learner.optimizer.zero_grad(set_to_none=True)
    totals = torch.zeros(2, dtype=next(learner.model.parameters()).dtype, device=learner.device)
    for number, (counted, batch) in enumerate(zip(share.counted, batches, strict=False), 1):
        last = number == len(share.counted)
        with contextlib.nullcontext() if ranks.world == 1 or last else forward.no_sync():
            scores = _scores(learner, forward, batch.inputs)
            loss = F.cross_entropy(scores, batch.labels, label_smoothing=train.label_smoothing)
            (loss * (counted * ranks.world / share.images)).backward()
        if counted:
            correct = (scores.detach().argmax(1) == batch.labels).sum()
            totals += torch.stack([loss.detach() * counted, correct.to(loss.dtype)])
    if train.clip_norm is not None:
        nn.utils.clip_grad_norm_(learner.model.parameters(), train.clip_norm)
    learner.optimizer.step()
    return totals


def _scores(learner: Learner, forward: Forward, inputs: torch.Tensor) -> torch.Tensor:
    """Return the class scores (n, classes) in single precision or better."""
    try:
        with autocast(learner.device, learner.precision):
            scores = forward(inputs)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            f"--batch {learner.config.train.batch}: batch normalisation of a 1×1 feature map needs at least two images "
            "per micro-batch on every rank; raise --batch or data.size"
        ) from None
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def _check_finite(losses: torch.Tensor, epoch: int) -> None:
    """Raise a `UserError` if one of the losses, one per step, is not finite; those of later steps are still zero."""
    finite = torch.isfinite(losses)
    if not bool(finite.all()):
        step = int((~finite).nonzero()[0]) + 1
        raise UserError(
            f"the loss is not finite at epoch {epoch}, step {step} of {len(losses)}: lower --learning-rate, set "
            "train.clip_norm, or try --precision fp32 (the checkpoints of earlier epochs are kept)"
        )


def validate(learner: Learner, images: ImageSet, share: ImageSet) -> dict[str, float]:
    """Return `valid_loss` (nats, without label smoothing), `valid_accuracy` and `valid_macro_f1` over `images`.

    Args:
        share: the images that this rank predicts (`Ranks.share`).
    """
    runtime = Runtime(learner.device, learner.precision, learner.config.train.eval_batch)
    title = "validation" if learner.ranks.leads else ""
    logits = learner.ranks.gather(predict_logits(learner.model, share, learner.architecture, runtime, title=title))
    probabilities = learner.validated = softmax(logits, images.records)
    values = overall_values(confusion_matrix(images.labels, probabilities.argmax(1), len(images.classes)))
    return {
        "valid_loss": float(log_losses(probabilities, images.labels).mean()),
        "valid_accuracy": float(values["accuracy"]),
        "valid_macro_f1": float(values["macro_f1"]),
    }


def still_improving(history: list[dict[str, Any]], patience: int | None) -> bool:
    """Return whether one of the last `patience` epochs has the lowest validation loss so far."""
    return patience is None or history[-1]["epoch"] - best_epoch(history)["epoch"] < patience
