"""Are two runs different on the same images? Paired tests and intervals, with the patient as the unit of sampling.

What is compared are two trained models on images like these; the same recipe with another seed trains another model.

The limits of accuracy, balanced accuracy, macro F1 and MCC are value ± t·sd. The sd is that of a paired bootstrap over
patients that knows two patients more, one whom only the first run gets right and one whom only the second does: Agresti
and Min 2005 and Bonett and Price 2012 so add 1 to each count of disagreement. Without them, two runs that agree on a
small set have an interval of width 0. The limits of AUROC differences are recovered from those of either AUROC.

Coverage at nominal 95 %, with 0.01 of noise, highest where the runs disagree the least; the usual percentile bootstrap
and DeLong's value ± 1.96·sd in parentheses (benchmarks/coverage_of_differences.py, table in docs/intervals.md):

                   n = 60                      n = 240
    accuracy     0.948-1.000 (0.565-0.948)   0.927-0.983 (0.917-0.958)
    macro F1     0.925-1.000 (0.600-0.958)   0.932-0.998 (0.912-0.948)
    macro AUROC  0.980-1.000 (0.750-1.000)   0.955-0.998 (0.845-0.997)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import stats

from evaluation.metrics.confusion import confusion_matrix, overall_values
from evaluation.metrics.ranking import Ranking, auroc, delong_variance
from evaluation.metrics.table import compute_metrics
from evaluation.phrases import of_patients
from evaluation.predictions import Predictions
from intervals import LEVEL, RESAMPLES, Patients, mean_interval
from utils import UserError, count, derived_seed, log

ALPHA = 1 - LEVEL
RESAMPLED = ("accuracy", "balanced_accuracy", "macro_f1", "mcc")
COMPARED = (*RESAMPLED, "macro_auroc")
TESTS = {"accuracy": "McNemar", "macro_auroc": "DeLong"}  # a family each: Holm's correction runs over its pairs
METHODS = {
    "p of accuracy": "exact McNemar; with several images per patient, exact sign flips of the patients",
    "p of macro_auroc, auroc": "DeLong's paired test, over patients",
    "p_holm": "Holm over the pairs, for accuracy and for macro_auroc apart; the classes' AUROCs are not corrected",
    "limits of accuracy, balanced_accuracy, macro_f1, mcc": (
        f"t interval with the sd of a paired bootstrap over patients, {RESAMPLES} resamples, two patients added"
    ),
    "limits of macro_auroc, auroc": "recovered from the limits of either AUROC and their correlation (MOVER)",
}
NOTHING = 1e-28  # a variance below this is rounding


@dataclass
class Difference:
    """A metric of the first run minus that of the second, its 95 % limits, and its test; NaN where there is none."""

    value: float
    low: float = np.nan
    high: float = np.nan
    z: float = np.nan
    p: float = np.nan
    p_holm: float = np.nan

    @property
    def told_apart(self) -> bool:
        """Whether the corrected test says so; where there is none, no."""
        return self.p_holm < ALPHA

    def text(self) -> str:
        """`+0.012 [-0.020, +0.044]`, without brackets where the limits are unknown, `-` where the difference is."""
        numbers = (round(number, 3) + 0.0 for number in (self.value, self.low, self.high))  # + 0.0: no -0.000
        value, low, high = (f"{number:+.3f}" for number in numbers)
        if np.isnan(self.value):
            return "-"
        return value if np.isnan(self.low) else f"{value} [{low}, {high}]"

    def __neg__(self) -> Difference:
        return replace(self, value=-self.value, low=-self.high, high=-self.low, z=-self.z)


@dataclass
class Pair:
    """Two runs, how many images only one of them gets right, and their differences: `COMPARED`, `auroc CLASS`."""

    a: str
    b: str
    only_a: int
    only_b: int
    differences: dict[str, Difference]


@dataclass
class Comparison:
    """What compare.py shows.

    Attributes:
        n: images.
        images: their number and that of their patients in words, as far as these are known.
        unknown: images whose patient is not known.
        support: each class's images.
        runs: each run's metrics as metrics.json has them.
        distrusted: by run what is known to make its numbers worthless, in sentences.
    """

    n: int
    images: str
    unknown: int
    support: dict[str, int]
    runs: dict[str, dict[str, dict[str, float | None]]]
    pairs: list[Pair]
    distrusted: dict[str, list[str]]


def align(runs: dict[str, Predictions]) -> dict[str, Predictions]:
    """The runs with their images in the first one's order, their classes in alphabetical order, one set of patients.

    Images are matched by sha256 where it is there and unique on both sides, else by path. The patients are those of the
    first run that names any; of others that disagree a warning is logged.

    Raises: `UserError` that names two runs whose classes, images or labels differ.
    """
    (name, first), *others = runs.items()
    classes = sorted(first.classes)
    orders = {name: np.arange(len(first))}
    for other, second in others:
        if sorted(second.classes) != classes:
            here, there = set(classes), set(second.classes)
            alone = [", ".join(sorted(part)) or "none" for part in (here - there, there - here)]
            raise UserError(f"{name} and {other} have other classes: only {name}: {alone[0]}; only {other}: {alone[1]}")
        orders[other] = _match(name, first, other, second)
    tables = {run: runs[run].table.iloc[order].reset_index(drop=True) for run, order in orders.items()}
    group = _common_patients(tables)
    return {
        run: Predictions(table.assign(group=group.fillna(table["path"])), classes, runs[run].where)
        for run, table in tables.items()
    }


def _match(name: str, first: Predictions, other: str, second: Predictions) -> np.ndarray:
    """Where each image of the first run is in the second, (n,)."""
    a, b = first.table, second.table
    known = all((table["sha256"] != "").all() and table["sha256"].is_unique for table in (a, b))
    by = "sha256" if known else "path"
    order = pd.Index(b[by]).get_indexer(a[by])
    alone = [_alone(run, x.loc[~x[by].isin(y[by]), "path"]) for run, x, y in ((name, a, b), (other, b, a))]
    if len(a) != len(b) or (order < 0).any():
        raise UserError(f"{name} and {other} are of different images (matched by {by}): {alone[0]}, {alone[1]}")
    labels = b["label"].to_numpy()[order]
    wrong = np.flatnonzero(a["label"].to_numpy() != labels)
    if len(wrong):
        row = wrong[0]
        raise UserError(
            f"{name} and {other} disagree about the true class of {len(wrong)} of {len(a)} images: {a['path'][row]} is "
            f"{a['label'][row]} in {name} and {labels[row]} in {other}"
        )
    return order


def _alone(run: str, paths: pd.Series) -> str:
    return f"{len(paths)} only in {run}" + (f" (such as {paths.iloc[0]})" if len(paths) else "")


def _common_patients(tables: dict[str, pd.DataFrame]) -> pd.Series:
    """The patients of the first table that names any, NaN where it does not."""
    every = {run: table["group"].where(table["group"] != table["path"]) for run, table in tables.items()}
    named = {run: group for run, group in every.items() if group.notna().any()}
    if not named:
        return next(iter(every.values()))
    (name, groups), *others = named.items()
    for other, found in others:
        if not np.array_equal(pd.factorize(found)[0], pd.factorize(groups)[0]):  # the names may differ
            log.warning(f"{name} and {other} disagree about the patients (column group): those of {name} count")
    return groups


def sign_flip_test(differences: np.ndarray) -> float:
    """Exact two-sided p of a sum of (patients,) integers, each of which would be as likely with the other sign.

    p = P(|S| >= |Σ differences|) over all 2^patients choices of signs. With one image per patient the differences are
    -1, 0 and 1, and this is McNemar's exact test (McNemar 1947), the binomial test of the images that only one of two
    runs gets right. Patients with the same |difference| share a binomial distribution; these are convolved.
    """
    differences = np.asarray(differences, np.int64)
    sizes, patients = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    chance = np.ones(1)  # of the sum over the patients whose sign is plus being 0, 1, 2, …
    for size, number in zip(sizes, patients, strict=True):
        own = np.zeros(size * number + 1)
        own[::size] = stats.binom.pmf(np.arange(number + 1), number, 0.5)
        chance = np.convolve(chance, own)  # not by an FFT, in which small chances lose their digits
    sums = 2 * np.arange(len(chance)) - (len(chance) - 1)
    return float(min(chance[np.abs(sums) >= abs(differences.sum())].sum(), 1))


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's step-down correction (Holm 1979) of the p of one family of tests; NaN stays NaN and does not count."""
    p = np.asarray(p, np.float64)
    adjusted, order = np.full(len(p), np.nan), np.argsort(p)[: np.count_nonzero(~np.isnan(p))]
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)).clip(max=1)
    return adjusted


def class_metrics(confusions: np.ndarray) -> np.ndarray:
    """The metrics `RESAMPLED` of confusion matrices (…, classes, classes): (…, 4)."""
    values = overall_values(confusions)
    return np.stack([values[name] for name in RESAMPLED], -1)


def resampled_confusions(runs: Sequence[Predictions], resamples: int, seed: int) -> np.ndarray:
    """Every run's confusion matrix in the same resamples of the patients: (resamples, runs, classes, classes)."""
    n, size = len(runs[0]), len(runs[0].classes)
    cells = np.stack([run.labels * size + run.predicted + i * size**2 for i, run in enumerate(runs)], 1)
    used, column = np.unique(cells, return_inverse=True)
    members = np.zeros((n, len(used)))
    members[np.arange(n)[:, None], column.reshape(cells.shape)] = 1
    found = np.zeros((resamples, len(runs) * size**2))
    found[:, used] = runs[0].patients.resampled_sums(members, resamples, seed)
    return found.reshape(resamples, len(runs), size, size)


def bootstrap_limits(
    value: np.ndarray, a: np.ndarray, b: np.ndarray, support: np.ndarray, patients: Patients, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """95 % limits of the differences `value` of the metrics `RESAMPLED` from two runs' resampled confusion matrices.

    Each resample draws the two added patients as often as a bootstrap would (Poisson), of a class by `support`. They
    take turns in both roles, so the limits of b - a are those of a - b with the other sign.
    """
    if patients.count < 2:
        return np.full(len(value), np.nan), np.full(len(value), np.nan)
    rng = np.random.default_rng(derived_seed(seed, 1))
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


def rankings(run: Predictions) -> list[Ranking]:
    """The AUROC of every class against the others."""
    return [auroc(run.labels == i, run.probabilities[:, i], run.patients) for i in range(len(run.classes))]


def delong_test(a: Sequence[Ranking], b: Sequence[Ranking], labels: np.ndarray, patients: Patients) -> list[Difference]:
    """DeLong's paired test of each class's AUROC difference, and last of their mean over the classes that have one.

    The classes' variances are DeLong's. That of the mean joins them by the correlations of the patients' influences,
    and is unknown where a class has one patient.
    """
    influence = np.stack([x.influence - y.influence for x, y in zip(a, b, strict=True)], 1)
    variance = delong_variance(influence, labels[:, None] == np.arange(len(a)), patients)[0]
    kept = ~np.isnan([x.value for x in a])
    sums, spread = patients.sums(influence[:, kept]), np.sqrt(variance[kept])
    scale = np.sqrt((sums**2).sum(0))
    correlation = sums.T @ sums / np.outer(*[np.where(scale > 0, scale, 1)] * 2)
    whole = spread @ correlation @ spread / kept.sum() ** 2 if not np.isnan(spread).any() and kept.any() else np.nan
    ranked = zip([*a, mean_ranking(a, patients)], [*b, mean_ranking(b, patients)], [*variance, whole], strict=True)
    return [_difference(*part, patients) for part in ranked]


def mean_ranking(ranks: Sequence[Ranking], patients: Patients) -> Ranking:
    """The mean of the AUROCs that there are, with its limits."""
    kept = [rank for rank in ranks if not np.isnan(rank.value)]
    if not kept:
        return ranks[0]
    value, low, high = np.array([[rank.value, rank.low, rank.high] for rank in kept]).T
    influence = np.stack([rank.influence for rank in kept], 1)
    limits = mean_interval(value, low, high, influence, patients)
    return Ranking(value.mean(), influence.mean(1), np.nan, *limits)


def _difference(a: Ranking, b: Ranking, variance: float, patients: Patients) -> Difference:
    """The test by the variance; p = 1 where two rankings are the same, none where nothing varies and they are not.

    The limits are recovered from those of either AUROC and their correlation (MOVER: Zou 2007, Zou and Donner 2008).
    """
    first, second = patients.sums(a.influence), patients.sums(b.influence)
    scale = np.sqrt((first**2).sum() * (second**2).sum())
    correlation = first @ second / scale if scale > 0 else 0
    value = float(a.value - b.value)
    low, high = (
        np.sqrt(max(x**2 + y**2 - 2 * correlation * x * y, 0))
        for x, y in ((a.value - a.low, b.high - b.value), (a.high - a.value, b.value - b.low))
    )
    found = Difference(value, float(value - low), float(value + high))
    if variance > NOTHING:
        z = value / float(np.sqrt(variance))
        return replace(found, z=z, p=float(2 * stats.norm.sf(abs(z))))
    return replace(found, z=0.0, p=1.0) if variance <= NOTHING and abs(value) < 1e-12 else found


def compare(
    runs: dict[str, Predictions],
    baseline: str | None = None,
    *,
    distrusted: dict[str, list[str]] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Comparison:
    """Compare aligned runs (`align`): every pair, or with `baseline` each other run with that one."""
    names, first = list(runs), next(iter(runs.values()))
    shown = {name: compute_metrics(run, resamples=1) for name, run in runs.items()}  # nothing shown is resampled there
    confusions = resampled_confusions(list(runs.values()), resamples, seed)
    ranked = {name: rankings(run) for name, run in runs.items()}
    support = np.bincount(first.labels, minlength=len(first.classes))
    pairs = []
    for a, b in [(name, baseline) for name in names if name != baseline] if baseline else combinations(names, 2):
        x, y = runs[a], runs[b]
        values = [class_metrics(confusion_matrix(r.labels, r.predicted, len(r.classes))) for r in (x, y)]
        value = values[0] - values[1]
        resampled = (confusions[:, names.index(name)] for name in (a, b))
        limits = bootstrap_limits(value, *resampled, support, first.patients, seed)
        found = {m: Difference(*map(float, part)) for m, *part in zip(RESAMPLED, value, *limits, strict=True)}
        right = x.correct.astype(np.int64) - y.correct
        if None in (shown[a]["mcc"]["value"], shown[b]["mcc"]["value"]):
            found["mcc"] = Difference(np.nan)  # one class alone
        found["accuracy"].p = sign_flip_test(first.patients.sums(right).round())
        *by_class, found["macro_auroc"] = delong_test(ranked[a], ranked[b], first.labels, first.patients)
        only = int((right > 0).sum()), int((right < 0).sum())
        found |= {f"auroc {name}": part for name, part in zip(first.classes, by_class, strict=True)}
        pairs.append(Pair(a, b, *only, found))
    for metric in TESTS:
        for pair, p in zip(pairs, holm([pair.differences[metric].p for pair in pairs]), strict=True):
            pair.differences[metric].p_holm = float(p)
    kept = {name: {metric: found[metric] for metric in COMPARED} for name, found in shown.items()}
    images = f"{count(len(first), 'image')}{of_patients(first.table) or ' (patients not known)'}"
    unknown = int((first.table["group"] == first.table["path"]).sum())
    by_class = dict(zip(first.classes, support.tolist(), strict=True))
    return Comparison(len(first), images, unknown, by_class, kept, pairs, distrusted or {})
