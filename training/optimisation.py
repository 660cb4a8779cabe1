"""Optimisers and learning-rate schedules. The rate is a function of the step: no state is lost on resume."""

from __future__ import annotations

import math

import torch
from torch import nn

from config import TrainConfig


def build_optimizer(model: nn.Module, train: TrainConfig) -> torch.optim.Optimizer:
    """AdamW, Adam or SGD over all parameters: weights decay, biases and norms (one dimension or none) do not.

    Every optimiser gets every parameter, so that unfreezing the backbone and resuming need no new one.
    """
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": train.weight_decay}, {"params": others, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if train.optimizer == "sgd":
        # The fused kernel cannot mix parameters with and without momentum, as there are after a frozen backbone thaws.
        return torch.optim.SGD(
            groups, lr=train.lr, momentum=train.momentum, nesterov=train.momentum > 0, fused=not train.freeze_epochs
        )
    kind = torch.optim.AdamW if train.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=train.lr, fused=True)


def learning_rate(train: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """The learning rate of a step (from 0).

    Linear warm-up over the fraction `warmup` of all steps, then `cosine` to zero at the end of the last epoch
    (Loshchilov and Hutter 2017), or `constant`; `step` multiplies by `step_gamma` every `step_epochs` epochs and has no
    warm-up.
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
    """Put `model` into training mode; while `frozen`, the module `head` alone learns, and the rest keeps its
    normalisation statistics too.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not frozen or name.startswith(head + "."))
    model.train(not frozen)
    model.get_submodule(head).train()
