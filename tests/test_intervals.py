"""Intervals against statsmodels, scikit-learn, hand-worked examples, brute force and repeated patients."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from statsmodels.stats.proportion import proportion_confint

from evaluation.metrics.ranking import auroc, average_precision, newcombe
from intervals import (
    UNKNOWN,
    Interval,
    Patients,
    basic_interval,
    mean_interval,
    mean_over_patients,
    proportion_interval,
    transformed_interval,
    wilson,
)


def test_an_interval_as_json_and_text() -> None:
    known, value_only = Interval(0.9312, 0.88, 0.9618), Interval(0.5)
    assert known.to_json() == {"value": 0.9312, "low": 0.88, "high": 0.9618}
    assert Interval.from_json(known.to_json()) == known
    assert value_only.to_json() == {"value": 0.5, "low": None, "high": None}
    assert np.isnan(Interval.from_json(value_only.to_json()).low)
    texts = [interval.text() for interval in (known, value_only, UNKNOWN)]
    assert texts == ["0.931 [0.880, 0.962]", "0.500", "-"]
    assert known.text(2) == "0.93 [0.88, 0.96]"


def _single(n: int) -> Patients:
    return Patients(np.arange(n))


@given(st.integers(1, 5000), st.floats(0, 1))
def test_wilson_is_statsmodels(n: int, share: float) -> None:
    count = round(share * n)
    np.testing.assert_allclose(wilson(count, n), proportion_confint(count, n, method="wilson"), atol=1e-12)


def test_wilson_by_hand() -> None:
    """230 of 240: an interval that a published comparison of three networks left out."""
    low, high = wilson(230, 240)
    assert low == pytest.approx(0.9250, abs=1e-4)
    assert high == pytest.approx(0.9772, abs=1e-4)


@given(st.integers(2, 200), st.integers(0, 10**6))
def test_one_image_per_patient_is_wilson(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    members = rng.random((n, 3)) < 0.7
    hits = members & (rng.random((n, 3)) < 0.8)
    _, low, high = proportion_interval(hits, members, _single(n))
    for k in range(3):
        if members[:, k].any():
            expected = proportion_confint(hits[:, k].sum(), members[:, k].sum(), method="wilson")
            np.testing.assert_allclose((low[k], high[k]), expected, atol=1e-9)


def test_design_effect_by_hand() -> None:
    """Ten patients with two images each, both right in 8 and both wrong in 2: p = 0.8, and 20 images are worth 9.

    Σ (y - p·m)² = 8·0.4² + 2·1.6² = 6.4; V = 10/9 · 6.4 / 20² = 0.01778; p(1 - p) / V = 9. Then Wilson with t(9).
    """
    from scipy import stats

    groups = np.repeat(np.arange(10), 2)
    hits = (groups < 8)[:, None]
    _, low, high = proportion_interval(hits, np.ones_like(hits), Patients(groups))
    expected = wilson(0.8 * 9, 9, stats.t.ppf(0.975, 9))
    np.testing.assert_allclose((low[0], high[0]), expected)
    assert high[0] - low[0] > np.subtract(*wilson(16, 20)[::-1])


def test_all_right_counts_patients_not_images() -> None:
    groups = np.repeat(np.arange(12), 5)
    ones = np.ones((60, 1), bool)
    _, low, high = proportion_interval(ones, ones, Patients(groups))
    assert high[0] == 1
    assert low[0] == pytest.approx(wilson(12, 12)[0])


def test_patients_are_summed_whatever_their_order() -> None:
    patients = Patients(np.array(["b", "a", "b", "c", "a", "b"]))
    assert patients.count == 3
    np.testing.assert_array_equal(patients.sums(np.arange(6.0)), [5, 7, 3])
    np.testing.assert_array_equal(patients.sums(np.arange(12).reshape(6, 2) % 2 == 1), [[0, 2], [0, 3], [0, 1]])


def test_bootstrap_draws_patients() -> None:
    """Every resample has as many patients as the sample; the sums vary as theory says."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(50), 3)
    values = rng.normal(size=(150, 1))
    patients = Patients(groups)
    counts = np.concatenate(list(patients.resamples(4000, 1)))
    assert counts.shape == (4000, 50)
    assert (counts.sum(1) == 50).all()
    sums = patients.resampled_sums(values, 4000, 1)
    np.testing.assert_allclose(sums[:, 0], counts @ patients.sums(values)[:, 0], rtol=1e-5, atol=1e-5)
    per_patient = patients.sums(values)[:, 0]
    assert sums.std() == pytest.approx(per_patient.std() * np.sqrt(50), rel=0.06)
    np.testing.assert_array_equal(sums, patients.resampled_sums(values, 4000, 1))


def _delong_by_pairs(positive: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """The textbook's double loop: AUROC and its variance (DeLong 1988, eq. 4 to 6)."""
    up, down = scores[positive], scores[~positive]
    wins = np.array([[1.0 if a > b else 0.5 if a == b else 0.0 for b in down] for a in up])
    v10, v01 = wins.mean(1), wins.mean(0)
    return float(wins.mean()), float(v10.var(ddof=1) / len(up) + v01.var(ddof=1) / len(down))


def test_delong_by_hand() -> None:
    """Positives 0.9, 0.8, 0.4; negatives 0.7, 0.3, 0.2, 0.1: 11 of 12 pairs are right.

    V10 = 1, 1, 3/4: S10 = 1/48. V01 = 2/3, 1, 1, 1: S01 = 1/36. Variance = 1/48/3 + 1/36/4 = 1/72.
    """
    positive = np.array([True] * 3 + [False] * 4)
    ranking = auroc(positive, np.array([0.9, 0.8, 0.4, 0.7, 0.3, 0.2, 0.1]), _single(7))
    assert ranking.value == pytest.approx(11 / 12, abs=1e-12)
    assert ranking.variance == pytest.approx(1 / 72, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.integers(4, 60), st.integers(0, 10**6))
def test_delong_against_a_double_loop(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    positive = np.arange(n) < max(2, n // 3)
    scores = np.round(rng.normal(size=n) + positive, 1)  # with ties
    ranking = auroc(positive, scores, _single(n))
    value, variance = _delong_by_pairs(positive, scores)
    assert ranking.value == pytest.approx(value, abs=1e-9)
    assert ranking.value == pytest.approx(sk.roc_auc_score(positive, scores), abs=1e-9)
    if n - positive.sum() > 1:
        assert ranking.variance == pytest.approx(variance, abs=1e-9)


@pytest.mark.parametrize("statistic", [auroc, average_precision])
def test_repeated_images_add_nothing(statistic) -> None:
    """Each image three times, as one patient's: the same value, variance and limits as once."""
    rng = np.random.default_rng(3)
    positive = rng.random(80) < 0.4
    scores = rng.normal(size=80) + positive
    once = statistic(positive, scores, _single(80))
    thrice = statistic(np.repeat(positive, 3), np.repeat(scores, 3), Patients(np.repeat(np.arange(80), 3)))
    for part in ("value", "variance", "low", "high"):
        assert getattr(thrice, part) == pytest.approx(getattr(once, part), abs=1e-12)


@pytest.mark.parametrize(
    ("statistic", "peer"), [(auroc, sk.roc_auc_score), (average_precision, sk.average_precision_score)]
)
def test_influence_is_the_derivative_by_weight(statistic, peer) -> None:
    """scikit-learn's statistic with one image weighing a little more, by central differences."""
    rng = np.random.default_rng(4)
    positive = rng.random(40) < 0.4
    scores = np.round(rng.normal(size=40) + positive, 1)
    ranking = statistic(positive, scores, _single(40))
    assert ranking.value == pytest.approx(peer(positive, scores), abs=1e-12)
    step = 1e-4
    for i in range(40):
        weights = np.ones(40)
        weights[i] = 1 + step
        more = peer(positive, scores, sample_weight=weights)
        weights[i] = 1 - step
        less = peer(positive, scores, sample_weight=weights)
        assert ranking.influence[i] == pytest.approx((more - less) / (2 * step), abs=1e-6)


def test_a_perfect_ranking_is_not_certain() -> None:
    positive = np.arange(30) < 10
    perfect = auroc(positive, -np.arange(30.0), _single(30))
    assert (perfect.value, perfect.high) == (1, 1)
    assert 0.7 < perfect.low < 0.95
    few = auroc(np.arange(6) < 2, -np.arange(6.0), _single(6))
    assert few.low < perfect.low
    perfect = average_precision(positive, -np.arange(30.0), _single(30))
    assert perfect.low == pytest.approx(wilson(10, 10)[0])
    assert np.isnan(auroc(np.zeros(5, bool), np.arange(5.0), _single(5)).value)


@pytest.mark.parametrize("value", [0.0, 0.3, 0.8, 0.97, 1.0])
def test_newcombe_solves_its_equation(value: float) -> None:
    """|value - a| = z·sqrt(V(a)) at both limits, with Hanley and McNeil's V; symmetric about one half."""
    from intervals import Z

    m, n = 25.0, 40.0
    for a in newcombe(value, m, n):
        if 1e-6 < a < 1 - 1e-6:
            half = (m + n) / 2 - 1
            spread = a * (1 - a) * (1 + half * (1 - a) / (2 - a) + half * a / (1 + a)) / (m * n)
            assert abs(value - a) == pytest.approx(Z * np.sqrt(spread), rel=1e-6)
    low, high = newcombe(value, m, n)
    mirrored = newcombe(1 - value, m, n)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 30), st.integers(1, 4), st.integers(0, 10**6))
def test_the_mean_over_patients_against_clustered_regression(count: int, most: int, seed: int) -> None:
    """statsmodels' ordinary least squares with clustered errors; with one image each, SciPy's t interval."""
    import statsmodels.api as sm
    from scipy import stats

    rng = np.random.default_rng(seed)
    groups = rng.permutation(np.repeat(np.arange(count), rng.integers(1, most + 1, count)))
    values = rng.exponential(size=len(groups)) + rng.normal(size=count)[groups]
    interval = mean_over_patients(values, groups)
    fit = sm.OLS(values, np.ones(len(values))).fit(cov_type="cluster", cov_kwds={"groups": groups}, use_t=True)
    np.testing.assert_allclose(interval, (values.mean(), *fit.conf_int()[0]), rtol=1e-9, atol=1e-12)
    if most == 1:
        np.testing.assert_allclose(interval[1:], stats.ttest_1samp(values, 0).confidence_interval(), rtol=1e-9)


def test_the_mean_over_few_patients() -> None:
    nothing = np.array([np.nan])
    assert np.isnan(mean_over_patients(nothing, np.array(["a"]))).all()
    assert np.isnan(mean_over_patients(nothing[:0], nothing[:0])).all()
    mean, *limits = mean_over_patients(np.array([1.0, 3.0, np.nan]), np.array(["a", "a", "b"]))
    assert mean == 2
    assert np.isnan(limits).all()
    for value in (1, 0.1, 1 / 3):
        assert mean_over_patients(np.full(7, value), np.arange(7)) == (value, value, value)


def test_repeated_images_add_nothing_to_the_mean() -> None:
    values = np.random.default_rng(5).exponential(size=9)
    once = mean_over_patients(values, np.arange(9))
    assert mean_over_patients(np.repeat(values, 4), np.repeat(np.arange(9), 4)) == pytest.approx(once, abs=1e-12)


def test_the_mean_over_patients_covers_more_than_the_bootstrap() -> None:
    """12 patients with 1 to 3 images, lognormal values (σ 0.6 between patients, 0.3 within): both cover too little.

    0.916 and 0.883 of 1,500 samples of another seed; the standard error of 600 is 0.012.
    """
    rng, draws, count = np.random.default_rng(1), 600, 12
    true, ours, percentile = np.exp((0.6**2 + 0.3**2) / 2), 0, 0
    for _ in range(draws):
        groups = np.repeat(np.arange(count), rng.integers(1, 4, count))
        values = np.exp(0.6 * rng.normal(size=count)[groups] + 0.3 * rng.normal(size=len(groups)))
        _, low, high = mean_over_patients(values, groups)
        ours += low <= true <= high
        weights = rng.multinomial(count, np.full(count, 1 / count), 1000)
        sums = weights @ np.stack([np.bincount(groups, values), np.bincount(groups)], 1)
        low, high = np.quantile(sums[:, 0] / sums[:, 1], [0.025, 0.975])
        percentile += low <= true <= high
    assert 0.88 < ours / draws < 0.95
    assert ours - percentile > 0.01 * draws


def test_mean_of_independent_and_of_equal_statistics() -> None:
    """MOVER: independent parts add as squares, identical parts as they are."""
    rng = np.random.default_rng(0)
    values, low, high = np.array([0.8, 0.9]), np.array([0.7, 0.84]), np.array([0.85, 0.98])
    same = np.repeat(rng.normal(size=(500, 1)), 2, axis=1)
    np.testing.assert_allclose(mean_interval(values, low, high, same, _single(500)), (0.77, 0.915), atol=1e-9)
    apart = np.zeros((500, 2))
    apart[:250, 0], apart[250:, 1] = 1, 1
    expected = (0.85 - np.hypot(0.1, 0.06) / 2, 0.85 + np.hypot(0.05, 0.08) / 2)
    np.testing.assert_allclose(mean_interval(values, low, high, apart, _single(500)), expected, atol=1e-9)


def test_transformed_and_basic_limits_by_hand() -> None:
    low, high = transformed_interval(0.9, 0.0009, "logit", np.inf)
    half = 1.959963984540054 * 0.03 / 0.09
    assert low == pytest.approx(1 / (1 + np.exp(-(np.log(9) - half))))
    assert high == pytest.approx(1 / (1 + np.exp(-(np.log(9) + half))))
    assert np.isnan(transformed_interval(1.0, 0.01, "logit", 10)).all()
    assert np.isnan(transformed_interval(0.5, 0.0, "log", 10)).all()
    # resamples lie higher than the value, as those of a calibration error do: the interval lies lower, up to the value
    assert basic_interval(0.05, np.linspace(0.05, 0.10, 1001)) == pytest.approx((0.00125, 0.05))


@pytest.mark.slow
@pytest.mark.parametrize("images", [1, 3])
def test_intervals_cover(images: int) -> None:
    """A quick form of benchmarks/coverage_of_intervals.py: 200 samples of 240 images, accuracy about 0.9.

    Of 200 draws, 0.90 lies 3.3 standard errors below 0.95: a method that covers fails once in a thousand seeds.
    """
    import sys

    from tests.helpers.verbs import ROOT

    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import coverage_of_intervals as simulation
    finally:
        sys.path.pop(0)
    true = simulation.truth(2.2, 200_000)
    rows = simulation.coverage((2.2, 240, images), 200, False, true)
    coverage = {row["metric"]: row["ours"] for row in rows}
    for name in ("accuracy", "macro_f1", "auroc", "balanced_accuracy", "mcc", "macro_auroc"):
        assert coverage[name] >= 0.90, (name, coverage[name])
