"""From images to class scores and probabilities, a batch at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from dataset.image_set import ImageSet
from dataset.transforms import Normalisation
from utils import UserError, autocast


def predict_logits(
    model: nn.Module,
    part: ImageSet,
    device: torch.device,
    *,
    precision: str,
    batch: int,
    mean: Sequence[float],
    std: Sequence[float],
    title: str = "",
    mirrored: bool = False,
) -> np.ndarray:
    """Class scores before the softmax for every picture of `part`, in its order: (n, classes) float32.

    The model is put in evaluation mode. A bar with `title` is shown; an empty title shows none. `mirrored` turns left
    and right of every picture.
    """
    model.eval()
    found = []
    with (
        torch.inference_mode(),
        autocast(device, precision),  # around the loop: the weights are cast once, not for every batch
        tqdm(total=len(part), desc=title, unit="image", disable=not title, leave=False) as bar,
    ):
        for item in part.batches(device, batch, Normalisation(mean, std)):
            found.append(model(item.inputs.flip(-1) if mirrored else item.inputs).float())
            bar.update(len(item.indices))
        return torch.cat(found).cpu().numpy() if found else np.zeros((0, len(part.classes)), np.float32)


def softmax(logits: np.ndarray, records: pd.DataFrame) -> np.ndarray:
    """Probabilities (n, classes) float64 of class scores.

    Raises: `UserError` for scores that are not finite, which no probability can be made of; `records` name the image.
    """
    logits = logits.astype(np.float64)
    if not np.isfinite(logits).all():
        where = records["path"].iloc[int(np.argmin(np.isfinite(logits).all(1)))]
        raise UserError(f"the model's scores are not finite (first for {where}): its weights have diverged")
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)
