"""Metrics of a single-label classifier with their 95 % intervals, computed once over all predictions.

Per class everything is one-versus-rest: true positives are the diagonal of the confusion matrix (rows = true class,
columns = predicted), false positives the rest of the class's column, false negatives the rest of its row.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evaluation.metrics import calibration
from evaluation.metrics.ranking import auroc, average_precision
from evaluation.predictions import Predictions
from intervals import (
    RESAMPLES,
    Patients,
    basic_interval,
    mean_interval,
    proportion_interval,
    transformed_interval,
    wilson,
)
from utils import write_csv, write_json

SMALL = 30  # images: a class with fewer is marked as too small to rank
OVERALL = (
    *("accuracy", "balanced_accuracy", "macro_f1", "mcc", "macro_auroc", "macro_average_precision"),
    *("ece", "adaptive_ece", "brier", "log_loss"),
)
PER_CLASS = ("accuracy", "precision", "recall", "specificity", "f1", "auroc", "average_precision")
METHODS = {
    "accuracy, precision, recall, specificity": "Wilson; with several images per patient, with their design effect",
    "f1": "Wilson on F1 / (2 - F1), a proportion",
    "balanced_accuracy, macro_f1, macro_auroc, macro_average_precision": "the classes' limits, combined (MOVER)",
    "auroc": "DeLong over patients, on the logit scale",
    "average_precision": "infinitesimal jackknife over patients, on the logit scale",
    "mcc": "infinitesimal jackknife over patients, on Fisher's z scale",
    "brier (0 to 2), log_loss": "infinitesimal jackknife over patients, on the log scale",
    "ece, adaptive_ece": f"basic bootstrap over patients, {RESAMPLES} resamples",
}
Interval = tuple[float, float, float]  # value, low, high; NaN where undefined
UNKNOWN = (np.nan, np.nan, np.nan)
SUFFIXES = {"": "value", "_low": "low", "_high": "high"}


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


def compute_metrics(predictions: Predictions, *, seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Any]:
    """The contract's `metrics.json`: every value with its limits; what is undefined or unknown is None.

    macro_f1 and balanced_accuracy average over the classes that occur; macro_auroc and macro_average_precision over
    those that have both sides. brier is the sum over classes, in [0, 2]; log_loss is in nats. `seed` and `resamples`
    (0: no limits) are the bootstrap's.
    """
    classes, patients = predictions.classes, predictions.patients
    confusion = confusion_matrix(predictions.labels, predictions.predicted, len(classes))
    support = confusion.sum(1)
    per_class = _proportions(predictions, confusion) | _rankings(predictions)
    probabilities, labels = predictions.probabilities, predictions.labels
    accuracy = proportion_interval(predictions.correct[:, None], np.ones((len(labels), 1), bool), patients)
    overall = {
        "accuracy": (predictions.correct.mean(), *(float(limit[0]) for limit in accuracy)),
        "balanced_accuracy": _macro(per_class["recall"], support > 0, patients),
        "macro_f1": _macro(per_class["f1"], support > 0, patients),
        "mcc": _mcc(predictions, confusion),
        "macro_auroc": _macro(per_class["auroc"], support > 0, patients),
        "macro_average_precision": _macro(per_class["average_precision"], support > 0, patients),
        **_calibration_errors(predictions, resamples, seed),
        "brier": _mean(calibration.brier_scores(probabilities, labels), patients, most=2),
        "log_loss": _mean(calibration.log_losses(probabilities, labels), patients),
    }
    return {
        "n": len(predictions),
        "patients": patients.count,
        "images_of_unknown_patients": predictions.unknown_patients,
        **{name: entry(*overall[name]) for name in OVERALL},
        "per_class": {
            name: {
                **{m: entry(*(part[i] for part in per_class[m][:3])) for m in PER_CLASS},
                "support": int(support[i]),
                "small": bool(support[i] < SMALL),
            }
            for i, name in enumerate(classes)
        },
        "classes": classes,
        "confusion": confusion.tolist(),
        "ece_bins": calibration.BINS,
        "methods": METHODS,
    }


def entry(value: float, low: float = np.nan, high: float = np.nan) -> dict[str, float | None]:
    """A value with the limits of its interval, as JSON has them: None for NaN."""
    return {
        name: None if np.isnan(number) else float(number)
        for name, number in (("value", value), ("low", low), ("high", high))
    }


# Per class: values, lower limits, upper limits, each (classes,), and what each image adds to each value, (n, classes).
PerClass = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _proportions(predictions: Predictions, confusion: np.ndarray) -> dict[str, PerClass]:
    numbers = np.arange(len(confusion))
    truth, answer = predictions.labels[:, None] == numbers, predictions.predicted[:, None] == numbers
    values, either = one_vs_rest(confusion), truth | answer
    parts = {  # what counts, and of what
        "accuracy": (truth == answer, np.ones_like(truth)),
        "precision": (truth & answer, answer),
        "recall": (truth & answer, truth),
        "specificity": (~either, ~truth),
        "f1": (truth & answer, either),
    }
    found = {}
    for name, (hits, members) in parts.items():
        low, high = proportion_interval(hits, members, predictions.patients)
        with np.errstate(invalid="ignore", divide="ignore"):
            value = hits.sum(0) / members.sum(0)
            influence = np.nan_to_num((hits - value * members) / members.sum(0))
        if name == "f1":  # F1 = 2J / (1 + J), where J is the share of right answers where either side says the class
            influence *= 2 / (1 + value) ** 2
            low, high = 2 * low / (1 + low), 2 * high / (1 + high)
        found[name] = values[name], low, high, np.nan_to_num(influence)
    return found


def _rankings(predictions: Predictions) -> dict[str, PerClass]:
    found = {}
    for name, statistic in (("auroc", auroc), ("average_precision", average_precision)):
        ranks = [
            statistic(predictions.labels == i, predictions.probabilities[:, i], predictions.patients)
            for i in range(len(predictions.classes))
        ]
        numbers = (np.array([getattr(r, part) for r in ranks]) for part in ("value", "low", "high"))
        found[name] = *numbers, np.stack([r.influence for r in ranks], 1)
    return found


def _macro(per_class: PerClass, present: np.ndarray, patients: Patients) -> Interval:
    """The mean over the classes that occur and for which the statistic is defined."""
    values, low, high, influence = per_class
    kept = present & ~np.isnan(values)
    if not kept.any():
        return UNKNOWN
    return values[kept].mean(), *mean_interval(values[kept], low[kept], high[kept], influence[:, kept], patients)


def _mcc(predictions: Predictions, confusion: np.ndarray) -> Interval:
    """Where no answer is wrong nothing varies: the lower limit is then what evenly spread errors would give at the
    accuracy's lower limit, (K·accuracy - 1) / (K - 1).
    """
    value, size, patients = float(matthews_correlation(confusion)), len(confusion), predictions.patients
    if (confusion.sum(0) > 0).sum() < 2 or (confusion.sum(1) > 0).sum() < 2:
        return UNKNOWN  # all images, or all answers, are of one class
    if value == 1 and patients.count > 1:
        low = float(wilson(patients.count, patients.count)[0])
        return value, (size * low - 1) / (size - 1), 1.0
    # central differences of half an image per cell: the function of the counts is smooth
    steps = 0.5 * np.eye(size**2).reshape(-1, size, size)
    slope = matthews_correlation(confusion + steps) - matthews_correlation(confusion - steps)
    slope = slope.reshape(size, size)
    variance = patients.variance(slope[predictions.labels, predictions.predicted])
    return value, *transformed_interval(value, variance, "fisher", max(patients.count - 1, 1))


def _mean(scores: np.ndarray, patients: Patients, most: float = np.inf) -> Interval:
    """The mean of (n,) positive scores of at most `most`."""
    value = float(scores.mean())
    variance = patients.variance((scores - value) / len(scores))
    low, high = transformed_interval(value, variance, "log", max(patients.count - 1, 1))
    return value, low, min(high, most) if high == high else high


def _calibration_errors(predictions: Predictions, resamples: int, seed: int) -> dict[str, Interval]:
    """ECE and adaptive ECE; the bins of the second stay the sample's in every resample."""
    confidence, correct, patients = predictions.confidence, predictions.correct, predictions.patients
    found = {}
    for name, sort in (("ece", calibration.equal_width), ("adaptive_ece", calibration.equal_mass)):
        index = sort(confidence)
        value = calibration.expected_calibration_error(confidence, correct, index)
        if patients.count < 2 or not resamples:
            found[name] = (value, np.nan, np.nan)
            continue
        gaps = np.zeros((len(predictions), calibration.BINS + 1))
        gaps[np.arange(len(predictions)), index] = correct - confidence
        gaps[:, -1] = 1
        sums = patients.resampled_sums(gaps, resamples, seed)
        limits = basic_interval(value, np.abs(sums[:, :-1]).sum(1) / sums[:, -1])
        found[name] = (value, *limits)
    return found


def per_class_table(metrics: dict[str, Any]) -> pd.DataFrame:
    """A row per class: each of `PER_CLASS` with its limits as NAME, NAME_low and NAME_high, and support."""
    rows = {
        name: {
            **{m + suffix: row[m][part] for m in PER_CLASS for suffix, part in SUFFIXES.items()},
            "support": row["support"],
        }
        for name, row in metrics["per_class"].items()
    }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("class")
    return table.astype({column: float for column in table if column != "support"})


def write_metrics(metrics: dict[str, Any], folder: Path) -> None:
    """Write `metrics.json` and the per-class `metrics.csv` into `folder`."""
    write_json(folder / "metrics.json", metrics)
    table = per_class_table(metrics).reset_index()
    write_csv(folder / "metrics.csv", table.astype(object).where(table.notna(), "").to_dict("records"))


def with_limits(found: dict[str, float | None], digits: int = 3) -> str:
    """`0.931 [0.880, 0.962]`, without brackets where the limits are unknown, `-` where the value is."""
    if found["value"] is None:
        return "-"
    text = f"{found['value']:.{digits}f}"
    return text if found["low"] is None else f"{text} [{found['low']:.{digits}f}, {found['high']:.{digits}f}]"


def _patients(metrics: dict[str, Any]) -> str:
    unknown = metrics["images_of_unknown_patients"]
    if unknown == metrics["n"]:
        return "patients not known"
    known = f"{metrics['patients'] - unknown} patients"
    return f"{known} and {unknown} images of unknown ones" if unknown else known


def format_metrics(metrics: dict[str, Any]) -> str:
    """The metrics as text for a terminal: the headline, the per-class table and the confusion matrix."""
    correct = int(np.trace(np.array(metrics["confusion"])))
    lines = {name: with_limits(metrics[name]) for name in OVERALL}
    lines["accuracy"] += f"   ({correct} of {metrics['n']} images, {_patients(metrics)})"
    lines["ece"] += f"   ({metrics['ece_bins']} bins"
    if perfect := metrics.get("ece_if_perfect"):
        lines["ece"] += f"; a perfectly calibrated model: {perfect['mean']:.3f}, rarely over {perfect['p95']:.3f}"
    lines["ece"] += ")"
    lines["brier"] += "   (from 0 to 2)"
    head = "\n".join(f"{name.replace('_', ' '):24}{text}" for name, text in lines.items())
    shown = [m for m in PER_CLASS if m != "accuracy"]
    table = pd.DataFrame(
        {
            name + ("*" if row["small"] else ""): [*(with_limits(row[m], 2) for m in shown), row["support"]]
            for name, row in metrics["per_class"].items()
        },
        index=[*(m.replace("_", " ") for m in shown), "images"],
    )
    classes = metrics["classes"]
    counts = pd.DataFrame(metrics["confusion"], index=pd.Index(classes, name="true \\ predicted"), columns=classes)
    small = any(row["small"] for row in metrics["per_class"].values())
    note = [f"* fewer than {SMALL} images: too small to rank"] if small else []
    return "\n\n".join([head, "\n".join([table.to_string(), *note]), counts.to_string()])
