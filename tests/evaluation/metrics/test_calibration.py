"""Calibration errors by hand and on models of known calibration; temperature scaling; reliability bins."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from command_line import start_logging
from evaluation.metrics import calibration as c
from evaluation.metrics import temperature as t


def _model(n: int, temperature: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities and labels of a model that dividing its logits by `temperature` calibrates perfectly."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(n, 4))
    true = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (rng.random(n)[:, None] > np.cumsum(true, 1)).sum(1)
    shown = np.exp(temperature * logits)
    return shown / shown.sum(1, keepdims=True), labels


def test_ece_by_hand() -> None:
    """Two bins of ten: 0.95 sure and 0.8 right (gap 0.15), 0.55 sure and 0.6 right (gap 0.05)."""
    confidence = np.repeat([0.95, 0.55], 10)
    correct = np.array([1] * 8 + [0] * 2 + [1] * 6 + [0] * 4, bool)
    error = c.expected_calibration_error(confidence, correct, c.equal_width(confidence, 10))
    assert error == pytest.approx(0.5 * 0.15 + 0.5 * 0.05)
    assert c.expected_calibration_error(confidence, correct, c.equal_mass(confidence, 2)) == pytest.approx(error)
    assert c.expected_calibration_error(confidence, correct, c.equal_mass(confidence, 1)) == pytest.approx(0.05)
    assert c.expected_calibration_error(np.ones(5), np.ones(5, bool), c.equal_width(np.ones(5))) == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=300), st.integers(1, 20))
def test_bins(values: list[float], bins: int) -> None:
    """Equal masses differ by one where there are no ties, equal values share a bin, and bins rise with confidence."""
    confidence = np.array(values)
    for index in (c.equal_width(confidence, bins), c.equal_mass(confidence, bins)):
        assert ((index >= 0) & (index < bins)).all()
        assert (np.diff(index[np.argsort(confidence, kind="stable")]) >= 0).all()
    if len(set(values)) == len(values):
        counts = np.bincount(c.equal_mass(confidence, bins), minlength=bins)
        assert counts.max() - counts.min() <= 1


def test_the_error_of_a_perfect_model_is_predicted_and_not_zero() -> None:
    """ECE of perfectly calibrated models of 300 images: the mean and the 95th percentile predicted from one of them."""
    errors = []
    for seed in range(300):
        probabilities, labels = _model(300, 1, seed)
        confidence = probabilities.max(1)
        errors.append(
            c.expected_calibration_error(confidence, probabilities.argmax(1) == labels, c.equal_width(confidence))
        )
    confidence = _model(300, 1)[0].max(1)
    mean, p95 = c.perfect_error(confidence, c.equal_width(confidence))
    assert mean > 0.03
    assert mean == pytest.approx(np.mean(errors), rel=0.1)
    assert p95 == pytest.approx(np.quantile(errors, 0.95), rel=0.15)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_is_recovered(temperature: float) -> None:
    probabilities, labels = _model(20_000, temperature)
    fitted = t.fit_temperature(probabilities, labels)
    assert fitted == pytest.approx(temperature, rel=0.04)
    before, after = (c.log_losses(p, labels).mean() for p in (probabilities, t.scale(probabilities, fitted)))
    assert after <= before + 1e-12
    for other in (fitted * 0.99, fitted * 1.01):
        assert c.log_losses(t.scale(probabilities, other), labels).mean() >= after - 1e-12


@settings(max_examples=30)
@given(st.floats(0.1, 10), st.integers(0, 1000))
def test_scaling_divides_the_logits_and_keeps_the_argmax(temperature: float, seed: int) -> None:
    logits = np.random.default_rng(seed).normal(size=(20, 5))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = np.exp(logits / temperature) / np.exp(logits / temperature).sum(1, keepdims=True)
    scaled = t.scale(probabilities, temperature)
    np.testing.assert_allclose(scaled, expected, atol=1e-12)
    np.testing.assert_array_equal(scaled.argmax(1), probabilities.argmax(1))
    np.testing.assert_allclose(t.scale(scaled, 1 / temperature), probabilities, atol=1e-9)


def test_certain_probabilities_stay_finite() -> None:
    certain = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert np.isfinite(c.log_losses(certain, np.array([1, 1]))).all()
    assert np.isfinite(t.scale(certain, 3.0)).all()
    assert 0.05 <= t.fit_temperature(certain, np.array([0, 1])) <= 20


def test_few_digits_change_the_temperature_little() -> None:
    """Probabilities rounded to 3 digits, some true ones to 0: the temperature stays near that of the full table."""
    probabilities, labels = _model(3000, 2.0)
    rounded = np.round(probabilities, 3)
    assert (rounded[np.arange(3000), labels] == 0).any()
    assert t.fit_temperature(rounded, labels) == pytest.approx(t.fit_temperature(probabilities, labels), rel=0.15)


def test_certain_predictions_stay_nearly_certain() -> None:
    """A one-hot table at a temperature of nearly 1 is nearly one-hot."""
    assert t.scale(np.eye(4), 1.001).max(1).min() > 0.99


def test_no_temperature_if_validation_cannot_decide_it(capsys: pytest.CaptureFixture) -> None:
    import pandas as pd

    from evaluation.predictions import Predictions

    def table(p: list[float], labels: list[str]) -> Predictions:
        frame = pd.DataFrame({"path": np.arange(len(p)).astype(str), "label": labels, "p_a": p, "p_b": 1 - np.array(p)})
        return Predictions(frame, ["a", "b"])

    start_logging()
    # all right: the sharper the better
    assert t.temperature_from_validation(table([0.9, 0.8, 0.3], ["a", "a", "b"])) is None
    assert "no temperature from 3 validation images: none is misclassified" in capsys.readouterr().out
    # worse than chance: the flatter the better
    assert t.temperature_from_validation(table([0.9, 0.8, 0.6, 0.7], ["b", "b", "b", "a"])) is None
    assert "no temperature from 4 validation images: the fit ends at the limit, 20" in capsys.readouterr().out
    assert t.temperature_from_validation(table([0.9, 0.8, 0.7, 0.3], ["a", "a", "b", "b"])).value > 0


def test_a_calibrated_model_with_several_images_per_patient_rarely_fails_the_test() -> None:
    """80 patients with three equal images each: about one of twenty samples exceeds the 95th percentile."""
    from intervals import Patients

    exceeded = []
    patients = Patients(np.repeat(np.arange(80), 3))
    for seed in range(200):
        probabilities, labels = (np.repeat(part, 3, axis=0) for part in _model(80, 1, seed))
        confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
        index = c.equal_width(confidence)
        effect = patients.design_effect(correct - confidence)
        assert effect == pytest.approx(3, rel=0.05)
        exceeded.append(
            c.expected_calibration_error(confidence, correct, index)
            > c.perfect_error(confidence, index, effect, 300)[1]
        )
    assert np.mean(exceeded) < 0.12


def test_reliability_bins_by_hand() -> None:
    confidence, correct = np.array([0.52, 0.58, 0.95]), np.array([1, 0, 1])
    bins = c.reliability(confidence, correct, c.equal_width(confidence, 10), 10)
    assert bins.count.tolist() == [0, 0, 0, 0, 0, 2, 0, 0, 0, 1]
    assert bins.confidence[5] == pytest.approx(0.55)
    assert bins.accuracy[5] == 0.5
    assert np.isnan(bins.accuracy[0])
    assert bins.low[5] < 0.5 < bins.high[5]


def test_scores_by_hand() -> None:
    probabilities, labels = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]), np.array([0, 1])
    np.testing.assert_allclose(c.brier_scores(probabilities, labels), [0.09 + 0.04 + 0.01, 0.01 + 0.81 + 0.64])
    np.testing.assert_allclose(c.log_losses(probabilities, labels), -np.log([0.7, 0.1]))
