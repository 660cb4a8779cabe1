"""From images to class scores and probabilities, a batch at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from dataset.image_set import ImageSet
from pretrained_models import Architecture
from utils import UserError, autocast


@dataclass(frozen=True)
class Runtime:
    """The device, the precision (`fp32` or `bf16`) and the images per pass of forward passes."""

    device: torch.device
    precision: str
    batch: int


def predict_logits(
    model: nn.Module,
    images: ImageSet,
    architecture: Architecture,
    runtime: Runtime,
    *,
    title: str = "",
    mirrored: bool = False,
) -> np.ndarray:
    """Return the class scores before the softmax for every image, in order: (n, classes) float32.

    Args:
        model: on the runtime's device; it is put in evaluation mode.
        images: cached at the model's input size.
        architecture: its mean and standard deviation normalise the images.
        title: of the progress bar; an empty title shows none.
        mirrored: flip every image left to right.
    """
    model.eval()
    scores = []
    with (
        torch.inference_mode(),
        autocast(runtime.device, runtime.precision),  # around the loop: the weights are cast once, not for every batch
        tqdm(total=len(images), desc=title, unit="image", disable=not title, leave=False) as bar,
    ):
        for batch in images.batches(runtime.device, runtime.batch, architecture):
            scores.append(model(batch.inputs.flip(-1) if mirrored else batch.inputs).float())
            bar.update(len(batch.indices))
        return torch.cat(scores).cpu().numpy() if scores else np.zeros((0, len(images.classes)), np.float32)


def softmax(logits: np.ndarray, records: pd.DataFrame) -> np.ndarray:
    """Return the probabilities, (n, classes) float64, of class scores.

    Raises: `UserError` for scores that are not finite; `records` name the first such image.
    """
    logits = logits.astype(np.float64)
    if not np.isfinite(logits).all():
        where = records["path"].iloc[int(np.argmin(np.isfinite(logits).all(1)))]
        raise UserError(f"scores are not finite, first for {where}: the weights diverged; train with a lower train.lr")
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)
