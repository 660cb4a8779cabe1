"""Temperature scaling: one number by which the logits are divided, decided on validation images (Guo 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from evaluation.metrics.calibration import EPS, log_losses
from evaluation.predictions import Predictions
from utils import log

TEMPERATURES = (0.05, 20.0)
LARGEST_ZERO = 5e-4  # what 0.000 may stand for


def _logits(probabilities: np.ndarray) -> np.ndarray:
    """Logarithms, the highest of a row 0. A probability of 0 is a number that was rounded: half of the smallest
    positive one stands for it, at most `LARGEST_ZERO` and at least 2.2e-16.
    """
    zero = max(EPS, min(LARGEST_ZERO, probabilities[probabilities > 0].min() / 2))
    logits = np.log(np.where(probabilities > 0, probabilities, zero))
    return logits - logits.max(1, keepdims=True)


def scale(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(log p / T): what dividing the logits by T would have given (Guo 2017, 4.2). Never changes the winner."""
    if temperature == 1:
        return probabilities
    powered = np.exp(_logits(probabilities) / temperature)
    return powered / powered.sum(1, keepdims=True)


def calibrated(predictions: Predictions, temperature: float) -> Predictions:
    """Return the same answers with the probabilities that logits divided by `temperature` give."""
    table = predictions.table.copy()
    table[[f"p_{name}" for name in predictions.classes]] = scale(predictions.probabilities, temperature)
    return Predictions(table.drop(columns="confidence"), predictions.classes, predictions.where)


def before_and_after(
    probabilities: np.ndarray, temperature: dict[str, Any] | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """The probabilities without temperature scaling and with it; `temperature["applied"]` says which these are.

    The second is None where no temperature is known.
    """
    if not temperature:
        return probabilities, None
    value = temperature["value"]
    if temperature["applied"]:
        return scale(probabilities, 1 / value), probabilities
    return probabilities, scale(probabilities, value)


def fit_temperature(probabilities: np.ndarray, labels: Sequence[int] | np.ndarray) -> float:
    """The temperature with the lowest cross entropy on (n, classes) probabilities, within `TEMPERATURES`: above 1 the
    model was too sure. One parameter, and a convex problem in 1 / T.
    """
    logits = _logits(probabilities)
    own = logits[np.arange(len(logits)), np.asarray(labels)]

    def loss(inverse: float) -> float:
        return float((np.log(np.exp(inverse * logits).sum(1)) - inverse * own).mean())

    found = minimize_scalar(
        loss, bounds=(1 / TEMPERATURES[1], 1 / TEMPERATURES[0]), method="bounded", options={"xatol": 1e-9}
    )
    return float(1 / found.x)


def temperature_from_validation(validation: Predictions) -> dict[str, Any] | None:
    """The temperature with the lowest cross entropy on `validation`, and what it does there.

    None, with the reason said, where validation cannot decide it: no answer is wrong, or it runs to its range's end.
    """
    value = fit_temperature(validation.probabilities, validation.labels)
    if validation.correct.all():
        log.warning(f"no temperature: none of the {len(validation)} validation images is classified wrongly")
        return None
    if not TEMPERATURES[0] * 1.01 < value < TEMPERATURES[1] * 0.99:
        log.warning(f"no temperature: {len(validation)} validation images would make it {value:.2g}")
        return None
    scaled = scale(validation.probabilities, value)
    losses = [float(log_losses(p, validation.labels).mean()) for p in (validation.probabilities, scaled)]
    return {
        "value": value,
        "fitted_on": "val",
        "n": len(validation),
        "log_loss_before": losses[0],
        "log_loss_after": losses[1],
    }
