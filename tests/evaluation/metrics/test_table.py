"""Metrics against a hand-worked table and scikit-learn, as files and as text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from evaluation.metrics.confusion import confusion_matrix
from evaluation.metrics.formats import format_metrics, per_class_rows, write_metrics
from evaluation.metrics.table import OVERALL, PER_CLASS, compute_metrics
from evaluation.phrases import with_limits
from evaluation.predictions import Predictions, prediction_table
from inference.predict import softmax
from tests.helpers.prediction_tables import with_confusion

CLASSES = ["COVID", "Lung_Opacity", "Normal", "Viral Pneumonia"]


# 60 images per class, as in the seed project's test set; rows are the true class.
HAND = np.array([[57, 2, 1, 0], [1, 52, 6, 1], [0, 3, 57, 0], [0, 0, 2, 58]])


def test_hand_worked_table() -> None:
    """COVID: TP 57, FN 3, FP 1, TN 179. The seed project swapped precision and recall."""
    rows = compute_metrics(with_confusion(HAND, CLASSES, np.random.default_rng(0)))["per_class"].values()
    values = {name: [row[name]["value"] for row in rows] for name in PER_CLASS}
    np.testing.assert_allclose(values["recall"], [57 / 60, 52 / 60, 57 / 60, 58 / 60])
    np.testing.assert_allclose(values["precision"], [57 / 58, 52 / 57, 57 / 66, 58 / 59])
    np.testing.assert_allclose(values["specificity"], [179 / 180, 175 / 180, 171 / 180, 179 / 180])
    np.testing.assert_allclose(values["accuracy"], [236 / 240, 227 / 240, 228 / 240, 237 / 240])
    np.testing.assert_allclose(values["f1"], [114 / 118, 104 / 117, 114 / 126, 116 / 119])


def test_hand_worked_headline() -> None:
    metrics = compute_metrics(with_confusion(HAND, CLASSES, np.random.default_rng(0)))
    assert metrics["confusion"] == HAND.tolist()
    assert metrics["n"] == 240
    assert metrics["accuracy"]["value"] == pytest.approx(224 / 240)
    assert metrics["balanced_accuracy"]["value"] == pytest.approx((57 + 52 + 57 + 58) / 240)
    assert metrics["macro_f1"]["value"] == pytest.approx((114 / 118 + 104 / 117 + 114 / 126 + 116 / 119) / 4)
    assert metrics["per_class"]["COVID"]["support"] == 60


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 6), st.integers(5, 200), st.integers(0, 10**6))
def test_metrics_against_scikit_learn(classes: int, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = [f"class {i}" for i in range(classes)]
    labels = rng.integers(0, classes, n)
    logits = rng.normal(size=(n, classes)) + 2 * np.eye(classes)[labels]
    records = pd.DataFrame(
        {"path": np.arange(n).astype(str), "sha256": "0", "group": "", "source": "", "label": np.array(names)[labels]}
    )
    predictions = Predictions(prediction_table(records, softmax(logits, records), names), names)
    metrics = compute_metrics(predictions, resamples=50)
    probabilities = predictions.probabilities
    for row in [metrics[m] for m in OVERALL] + [row[m] for row in metrics["per_class"].values() for m in PER_CLASS]:
        if row["low"] is not None and row["value"] is not None:
            assert row["low"] <= row["value"] + 1e-12
            assert row["value"] <= row["high"] + 1e-12
    predicted = probabilities.argmax(1)
    present = np.unique(labels)
    assert metrics["accuracy"]["value"] == pytest.approx(sk.accuracy_score(labels, predicted), abs=1e-12)
    assert metrics["balanced_accuracy"]["value"] == pytest.approx(
        sk.recall_score(labels, predicted, labels=present, average="macro"), abs=1e-12
    )
    assert metrics["macro_f1"]["value"] == pytest.approx(
        sk.f1_score(labels, predicted, labels=present, average="macro"), abs=1e-12
    )
    if len(present) > 1 and len(np.unique(predicted)) > 1:
        assert metrics["mcc"]["value"] == pytest.approx(sk.matthews_corrcoef(labels, predicted), abs=1e-9)
    else:  # 0/0
        assert metrics["mcc"]["value"] is None
    assert metrics["log_loss"]["value"] == pytest.approx(
        sk.log_loss(labels, probabilities, labels=range(classes)), abs=1e-9
    )
    assert metrics["brier"]["value"] == pytest.approx(
        ((probabilities - np.eye(classes)[labels]) ** 2).sum(1).mean(), abs=1e-9
    )
    np.testing.assert_array_equal(metrics["confusion"], sk.confusion_matrix(labels, predicted, labels=range(classes)))
    for i, name in enumerate(names):
        row, truth = metrics["per_class"][name], labels == i
        assert row["support"] == truth.sum()
        if truth.any() and not truth.all():
            assert row["auroc"]["value"] == pytest.approx(sk.roc_auc_score(truth, probabilities[:, i]), abs=1e-9)
            assert row["average_precision"]["value"] == pytest.approx(
                sk.average_precision_score(truth, probabilities[:, i]), abs=1e-9
            )
        else:
            assert row["auroc"]["value"] is row["average_precision"]["value"] is None
        if (predicted == i).any():
            assert row["precision"]["value"] == pytest.approx(sk.precision_score(truth, predicted == i), abs=1e-9)
        else:
            assert row["precision"]["value"] is None


def test_confusion_is_true_by_predicted() -> None:
    np.testing.assert_array_equal(confusion_matrix(np.array([0, 0, 1]), np.array([1, 1, 0]), 2), [[0, 2], [1, 0]])


def test_written_metrics_and_text(tmp_path: Path) -> None:
    import json

    metrics = compute_metrics(with_confusion(HAND, CLASSES, np.random.default_rng(0)))
    write_metrics(metrics, tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    table = pd.read_csv(tmp_path / "metrics.csv", index_col="class")
    assert table.loc["COVID", "recall"] == 57 / 60
    assert table.loc["COVID", "recall_low"] < 57 / 60 < table.loc["COVID", "recall_high"]
    assert table["support"].tolist() == [60] * 4
    assert [len(row) for row in per_class_rows(metrics)] == [23] * 4
    text = format_metrics(metrics)
    assert "224 of 240" in text
    assert "0.95 [0.86, 0.98]" in text  # 57 of 60, as the README quotes it
    assert "too small to rank" not in text
    few = compute_metrics(with_confusion(HAND // 3, CLASSES, np.random.default_rng(0)))
    assert "COVID*" in format_metrics(few)
    assert with_limits({"value": None, "low": None, "high": None}) == "-"


def test_a_flawless_model_is_not_certain() -> None:
    """60 of 60 right: no interval collapses to a point, and one patient alone gives none."""
    perfect = np.diag([20, 25, 15])
    predictions = with_confusion(perfect, ["a", "b", "c"], np.random.default_rng(0))
    metrics = compute_metrics(predictions)
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "mcc"):
        assert metrics[name]["value"] == metrics[name]["high"] == 1
        assert 0.8 < metrics[name]["low"] < 1
    one = Predictions(predictions.table.assign(group="one"), predictions.classes)  # what one patient shows of others
    assert compute_metrics(one)["mcc"]["low"] is None
    assert compute_metrics(one)["accuracy"]["low"] < 0.25


def test_rounded_tables_have_the_log_loss_of_scikit_learn() -> None:
    """Zeros and ones in a table of few digits: kept 2.2e-16 away from the ends, on both sides."""
    frame = pd.DataFrame({"path": list("abcd"), "label": ["x", "x", "y", "y"], "p_x": [1, 0.7, 0.2, 1.0]})
    metrics = compute_metrics(Predictions(frame.assign(p_y=1 - frame["p_x"]), ["x", "y"]))
    probabilities = np.stack([frame["p_x"], 1 - frame["p_x"]], 1)
    assert metrics["log_loss"]["value"] == pytest.approx(sk.log_loss([0, 0, 1, 1], probabilities), abs=1e-9)
    assert metrics["brier"]["high"] <= 2


def test_one_class_alone_has_no_ranking_and_no_correlation() -> None:
    predictions = with_confusion(HAND, CLASSES, np.random.default_rng(0))
    metrics = compute_metrics(predictions.subset(predictions.labels == 0))
    assert metrics["mcc"]["value"] is None
    assert metrics["macro_average_precision"]["value"] is metrics["macro_auroc"]["value"] is None
    assert metrics["accuracy"]["value"] == 57 / 60
