"""Whether the probabilities mean anything: calibration errors, proper scores, and temperature scaling."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from intervals import wilson

BINS = 15
EPS = np.finfo(np.float64).eps


@dataclass(kw_only=True)
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
    count = np.bincount(index, minlength=bins).astype(np.float64)
    right = np.bincount(index, weights=correct, minlength=bins)
    with np.errstate(invalid="ignore", divide="ignore"):
        low, high = wilson(right, count)
        mean = np.bincount(index, weights=confidence, minlength=bins) / count
        return Bins(count=count, confidence=mean, accuracy=right / count, low=low, high=high)


def brier_scores(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Each image's Brier score, (n,) in [0, 2]: its squared distance from the truth over classes (Brier 1950)."""
    truth = np.eye(probabilities.shape[1])[labels]
    return ((probabilities - truth) ** 2).sum(1)


def log_losses(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Each image's cross entropy in nats, (n,); probabilities stay 2.2e-16 away from 0 and 1, as in scikit-learn."""
    return -np.log(np.clip(probabilities[np.arange(len(labels)), labels], EPS, 1 - EPS))
