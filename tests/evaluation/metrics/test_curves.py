"""Curves and their bands against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from evaluation.figures.plots import precision_recall_figure, roc_figure
from evaluation.metrics.curves import GRID, MOST_THRESHOLDS, class_curves
from evaluation.metrics.table import compute_metrics
from tests.helpers.prediction_tables import random_predictions


@pytest.mark.parametrize("n", [40, 3000])
def test_curves_against_scikit_learn(n: int) -> None:
    predictions = random_predictions(n)
    curves = class_curves(predictions, compute_metrics(predictions, resamples=0))
    for number, name in enumerate(predictions.classes):
        positive, scores = predictions.labels == number, predictions.probabilities[:, number]
        roc = next(c for c in curves["roc"] if c.name == name)
        fpr, tpr, _ = sk.roc_curve(positive, scores, drop_intermediate=False)
        points = set(zip(fpr.round(12), tpr.round(12), strict=True))
        assert set(zip(roc.x.round(12), roc.y.round(12), strict=True)) <= points
        assert len(roc.x) <= MOST_THRESHOLDS + 5
        assert np.trapezoid(roc.y, roc.x) == pytest.approx(roc.area["value"], abs=2e-3)
        line = next(c for c in curves["precision_recall"] if c.name == name)
        precision, recall, _ = sk.precision_recall_curve(positive, scores)
        points = set(zip(recall.round(12), precision.round(12), strict=True))
        assert set(zip(line.x[1:].round(12), line.y[1:].round(12), strict=True)) <= points
        assert line.chance == positive.mean()
    mean = curves["roc"][-1]
    assert mean.name == "mean"
    assert mean.area["value"] == pytest.approx(np.mean([c.area["value"] for c in curves["roc"][:-1]]))


@pytest.mark.slow
@pytest.mark.parametrize("images", [1, 3])
def test_the_roc_band_covers(images: int) -> None:
    """The band at a false alarm rate of 0.1 and 0.3 holds the true curve in at least 95 % of samples, less noise."""
    large = random_predictions(200_000, seed=99)
    fpr, tpr, _ = sk.roc_curve(large.labels == 0, large.probabilities[:, 0])
    places = (20, 60)
    true = np.interp(GRID[list(places)], fpr, tpr)
    inside = []
    for seed in range(150):
        predictions = random_predictions(120, seed, images)
        curve = class_curves(predictions, compute_metrics(predictions, resamples=0))["roc"][0]
        inside.append([curve.low[p] <= t <= curve.high[p] for p, t in zip(places, true, strict=True)])
    assert (np.mean(inside, axis=0) >= 0.93).all()


def test_a_band_does_not_close_on_a_flawless_model() -> None:
    predictions = random_predictions(60, shift=40)
    curves = class_curves(predictions, compute_metrics(predictions, resamples=0))
    assert curves["roc"][0].area["value"] == 1
    assert curves["roc"][0].low[40] < 0.95
    assert (curves["roc"][0].high >= curves["roc"][0].low).all()


def test_one_class_has_no_curve() -> None:
    predictions = random_predictions(50).subset(random_predictions(50).labels == 0)
    curves = class_curves(predictions, compute_metrics(predictions))
    assert curves == {"roc": [], "precision_recall": []}
    assert roc_figure(curves["roc"]).axes
    assert precision_recall_figure(curves["precision_recall"]).axes
