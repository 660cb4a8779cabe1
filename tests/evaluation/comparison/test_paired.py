"""Paired tests and limits against statsmodels, SciPy, brute force and textbook loops."""

from __future__ import annotations

import itertools
import sys
from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from evaluation.comparison.paired import (
    class_metrics,
    delong_test,
    holm,
    resampled_confusions,
    sign_flip_test,
)
from evaluation.metrics.table import Sample
from tests.helpers.prediction_tables import CLASSES, predictions, table, two
from tests.helpers.verbs import ROOT


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 20))
def test_one_image_per_patient_is_mcnemar(only_a: int, only_b: int, both: int) -> None:
    p = sign_flip_test(np.repeat([1, -1, 0], [only_a, only_b, both]))
    if only_a + only_b:
        assert p == pytest.approx(stats.binomtest(only_a, only_a + only_b).pvalue, rel=1e-9)
    assert p == pytest.approx(mcnemar([[both, only_a], [only_b, 0]], exact=True).pvalue, rel=1e-9)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=10))
def test_sign_flips_by_enumeration(differences: list[int]) -> None:
    totals = [abs(np.dot(signs, differences)) for signs in itertools.product((-1, 1), repeat=len(differences))]
    expected = np.mean(np.array(totals) >= abs(sum(differences)))
    assert sign_flip_test(np.array(differences)) == pytest.approx(expected, rel=1e-12)


def test_small_chances_are_exact() -> None:
    """Against whole numbers without rounding: 500 patients of up to three images, p about 1e-12."""
    differences = np.random.default_rng(3).choice([-2, -1, 0, 1, 2, 3], 500, p=[0.05, 0.15, 0.4, 0.2, 0.1, 0.1])
    ways = {0: 1}
    for size in np.abs(differences[differences != 0]).tolist():
        step: dict[int, int] = {}
        for total, count in ways.items():
            for end in (total - size, total + size):
                step[end] = step.get(end, 0) + count
        ways = step
    far = sum(count for total, count in ways.items() if abs(total) >= abs(differences.sum()))
    exact = float(Fraction(far, sum(ways.values())))
    assert exact < 1e-9
    assert sign_flip_test(differences) == pytest.approx(exact, rel=1e-10)


def test_sign_flips_of_many_images_keep_their_tail() -> None:
    assert sign_flip_test(np.repeat([1, -1], [600, 400])) == pytest.approx(
        float(Fraction(2 * sum(comb(1000, k) for k in range(401)), 2**1000)), rel=1e-10
    )
    differences = np.random.default_rng(0).integers(-4, 5, 21_165)
    z = differences.sum() / np.sqrt((differences**2).sum())
    assert sign_flip_test(differences) == pytest.approx(2 * stats.norm.sf(abs(z)), abs=0.01)


@pytest.mark.slow
@settings(max_examples=15, deadline=None)  # statsmodels collects garbage in every call
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_against_statsmodels(p: list[float]) -> None:
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1], rtol=1e-12)


def test_holm_leaves_out_what_has_no_test() -> None:
    np.testing.assert_array_equal(holm([0.03, np.nan, 0.01]), [0.03, np.nan, 0.02])


def textbook(positive: np.ndarray, a: np.ndarray, b: np.ndarray, patients: np.ndarray) -> tuple[float, float]:
    """Return an AUROC and the variance of a difference by double loops (DeLong 1988, Obuchowski 1997 for patients)."""
    x, y = np.flatnonzero(positive), np.flatnonzero(~positive)
    components = np.zeros((2, len(positive)))
    for scores, sign in ((a, 1), (b, -1)):
        for i, j in itertools.product(x, y):
            better = sign * (1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0)
            components[0, i] += better / len(y)
            components[1, j] += better / len(x)
    value = components[0, x].mean()
    every = sorted(set(patients))
    sums = [[components[0, i] - value for i in x if patients[i] == name] for name in every]
    others = [[components[1, j] - value for j in y if patients[j] == name] for name in every]
    first, second = len([part for part in sums if part]), len([part for part in others if part])
    s10 = sum(sum(part) ** 2 for part in sums) * first / (first - 1) / len(x)
    s01 = sum(sum(part) ** 2 for part in others) * second / (second - 1) / len(y)
    s11 = sum(sum(u) * sum(v) for u, v in zip(sums, others, strict=True)) * len(every) / (len(every) - 1)
    return value, s10 / len(x) + s01 / len(y) + 2 * s11 / len(x) / len(y)


@pytest.mark.parametrize("images", [1, 3])
def test_delong_against_the_textbook(images: int) -> None:
    runs = {name: predictions(table(60, seed, 1.0, images, 1)) for name, seed in (("a", 1), ("b", 2))}
    a, b = runs["a"], runs["b"]
    differences = delong_test(Sample(a), Sample(b))
    for i in range(len(CLASSES)):
        value, variance = textbook(
            a.labels == i, a.probabilities[:, i], b.probabilities[:, i], a.table["group"].to_numpy()
        )
        z = value / np.sqrt(variance)
        assert differences[i].value == pytest.approx(value, abs=1e-12)
        assert differences[i].z == pytest.approx(z, abs=1e-9)
        assert differences[i].p == pytest.approx(2 * stats.norm.sf(abs(z)), abs=1e-9)


@pytest.mark.parametrize("images", [1, 2])
def test_the_mean_auroc_agrees_with_the_jackknife(images: int) -> None:
    tables = {name: table(160, seed, 1.5, images) for name, seed in (("a", 1), ("b", 2))}
    runs = {name: predictions(part) for name, part in tables.items()}
    a = runs["a"]
    macro = delong_test(Sample(a), Sample(runs["b"]))[-1]

    def difference(kept: np.ndarray) -> float:
        areas = [
            sk.roc_auc_score(run.labels[kept] == i, run.probabilities[kept, i])
            for run in runs.values()
            for i in range(3)
        ]
        return np.mean(areas[:3]) - np.mean(areas[3:])

    count = a.patients.count
    left_out = np.array([difference(a.patients.number != i) for i in range(count)])
    deviation = np.sqrt((count - 1) * left_out.var())
    assert macro.value == pytest.approx(difference(np.ones(160, bool)), abs=1e-12)
    assert macro.value / macro.z == pytest.approx(deviation, rel=0.04)


def test_delong_without_variance() -> None:
    a = predictions(table(50, 1))
    same = delong_test(Sample(a), Sample(a))
    assert all(part.value == 0 and part.p == 1 and part.low < 0 < part.high for part in same)
    perfect = a.table.drop(columns=["predicted", "confidence"])
    constant = perfect.copy()
    for name in CLASSES:
        perfect[f"p_{name}"], constant[f"p_{name}"] = (a.table["label"] == name).astype(float), 1 / 3
    differences = delong_test(Sample(predictions(perfect)), Sample(predictions(constant)))
    assert [part.value for part in differences] == [0.5] * 4
    assert all(np.isnan(part.p) and not part.significant for part in differences)
    lonely = predictions(table(50, 1).assign(label=["COVID", *["Normal"] * 49]))
    *by_class, macro = delong_test(Sample(lonely), Sample(a))
    assert all(np.isnan(part.p) for part in (*by_class, macro))


@pytest.mark.filterwarnings("ignore:A single label was found")
@settings(max_examples=60, deadline=None)
@given(st.integers(2, 5), st.integers(1, 60), st.integers(0, 10**6))
def test_stacked_metrics_against_scikit_learn(classes: int, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, predicted = rng.integers(0, classes, (2, n))
    present = np.unique(labels)
    expected = [
        sk.accuracy_score(labels, predicted),
        sk.recall_score(labels, predicted, labels=present, average="macro"),
        sk.f1_score(labels, predicted, labels=present, average="macro"),
        sk.matthews_corrcoef(labels, predicted),
    ]
    confusion = sk.confusion_matrix(labels, predicted, labels=range(classes))
    np.testing.assert_allclose(class_metrics(np.stack([confusion] * 2)), [expected] * 2, atol=1e-12)


def test_resampled_confusions_are_those_of_the_drawn_images() -> None:
    runs = list(two(40, images=3).values())
    resampled = resampled_confusions(runs, 5, seed=7)
    patients = runs[0].patients
    for draw, weights in enumerate(np.concatenate(list(patients.resamples(5, 7)))):
        rows = np.repeat(np.arange(40), weights[patients.number].astype(int))
        for i, run in enumerate(runs):
            confusion = sk.confusion_matrix(run.labels[rows], run.predicted[rows], labels=range(3))
            np.testing.assert_array_equal(resampled[draw, i], confusion)


@pytest.mark.slow
def test_the_coverage_simulation() -> None:
    """Limits beside the usual ones for every metric, and a pair of models as different as its setting says."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import coverage_of_differences as simulation
    finally:
        sys.path.pop(0)
    setting = (3.25, 2.7, 0.5, 240, 3)
    first, second = simulation.draw((*setting[:3], 30_000, 1), np.random.default_rng(0))
    assert 0.02 < first.correct.mean() - second.correct.mean() < 0.06
    result = simulation.coverage(setting, 3, np.zeros(5))
    assert result["held"].shape == (2, 5) and 0.04 < result["apart"] < 0.12
    ours, usual = simulation.limits(simulation.draw(setting, np.random.default_rng(1)))
    assert (ours[0] < ours[1]).all() and (usual[0] <= usual[1]).all()
    assert (simulation.coverage(setting, 3, np.full(5, 9.0))["held"] == 0).all()
