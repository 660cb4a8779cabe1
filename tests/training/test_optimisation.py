"""Schedules, weight decay and frozen backbones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from config import TrainConfig
from training.optimisation import build_optimizer, freeze_backbone, learning_rate


def test_schedules_have_the_rates_worked_out_by_hand() -> None:
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


def test_only_weights_decay() -> None:
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


def test_a_frozen_backbone_does_not_change() -> None:
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
        changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
        assert {k for k in changed if k.startswith("head")} == {"head.weight", "head.bias"}
        assert any(k.startswith("body") for k in changed) is not frozen
