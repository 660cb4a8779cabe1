"""Batches: streamed, resident on the device, and never of a single training image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from config import AugmentConfig, DataConfig, load_run_config
from dataset.image_set import ImageSet, Schedule
from dataset.loading import load_dataset
from dataset.sampling import epoch_steps
from dataset.transforms import Augment, Normalisation

CPU = torch.device("cpu")
NORMALISATION = Normalisation((0.5, 0.4), (0.2, 0.3))


@pytest.mark.parametrize("batch", [7, 32])
def test_resident_images_give_the_streamed_batches(
    phantom: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    dataset = load_dataset(DataConfig(path=str(phantom), cache_dir=str(cache_dir)), 48)
    augment = Augment(AugmentConfig(rotation=10, horizontal_flip=0.5, contrast=0.2, geometric=0.5), 1, 48, 48)
    order = np.random.default_rng(0).integers(0, len(dataset.images("train")), 60)

    def batches(images: ImageSet) -> list:
        return list(images.batches(CPU, batch, NORMALISATION, Schedule(order, augment=augment, epoch=2)))

    streamed = batches(dataset.images("train"))
    monkeypatch.setattr(ImageSet, "fits", lambda self, device: True)
    images = dataset.images("train")
    resident = batches(images)
    assert images.resident(CPU).shape == (len(images), 48, 48)
    assert images.resident(CPU) is images.resident(CPU)  # moved once
    for one, other in zip(streamed, resident, strict=True):
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.labels, other.labels)
        assert np.array_equal(one.indices, other.indices)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("device_bytes", [0, 2**30], ids=["streamed", "resident"])
def test_a_gpu_gives_the_batches_of_the_cpu(phantom: Path, cache_dir: Path, device_bytes: int) -> None:
    images = load_dataset(DataConfig(path=str(phantom), cache_dir=str(cache_dir)), 48).images("train")
    augment = Augment(AugmentConfig(rotation=10, horizontal_flip=0.5, contrast=0.2, geometric=0.5), 1, 48, 48)

    def batches(device: torch.device) -> list:
        return list(images.batches(device, 16, NORMALISATION, Schedule(augment=augment, epoch=2)))

    gpu = torch.device("cuda")
    images.device_bytes = device_bytes
    assert (images.resident(gpu) is None) == (device_bytes == 0)
    for one, other in zip(batches(gpu), batches(CPU), strict=True):
        torch.testing.assert_close(one.inputs.cpu(), other.inputs, rtol=0, atol=1e-4)


def test_a_cpu_keeps_no_second_copy(phantom: Path, cache_dir: Path) -> None:
    images = load_dataset(DataConfig(path=str(phantom), cache_dir=str(cache_dir)), 48).images("train")
    assert images.resident(CPU) is None


@pytest.mark.parametrize("batch", [10, 4, 2])
def test_no_training_batch_of_one(batch: int, tiny_run: Path) -> None:
    """If one image would be left over, every image still comes once and is augmented by its position in the epoch."""
    config = load_run_config(tiny_run / "config.yaml")
    images = load_dataset(config.data, 64, run_split=tiny_run / "split.csv").images("train")
    order = np.arange((len(images) - 1) // batch * batch + 1)
    augment = Augment(config.augment, 0, 64, 64)
    grey = Normalisation((0.5,), (0.5,))
    schedule = Schedule(order, epoch_steps(len(order), batch), augment, epoch=1)
    batches = list(images.batches(CPU, batch, grey, schedule))
    assert min(len(b.indices) for b in batches) > 1
    np.testing.assert_array_equal(np.concatenate([b.indices for b in batches]), order)
    whole = next(images.batches(CPU, 1000, grey, Schedule(order, augment=augment, epoch=1)))
    torch.testing.assert_close(torch.cat([b.inputs for b in batches]), whole.inputs)
