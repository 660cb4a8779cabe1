"""The same metrics over parts of the images: by source, by any other column, and by patient."""

from __future__ import annotations

from typing import Any

import numpy as np

from evaluation.metrics.table import SMALL, compute_metrics
from evaluation.predictions import COLUMNS, Predictions
from intervals import Interval, proportion_interval, wilson

MOST_VALUES = 20  # a column with more distinct values names the images, not a group of them
NORMAL = ("normal", "healthy", "no finding", "no_finding")


def subgroups(predictions: Predictions) -> dict[str, list[dict[str, Any]]]:
    """Return tables by column: `source`, and every column beyond the contract's (sex, view…) that has 2 to 20 values.

    Of more than 20 sources the largest have a row each, and the others one together. `missed` is the share of images
    with a finding that were predicted as normal, the error behind underdiagnosis (Seyyed-Kalantari 2021); None without
    a class of that name.
    """
    ignored = {*COLUMNS, *(f"p_{name}" for name in predictions.classes)} - {"source"}
    tables = {}
    for column in predictions.table.columns.drop(list(ignored), errors="ignore"):
        values = predictions.table[column].astype(str).replace("", "(unknown)")
        counts = values.value_counts()
        if len(counts) < 2 or (column != "source" and len(counts) > MOST_VALUES):
            continue
        if len(counts) > MOST_VALUES:
            values = values.where(values.isin(counts.index[:MOST_VALUES]), f"({len(counts) - MOST_VALUES} others)")
        names = sorted(values.unique(), key=lambda name: (name.startswith("("), name))
        tables[str(column)] = [
            {"value": name, **_row(predictions.subset((values == name).to_numpy()))} for name in names
        ]
    return tables


def _row(part: Predictions) -> dict[str, Any]:
    metrics = compute_metrics(part, resamples=0)
    return {
        "n": metrics["n"],
        "patients": metrics["patients"],
        "classes": {name: row["support"] for name, row in metrics["per_class"].items() if row["support"]},
        **{name: metrics[name] for name in ("accuracy", "balanced_accuracy", "macro_f1")},
        "missed": missed(part),
        "small": metrics["n"] < SMALL,
    }


def missed(predictions: Predictions) -> dict[str, float | None] | None:
    """Return the share of images with a finding that were predicted as normal; None without such images or class."""
    normal = [i for i, name in enumerate(predictions.classes) if name.lower() in NORMAL]
    finding = ~np.isin(predictions.labels, normal)
    if not normal or not finding.any():
        return None
    wrong = finding & np.isin(predictions.predicted, normal)
    return proportion_interval(wrong[:, None], finding[:, None], predictions.patients).at(0).to_json()


def per_patient(predictions: Predictions) -> dict[str, Any] | None:
    """Return the accuracy where each patient counts once, by the mean probability of the patient's images.

    Patients whose images have several labels are left out and counted (`mixed`). None where each has one image.
    """
    patients = predictions.patients
    if patients.single:
        return None
    labels = patients.sums(np.eye(len(predictions.classes))[predictions.labels])
    pure = (labels > 0).sum(1) == 1
    right = (labels.argmax(1) == patients.sums(predictions.probabilities).argmax(1))[pure]
    accuracy = Interval(right.mean() if len(right) else np.nan, *map(float, wilson(right.sum(), len(right))))
    return {"n": len(right), "mixed": int((~pure).sum()), "accuracy": accuracy.to_json()}
