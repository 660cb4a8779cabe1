"""The table of metrics, a row each, and `compute_metrics`: every metric with its 95 % interval, over all images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import intervals
from evaluation.metrics import calibration
from evaluation.metrics.confusion import confusion_matrix, matthews_correlation
from evaluation.metrics.ranking import Ranking, auroc, average_precision
from evaluation.predictions import Predictions
from intervals import RESAMPLES, UNKNOWN, Interval

SMALL = 30  # images: a class with fewer is marked as too small to rank
STATISTICS = {
    "accuracy, precision, recall, specificity": "Wilson; with several images per patient, with their design effect",
    "f1": "Wilson on F1 / (2 - F1), a proportion",
    "balanced_accuracy, macro_f1, macro_auroc, macro_average_precision": "the classes' limits, combined (MOVER)",
    "auroc": "DeLong over patients, on the logit scale",
    "average_precision": "infinitesimal jackknife over patients, on the logit scale",
    "mcc": "infinitesimal jackknife over patients, on Fisher's z scale",
    "brier (0 to 2), log_loss": "infinitesimal jackknife over patients, on the log scale",
    "ece, adaptive_ece": f"basic bootstrap over patients, {RESAMPLES} resamples",
}


class ClassValues(NamedTuple):
    """A metric of every class: values and limits (classes,), and each image's influence on each, (n, classes)."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    influence: np.ndarray


class Sample:
    """Predictions in the form that the rows of `PER_CLASS` and `OVERALL` read.

    Attributes:
        truth, predicted: (n, classes) bool, whether an image is of the class, predicted as the class.
        confusion: (classes, classes), rows = true, columns = predicted.
        per_class: the rows of `PER_CLASS`.
    """

    def __init__(self, predictions: Predictions, resamples: int = 0, seed: int = 0) -> None:
        self.predictions, self.resamples, self.seed = predictions, resamples, seed
        self.patients = predictions.patients
        numbers = np.arange(len(predictions.classes))
        self.truth, self.predicted = predictions.labels[:, None] == numbers, predictions.predicted[:, None] == numbers
        self.confusion = confusion_matrix(predictions.labels, predictions.predicted, len(numbers))
        self.per_class = {name: metric(self) for name, metric in PER_CLASS.items()}

    def macro(self, name: str) -> Interval:
        """Return the mean of `PER_CLASS[name]` over the classes that occur and have a value."""
        values, low, high, influence = self.per_class[name]
        kept = (self.confusion.sum(1) > 0) & ~np.isnan(values)
        if not kept.any():
            return UNKNOWN
        limits = intervals.mean_interval(values[kept], low[kept], high[kept], influence[:, kept], self.patients)
        return Interval(values[kept].mean(), *limits)


def _proportion(sample: Sample, hits: np.ndarray, members: np.ndarray) -> ClassValues:
    """Return Σ hits / Σ members of every class, both (n, classes) bool."""
    proportions = intervals.proportion_interval(hits, members, sample.patients)
    with np.errstate(invalid="ignore", divide="ignore"):
        influence = (hits - proportions.value * members) / members.sum(0)
    return ClassValues(*proportions, np.nan_to_num(influence))


def _f1(sample: Sample) -> ClassValues:
    """Return F1 = 2J / (1 + J), where J is the share of hits among the images of, or predicted as, the class."""
    hits, members = sample.truth & sample.predicted, sample.truth | sample.predicted
    share, low, high, influence = _proportion(sample, hits, members)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = 2 * hits.sum(0) / (hits.sum(0) + members.sum(0))
    influence = np.nan_to_num(influence * (2 / (1 + share) ** 2))
    return ClassValues(value, 2 * low / (1 + low), 2 * high / (1 + high), influence)


def _ranking(sample: Sample, statistic: Callable[..., Ranking]) -> ClassValues:
    scores = sample.predictions.probabilities
    ranks = [statistic(sample.truth[:, i], scores[:, i], sample.patients) for i in range(scores.shape[1])]
    value, low, high = (np.array([getattr(rank, name) for rank in ranks]) for name in Interval._fields)
    return ClassValues(value, low, high, np.stack([rank.influence for rank in ranks], 1))


def _accuracy(sample: Sample) -> Interval:
    correct = sample.predictions.correct[:, None]
    return intervals.proportion_interval(correct, np.ones_like(correct), sample.patients).at(0)


def _mcc(sample: Sample) -> Interval:
    """Return the Matthews correlation; undefined if all images, or all predictions, are of one class.

    If no image is misclassified, nothing varies; the lower limit is then what evenly spread errors would give at the
    accuracy's lower limit, (K·accuracy - 1) / (K - 1).
    """
    confusion, patients = sample.confusion, sample.patients
    value, size = float(matthews_correlation(confusion)), len(confusion)
    if min((confusion.sum(axis) > 0).sum() for axis in (0, 1)) < 2:
        return UNKNOWN
    if value == 1 and patients.count > 1:
        low = float(intervals.wilson(patients.count, patients.count)[0])
        return Interval(value, (size * low - 1) / (size - 1), 1.0)
    # central differences of half an image per cell: the function of the counts is smooth
    steps = 0.5 * np.eye(size**2).reshape(-1, size, size)
    slope = matthews_correlation(confusion + steps) - matthews_correlation(confusion - steps)
    influence = slope.reshape(size, size)[sample.predictions.labels, sample.predictions.predicted]
    freedom = max(patients.count - 1, 1)
    return Interval(value, *intervals.transformed_interval(value, patients.variance(influence), "fisher", freedom))


def _mean_score(sample: Sample, score: Callable[..., np.ndarray], most: float = np.inf) -> Interval:
    """Return the mean of the images' positive scores, each at most `most`."""
    scores = score(sample.predictions.probabilities, sample.predictions.labels)
    value = float(scores.mean())
    variance = sample.patients.variance((scores - value) / len(scores))
    low, high = intervals.transformed_interval(value, variance, "log", max(sample.patients.count - 1, 1))
    return Interval(value, low, np.minimum(high, most))


def _calibration_error(sample: Sample, bins_of: Callable[[np.ndarray], np.ndarray]) -> Interval:
    """Return the calibration error over the bins that `bins_of` sorts confidences into; resamples keep these bins."""
    confidence, correct = sample.predictions.confidence, sample.predictions.correct
    index = bins_of(confidence)
    value = calibration.expected_calibration_error(confidence, correct, index)
    if sample.patients.count < 2 or not sample.resamples:
        return Interval(value)
    gaps = np.column_stack([np.eye(calibration.BINS)[index] * (correct - confidence)[:, None], np.ones(len(correct))])
    sums = sample.patients.resampled_sums(gaps, sample.resamples, sample.seed)
    return Interval(value, *intervals.basic_interval(value, np.abs(sums[:, :-1]).sum(1) / sums[:, -1]))


# A metric is a function and a row here. A row of PER_CLASS has a value for every class, one-versus-rest.
PER_CLASS: dict[str, Callable[[Sample], ClassValues]] = {
    "accuracy": lambda s: _proportion(s, s.truth == s.predicted, np.ones_like(s.truth)),
    "precision": lambda s: _proportion(s, s.truth & s.predicted, s.predicted),
    "recall": lambda s: _proportion(s, s.truth & s.predicted, s.truth),
    "specificity": lambda s: _proportion(s, ~(s.truth | s.predicted), ~s.truth),
    "f1": _f1,
    "auroc": lambda s: _ranking(s, auroc),
    "average_precision": lambda s: _ranking(s, average_precision),
}
OVERALL: dict[str, Callable[[Sample], Interval]] = {
    "accuracy": _accuracy,
    "balanced_accuracy": lambda s: s.macro("recall"),
    "macro_f1": lambda s: s.macro("f1"),
    "mcc": _mcc,
    "macro_auroc": lambda s: s.macro("auroc"),
    "macro_average_precision": lambda s: s.macro("average_precision"),
    "ece": lambda s: _calibration_error(s, calibration.equal_width),
    "adaptive_ece": lambda s: _calibration_error(s, calibration.equal_mass),
    "brier": lambda s: _mean_score(s, calibration.brier_scores, most=2),
    "log_loss": lambda s: _mean_score(s, calibration.log_losses),
}


def compute_metrics(predictions: Predictions, *, seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Return what `metrics.json` holds: every metric with its 95 % interval; None where undefined or unknown.

    macro_f1 and balanced_accuracy average over the classes that occur; macro_auroc and macro_average_precision over
    those that have both sides. brier is the sum over classes, in [0, 2]; log_loss is in nats.

    Parameters
    ----------
    predictions : Predictions
        The checked table: see `read_predictions`.
    seed : int
        Seed of the bootstrap that gives the limits of ece and adaptive_ece.
    resamples : int
        Number of bootstrap resamples; with 0, ece and adaptive_ece have no limits.

    Returns
    -------
    dict
        `n`, `patients` and `images_of_unknown_patients`; each metric of `OVERALL` as `{"value", "low", "high"}`;
        `per_class`, by class name: the metrics of `PER_CLASS` likewise, `support` (images) and `small`; `classes`;
        `confusion` (rows = true, columns = predicted); `ece_bins`; and `methods`, how the intervals are computed.

    Examples
    --------
    >>> import pandas as pd
    >>> from evaluation import Predictions, compute_metrics
    >>> table = pd.DataFrame({"path": ["1.png", "2.png", "3.png", "4.png"], "label": ["ill", "ill", "well", "well"]})
    >>> table["p_ill"], table["p_well"] = [0.9, 0.4, 0.2, 0.1], [0.1, 0.6, 0.8, 0.9]
    >>> metrics = compute_metrics(Predictions(table, ["ill", "well"]))
    >>> metrics["confusion"]
    [[1, 1], [0, 2]]
    >>> {name: round(number, 2) for name, number in metrics["accuracy"].items()}
    {'value': 0.75, 'low': 0.3, 'high': 0.95}
    >>> metrics["per_class"]["ill"]["recall"]["value"]
    0.5
    """
    sample = Sample(predictions, resamples, seed)
    support = sample.confusion.sum(1)
    return {
        "n": len(predictions),
        "patients": sample.patients.count,
        "images_of_unknown_patients": predictions.unknown_patients,
        **{name: metric(sample).to_json() for name, metric in OVERALL.items()},
        "per_class": {
            name: {
                **{key: Interval(*row[:3]).at(i).to_json() for key, row in sample.per_class.items()},
                "support": int(support[i]),
                "small": bool(support[i] < SMALL),
            }
            for i, name in enumerate(predictions.classes)
        },
        "classes": predictions.classes,
        "confusion": sample.confusion.tolist(),
        "ece_bins": calibration.BINS,
        "methods": STATISTICS,
    }
