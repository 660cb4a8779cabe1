"""What makes training quick must not change what is learnt: pictures on the device, compiled steps, kept memory."""

from __future__ import annotations

import copy
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from config import AugmentConfig, DataConfig, compose_config
from dataset.image_set import ImageSet, Schedule
from dataset.loading import load_dataset
from dataset.transforms import Augment, Normalisation
from pretrained_models import Architecture
from tests.helpers.verbs import ROOT
from training import compilation
from training.compilation import LONG_RUN, training_forward
from training.loop import Learner
from utils import UserError, pick_device

CPU = torch.device("cpu")
NORMALISATION = Normalisation((0.5, 0.4), (0.2, 0.3))


@pytest.mark.parametrize("batch", [7, 32])
def test_resident_pictures_give_the_streamed_batches(
    phantom: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    dataset = load_dataset(DataConfig(path=str(phantom), cache_dir=str(cache_dir)), 48)
    augment = Augment(AugmentConfig(rotation=10, horizontal_flip=0.5, contrast=0.2, geometric=0.5), 1, 48, 48)
    order = np.random.default_rng(0).integers(0, len(dataset.images("train")), 60)

    def batches(part: ImageSet) -> list:
        return list(part.batches(CPU, batch, NORMALISATION, Schedule(order, augment=augment, epoch=2)))

    streamed = batches(dataset.images("train"))
    monkeypatch.setattr(ImageSet, "fits", lambda self, device: True)
    part = dataset.images("train")
    resident = batches(part)
    assert part.resident(CPU).shape == (len(part), 48, 48)
    assert part.resident(CPU) is part.resident(CPU)  # moved once
    for ours, theirs in zip(streamed, resident, strict=True):
        assert torch.equal(ours.inputs, theirs.inputs)
        assert torch.equal(ours.labels, theirs.labels)
        assert np.array_equal(ours.indices, theirs.indices)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("device_bytes", [0, 2**30], ids=["streamed", "resident"])
def test_a_gpu_gives_the_batches_of_the_cpu(phantom: Path, cache_dir: Path, device_bytes: int) -> None:
    part = load_dataset(DataConfig(path=str(phantom), cache_dir=str(cache_dir)), 48).images("train")
    augment = Augment(AugmentConfig(rotation=10, horizontal_flip=0.5, contrast=0.2, geometric=0.5), 1, 48, 48)

    def batches(device: torch.device) -> list:
        return list(part.batches(device, 16, NORMALISATION, Schedule(augment=augment, epoch=2)))

    gpu = torch.device("cuda")
    part.device_bytes = device_bytes
    assert (part.resident(gpu) is None) == (device_bytes == 0)
    for ours, theirs in zip(batches(gpu), batches(CPU), strict=True):
        torch.testing.assert_close(ours.inputs.cpu(), theirs.inputs, rtol=0, atol=1e-4)


def test_a_cpu_holds_no_second_copy(phantom: Path, cache_dir: Path) -> None:
    part = load_dataset(DataConfig(path=str(phantom), cache_dir=str(cache_dir)), 48).images("train")
    assert part.resident(CPU) is None


def _learner(compiled: str, device: torch.device = CPU) -> Learner:
    """Four images of two channels and 9 × 9 pixels at a time."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    architecture = Architecture(name="net", head="5", size=9, mean=(0.5, 0.5), std=(0.2, 0.2))
    config = compose_config(["train.batch=4", f"train.compile={compiled}"])
    return Learner(model=model, architecture=architecture, config=config, size=9, device=device, precision="fp32")


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs g++")
def test_a_compiled_step_learns_the_same() -> None:
    learner = _learner("on")
    model, plain = learner.model, copy.deepcopy(learner.model)
    inputs = torch.randn(4, 2, 9, 9)
    random = torch.get_rng_state()
    forward = training_forward(learner, 10)
    assert forward is not model
    assert torch.equal(torch.get_rng_state(), random)  # compiling draws nothing
    for ours, theirs in zip(model.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)  # and moves nothing
    for network, call in ((model, forward), (plain, plain)):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        for part in (inputs, inputs[:3]):  # a whole batch, and the last one of an epoch
            nn.functional.cross_entropy(call(part), torch.arange(len(part)) % 3).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert list(model.state_dict()) == list(plain.state_dict())  # a checkpoint of it is an ordinary one
    for ours, theirs in zip(model.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_when_compiling_fails(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def broken(model: nn.Module, **_: object) -> nn.Module:
        def call(inputs: torch.Tensor) -> torch.Tensor:
            raise torch._dynamo.exc.Unsupported("no compiler")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(UserError, match=r"train\.compile.*no compiler.*train\.compile=off"):
        training_forward(_learner("on"), 10)
    monkeypatch.setattr(compilation, "LONG_RUN", 10)
    learner = _learner("auto", torch.device("cuda"))
    monkeypatch.setattr(torch, "zeros", lambda shape, device: torch.ones(shape))  # for a GPU that is not there
    assert training_forward(learner, 10) is learner.model  # it goes on without


def test_auto_compiles_long_runs_on_a_gpu_alone() -> None:
    gpu = torch.device("cuda")
    for mode, device, steps in (("auto", CPU, 10 * LONG_RUN), ("auto", gpu, LONG_RUN - 1), ("off", gpu, 10 * LONG_RUN)):
        learner = _learner(mode, device)
        assert training_forward(learner, steps) is learner.model


@pytest.mark.slow
@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or "LD_PRELOAD" in os.environ, reason="another allocator than glibc's"
)
def test_freed_memory_is_kept_on_a_cpu() -> None:
    """The page faults of allocating and freeing 64 MiB again and again, with and without."""
    program = (
        "import resource, sys, torch; sys.path.insert(0, {root!r}); from utils import pick_device\n"
        "if {kept}: pick_device('cpu')\n"
        "torch.ones(2**24)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(10): torch.ones(2**24)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"
    )
    faults = [
        int(subprocess.run(
            [sys.executable, "-c", program.format(root=str(ROOT), kept=kept)],
            capture_output=True, text=True, check=True,
        ).stdout)
        for kept in (True, False)
    ]  # fmt: skip
    # Not a tenth: an aligned block does not fit where a block of its own size lay, only where two did.
    assert faults[0] < 0.7 * faults[1]
    assert pick_device("cpu") == CPU
