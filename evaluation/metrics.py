"""Metrics of a single-label classifier, computed once over all predictions.

Per class everything is one-versus-rest: true positives are the diagonal of the confusion matrix (rows = true class,
columns = predicted), false positives the rest of the class's column, false negatives the rest of its row.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from utils import write_csv, write_json

ECE_BINS = 15
OVERALL = ("accuracy", "balanced_accuracy", "macro_f1", "mcc", "ece", "brier", "log_loss")
PER_CLASS = ("accuracy", "precision", "recall", "specificity", "f1", "auroc", "average_precision")


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts (classes, classes) int64, rows = true, columns = predicted, from (n,) class numbers."""
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def one_vs_rest(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """accuracy, precision, recall, specificity and f1 of every class, (classes,) float64, NaN where undefined (0/0).

    f1 = 2TP / (2TP + FP + FN) is undefined only for a class that is neither present nor predicted.
    """
    total = confusion.sum()
    tp = np.diag(confusion).astype(np.float64)
    fp, fn = confusion.sum(0) - tp, confusion.sum(1) - tp
    tn = total - tp - fp - fn
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "accuracy": (tp + tn) / total,
            "precision": tp / (tp + fp),
            "recall": tp / (tp + fn),
            "specificity": tn / (tn + fp),
            "f1": 2 * tp / (2 * tp + fp + fn),
        }


def matthews_correlation(confusion: np.ndarray) -> float:
    """The multiclass Matthews correlation (Gorodkin 2004), 0 where its denominator is 0."""
    c = confusion.astype(np.float64)
    total, correct, rows, columns = c.sum(), np.trace(c), c.sum(1), c.sum(0)
    spread = (total**2 - (columns**2).sum()) * (total**2 - (rows**2).sum())
    return float((correct * total - rows @ columns) / np.sqrt(spread)) if spread > 0 else 0.0


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = ECE_BINS) -> float:
    """ECE over `bins` equal-width bins of the winning class's probability (Guo 2017, eq. 3), in [0, 1]."""
    index = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(index, weights=correct.astype(np.float64) - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def compute_metrics(table: pd.DataFrame, classes: list[str]) -> dict[str, Any]:
    """The contract's `metrics.json` from a predictions table of at least one row; undefined values are None.

    macro_f1 and balanced_accuracy average over the classes that occur. brier is the sum over classes, in [0, 2]
    (Brier 1950); log_loss is in nats.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    number = {name: i for i, name in enumerate(classes)}
    labels, predicted = (table[c].map(number).to_numpy(np.int64) for c in ("label", "predicted"))
    probabilities = table[[f"p_{name}" for name in classes]].to_numpy(np.float64)
    confusion = confusion_matrix(labels, predicted, len(classes))
    rest = one_vs_rest(confusion)
    support = confusion.sum(1)
    correct = labels == predicted
    truth = np.eye(len(classes))[labels]
    overall = {
        "accuracy": correct.mean(),
        "balanced_accuracy": rest["recall"][support > 0].mean(),
        "macro_f1": rest["f1"][support > 0].mean(),
        "mcc": matthews_correlation(confusion),
        "ece": expected_calibration_error(probabilities.max(1), correct),
        "brier": ((probabilities - truth) ** 2).sum(1).mean(),
        "log_loss": -np.log(np.maximum(probabilities[np.arange(len(labels)), labels], np.finfo(float).tiny)).mean(),
    }
    ranks = {}
    for i, name in enumerate(classes):
        both = 0 < support[i] < len(labels)
        ranks[name] = {
            "auroc": roc_auc_score(truth[:, i], probabilities[:, i]) if both else np.nan,
            "average_precision": average_precision_score(truth[:, i], probabilities[:, i]) if both else np.nan,
        }
    return {
        "n": len(table),
        **{name: _entry(overall[name]) for name in OVERALL},
        "per_class": {
            name: {
                **{m: _entry(ranks[name][m] if m in ranks[name] else rest[m][i]) for m in PER_CLASS},
                "support": int(support[i]),
            }
            for i, name in enumerate(classes)
        },
        "classes": classes,
        "confusion": confusion.tolist(),
        "ece_bins": ECE_BINS,
    }


def _entry(value: float) -> dict[str, float | None]:
    """A value with the limits of its interval, which are None until intervals are computed."""
    return {"value": None if np.isnan(value) else float(value), "low": None, "high": None}


def per_class_table(metrics: dict[str, Any]) -> pd.DataFrame:
    """The per-class values as a table: one row per class, `PER_CLASS` and support as columns."""
    rows = {
        name: {**{m: row[m]["value"] for m in PER_CLASS}, "support": row["support"]}
        for name, row in metrics["per_class"].items()
    }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("class")
    return table.astype(dict.fromkeys(PER_CLASS, float))


def write_metrics(metrics: dict[str, Any], folder: Path) -> None:
    """Write `metrics.json` and the per-class `metrics.csv` into `folder`."""
    write_json(folder / "metrics.json", metrics)
    table = per_class_table(metrics).reset_index()
    write_csv(folder / "metrics.csv", table.astype(object).where(table.notna(), "").to_dict("records"))


def format_metrics(metrics: dict[str, Any]) -> str:
    """The metrics as text for a terminal: the headline, the per-class table and the confusion matrix."""
    values = {name: metrics[name]["value"] for name in OVERALL}
    correct = int(np.trace(np.array(metrics["confusion"])))
    head = (
        f"accuracy {values['accuracy']:.4f} ({correct} of {metrics['n']})   "
        f"balanced accuracy {values['balanced_accuracy']:.4f}   macro F1 {values['macro_f1']:.4f}   "
        f"MCC {values['mcc']:.4f}\n"
        f"ECE {values['ece']:.4f} ({ECE_BINS} bins)   Brier {values['brier']:.4f}   log loss {values['log_loss']:.4f}"
    )
    table = per_class_table(metrics).rename(columns={"average_precision": "avg_precision"})
    classes = metrics["classes"]
    counts = pd.DataFrame(metrics["confusion"], index=pd.Index(classes, name="true \\ predicted"), columns=classes)
    return "\n\n".join([head, table.to_string(float_format="{:.4f}".format, na_rep="-"), counts.to_string()])
