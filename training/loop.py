"""One epoch of training, and the validation after it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from config import Config
from dataset.batches import Part
from dataset.sampling import epoch_order
from dataset.transforms import Augment
from evaluation.calibration import log_losses
from evaluation.metrics import confusion_matrix, overall_values
from evaluation.predictions import predict_logits, softmax
from pretrained_models import Architecture
from training.optimisation import freeze_backbone, learning_rate, training_mode
from utils import UserError, autocast, derived_seed

BAR_SECONDS = 0.5  # reading the loss waits for the device: no oftener than this


@dataclass
class Learner:
    """What training needs at hand. `forward` is the model's forward pass in training steps (it may be compiled)."""

    model: nn.Module
    architecture: Architecture
    optimizer: torch.optim.Optimizer
    augment: Augment
    config: Config
    device: torch.device
    precision: str
    forward: Callable[[torch.Tensor], torch.Tensor]


def train_epoch(learner: Learner, part: Part, epoch: int) -> dict[str, float]:
    """Train one epoch (from 1) and return `learning_rate` (of its last step), `train_loss`, `train_accuracy`.

    Order, augmentation and dropout are functions of (seed, epoch), so an epoch can be repeated exactly.
    Raises: `UserError` naming epoch and step where the loss is not finite.
    """
    from tqdm import tqdm

    config, train, model, device = learner.config, learner.config.train, learner.model, learner.device
    order = epoch_order(part.labels, train.sampler, config.seed, epoch)
    steps = -(-len(order) // train.batch)
    frozen = epoch <= train.freeze_epochs
    freeze_backbone(model, learner.architecture.head, frozen)
    training_mode(model, learner.architecture.head, frozen)
    torch.manual_seed(derived_seed(config.seed, epoch))
    losses = torch.zeros(steps, device=device)
    correct = torch.zeros((), device=device)
    batches = part.batches(
        device,
        train.batch,
        learner.augment.side,
        learner.architecture.mean,
        learner.architecture.std,
        order=order,
        augment=learner.augment,
        epoch=epoch,
    )
    seen, shown, checked = 0, time.perf_counter(), 0
    with tqdm(total=len(order), desc=f"epoch {epoch}/{train.epochs}", unit="image", leave=False) as bar:
        for step, batch in enumerate(batches):
            rate = learning_rate(train, (epoch - 1) * steps + step, steps)
            for group in learner.optimizer.param_groups:
                group["lr"] = rate
            loss, scores = _step(learner, batch.inputs, batch.labels)
            losses[step] = loss.detach() * len(batch.labels)
            correct += (scores.detach().argmax(1) == batch.labels).sum()
            seen += len(batch.labels)
            bar.update(len(batch.labels))
            if time.perf_counter() - shown > BAR_SECONDS or step + 1 == steps:
                shown = time.perf_counter()
                _check_finite(losses, checked, step + 1, epoch)
                checked = step + 1
                bar.set_postfix(loss=f"{float(losses.sum()) / seen:.4f}", accuracy=f"{float(correct) / seen:.4f}")
    return {"learning_rate": rate, "train_loss": float(losses.sum()) / seen, "train_accuracy": float(correct) / seen}


def _step(learner: Learner, inputs: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    train = learner.config.train
    try:
        with autocast(learner.device, learner.precision):
            scores = learner.forward(inputs)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            f"--batch {len(labels)}: batch normalisation of a map of one pixel needs two images or more at once; raise "
            "--batch or data.size"
        ) from None
    loss = F.cross_entropy(scores.float(), labels, label_smoothing=train.label_smoothing)
    learner.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if train.clip_norm is not None:
        nn.utils.clip_grad_norm_(learner.model.parameters(), train.clip_norm)
    learner.optimizer.step()
    return loss, scores


def _check_finite(losses: torch.Tensor, start: int, stop: int, epoch: int) -> None:
    finite = torch.isfinite(losses[start:stop])
    if not bool(finite.all()):
        step = start + int((~finite).nonzero()[0]) + 1
        raise UserError(
            f"the loss is not finite at epoch {epoch}, step {step} of {len(losses)}: lower --learning-rate, set "
            "train.clip_norm, or try --precision fp32 (checkpoints of earlier epochs are kept)"
        )


def validate(learner: Learner, part: Part) -> dict[str, Any]:
    """`valid_loss` (nats, without label smoothing), `valid_accuracy` and `valid_macro_f1` over the whole of `part`."""
    logits = predict_logits(
        learner.model,
        part,
        learner.device,
        precision=learner.precision,
        batch=learner.config.train.eval_batch,
        mean=learner.architecture.mean,
        std=learner.architecture.std,
        title="validation",
    )
    probabilities = softmax(logits, part.records)
    values = overall_values(confusion_matrix(part.labels, probabilities.argmax(1), len(part.classes)))
    return {
        "valid_loss": float(log_losses(probabilities, part.labels).mean()),
        "valid_accuracy": float(values["accuracy"]),
        "valid_macro_f1": float(values["macro_f1"]),
    }


def steady_learning(history: list[dict[str, Any]], patience: int | None) -> bool:
    """Whether one of the last `patience` epochs still lowered the validation loss."""
    losses = np.array([row["valid_loss"] for row in history])
    return patience is None or len(losses) - 1 - int(losses.argmin()) < patience
