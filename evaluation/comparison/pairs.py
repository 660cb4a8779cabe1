"""Compare runs on the same images, pair by pair.

Compared are two trained models on images like these; the same recipe with another seed trains another model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from evaluation.comparison import paired
from evaluation.comparison.inputs import align
from evaluation.comparison.paired import RESAMPLED, Difference
from evaluation.metrics.table import OVERALL, Sample
from evaluation.phrases import of_patients
from evaluation.predictions import Predictions
from intervals import RESAMPLES, Interval
from utils import UserError, count, did_you_mean

COMPARED = (*RESAMPLED, "macro_auroc")
TESTS = {"accuracy": "McNemar", "macro_auroc": "DeLong"}  # a family each: Holm's correction runs over its pairs


@dataclass(kw_only=True)
class Pair:
    """Two runs, the number of images that only one of them gets right, and their differences.

    The keys of `differences` are those of `COMPARED`, then `auroc CLASS` for every class.
    """

    a: str
    b: str
    only_a: int
    only_b: int
    differences: dict[str, Difference]


@dataclass(kw_only=True)
class Comparison:
    """Runs on the same images, and the differences between them. `compare` makes it.

    Attributes
    ----------
    baseline : str or None
        The run that each other one is compared with; None if every pair is compared.
    seed : int
        Seed of the bootstrap.
    n : int
        Number of images.
    images : str
        The number of images and patients in words, as far as patients are known.
    unknown_patients : int
        Number of images whose patient is unknown.
    support : dict of str to int
        Number of images of each class.
    runs : dict of str to dict of str to Interval
        The metrics of each run, with the keys of `COMPARED`.
    pairs : list of Pair
        Two runs each: the images that only one of them gets right, and the differences of the metrics.
    distrusted : dict of str to list of str
        By run, the sentences that say why its numbers are worthless.

    Examples
    --------
    >>> import pandas as pd
    >>> from evaluation import Predictions, compare
    >>> table = pd.DataFrame({"path": list("abcd"), "label": ["ill", "ill", "well", "well"]})
    >>> old = Predictions(table.assign(p_ill=[0.9, 0.2, 0.1, 0.8], p_well=[0.1, 0.8, 0.9, 0.2]), ["ill", "well"])
    >>> new = Predictions(table.assign(p_ill=[0.9, 0.8, 0.1, 0.8], p_well=[0.1, 0.2, 0.9, 0.2]), ["ill", "well"])
    >>> comparison = compare({"new": new, "old": old})
    >>> comparison.n, comparison.support, float(comparison.runs["new"]["accuracy"].value)
    (4, {'ill': 2, 'well': 2}, 0.75)
    >>> [(pair.a, pair.b, pair.only_a, pair.only_b) for pair in comparison.pairs]
    [('new', 'old', 1, 0)]
    """

    baseline: str | None
    seed: int
    n: int
    images: str
    unknown_patients: int
    support: dict[str, int]
    runs: dict[str, dict[str, Interval]]
    pairs: list[Pair]
    distrusted: dict[str, list[str]]


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
        The predictions of each run, by its name. Images may come in any order; they are matched by sha256, else by
        path.
    baseline : str, optional
        The run that each other one is compared with. Default: every pair is compared.
    distrusted : dict of str to list of str, optional
        By run, the sentences that say why its numbers are worthless; they are passed on to the result.
    seed : int
        Seed of the paired bootstrap that gives the limits of accuracy, balanced accuracy, macro F1 and MCC.
    resamples : int
        Number of its resamples.

    Returns
    -------
    Comparison
        The metrics of each run and, in `pairs`, the differences with 95 % limits and p values.

    Raises
    ------
    UserError
        If there are fewer than two runs, if the baseline is unknown, or if the runs' classes, images or labels differ.

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
    first, samples = next(iter(runs.values())), {name: Sample(run) for name, run in runs.items()}
    confusions = np.moveaxis(paired.resampled_confusions(list(runs.values()), resamples, seed), 1, 0)
    resampled = dict(zip(runs, confusions, strict=True))
    chosen = [(name, baseline) for name in runs if name != baseline] if baseline else combinations(runs, 2)
    pairs = [_pair(names, [samples[n] for n in names], [resampled[n] for n in names], seed) for names in chosen]
    for metric in TESTS:
        for pair, p in zip(pairs, paired.holm([pair.differences[metric].p for pair in pairs]), strict=True):
            pair.differences[metric].p_holm = float(p)
    return Comparison(
        baseline=baseline,
        seed=seed,
        n=len(first),
        images=f"{count(len(first), 'image')}{of_patients(first.table) or ' (patients unknown)'}",
        unknown_patients=first.unknown_patients,
        support=dict(zip(first.classes, samples[next(iter(runs))].confusion.sum(1).tolist(), strict=True)),
        runs={name: {metric: OVERALL[metric](sample) for metric in COMPARED} for name, sample in samples.items()},
        pairs=pairs,
        distrusted=distrusted,
    )


def _pair(names: Sequence[str], samples: Sequence[Sample], resampled: Sequence[np.ndarray], seed: int) -> Pair:
    a, b = samples
    first, patients = a.predictions, a.patients
    values = paired.class_metrics(a.confusion) - paired.class_metrics(b.confusion)
    limits = paired.bootstrap_limits(values, resampled, a.confusion.sum(1), patients, seed)
    differences = {
        metric: Difference(value=float(value), low=float(low), high=float(high))
        for metric, value, low, high in zip(RESAMPLED, values, *limits, strict=True)
    }
    if any(np.isnan(OVERALL["mcc"](sample).value) for sample in samples):
        differences["mcc"] = Difference(value=np.nan)
    right = first.correct.astype(np.int64) - b.predictions.correct
    differences["accuracy"].p = paired.sign_flip_test(patients.sums(right).round())
    *by_class, differences["macro_auroc"] = paired.delong_test(a, b)
    differences |= {f"auroc {name}": part for name, part in zip(first.classes, by_class, strict=True)}
    only_a, only_b = int((right > 0).sum()), int((right < 0).sum())
    return Pair(a=names[0], b=names[1], only_a=only_a, only_b=only_b, differences=differences)
