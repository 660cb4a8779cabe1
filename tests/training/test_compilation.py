"""Compiled training steps: the same results, and when they are used."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from torch import nn

from config import compose_config
from pretrained_models import Architecture
from training import compilation
from training.compilation import LONG_RUN, training_forward
from training.loop import Learner
from utils import UserError

CPU = torch.device("cpu")


def _learner(compiled: str, device: torch.device = CPU) -> Learner:
    """Return a learner for batches of four images with two channels and 9 × 9 pixels."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    architecture = Architecture(name="net", head="5", size=9, mean=(0.5, 0.5), std=(0.2, 0.2))
    config = compose_config(["train.batch=4", f"train.compile={compiled}"])
    return Learner(model=model, architecture=architecture, config=config, size=9, device=device, precision="fp32")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs g++")
def test_a_compiled_step_learns_the_same() -> None:
    learner = _learner("on")
    model, plain = learner.model, copy.deepcopy(learner.model)
    inputs = torch.randn(4, 2, 9, 9)
    random = torch.get_rng_state()
    forward = training_forward(learner, 10)
    assert forward is not model
    assert torch.equal(torch.get_rng_state(), random)  # compiling draws no random numbers
    for value, other in zip(model.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(value, other)  # and changes no parameter
    for network, call in ((model, forward), (plain, plain)):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        for batch in (inputs, inputs[:3]):  # a full batch, and the last one of an epoch
            nn.functional.cross_entropy(call(batch), torch.arange(len(batch)) % 3).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert list(model.state_dict()) == list(plain.state_dict())  # checkpoints are the same
    for value, other in zip(model.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-5)


def test_a_compiler_error_ends_on_and_warns_in_auto(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(model: nn.Module, **_: object) -> nn.Module:
        def call(inputs: torch.Tensor) -> torch.Tensor:
            raise torch._dynamo.exc.Unsupported("no compiler")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(UserError, match=r"train\.compile.*no compiler.*train\.compile=off"):
        training_forward(_learner("on"), 10)
    monkeypatch.setattr(compilation, "LONG_RUN", 10)
    learner = _learner("auto", torch.device("cuda"))
    monkeypatch.setattr(torch, "zeros", lambda shape, device: torch.ones(shape))  # in place of a GPU
    assert training_forward(learner, 10) is learner.model  # uncompiled


def test_auto_compiles_only_long_runs_on_a_gpu() -> None:
    gpu = torch.device("cuda")
    for mode, device, steps in (("auto", CPU, 10 * LONG_RUN), ("auto", gpu, LONG_RUN - 1), ("off", gpu, 10 * LONG_RUN)):
        learner = _learner(mode, device)
        assert training_forward(learner, steps) is learner.model
