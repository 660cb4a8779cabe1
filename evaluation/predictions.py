"""A model's answers to a set of radiographs, as the table that everything else is computed from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from dataset.batches import Part
from utils import UserError, atomic_write, autocast


def predict_logits(
    model: nn.Module,
    part: Part,
    device: torch.device,
    *,
    precision: str,
    batch: int,
    mean: Sequence[float],
    std: Sequence[float],
    title: str = "",
) -> np.ndarray:
    """Class scores before the softmax for every picture of `part`, in its order: (n, classes) float32.

    The model is put in evaluation mode. A bar with `title` is shown; an empty title shows none.
    """
    from tqdm import tqdm

    model.eval()
    found = []
    with (
        torch.inference_mode(),
        autocast(device, precision),  # around the loop: the weights are cast once, not for every batch
        tqdm(total=len(part), desc=title, unit="image", disable=not title, leave=False) as bar,
    ):
        for item in part.batches(device, batch, part.side, mean, std):
            found.append(model(item.inputs).float())
            bar.update(len(item.indices))
        return torch.cat(found).cpu().numpy() if found else np.zeros((0, len(part.classes)), np.float32)


def prediction_table(records: pd.DataFrame, logits: np.ndarray, classes: list[str]) -> pd.DataFrame:
    """The contract's predictions: path, sha256, label, predicted, confidence, p_CLASS…, group, source.

    `logits` is (n, classes); probabilities are their softmax in float64. Raises: `UserError` for scores that are not
    finite, which no probability can be made of.
    """
    logits = logits.astype(np.float64)
    if not np.isfinite(logits).all():
        where = records["path"].iloc[int(np.argmin(np.isfinite(logits).all(1)))]
        raise UserError(f"the model's scores are not finite (first for {where}): its weights have diverged")
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = shifted / shifted.sum(1, keepdims=True)
    table = records[["path", "sha256", "label"]].reset_index(drop=True)
    table["predicted"] = np.array(classes, object)[probabilities.argmax(1)]
    table["confidence"] = probabilities.max(1)
    for index, name in enumerate(classes):
        table[f"p_{name}"] = probabilities[:, index]
    table["group"], table["source"] = records["group"].to_numpy(), records["source"].to_numpy()
    return table


def write_predictions(table: pd.DataFrame, path: Path) -> None:
    """Write `predictions.csv`, atomically and without loss (floats by their shortest exact form)."""
    with atomic_write(path) as file:
        table.to_csv(file, index=False, lineterminator="\n")


def read_predictions(path: Path) -> pd.DataFrame:
    """Read a `predictions.csv`: text columns stay text, whatever they look like, and floats come back exactly."""
    try:
        header = pd.read_csv(path, nrows=0)
        text = {c: str for c in header.columns if not (c.startswith("p_") or c == "confidence")}
        return pd.read_csv(path, dtype=text, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as predictions ({str(error).splitlines()[0]})") from None
