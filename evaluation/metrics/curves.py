"""ROC and precision-recall curves, one class against the rest and their mean, with bands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.predictions import Predictions
from intervals import proportion_interval

GRID = np.linspace(0, 1, 201)
MOST_THRESHOLDS = 200


@dataclass
class Curve:
    """A curve and its band, all as points with rising x.

    Attributes:
        name: the class, or `mean`.
        x, y: (points,). ROC: 1 - specificity and recall. Precision-recall: recall and precision.
        low, high: (201,) the band at `GRID`.
        area: the AUROC or the average precision, as `metrics.json` has it.
        chance: what a model that knows nothing reaches: 0.5, or the class's share of the images.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray
    area: dict[str, float | None]
    chance: float


def class_curves(predictions: Predictions, metrics: dict[str, Any]) -> dict[str, list[Curve]]:
    """`roc` and `precision_recall`: a curve per class that has both sides, then their mean.

    The band joins, over all thresholds, the corners of the 95 % intervals of the two rates at that threshold (both by
    `proportion_interval`, over patients). It is conservative, and does not close where a model makes no error. The
    mean's band is the mean of the classes' bands, as if their errors went together.
    """
    found: dict[str, list[Curve]] = {"roc": [], "precision_recall": []}
    for number, name in enumerate(predictions.classes):
        positive = predictions.labels == number
        if not 0 < positive.sum() < len(positive):
            continue
        scores, row = predictions.probabilities[:, number], metrics["per_class"][name]
        above = scores[:, None] >= thresholds(scores, positive)
        hit, low_hit, high_hit = _rate(above, positive[:, None], predictions)
        alarm, low_alarm, high_alarm = _rate(above, ~positive[:, None], predictions)
        right, low_right, high_right = _rate(above & positive[:, None], above, predictions)
        found["roc"].append(
            Curve(
                name,
                np.concatenate([[0], alarm, [1]]),
                np.concatenate([[0], hit, [1]]),
                _on_grid(np.concatenate([[0], high_alarm]), np.concatenate([[0], low_hit])),
                _on_grid(np.concatenate([low_alarm, [1]]), np.concatenate([high_hit, [1]])),
                row["auroc"],
                0.5,
            )
        )
        found["precision_recall"].append(
            Curve(
                name,
                np.concatenate([[0], hit]),
                np.concatenate([right[:1], right]),
                _falling_on_grid(low_hit, low_right),
                _falling_on_grid(high_hit, high_right),
                row["average_precision"],
                float(positive.mean()),
            )
        )
    areas = {"roc": metrics["macro_auroc"], "precision_recall": metrics["macro_average_precision"]}
    return {kind: [*curves, *_mean(curves, areas[kind])] for kind, curves in found.items()}


def thresholds(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Falling thresholds: all distinct scores, or of many those that stand evenly among the positives and negatives."""
    distinct = np.unique(scores)
    if len(distinct) > MOST_THRESHOLDS:
        share = np.linspace(0, 1, MOST_THRESHOLDS // 2)
        sides = [np.quantile(scores[side], share, method="nearest") for side in (positive, ~positive)]
        distinct = np.unique(np.concatenate([*sides, distinct[[0, -1]]]))
    return distinct[::-1]


def _rate(hits: np.ndarray, members: np.ndarray, predictions: Predictions) -> tuple[np.ndarray, ...]:
    members = np.broadcast_to(members, hits.shape)
    hits = hits & members
    with np.errstate(invalid="ignore", divide="ignore"):
        return hits.sum(0) / members.sum(0), *proportion_interval(hits, members, predictions.patients)


def _on_grid(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A rising curve on `GRID`: at each place the highest y that was reached up to there."""
    return np.interp(GRID, np.maximum.accumulate(x), np.maximum.accumulate(y))


def _falling_on_grid(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.interp(GRID, np.maximum.accumulate(x), y)


def _mean(curves: list[Curve], area: dict[str, float | None]) -> list[Curve]:
    if len(curves) < 2:
        return []
    y = np.mean([np.interp(GRID, c.x, c.y) for c in curves], axis=0)
    low, high = (np.mean([getattr(c, side) for c in curves], axis=0) for side in ("low", "high"))
    return [Curve("mean", GRID, y, low, high, area, float(np.mean([c.chance for c in curves])))]
