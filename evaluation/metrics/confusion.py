"""Confusion matrices, and what follows from their counts alone: rows are the true class, columns the predicted one."""

from __future__ import annotations

import numpy as np


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Return counts (classes, classes) int64, rows = true, columns = predicted, from (n,) class numbers."""
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def overall_values(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Return accuracy, balanced_accuracy, macro_f1 and mcc of confusion matrices (…, classes, classes), each (…).

    balanced_accuracy is the mean recall and macro_f1 the mean F1 = 2TP / (2TP + FP + FN) over the classes that occur.
    """
    right, true, predicted = np.diagonal(confusion, axis1=-2, axis2=-1), confusion.sum(-1), confusion.sum(-2)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall, f1 = (np.where(true > 0, part, 0).sum(-1) for part in (right / true, 2 * right / (true + predicted)))
        present = (true > 0).sum(-1)
        return {
            "accuracy": right.sum(-1) / true.sum(-1),
            "balanced_accuracy": recall / present,
            "macro_f1": f1 / present,
            "mcc": matthews_correlation(confusion),
        }


def matthews_correlation(confusion: np.ndarray) -> np.ndarray:
    """Return the multiclass Matthews correlation (Gorodkin 2004) of (…, classes, classes); 0 for 0/0."""
    c = confusion.astype(np.float64)
    total, correct, rows, columns = c.sum((-2, -1)), np.trace(c, axis1=-2, axis2=-1), c.sum(-1), c.sum(-2)
    spread = (total**2 - (columns**2).sum(-1)) * (total**2 - (rows**2).sum(-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(spread > 0, (correct * total - (rows * columns).sum(-1)) / np.sqrt(spread), 0.0)
