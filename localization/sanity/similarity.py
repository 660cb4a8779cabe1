"""The similarity of two maps on a common grid: Spearman's rank correlation, which needs no common scale.

The grid has at most 14 × 14 cells of averaged area: finer maps would agree or differ by single pixels, which nobody
sees.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import rankdata

from localization.scoring.overlap import COARSE, average

FLAT = 1e-6  # share of the peak: a map that varies by no more has no ranks


def on_common_grid(maps: torch.Tensor) -> np.ndarray:
    """Return maps (n, h, w) as (n, h', w') float64, area averages on at most `COARSE` cells along each side."""
    grid = min(COARSE, maps.shape[1]), min(COARSE, maps.shape[2])
    return average(maps.detach().double().cpu().numpy(), *grid)


def has_ranks(maps: np.ndarray) -> np.ndarray:
    """Return for maps (n, h, w) whether each is finite and not the same everywhere (an empty map is): (n,) bool."""
    finite = np.isfinite(maps).all((1, 2))
    spread = np.where(finite[:, None, None], maps, 0)
    return finite & (np.ptp(spread, axis=(1, 2)) > FLAT * spread.max((1, 2)))


def similarity(maps: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return Spearman's rank correlation of maps (n, h, w), cell by cell, with mean ranks for ties: (n,) in [-1, 1].

    It is 0 if either map has no ranks: a map that is lost resembles no map.
    """
    both = has_ranks(maps) & has_ranks(others)
    correlations = np.zeros(len(maps))
    if both.any():
        a, b = (rankdata(m[both].reshape(both.sum(), -1), axis=1) for m in (maps, others))
        a, b = (ranks - ranks.mean(1, keepdims=True) for ranks in (a, b))
        correlations[both] = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return correlations


def differences(maps: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the largest difference between maps (n, h, w) and others, as a share of each map's peak: (n,) ≥ 0.

    It is infinite if a map is not finite, or its peak is 0.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = np.abs(maps - others).max((1, 2)) / maps.max((1, 2))
    return np.where(np.isnan(shares), np.inf, shares)
