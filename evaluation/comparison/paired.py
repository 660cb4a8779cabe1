"""Two runs on the same images: exact sign flips, DeLong's test, Holm's correction, and limits of the differences.

The limits of accuracy, balanced accuracy, macro F1 and MCC are value ± t·sd. The sd is that of a paired bootstrap over
patients with two added, one that only the first run classifies correctly and one that only the second does, as Agresti
and Min 2005 and Bonett and Price 2012 add 1 to each count of disagreement. Without them, two runs that agree on a small
set have an interval of width 0. The limits of AUROC differences are recovered from those of either AUROC.

Coverage at nominal 95 %, with 0.01 of noise, highest where the runs disagree the least; that of the usual percentile
bootstrap and DeLong's value ± 1.96·sd in parentheses (benchmarks/coverage_of_differences.py, table in
docs/intervals.md):

                   n = 60                      n = 240
    accuracy     0.948-1.000 (0.565-0.948)   0.927-0.983 (0.917-0.958)
    macro F1     0.925-1.000 (0.600-0.958)   0.932-0.998 (0.912-0.948)
    macro AUROC  0.980-1.000 (0.750-1.000)   0.955-0.998 (0.845-0.997)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from scipy import stats

from evaluation.metrics.confusion import overall_values
from evaluation.metrics.ranking import delong_variance
from evaluation.metrics.table import Sample
from evaluation.predictions import Predictions
from intervals import LEVEL, Interval, Patients
from utils import derived_seed

RESAMPLED = ("accuracy", "balanced_accuracy", "macro_f1", "mcc")
ROUNDING = 1e-28  # a variance up to this is a rounding error


@dataclass(kw_only=True)
class Difference:
    """A metric of the first run minus that of the second, its 95 % limits, and its test; NaN for what is unknown."""

    value: float
    low: float = math.nan
    high: float = math.nan
    z: float = math.nan
    p: float = math.nan
    p_holm: float = math.nan

    @property
    def significant(self) -> bool:
        """True if the corrected test tells the difference from 0; False without a test."""
        return self.p_holm < 1 - LEVEL

    def text(self) -> str:
        """Return `+0.012 [-0.020, +0.044]`, without brackets where the limits are unknown, `-` where the value is."""
        numbers = (round(number, 3) + 0.0 for number in (self.value, self.low, self.high))  # + 0.0: no -0.000
        value, low, high = (f"{number:+.3f}" for number in numbers)
        return "-" if math.isnan(self.value) else value if math.isnan(self.low) else f"{value} [{low}, {high}]"

    def to_json(self) -> dict[str, float | None]:
        """Return difference, low, high, z, p and p_holm, None for NaN."""
        numbers = {"difference" if name == "value" else name: number for name, number in asdict(self).items()}
        return {name: None if math.isnan(number) else number for name, number in numbers.items()}

    def __neg__(self) -> Difference:
        return replace(self, value=-self.value, low=-self.high, high=-self.low, z=-self.z)


def sign_flip_test(differences: np.ndarray) -> float:
    """Return the exact two-sided p of a sum of (patients,) integers whose signs are arbitrary under the hypothesis.

    p = P(|S| >= |Σ differences|) over all 2^patients choices of signs. With one image per patient the differences are
    -1, 0 and 1, and this is McNemar's exact test (McNemar 1947), the binomial test of the images that only one of two
    runs gets right. Patients with the same |difference| share a binomial distribution; these are convolved.
    """
    differences = np.asarray(differences, np.int64)
    sizes, patients = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    chance = np.ones(1)  # of the sum over the patients with a positive sign being 0, 1, 2, …
    for size, number in zip(sizes, patients, strict=True):
        binomial = np.zeros(size * number + 1)
        binomial[::size] = stats.binom.pmf(np.arange(number + 1), number, 0.5)
        chance = np.convolve(chance, binomial)  # not by an FFT, in which small chances lose their digits
    sums = 2 * np.arange(len(chance)) - (len(chance) - 1)
    return float(min(chance[np.abs(sums) >= abs(differences.sum())].sum(), 1))


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return one family's p, corrected by Holm's step-down method (Holm 1979); NaN stays NaN and does not count."""
    p = np.asarray(p, np.float64)
    adjusted, order = np.full(len(p), np.nan), np.argsort(p)[: np.count_nonzero(~np.isnan(p))]
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)).clip(max=1)
    return adjusted


def delong_test(a: Sample, b: Sample) -> list[Difference]:
    """Return the difference of each class's AUROC with DeLong's paired test, and last that of the mean over classes.

    The mean is over the classes that have an AUROC. The classes' variances are DeLong's; that of the mean joins them by
    the correlations of the patients' influences, and is unknown where a class has one patient.
    """
    first, second, patients = a.per_class["auroc"], b.per_class["auroc"], a.patients
    influence = first.influence - second.influence
    variance = delong_variance(influence, a.truth, patients).variance
    kept = ~np.isnan(first.value)
    sums, spread = patients.sums(influence[:, kept]), np.sqrt(variance[kept])
    scale = np.sqrt((sums**2).sum(0))
    correlation = sums.T @ sums / np.outer(*[np.where(scale > 0, scale, 1)] * 2)
    whole = spread @ correlation @ spread / kept.sum() ** 2 if not np.isnan(spread).any() and kept.any() else np.nan
    return [
        _auroc_difference((x, y), patients.sums(x_influence), patients.sums(y_influence), variance)
        for (x, x_influence), (y, y_influence), variance in zip(_aurocs(a), _aurocs(b), [*variance, whole], strict=True)
    ]


def _aurocs(sample: Sample) -> list[tuple[Interval, np.ndarray]]:
    """Return the AUROC of each class and last their mean, each with the images' influences (n,) on it."""
    values, low, high, influence = sample.per_class["auroc"]
    kept = ~np.isnan(values)
    mean = influence[:, kept].mean(1) if kept.any() else influence[:, 0]
    return [*zip(map(Interval, values, low, high), influence.T, strict=True), (sample.macro("auroc"), mean)]


def _auroc_difference(
    aurocs: tuple[Interval, Interval], first: np.ndarray, second: np.ndarray, variance: float
) -> Difference:
    """Return the difference with its test: p = 1 for equal rankings, none where they differ without any variance.

    The limits are recovered from those of either AUROC and their correlation (MOVER: Zou 2007, Zou and Donner 2008);
    `first` and `second` are the patients' influences on either.
    """
    a, b = aurocs
    scale = np.sqrt((first**2).sum() * (second**2).sum())
    correlation = first @ second / scale if scale > 0 else 0
    value = float(a.value - b.value)
    below, above = (
        np.sqrt(max(x**2 + y**2 - 2 * correlation * x * y, 0))
        for x, y in ((a.value - a.low, b.high - b.value), (a.high - a.value, b.value - b.low))
    )
    difference = Difference(value=value, low=float(value - below), high=float(value + above))
    if variance > ROUNDING:
        z = value / float(np.sqrt(variance))
        return replace(difference, z=z, p=float(2 * stats.norm.sf(abs(z))))
    return replace(difference, z=0.0, p=1.0) if variance <= ROUNDING and abs(value) < 1e-12 else difference


def class_metrics(confusions: np.ndarray) -> np.ndarray:
    """Return the metrics `RESAMPLED` of confusion matrices (…, classes, classes): (…, 4)."""
    values = overall_values(confusions)
    return np.stack([values[name] for name in RESAMPLED], -1)


def resampled_confusions(runs: Sequence[Predictions], resamples: int, seed: int) -> np.ndarray:
    """Return every run's confusion matrix in each resample of the patients: (resamples, runs, classes, classes)."""
    n, size = len(runs[0]), len(runs[0].classes)
    cells = np.stack([run.labels * size + run.predicted + i * size**2 for i, run in enumerate(runs)], 1)
    used, column = np.unique(cells, return_inverse=True)
    members = np.zeros((n, len(used)))
    members[np.arange(n)[:, None], column.reshape(cells.shape)] = 1
    confusions = np.zeros((resamples, len(runs) * size**2))
    confusions[:, used] = runs[0].patients.resampled_sums(members, resamples, seed)
    return confusions.reshape(resamples, len(runs), size, size)


def bootstrap_limits(
    value: np.ndarray, resampled: Sequence[np.ndarray], support: np.ndarray, patients: Patients, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return 95 % limits of the differences `value` of the metrics `RESAMPLED`, from two runs' resampled confusions.

    Each resample draws the two added patients as often as a bootstrap would (Poisson), of a class by `support`. They
    take both roles in turn, so the limits of b - a are those of a - b with the opposite sign.
    """
    if patients.count < 2:
        return np.full(len(value), np.nan), np.full(len(value), np.nan)
    rng, (a, b) = np.random.default_rng(derived_seed(seed, 1)), resampled
    rows, size = np.arange(len(a)), len(support)
    added = np.zeros((2, *a.shape))
    for turn in (0, 1):
        times, true = rng.poisson(1, len(a)), rng.choice(size, len(a), p=support / support.sum())
        added[turn, rows, true, true] += times
        added[1 - turn, rows, true, (true + rng.integers(1, size, len(a))) % size] += times
    drawn = [class_metrics(a + x) - class_metrics(b + y) for x, y in (added, added[::-1])]
    half = stats.t.ppf(0.5 + LEVEL / 2, patients.count - 1) * np.concatenate(drawn).std(0, ddof=1)
    ends = np.array([1, 1, 1, 2])  # MCC is in [-1, 1]
    return np.maximum(value - half, -ends), np.minimum(value + half, ends)
