"""Whether the probabilities mean anything: calibration errors, proper scores, and temperature scaling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from utils import log

if TYPE_CHECKING:
    from evaluation.predictions import Predictions

BINS = 15
EPS = np.finfo(np.float64).eps
TEMPERATURES = (0.05, 20.0)
LARGEST_ZERO = 5e-4  # what 0.000 may stand for


@dataclass
class Bins:
    """Images sorted into bins by confidence; every field is per bin, (bins,), and NaN where a bin is empty."""

    count: np.ndarray
    confidence: np.ndarray  # mean
    accuracy: np.ndarray
    low: np.ndarray  # Wilson's limits of the accuracy
    high: np.ndarray


def equal_width(confidence: np.ndarray, bins: int = BINS) -> np.ndarray:
    """The bin of each confidence, (n,) int64, `bins` of equal width over [0, 1]."""
    return np.minimum((np.asarray(confidence) * bins).astype(np.int64), bins - 1)


def equal_mass(confidence: np.ndarray, bins: int = BINS) -> np.ndarray:
    """The bin of each confidence, (n,) int64, in bins of counts as equal as ties allow: equal values share one."""
    order = np.sort(confidence)
    first = np.searchsorted(order, confidence)  # images with a lower confidence
    return first * bins // max(len(order), 1)


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, index: np.ndarray) -> float:
    """Σ over bins of |Σ correct - Σ confidence| / n (Guo 2017, eq. 3), in [0, 1].

    `index` (n,) is each image's bin: `equal_width` gives the ECE, `equal_mass` the adaptive ECE (Nixon 2019). Both are
    those of the winning class's probability.
    """
    gaps = np.bincount(index, weights=np.asarray(correct, np.float64) - confidence)
    return float(np.abs(gaps).sum() / len(confidence))


def perfect_error(
    confidence: np.ndarray, index: np.ndarray, design_effect: float = 1.0, draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Mean and 95th percentile of the ECE that a perfectly calibrated model of these confidences would show.

    It is not 0, since the share of right answers in a bin of few images is noisy (Reinke 2024): each draw makes an
    image right with its confidence for a probability. `design_effect` is by how much the variance grows where images of
    one patient are right and wrong together (`Patients.design_effect`); the error grows with its root.
    """
    rng = np.random.default_rng(seed)
    n, bins = len(confidence), int(index.max()) + 1
    order = np.argsort(index, kind="stable")
    sorted_confidence, starts = confidence[order], np.searchsorted(index[order], np.arange(bins))
    filled = np.append(np.diff(starts), n - starts[-1]) > 0
    found = np.empty(draws)
    block = max(1, 2**22 // n)
    for start in range(0, draws, block):
        rows = min(block, draws - start)
        gaps = (rng.random((rows, n)) < sorted_confidence) - sorted_confidence
        found[start : start + rows] = np.abs(np.add.reduceat(gaps, starts[filled], axis=1)).sum(1) / n
    found *= np.sqrt(design_effect)
    return float(found.mean()), float(np.quantile(found, 0.95))


def reliability(confidence: np.ndarray, correct: np.ndarray, index: np.ndarray, bins: int = BINS) -> Bins:
    """What a reliability diagram shows of each bin."""
    from intervals import wilson

    count = np.bincount(index, minlength=bins).astype(np.float64)
    right = np.bincount(index, weights=correct, minlength=bins)
    with np.errstate(invalid="ignore", divide="ignore"):
        low, high = wilson(right, count)
        mean = np.bincount(index, weights=confidence, minlength=bins) / count
        return Bins(count, mean, right / count, low, high)


def brier_scores(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Each image's Brier score, (n,) in [0, 2]: its squared distance from the truth over classes (Brier 1950)."""
    truth = np.eye(probabilities.shape[1])[labels]
    return ((probabilities - truth) ** 2).sum(1)


def log_losses(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Each image's cross entropy in nats, (n,); probabilities stay 2.2e-16 away from 0 and 1, as in scikit-learn."""
    return -np.log(np.clip(probabilities[np.arange(len(labels)), labels], EPS, 1 - EPS))


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
    from scipy.optimize import minimize_scalar

    logits = _logits(probabilities)
    own = logits[np.arange(len(logits)), np.asarray(labels)]

    def loss(inverse: float) -> float:
        return float((np.log(np.exp(inverse * logits).sum(1)) - inverse * own).mean())

    found = minimize_scalar(
        loss, bounds=(1 / TEMPERATURES[1], 1 / TEMPERATURES[0]), method="bounded", options={"xatol": 1e-9}
    )
    return float(1 / found.x)


def fitted(validation: Predictions) -> dict[str, Any] | None:
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
