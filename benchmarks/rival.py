"""The usual torchvision recipe of the tutorials: ImageFolder, PIL, a DataLoader with workers, fp32.

It stands for the rivals and is tuned fairly: as many workers as cores, persistent workers, the fused optimiser, and
only the cheapest augmentation (a flip), while ours applies all of `configs/augment/chest.yaml`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from common import finish
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.models import get_model

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def link_images(paths: list[str], labels: list[str], folder: Path) -> Path:
    """Link each image as `folder`/CLASS/NAME, the layout that ImageFolder reads."""
    for path, label in zip(paths, labels, strict=True):
        target = folder / label / Path(path).name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path)
    return folder


def _loader(folder: str, size: int, batch: int, training: bool, device: torch.device) -> DataLoader:
    steps = [transforms.Resize((size, size), antialias=True)]
    steps += [transforms.RandomHorizontalFlip()] if training else []
    steps += [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    return DataLoader(
        ImageFolder(folder, transforms.Compose(steps)),
        batch,
        shuffle=training,
        num_workers=os.cpu_count() or 1,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
    )


def _ready(model: nn.Module) -> torch.device:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = True
    model.to(device)
    return device


def train_epochs(folder: str, name: str, size: int, batch: int) -> Callable[[], float]:
    """Return a function that trains one epoch and returns its images per second."""
    model = get_model(name, num_classes=len(list(Path(folder).iterdir()))).train()
    device = _ready(model)
    loader = _loader(folder, size, batch, True, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def epoch() -> float:
        began = time.perf_counter()
        for inputs, labels in loader:
            inputs, labels = inputs.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
        finish(device)
        return len(loader.dataset) / (time.perf_counter() - began)

    return epoch


def evaluate(folder: str, name: str, size: int, batch: int) -> Callable[[], float]:
    """Return a function that evaluates all images (class scores and the usual report) and returns images per second."""
    from sklearn.metrics import classification_report

    model = get_model(name, num_classes=len(list(Path(folder).iterdir()))).eval()
    device = _ready(model)
    loader = _loader(folder, size, batch, False, device)

    def run() -> float:
        began = time.perf_counter()
        scores, truth = [], []
        with torch.inference_mode():
            for inputs, labels in loader:
                scores.append(model(inputs.to(device, non_blocking=True)).cpu())
                truth.append(labels)
        classification_report(torch.cat(truth), torch.cat(scores).argmax(1), zero_division=0)
        return len(loader.dataset) / (time.perf_counter() - began)

    return run


def decode(paths: list[str], size: int) -> Callable[[], float]:
    """Return a function that reads images as ImageFolder and Resize do, and returns images per second of CPU time."""
    from PIL import Image

    resize = transforms.Resize((size, size), antialias=True)

    def run() -> float:
        began = time.process_time()
        for path in paths:
            with open(path, "rb") as file:
                resize(Image.open(file).convert("RGB"))
        return len(paths) / (time.process_time() - began)

    return run
