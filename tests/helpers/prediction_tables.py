"""Tables of predictions made by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd

from evaluation.comparison.inputs import align
from evaluation.predictions import Predictions, prediction_table
from inference.predict import softmax

CLASSES = ["COVID", "Lung_Opacity", "Normal"]


def table(n: int, seed: int, shift: float = 1.5, images: int = 1, digits: int = 3) -> pd.DataFrame:
    """Return predictions of n images, `images` per patient; two seeds are two models on the same images.

    Probabilities have `digits` digits (few make ties) and sum to 1.
    """
    labels = np.repeat(np.random.default_rng(0).integers(0, len(CLASSES), -(-n // images)), images)[:n]
    scores = np.random.default_rng(seed).normal(size=(n, len(CLASSES))) + shift * np.eye(len(CLASSES))[labels]
    powered = np.exp(scores)
    probabilities = np.floor(powered / powered.sum(1, keepdims=True) * 10**digits)
    probabilities[np.arange(n), scores.argmax(1)] += 10**digits - probabilities.sum(1)
    frame = pd.DataFrame({"path": [f"/data/{i:05d}.png" for i in range(n)], "sha256": [f"{i:064x}" for i in range(n)]})
    frame["label"] = np.array(CLASSES)[labels]
    frame[[f"p_{name}" for name in CLASSES]] = probabilities / 10**digits
    frame["group"] = [f"patient {i // images}" for i in range(n)]
    return frame


def predictions(frame: pd.DataFrame, classes: list[str] = CLASSES) -> Predictions:
    return Predictions(frame.copy(), list(classes))


def two(n: int, images: int = 1) -> dict[str, Predictions]:
    return align({"a": predictions(table(n, 1, 1.5, images)), "b": predictions(table(n, 2, 1.2, images))})


def with_confusion(confusion: np.ndarray, classes: list[str], rng: np.random.Generator) -> Predictions:
    """Return predictions with this confusion matrix, each image of a different patient."""
    pairs = [(t, p) for t, p in np.ndindex(confusion.shape) for _ in range(confusion[t, p])]
    logits = rng.normal(size=(len(pairs), len(classes)))
    for row, (_, predicted) in zip(logits, pairs, strict=True):
        row[predicted] = row.max() + 0.5
    records = pd.DataFrame(
        {
            "path": [f"/x/{i}.png" for i in range(len(pairs))],
            "sha256": "0",
            "group": [f"g{i}" for i in range(len(pairs))],
            "source": "",
            "label": [classes[t] for t, _ in pairs],
        }
    )
    return Predictions(prediction_table(records, softmax(logits, records), classes), classes)


def random_predictions(n: int, seed: int = 0, images: int = 1, shift: float = 1.5) -> Predictions:
    rng = np.random.default_rng(seed)
    names = ["COVID", "Normal", "Other"]
    labels = rng.integers(0, 3, n)
    logits = rng.normal(size=(n, 3)) + shift * np.eye(3)[labels]
    powered = np.exp(logits)
    table = pd.DataFrame(powered / powered.sum(1, keepdims=True), columns=[f"p_{name}" for name in names])
    table["path"], table["label"] = np.arange(n).astype(str), np.array(names)[labels]
    table["group"] = (np.arange(n) // images).astype(str)
    return Predictions(table, names)
