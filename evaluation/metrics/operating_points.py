"""Operating points: a threshold for a wanted sensitivity, chosen on validation and reported on other images."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from evaluation.metrics.table import SMALL
from evaluation.predictions import Predictions
from intervals import Interval, proportion_interval
from utils import UserError

WANTED = (0.9, 0.95)


def operating_points(
    validation: Predictions,
    evaluated: Predictions,
    wanted: tuple[float, ...] = WANTED,
    prevalence: dict[str, float] | None = None,
) -> list[dict[str, Any]]:
    """One row per class and wanted sensitivity; the class is called where its probability reaches the threshold.

    Args:
        validation: where the thresholds are chosen. Classes without an image there have no row.
        evaluated: where sensitivity, specificity, PPV and NPV are reported, with 95 % limits.
        wanted: sensitivities in (0, 1].
        prevalence: of a class among the people that the model would see; default: its share of the evaluated images.
    """
    rows = []
    for number, name in enumerate(evaluated.classes):
        scores = np.sort(validation.probabilities[validation.labels == number, number])[::-1]
        positive = evaluated.labels == number
        if not len(scores) or not 0 < positive.sum() < len(positive):
            continue
        share = (prevalence or {}).get(name, float(positive.mean()))
        for sensitivity in wanted:
            threshold = float(scores[math.ceil(sensitivity * len(scores) - 1e-9) - 1])
            called = evaluated.probabilities[:, number] >= threshold
            rows.append(
                {
                    "class": name,
                    "wanted_sensitivity": sensitivity,
                    "threshold": threshold,
                    "chosen_on": {"n": len(validation), "positives": len(scores)},
                    **_performance(called, positive, evaluated, share),
                    "prevalence": share,
                    "small": len(scores) < SMALL or int(positive.sum()) < SMALL,
                }
            )
    return rows


def read_prevalences(words: list[str], classes: list[str]) -> dict[str, float]:
    """`CLASS=P` words as a mapping. Raises: `UserError` for another class, or a P outside (0, 1)."""
    found = {}
    for word in words:
        name, _, value = word.rpartition("=")
        if name not in classes:
            raise UserError(f"--prevalence {word}: CLASS=P is needed, with a class of {', '.join(classes)}")
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = -1
        if not 0 < found[name] < 1:
            raise UserError(f"--prevalence {word}: a number in (0, 1) is needed")
    return found


def _performance(called: np.ndarray, positive: np.ndarray, evaluated: Predictions, share: float) -> dict[str, Any]:
    """sensitivity, specificity, and the predictive values at the prevalence `share`."""
    hits, members = np.stack([called & positive, ~called & ~positive], 1), np.stack([positive, ~positive], 1)
    low, high = proportion_interval(hits, members, evaluated.patients)
    value = hits.sum(0) / members.sum(0)
    found = {
        name: Interval(value[i], low[i], high[i]).to_json() for i, name in enumerate(("sensitivity", "specificity"))
    }
    functions: dict[str, Callable[[float, float], float]] = {
        "ppv": lambda se, sp: _share(share * se, (1 - share) * (1 - sp)),
        "npv": lambda se, sp: _share((1 - share) * sp, share * (1 - se)),
    }
    return found | {name: square_and_add(f, value, low, high).to_json() for name, f in functions.items()}


def _share(right: float, wrong: float) -> float:
    return right / (right + wrong) if right + wrong > 0 else math.nan


def square_and_add(
    function: Callable[[float, float], float], value: np.ndarray, low: np.ndarray, high: np.ndarray
) -> Interval:
    """Value and limits of a function that rises with two independent proportions, from the limits of each (MOVER).

    The distances that either proportion's limit alone makes are added as squares (Newcombe 1998; Zou and Donner 2008).
    """
    middle = function(*value)
    limits = []
    for side, sign in ((low, -1), (high, 1)):
        moved = np.array([function(side[0], value[1]), function(value[0], side[1])]) - middle
        limits.append(float(np.clip(middle + sign * math.sqrt((moved**2).sum()), 0, 1)))
    return Interval(middle, *limits)
