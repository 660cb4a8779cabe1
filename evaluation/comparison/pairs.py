"""Compare runs on the same images, pair by pair.

Compared are two trained models on images like these; the same recipe with another seed trains another model.
"""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import numpy as np

from evaluation.comparison import paired
from evaluation.comparison.alignment import align
from evaluation.comparison.records import COMPARED, RESAMPLED, TESTS, Comparison, Difference, Pair
from evaluation.metrics.confusion import confusion_matrix
from evaluation.metrics.ranking import Ranking
from evaluation.metrics.table import compute_metrics
from evaluation.phrases import of_patients
from evaluation.predictions import Predictions
from intervals import RESAMPLES, Interval
from utils import UserError, count, did_you_mean


class _Run(NamedTuple):
    """A run's predictions, confusion matrix in every resample, and classes' AUROCs."""

    predictions: Predictions
    resampled: np.ndarray
    rankings: list[Ranking]


def compare(
    runs: dict[str, Predictions],
    baseline: str | None = None,
    *,
    distrusted: dict[str, list[str]] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Comparison:
    """Compare the predictions of two or more runs on the same images.

    Parameters
    ----------
    runs : dict of str to Predictions
        By name. Images may come in any order; they are matched by sha256, else by path.
    baseline : str, optional
        Compare each other run with this one alone, instead of every pair.
    distrusted : dict of str to list of str, optional
        By run, why its numbers are worthless; passed on to the result.
    seed, resamples : int
        Of the paired bootstrap behind the limits of accuracy, balanced accuracy, macro F1 and MCC.

    Returns
    -------
    Comparison
        The metrics of each run and, in `pairs`, the differences with 95 % limits and p values.

    Raises
    ------
    UserError
        For fewer than two runs, an unknown baseline, or runs whose classes, images or labels differ.

    Examples
    --------
    >>> import pandas as pd
    >>> from evaluation import Predictions, compare
    >>> def run(*p_ill):
    ...     table = pd.DataFrame({"path": list("abcdef"), "label": ["ill"] * 3 + ["well"] * 3, "p_ill": p_ill})
    ...     return Predictions(table.assign(p_well=1 - table["p_ill"]), ["ill", "well"])
    >>> comparison = compare({"new": run(0.9, 0.8, 0.7, 0.2, 0.1, 0.3), "old": run(0.9, 0.2, 0.3, 0.4, 0.1, 0.8)})
    >>> accuracy = comparison.pairs[0].differences["accuracy"]
    >>> accuracy.value, accuracy.p
    (0.5, 0.25)
    """
    if len(runs) < 2:
        raise UserError(f"a comparison needs two or more runs, not {len(runs)}")
    if baseline is not None and baseline not in runs:
        near = did_you_mean(baseline, list(runs))
        raise UserError(f"unknown baseline '{baseline}'{near}; choose from {', '.join(runs)}")
    return _compare_aligned(align(runs), baseline, distrusted or {}, seed, resamples)


def _compare_aligned(
    runs: dict[str, Predictions], baseline: str | None, distrusted: dict[str, list[str]], seed: int, resamples: int
) -> Comparison:
    first = next(iter(runs.values()))
    confusions = paired.resampled_confusions(list(runs.values()), resamples, seed)
    parts = {name: _Run(run, confusions[:, i], paired.rankings(run)) for i, (name, run) in enumerate(runs.items())}
    chosen = [(name, baseline) for name in runs if name != baseline] if baseline else combinations(runs, 2)
    pairs = [_pair((a, b), parts[a], parts[b], seed) for a, b in chosen]
    for metric in TESTS:
        for pair, p in zip(pairs, paired.holm([pair.differences[metric].p for pair in pairs]), strict=True):
            pair.differences[metric].p_holm = float(p)
    metrics = {name: compute_metrics(run, resamples=0) for name, run in runs.items()}  # only ECE needs resamples
    return Comparison(
        baseline=baseline,
        seed=seed,
        n=len(first),
        images=f"{count(len(first), 'image')}{of_patients(first.table) or ' (patients unknown)'}",
        unknown_patients=first.unknown_patients,
        support=dict(zip(first.classes, first.support.tolist(), strict=True)),
        runs={name: {m: Interval.from_json(values[m]) for m in COMPARED} for name, values in metrics.items()},
        pairs=pairs,
        distrusted=distrusted,
    )


def _pair(names: tuple[str, str], a: _Run, b: _Run, seed: int) -> Pair:
    runs = first, second = a.predictions, b.predictions
    confusions = [confusion_matrix(run.labels, run.predicted, len(run.classes)) for run in runs]
    values = paired.class_metrics(confusions[0]) - paired.class_metrics(confusions[1])
    limits = paired.bootstrap_limits(values, (a.resampled, b.resampled), first.support, first.patients, seed)
    differences = {
        metric: Difference(value=float(value), low=float(low), high=float(high))
        for metric, value, low, high in zip(RESAMPLED, values, *limits, strict=True)
    }
    if any((c.sum(axis) > 0).sum() < 2 for c in confusions for axis in (0, 1)):
        differences["mcc"] = Difference(value=np.nan)  # all images, or all predictions, are of one class
    right = first.correct.astype(np.int64) - second.correct
    differences["accuracy"].p = paired.sign_flip_test(first.patients.sums(right).round())
    *by_class, differences["macro_auroc"] = paired.delong_test(a.rankings, b.rankings, first.labels, first.patients)
    differences |= {f"auroc {name}": part for name, part in zip(first.classes, by_class, strict=True)}
    only_a, only_b = int((right > 0).sum()), int((right < 0).sum())
    return Pair(a=names[0], b=names[1], only_a=only_a, only_b=only_b, differences=differences)
