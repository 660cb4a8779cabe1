"""Operating points: a threshold for a target sensitivity, chosen on validation images and reported on other images."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from evaluation.metrics.table import SMALL
from evaluation.predictions import Predictions
from intervals import Interval, proportion_interval
from utils import UserError

SENSITIVITIES = (0.9, 0.95)


def operating_points(
    validation: Predictions,
    evaluated: Predictions,
    sensitivities: tuple[float, ...] = SENSITIVITIES,
    prevalence: dict[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Return a row per class and target sensitivity; a probability of at least the threshold predicts the class.

    Args:
        validation: where the thresholds are chosen. Classes without an image there have no row.
        evaluated: where sensitivity, specificity, PPV and NPV are reported, with 95 % limits.
        sensitivities: the targets, in (0, 1].
        prevalence: by class, in the population that the model is for; default: its share of the evaluated images.
    """
    rows = []
    for number, name in enumerate(evaluated.classes):
        scores = np.sort(validation.probabilities[validation.labels == number, number])[::-1]
        positive = evaluated.labels == number
        if not len(scores) or not 0 < positive.sum() < len(positive):
            continue
        share = (prevalence or {}).get(name, float(positive.mean()))
        for sensitivity in sensitivities:
            threshold = float(scores[math.ceil(sensitivity * len(scores) - 1e-9) - 1])
            predicted = evaluated.probabilities[:, number] >= threshold
            rows.append(
                {
                    "class": name,
                    "wanted_sensitivity": sensitivity,
                    "threshold": threshold,
                    "chosen_on": {"n": len(validation), "positives": len(scores)},
                    **_performance(predicted, positive, evaluated, share),
                    "prevalence": share,
                    "small": min(len(scores), int(positive.sum())) < SMALL,
                }
            )
    return rows


def read_prevalences(words: list[str], classes: list[str]) -> dict[str, float]:
    """Return `CLASS=P` words as a mapping. Raises: `UserError` for an unknown class, or a P outside (0, 1)."""
    prevalences = {}
    for word in words:
        name, _, value = word.rpartition("=")
        try:
            prevalences[name] = float(value)
        except ValueError:
            prevalences[name] = math.nan
        if name not in classes or not 0 < prevalences[name] < 1:
            raise UserError(f"--prevalence {word}: pass CLASS=P with a class from {', '.join(classes)} and P in (0, 1)")
    return prevalences


def _performance(predicted: np.ndarray, positive: np.ndarray, evaluated: Predictions, share: float) -> dict[str, Any]:
    """Return sensitivity, specificity, and the predictive values at the prevalence `share`."""
    hits, members = np.stack([predicted & positive, ~predicted & ~positive], 1), np.stack([positive, ~positive], 1)
    rates = proportion_interval(hits, members, evaluated.patients)
    performance = {
        "sensitivity": rates.at(0),
        "specificity": rates.at(1),
        "ppv": square_and_add(lambda se, sp: _share(share * se, (1 - share) * (1 - sp)), rates),
        "npv": square_and_add(lambda se, sp: _share((1 - share) * sp, share * (1 - se)), rates),
    }
    return {name: interval.to_json() for name, interval in performance.items()}


def _share(right: float, wrong: float) -> float:
    return right / (right + wrong) if right + wrong > 0 else math.nan


def square_and_add(function: Callable[[float, float], float], rates: Interval) -> Interval:
    """Return a function that rises with two independent proportions (2,), with limits from those of each (MOVER).

    The distances that either proportion's limit alone makes are added as squares (Newcombe 1998; Zou and Donner 2008).
    """
    value, middle, limits = rates.value, function(*rates.value), []
    for side, sign in ((rates.low, -1), (rates.high, 1)):
        moved = np.array([function(side[0], value[1]), function(value[0], side[1])]) - middle
        limits.append(float(np.clip(middle + sign * math.sqrt((moved**2).sum()), 0, 1)))
    return Interval(middle, *limits)
