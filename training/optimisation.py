"""Optimisers and learning-rate schedules. The rate is a function of the step, so resuming needs no scheduler state."""

from __future__ import annotations

import math

import torch
from torch import nn

from config import TrainConfig


def build_optimizer(model: nn.Module, train: TrainConfig) -> torch.optim.Optimizer:
    """Return AdamW, Adam or SGD over all parameters, with weight decay on those of two or more dimensions: biases and
    norms do not decay.

    Frozen parameters are included, so that unfreezing the backbone and resuming keep the same optimiser.
    """
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": train.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if train.optimizer == "sgd":
        # When the backbone is unfrozen, its parameters have no momentum yet, which the fused kernel cannot handle.
        return torch.optim.SGD(
            groups, lr=train.lr, momentum=train.momentum, nesterov=train.momentum > 0, fused=not train.freeze_epochs
        )
    optimizer = torch.optim.AdamW if train.optimizer == "adamw" else torch.optim.Adam
    return optimizer(groups, lr=train.lr, fused=True)


def learning_rate(train: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of a step (from 0).

    After a linear warm-up over the fraction `warmup` of all steps, `cosine` falls to zero at the end of the last epoch
    (Loshchilov and Hutter 2017) and `constant` stays. `step` multiplies the rate by `step_gamma` every `step_epochs`
    epochs, without warm-up.
    """
    if train.schedule == "step":
        return train.lr * train.step_gamma ** (step // steps_per_epoch // train.step_epochs)
    total = train.epochs * steps_per_epoch
    warmup = min(round(train.warmup * total), total - 1)
    if step < warmup:
        return train.lr * (step + 1) / warmup
    if train.schedule == "constant":
        return train.lr
    return train.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def freeze_backbone(model: nn.Module, head: str, frozen: bool) -> None:
    """Put `model` into training mode. While `frozen`, only the module `head` learns; the backbone also keeps its
    normalisation statistics.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not frozen or name.startswith(head + "."))
    model.train(not frozen)
    model.get_submodule(head).train()
