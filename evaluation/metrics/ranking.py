"""AUROC and average precision, each with its variance and limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats
from scipy.optimize import brentq

from intervals import Patients, Z, transformed_interval, wilson


@dataclass(kw_only=True)
class Ranking:
    """A statistic of a ranking, the images' influences on it (n,), its variance and 95 % limits; NaN if undefined."""

    value: float
    influence: np.ndarray
    variance: float = np.nan
    low: float = np.nan
    high: float = np.nan


class DelongVariance(NamedTuple):
    """Variances of k AUROCs, Welch's degrees of freedom, both (k,), and the patients on either side, (k, 2)."""

    variance: np.ndarray
    freedom: np.ndarray
    patients: np.ndarray


def auroc(positive: np.ndarray, scores: np.ndarray, patients: Patients) -> Ranking:
    """Return the area under the ROC curve of (n,) scores; `positive` is (n,) bool. Ties count one half.

    Variance: DeLong, DeLong and Clarke-Pearson 1988, computed from ranks (Sun and Xu 2014), extended to patients by
    Obuchowski 1997. Limits: on the logit scale (Pepe 2003), with Welch's degrees of freedom, since the rarer side is
    often small. Where the variance is 0 or unavailable (a perfect ranking): Newcombe 2006, method 5.
    """
    positive = np.asarray(positive, bool)
    p, n = int(positive.sum()), int((~positive).sum())
    if not p or not n:
        return Ranking(value=np.nan, influence=np.full(len(positive), np.nan))
    ranks = stats.rankdata(scores)
    placement = np.empty(len(positive))  # the share of the other side that an image is ranked correctly against
    placement[positive] = (ranks[positive] - stats.rankdata(scores[positive])) / n
    placement[~positive] = 1 - (ranks[~positive] - stats.rankdata(scores[~positive])) / p
    value = float(placement[positive].mean())
    influence = (placement - value) * np.where(positive, 1 / p, 1 / n)
    variances, freedoms, clusters = delong_variance(influence[:, None], positive[:, None], patients)
    variance = float(variances[0])
    low, high = transformed_interval(value, variance, "logit", float(freedoms[0]))
    if np.isnan(low) and 0 <= value <= 1 and patients.count > 1:
        low, high = newcombe(value, *clusters[0])
    return Ranking(value=value, influence=influence, variance=variance, low=low, high=high)


def delong_variance(influence: np.ndarray, positive: np.ndarray, patients: Patients) -> DelongVariance:
    """Return the variances of k AUROCs, or of differences of AUROCs, from the images' influences (n, k).

    DeLong 1988 with Obuchowski's (1997) sums over patients. `positive` is (n, k) bool. NaN where a side has fewer than
    two patients.
    """
    sides = np.stack([positive, ~positive], 2)
    sums, clusters = patients.sums(influence[:, :, None] * sides), (patients.sums(sides) > 0).sum(0)
    others = np.where(clusters > 1, clusters - 1.0, np.nan)
    parts = (sums**2).sum(0) * clusters / others
    both = 2 * sums.prod(2).sum(0) * patients.count / max(patients.count - 1, 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        freedom = parts.sum(1) ** 2 / (parts**2 / others).sum(1)
    return DelongVariance(np.maximum(parts.sum(1) + both, 0), freedom, clusters)


def newcombe(value: float, positives: float, negatives: float) -> tuple[float, float]:
    """Return score limits of an AUROC from its numbers of positives and negatives.

    They solve |value - a| = z·sd(a) for a, with Hanley and McNeil's variance at a, and so do not collapse at 1
    (Newcombe 2006, Statist. Med. 25:559, method 5).
    """
    half = (positives + negatives) / 2 - 1

    def distance(a: float) -> float:
        spread = a * (1 - a) * (1 + half * (1 - a) / (2 - a) + half * a / (1 + a)) / (positives * negatives)
        return (value - a) ** 2 - Z**2 * spread

    low = brentq(distance, 0, value) if value > 0 and distance(0) * distance(value) < 0 else 0.0
    high = brentq(distance, value, 1) if value < 1 and distance(1) * distance(value) < 0 else 1.0
    if value == 1:  # 1 itself is a root; take the other one
        low = brentq(lambda a: distance(a) / (1 - a), 1e-9, 1 - 1e-12)
    if value == 0:
        high = brentq(lambda a: distance(a) / a, 1e-12, 1 - 1e-9)
    return float(low), float(high)


def average_precision(positive: np.ndarray, scores: np.ndarray, patients: Patients) -> Ranking:
    """Return the average precision, Σ (R_g - R_{g-1})·P_g over the distinct scores.

    Limits: on the logit scale, from the infinitesimal jackknife over patients. If all positives rank first, nothing
    varies; the limits are then Wilson's with the patients that have a positive as trials (after Boyd 2013, who takes
    the positives as trials).
    """
    positive = np.asarray(positive, bool)
    count = int(positive.sum())
    if not 0 < count < len(positive):
        return Ranking(value=np.nan, influence=np.full(len(positive), np.nan))
    order = np.argsort(-scores, kind="stable")
    hits, sorted_scores = positive[order].astype(np.float64), scores[order]
    ends = np.append(np.flatnonzero(np.diff(sorted_scores)), len(scores) - 1)  # the last image of each score
    above, hit = ends + 1.0, np.cumsum(hits)[ends]
    share = np.diff(hit, prepend=0) / count
    precision = hit / above
    value = float((share * precision).sum())
    # the effect of one more image: on its own precision, and on the precision at every score below it
    tail_hit = np.cumsum((share / above)[::-1])[::-1]
    tail_all = np.cumsum((share * precision / above)[::-1])[::-1]
    group = np.searchsorted(ends, np.arange(len(scores)))
    influence = np.empty(len(scores))
    influence[order] = hits * ((precision[group] - value) / count + tail_hit[group]) - tail_all[group]
    variance = float(patients.variance(influence))
    clusters = int((patients.sums(positive) > 0).sum())
    low, high = transformed_interval(value, variance, "logit", max(clusters - 1, 1))
    if value == 1 and patients.count > 1:
        low, high = (float(limit) for limit in wilson(clusters, clusters))
    return Ranking(value=value, influence=influence, variance=variance, low=low, high=high)
