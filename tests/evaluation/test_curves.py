"""Curves against scikit-learn, operating points by hand, tables of subgroups and patients."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from evaluation.figures.plots import precision_recall_figure, roc_figure
from evaluation.metrics.curves import GRID, MOST_THRESHOLDS, class_curves
from evaluation.metrics.operating_points import operating_points, square_and_add
from evaluation.metrics.subgroups import missed, per_patient, subgroups
from evaluation.metrics.table import compute_metrics
from evaluation.predictions import Predictions


def _random(n: int, seed: int = 0, images: int = 1, shift: float = 1.5) -> Predictions:
    rng = np.random.default_rng(seed)
    names = ["COVID", "Normal", "Other"]
    labels = rng.integers(0, 3, n)
    logits = rng.normal(size=(n, 3)) + shift * np.eye(3)[labels]
    powered = np.exp(logits)
    table = pd.DataFrame(powered / powered.sum(1, keepdims=True), columns=[f"p_{name}" for name in names])
    table["path"], table["label"] = np.arange(n).astype(str), np.array(names)[labels]
    table["group"] = (np.arange(n) // images).astype(str)
    return Predictions(table, names)


@pytest.mark.parametrize("n", [40, 3000])
def test_curves_against_scikit_learn(n: int) -> None:
    predictions = _random(n)
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
    large = _random(200_000, seed=99)
    fpr, tpr, _ = sk.roc_curve(large.labels == 0, large.probabilities[:, 0])
    places = (20, 60)
    true = np.interp(GRID[list(places)], fpr, tpr)
    inside = []
    for seed in range(150):
        predictions = _random(120, seed, images)
        curve = class_curves(predictions, compute_metrics(predictions, resamples=0))["roc"][0]
        inside.append([curve.low[p] <= t <= curve.high[p] for p, t in zip(places, true, strict=True)])
    assert (np.mean(inside, axis=0) >= 0.93).all()


def test_a_band_does_not_close_on_a_flawless_model() -> None:
    predictions = _random(60, shift=40)
    curves = class_curves(predictions, compute_metrics(predictions, resamples=0))
    assert curves["roc"][0].area["value"] == 1
    assert curves["roc"][0].low[40] < 0.95
    assert (curves["roc"][0].high >= curves["roc"][0].low).all()


def test_one_class_has_no_curve() -> None:
    predictions = _random(50).subset(_random(50).labels == 0)
    curves = class_curves(predictions, compute_metrics(predictions))
    assert curves == {"roc": [], "precision_recall": []}
    assert roc_figure(curves["roc"]).axes
    assert precision_recall_figure(curves["precision_recall"]).axes


def test_operating_points_by_hand() -> None:
    """Validation: COVID scores 0.9, 0.8, 0.6, 0.3, so 0.75 needs three of four: threshold 0.6.

    Test: 0.7, 0.6 and 0.5 are COVID, 0.65 and 0.1 are not: 2 of 3 detected, 1 of 2 spared. At a prevalence of 0.1 PPV
    is 0.1·2/3 / (0.1·2/3 + 0.9·1/2) and NPV 0.9·1/2 / (0.9·1/2 + 0.1·1/3).
    """

    def table(scores: list[float], covid: int) -> Predictions:
        frame = pd.DataFrame({"p_COVID": scores, "p_Normal": 1 - np.array(scores)})
        frame["path"] = np.arange(len(scores)).astype(str)
        frame["label"] = ["COVID"] * covid + ["Normal"] * (len(scores) - covid)
        return Predictions(frame, ["COVID", "Normal"])

    validation, test = table([0.9, 0.8, 0.6, 0.3, 0.2], 4), table([0.7, 0.6, 0.5, 0.65, 0.1], 3)
    row = operating_points(validation, test, (0.75,), {"COVID": 0.1})[0]
    assert (row["class"], row["threshold"], row["chosen_on"]) == ("COVID", 0.6, {"n": 5, "positives": 4})
    assert row["sensitivity"]["value"] == pytest.approx(2 / 3)
    assert row["specificity"]["value"] == pytest.approx(1 / 2)
    assert row["ppv"]["value"] == pytest.approx((0.1 * 2 / 3) / (0.1 * 2 / 3 + 0.9 / 2))
    assert row["npv"]["value"] == pytest.approx((0.9 / 2) / (0.9 / 2 + 0.1 / 3))
    assert row["small"]
    for name in ("sensitivity", "specificity", "ppv", "npv"):
        assert row[name]["low"] < row[name]["value"] < row[name]["high"]
    shares = operating_points(validation, test, (0.75,))[0]
    assert shares["prevalence"] == pytest.approx(3 / 5)
    assert shares["ppv"]["value"] == pytest.approx(2 / 3)  # at the sample's own prevalence: what was counted


def test_predictive_values_cover() -> None:
    """Limits of the PPV at a prevalence of 0.05 over 2,000 studies of 100 sick and 200 healthy people."""
    from intervals import Interval, wilson

    rng = np.random.default_rng(0)
    sensitivity, specificity, share = 0.85, 0.9, 0.05

    def ppv(se: float, sp: float) -> float:
        return share * se / (share * se + (1 - share) * (1 - sp))

    inside = []
    for hits, spared in zip(rng.binomial(100, sensitivity, 2000), rng.binomial(200, specificity, 2000), strict=True):
        low, high = np.transpose([wilson(hits, 100), wilson(spared, 200)])
        _, lower, upper = square_and_add(ppv, Interval(np.array([hits / 100, spared / 200]), low, high))
        inside.append(lower <= ppv(sensitivity, specificity) <= upper)
    assert 0.935 <= np.mean(inside) <= 0.975


def test_subgroups_by_hand() -> None:
    predictions = _random(90, seed=2)
    table = predictions.table.assign(
        source=np.repeat(["A", "B", ""], 30), sex=np.tile(["f", "m"], 45), note=predictions.table["path"]
    )
    tables = subgroups(Predictions(table, predictions.classes))
    assert sorted(tables) == ["sex", "source"]  # the notes differ from image to image
    assert [row["value"] for row in tables["source"]] == ["A", "B", "(unknown)"]
    for row, value in zip(tables["sex"], ("f", "m"), strict=True):
        part = table[table["sex"] == value]
        assert row["n"] == 45
        assert row["accuracy"]["value"] == pytest.approx((part["label"] == part["predicted"]).mean())
        sick = part[part["label"] != "Normal"]
        assert row["missed"]["value"] == pytest.approx((sick["predicted"] == "Normal").mean())
    assert (
        missed(Predictions(table.rename(columns={"p_Normal": "p_N"}).replace("Normal", "N"), ["COVID", "N", "Other"]))
        is None
    )


def test_no_source_is_dropped() -> None:
    """Of 25 sources the 20 largest have a row, the others one together; another column of 25 values has none."""
    predictions = _random(300, seed=5)
    source = [f"s{i // 12:02}" for i in range(300)]
    tables = subgroups(Predictions(predictions.table.assign(source=source, ward=source), predictions.classes))
    assert list(tables) == ["source"]
    assert len(tables["source"]) == 21
    assert sum(row["n"] for row in tables["source"]) == 300
    assert tables["source"][-1]["value"] == "(5 others)"


def test_patients_count_once() -> None:
    """Two images 0.9 and 0.4 make 0.65 for the patient; a patient with two labels is left out."""
    frame = pd.DataFrame(
        {
            "path": list("abcdef"),
            "group": ["1", "1", "2", "3", "3", "4"],
            "label": ["x", "x", "y", "x", "y", "y"],
            "p_x": [0.9, 0.4, 0.2, 0.5, 0.5, 0.8],
            "p_y": [0.1, 0.6, 0.8, 0.5, 0.5, 0.2],
        }
    )
    result = per_patient(Predictions(frame, ["x", "y"]))
    assert (result["n"], result["mixed"]) == (3, 1)
    assert result["accuracy"]["value"] == pytest.approx(2 / 3)
    assert per_patient(_random(10)) is None
