"""ROC and precision-recall curves, one class against the rest and their mean, with bands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.predictions import Predictions
from intervals import Interval, proportion_interval

GRID = np.linspace(0, 1, 201)
MOST_THRESHOLDS = 200


@dataclass(kw_only=True)
class Curve:
    """A curve and its band, all as points with rising x.

    Attributes:
        name: the class, or `mean`.
        x, y: (points,). ROC: 1 - specificity and recall. Precision-recall: recall and precision.
        low, high: (201,) the band at `GRID`.
        area: the AUROC or the average precision, as in `metrics.json`.
        chance: what an uninformative model reaches: 0.5, or the class's share of the images.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray
    area: dict[str, float | None]
    chance: float


def class_curves(predictions: Predictions, metrics: dict[str, Any]) -> dict[str, list[Curve]]:
    """Return `roc` and `precision_recall`: a curve per class that has both sides, then their mean.

    The band joins, over all thresholds, the corners of the 95 % intervals of the two rates at that threshold (both by
    `proportion_interval`, over patients). It is conservative, and does not close where a model makes no error. The
    mean's band is the mean of the classes' bands, as if their errors went together.
    """
    curves: dict[str, list[Curve]] = {"roc": [], "precision_recall": []}
    for number, name in enumerate(predictions.classes):
        positive = predictions.labels == number
        if not 0 < positive.sum() < len(positive):
            continue
        scores, row = predictions.probabilities[:, number], metrics["per_class"][name]
        above = scores[:, None] >= thresholds(scores, positive)
        recall = _rates(above, positive[:, None], predictions)
        false_alarms = _rates(above, ~positive[:, None], predictions)
        precision = _rates(above & positive[:, None], above, predictions)
        curves["roc"].append(_roc(name, false_alarms, recall, row["auroc"]))
        chance = float(positive.mean())
        curves["precision_recall"].append(_precision_recall(name, recall, precision, row["average_precision"], chance))
    areas = {"roc": metrics["macro_auroc"], "precision_recall": metrics["macro_average_precision"]}
    return {name: [*by_class, *_mean(by_class, areas[name])] for name, by_class in curves.items()}


def _roc(name: str, false_alarms: Interval, recall: Interval, area: dict[str, float | None]) -> Curve:
    x, y = np.r_[0, false_alarms.value, 1], np.r_[0, recall.value, 1]
    low = _on_grid(np.r_[0, false_alarms.high], np.maximum.accumulate(np.r_[0, recall.low]))
    high = _on_grid(np.r_[false_alarms.low, 1], np.maximum.accumulate(np.r_[recall.high, 1]))
    return Curve(name=name, x=x, y=y, low=low, high=high, area=area, chance=0.5)


def _precision_recall(
    name: str, recall: Interval, precision: Interval, area: dict[str, float | None], chance: float
) -> Curve:
    x, y = np.r_[0, recall.value], np.r_[precision.value[:1], precision.value]
    low, high = _on_grid(recall.low, precision.low), _on_grid(recall.high, precision.high)
    return Curve(name=name, x=x, y=y, low=low, high=high, area=area, chance=chance)


def thresholds(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Return falling thresholds: all distinct scores, or, of many, evenly spaced ranks of positives and negatives."""
    distinct = np.unique(scores)
    if len(distinct) > MOST_THRESHOLDS:
        share = np.linspace(0, 1, MOST_THRESHOLDS // 2)
        sides = [np.quantile(scores[side], share, method="nearest") for side in (positive, ~positive)]
        distinct = np.unique(np.concatenate([*sides, distinct[[0, -1]]]))
    return distinct[::-1]


def _rates(hits: np.ndarray, members: np.ndarray, predictions: Predictions) -> Interval:
    """Return Σ hits / Σ members at every threshold; (n, thresholds) and (n, thresholds) or (n, 1) bool."""
    everywhere = np.broadcast_to(members, hits.shape)
    return proportion_interval(hits & everywhere, everywhere, predictions.patients)


def _on_grid(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return a limit of a curve at `GRID`; where the limit of x falls, the highest one up to there counts."""
    return np.interp(GRID, np.maximum.accumulate(x), y)


def _mean(curves: list[Curve], area: dict[str, float | None]) -> list[Curve]:
    """Return the mean of the curves, or nothing for fewer than two."""
    if len(curves) < 2:
        return []
    y = np.mean([np.interp(GRID, c.x, c.y) for c in curves], axis=0)
    low, high = (np.mean([getattr(c, side) for c in curves], axis=0) for side in ("low", "high"))
    chance = float(np.mean([c.chance for c in curves]))
    return [Curve(name="mean", x=GRID, y=y, low=low, high=high, area=area, chance=chance)]
