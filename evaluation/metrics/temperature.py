"""Temperature scaling: logits are divided by one number, fitted on validation images (Guo 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from evaluation.metrics.calibration import EPS, log_losses
from evaluation.predictions import Predictions
from utils import count, log

TEMPERATURES = (0.05, 20.0)
LARGEST_ZERO = 5e-4  # the largest probability that a table of three digits shows as 0


def _logits(probabilities: np.ndarray) -> np.ndarray:
    """Return logarithms of probabilities, shifted so that the highest of a row is 0.

    A probability of 0 was rounded: it is replaced with half of the smallest positive one, within 2.2e-16 and
    `LARGEST_ZERO`.
    """
    zero = max(EPS, min(LARGEST_ZERO, probabilities[probabilities > 0].min() / 2))
    logits = np.log(np.where(probabilities > 0, probabilities, zero))
    return logits - logits.max(1, keepdims=True)


def scale(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return softmax(log p / T), which equals dividing the logits by T (Guo 2017, 4.2) and never changes the argmax."""
    if temperature == 1:
        return probabilities
    powered = np.exp(_logits(probabilities) / temperature)
    return powered / powered.sum(1, keepdims=True)


@dataclass(frozen=True, kw_only=True)
class Temperature:
    """A temperature and where it comes from.

    Attributes:
        value: what logits are divided by; above 1 the model was overconfident.
        fitted_on, n: the split that it was fitted on, and its number of images.
        log_loss_before, log_loss_after: on those images, in nats; None if unknown.
        applied: whether the evaluated probabilities have been divided by it; None until they are evaluated.
    """

    value: float
    fitted_on: str
    n: int
    log_loss_before: float | None = None
    log_loss_after: float | None = None
    applied: bool | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the known fields, as metrics.json and `.temperature.json` hold them."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> Temperature:
        """Read what `to_json` returned; other keys are ignored. Raises: `TypeError` if one is missing."""
        return cls(**{f.name: entry[f.name] for f in fields(cls) if f.name in entry})

    def before_and_after(self, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the evaluated probabilities, (n, classes), without this temperature and with it."""
        if self.applied:
            return scale(probabilities, 1 / self.value), probabilities
        return probabilities, scale(probabilities, self.value)


def calibrated(predictions: Predictions, temperature: float) -> Predictions:
    """Return the same predicted classes with the probabilities that logits divided by `temperature` give."""
    table = predictions.table.copy()
    table[[f"p_{name}" for name in predictions.classes]] = scale(predictions.probabilities, temperature)
    return Predictions(table.drop(columns="confidence"), predictions.classes, predictions.where)


def fit_temperature(probabilities: np.ndarray, labels: Sequence[int] | np.ndarray) -> float:
    """Return the temperature, within `TEMPERATURES`, that minimises the cross entropy of (n, classes) probabilities.

    Above 1 the model was overconfident. The problem is convex in 1 / T.
    """
    logits = _logits(probabilities)
    true_logits = logits[np.arange(len(logits)), np.asarray(labels)]

    def loss(inverse: float) -> float:
        return float((np.log(np.exp(inverse * logits).sum(1)) - inverse * true_logits).mean())

    bounds = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    return float(1 / minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-9}).x)


def temperature_from_validation(validation: Predictions) -> Temperature | None:
    """Return the temperature fitted on `validation`, with the number of images and the log loss before and after.

    None, with a warning, if these images cannot decide it: none is misclassified, or the fit reaches a bound.
    """
    value = fit_temperature(validation.probabilities, validation.labels)
    if validation.correct.all() or not TEMPERATURES[0] * 1.01 < value < TEMPERATURES[1] * 0.99:
        reason = "none is misclassified" if validation.correct.all() else f"the fit ends at the limit, {value:.2g}"
        log.warning(f"no temperature from {count(len(validation), 'validation image')}: {reason}")
        return None
    scaled = scale(validation.probabilities, value)
    before, after = (float(log_losses(p, validation.labels).mean()) for p in (validation.probabilities, scaled))
    return Temperature(value=value, fitted_on="val", n=len(validation), log_loss_before=before, log_loss_after=after)
