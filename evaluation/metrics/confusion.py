"""Confusion matrices, and what follows from their counts alone.

Rows are the true class, columns the predicted one. Per class everything is one-versus-rest: true positives are the
diagonal, false positives the rest of the class's column, false negatives the rest of its row.
"""

from __future__ import annotations

import numpy as np


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts (classes, classes) int64, rows = true, columns = predicted, from (n,) class numbers."""
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def one_vs_rest(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """accuracy, precision, recall, specificity and f1 of every class, (…, classes) float64, NaN where undefined (0/0).

    `confusion` is (…, classes, classes): one matrix, or as many as a bootstrap draws. f1 = 2TP / (2TP + FP + FN) is
    undefined only for a class that is neither present nor predicted.
    """
    total = confusion.sum((-2, -1))[..., None]
    tp = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
    fp, fn = confusion.sum(-2) - tp, confusion.sum(-1) - tp
    tn = total - tp - fp - fn
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "accuracy": (tp + tn) / total,
            "precision": tp / (tp + fp),
            "recall": tp / (tp + fn),
            "specificity": tn / (tn + fp),
            "f1": 2 * tp / (2 * tp + fp + fn),
        }


def overall_values(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """accuracy, balanced_accuracy, macro_f1 and mcc of confusion matrices (…, classes, classes), each (…).

    The second and third are means over the classes that occur.
    """
    rest, present = one_vs_rest(confusion), confusion.sum(-1) > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        means = {
            name: np.where(present, rest[part], 0).sum(-1) / present.sum(-1)
            for name, part in (("balanced_accuracy", "recall"), ("macro_f1", "f1"))
        }
        correct = np.trace(confusion, axis1=-2, axis2=-1) / confusion.sum((-2, -1))
    return {"accuracy": correct, **means, "mcc": matthews_correlation(confusion)}


def matthews_correlation(confusion: np.ndarray) -> np.ndarray:
    """The multiclass Matthews correlation (Gorodkin 2004) of (…, classes, classes), 0 where its denominator is 0."""
    c = confusion.astype(np.float64)
    total, correct, rows, columns = c.sum((-2, -1)), np.trace(c, axis1=-2, axis2=-1), c.sum(-1), c.sum(-2)
    spread = (total**2 - (columns**2).sum(-1)) * (total**2 - (rows**2).sum(-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(spread > 0, (correct * total - (rows * columns).sum(-1)) / np.sqrt(spread), 0.0)
