"""Calibration errors, proper scores, and the bins of reliability diagrams."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from intervals import wilson

BINS = 15
EPS = np.finfo(np.float64).eps


@dataclass(kw_only=True)
class Bins:
    """Images sorted into bins by confidence; every field is (bins,), and NaN where a bin is empty (but for `count`)."""

    count: np.ndarray
    confidence: np.ndarray  # its mean
    accuracy: np.ndarray
    low: np.ndarray  # Wilson's limits of the accuracy
    high: np.ndarray


def equal_width(confidence: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Return the bin of each confidence, (n,) int64, of `bins` bins of equal width over [0, 1]."""
    return np.minimum((np.asarray(confidence) * bins).astype(np.int64), bins - 1)


def equal_mass(confidence: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Return the bin of each confidence, (n,) int64; bins are as equally filled as ties allow, which share a bin."""
    order = np.sort(confidence)
    lower = np.searchsorted(order, confidence)  # images with a lower confidence
    return lower * bins // max(len(order), 1)


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, index: np.ndarray) -> float:
    """Return Σ over bins of |Σ correct - Σ confidence| / n (Guo 2017, eq. 3), in [0, 1].

    `index` (n,) is each image's bin: `equal_width` gives the ECE, `equal_mass` the adaptive ECE (Nixon 2019). Both
    concern the probability of the predicted class.
    """
    gaps = np.bincount(index, weights=np.asarray(correct, np.float64) - confidence)
    return float(np.abs(gaps).sum() / len(confidence))


def perfect_error(
    confidence: np.ndarray, index: np.ndarray, design_effect: float = 1.0, draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return the mean and 95th percentile of the ECE of a perfectly calibrated model with these confidences.

    It is not 0, since the accuracy in a bin of few images is noisy (Reinke 2024): each draw makes an image right with
    its confidence as the probability. `design_effect` is the factor by which the variance grows if images of one
    patient are right and wrong together (`Patients.design_effect`); the error grows with its square root.
    """
    rng, order = np.random.default_rng(seed), np.argsort(index, kind="stable")
    chance, starts = confidence[order], np.unique(index[order], return_index=True)[1]
    gaps = ((rng.random(len(chance)) < chance) - chance for _ in range(draws))
    errors = np.array([np.abs(np.add.reduceat(gap, starts)).sum() for gap in gaps]) / len(chance)
    errors *= np.sqrt(design_effect)
    return float(errors.mean()), float(np.quantile(errors, 0.95))


def reliability(confidence: np.ndarray, correct: np.ndarray, index: np.ndarray, bins: int = BINS) -> Bins:
    """Return what a reliability diagram shows of each bin; `index` is each image's bin."""
    count = np.bincount(index, minlength=bins).astype(np.float64)
    right = np.bincount(index, weights=correct, minlength=bins)
    with np.errstate(invalid="ignore", divide="ignore"):
        low, high = wilson(right, count)
        mean = np.bincount(index, weights=confidence, minlength=bins) / count
        return Bins(count=count, confidence=mean, accuracy=right / count, low=low, high=high)


def brier_scores(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return each image's Brier score, (n,) in [0, 2]: the squared distance from the truth (Brier 1950)."""
    truth = np.eye(probabilities.shape[1])[labels]
    return ((probabilities - truth) ** 2).sum(1)


def log_losses(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return each image's cross entropy in nats, (n,); probabilities are kept 2.2e-16 away from 0 and 1."""
    return -np.log(np.clip(probabilities[np.arange(len(labels)), labels], EPS, 1 - EPS))
