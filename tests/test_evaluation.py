"""Metrics against a hand-worked table and scikit-learn; predictions written and read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from evaluation.metrics import (
    compute_metrics,
    confusion_matrix,
    expected_calibration_error,
    format_metrics,
    one_vs_rest,
    per_class_table,
    write_metrics,
)
from evaluation.predictions import prediction_table, read_predictions, write_predictions
from utils import UserError

CLASSES = ["COVID", "Lung_Opacity", "Normal", "Viral Pneumonia"]
# 60 images per class, as in the seed project's test set; rows are the true class.
HAND = np.array([[57, 2, 1, 0], [1, 52, 6, 1], [0, 3, 57, 0], [0, 0, 2, 58]])


def _table(confusion: np.ndarray, classes: list[str], rng: np.random.Generator) -> pd.DataFrame:
    """Predictions with this confusion matrix."""
    pairs = [(t, p) for t, p in np.ndindex(confusion.shape) for _ in range(confusion[t, p])]
    logits = rng.normal(size=(len(pairs), len(classes)))
    for row, (_, predicted) in zip(logits, pairs, strict=True):
        row[predicted] = row.max() + 0.5
    records = pd.DataFrame(
        {
            "path": [f"/x/{i}.png" for i in range(len(pairs))],
            "sha256": "0",
            "group": "g",
            "source": "",
            "label": [classes[t] for t, _ in pairs],
        }
    )
    return prediction_table(records, logits, classes)


def test_hand_worked_table() -> None:
    """COVID: TP 57, FN 3, FP 1, TN 179. The seed project printed precision and recall the other way round."""
    found = one_vs_rest(HAND)
    np.testing.assert_allclose(found["recall"], [57 / 60, 52 / 60, 57 / 60, 58 / 60])
    np.testing.assert_allclose(found["precision"], [57 / 58, 52 / 57, 57 / 66, 58 / 59])
    np.testing.assert_allclose(found["specificity"], [179 / 180, 175 / 180, 171 / 180, 179 / 180])
    np.testing.assert_allclose(found["accuracy"], [236 / 240, 227 / 240, 228 / 240, 237 / 240])
    np.testing.assert_allclose(found["f1"], [114 / 118, 104 / 117, 114 / 126, 116 / 119])


def test_hand_worked_headline() -> None:
    found = compute_metrics(_table(HAND, CLASSES, np.random.default_rng(0)), CLASSES)
    assert found["confusion"] == HAND.tolist()
    assert found["n"] == 240
    assert found["accuracy"]["value"] == pytest.approx(224 / 240)
    assert found["balanced_accuracy"]["value"] == pytest.approx((57 + 52 + 57 + 58) / 240)
    assert found["macro_f1"]["value"] == pytest.approx((114 / 118 + 104 / 117 + 114 / 126 + 116 / 119) / 4)
    assert found["per_class"]["COVID"]["support"] == 60


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 6), st.integers(5, 200), st.integers(0, 10**6))
def test_equal_to_scikit_learn(classes: int, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = [f"class {i}" for i in range(classes)]
    labels = rng.integers(0, classes, n)
    logits = rng.normal(size=(n, classes)) + 2 * np.eye(classes)[labels]
    records = pd.DataFrame(
        {"path": np.arange(n).astype(str), "sha256": "0", "group": "", "source": "", "label": np.array(names)[labels]}
    )
    table = prediction_table(records, logits, names)
    found = compute_metrics(table, names)
    probabilities = table[[f"p_{c}" for c in names]].to_numpy()
    predicted = probabilities.argmax(1)
    present = np.unique(labels)
    assert found["accuracy"]["value"] == pytest.approx(sk.accuracy_score(labels, predicted), abs=1e-12)
    assert found["balanced_accuracy"]["value"] == pytest.approx(
        sk.recall_score(labels, predicted, labels=present, average="macro"), abs=1e-12
    )
    assert found["macro_f1"]["value"] == pytest.approx(
        sk.f1_score(labels, predicted, labels=present, average="macro"), abs=1e-12
    )
    assert found["mcc"]["value"] == pytest.approx(sk.matthews_corrcoef(labels, predicted), abs=1e-9)
    assert found["log_loss"]["value"] == pytest.approx(
        sk.log_loss(labels, probabilities, labels=range(classes)), abs=1e-9
    )
    assert found["brier"]["value"] == pytest.approx(((probabilities - np.eye(classes)[labels]) ** 2).sum(1).mean())
    np.testing.assert_array_equal(found["confusion"], sk.confusion_matrix(labels, predicted, labels=range(classes)))
    for i, name in enumerate(names):
        row, truth = found["per_class"][name], labels == i
        assert row["support"] == truth.sum()
        if truth.any() and not truth.all():
            assert row["auroc"]["value"] == pytest.approx(sk.roc_auc_score(truth, probabilities[:, i]))
            assert row["average_precision"]["value"] == pytest.approx(
                sk.average_precision_score(truth, probabilities[:, i])
            )
        else:
            assert row["auroc"]["value"] is None
        if (predicted == i).any():
            assert row["precision"]["value"] == pytest.approx(sk.precision_score(truth, predicted == i))
        else:
            assert row["precision"]["value"] is None


def test_ece_by_hand() -> None:
    """Two bins of ten: 0.95 sure and 0.8 right (gap 0.15), 0.55 sure and 0.6 right (gap 0.05)."""
    confidence = np.repeat([0.95, 0.55], 10)
    correct = np.array([1] * 8 + [0] * 2 + [1] * 6 + [0] * 4, bool)
    assert expected_calibration_error(confidence, correct, 10) == pytest.approx(0.5 * 0.15 + 0.5 * 0.05)
    assert expected_calibration_error(np.ones(5), np.ones(5, bool)) == 0


def test_confusion_is_true_by_predicted() -> None:
    np.testing.assert_array_equal(confusion_matrix(np.array([0, 0, 1]), np.array([1, 1, 0]), 2), [[0, 2], [1, 0]])


def test_predictions_come_back_exactly(tmp_path: Path) -> None:
    table = _table(HAND[:2, :2], ["NA", "007"], np.random.default_rng(1))
    table["group"] = ["00012"] * len(table)
    write_predictions(table, tmp_path / "predictions.csv")
    back = read_predictions(tmp_path / "predictions.csv")
    pd.testing.assert_frame_equal(back, table, check_dtype=False)
    assert back.columns.tolist() == [
        "path",
        "sha256",
        "label",
        "predicted",
        "confidence",
        "p_NA",
        "p_007",
        "group",
        "source",
    ]
    np.testing.assert_array_equal(back["p_NA"], table["p_NA"])


def test_diverged_scores_are_refused() -> None:
    records = pd.DataFrame({"path": ["a", "b"], "sha256": "0", "group": "", "source": "", "label": ["x", "y"]})
    with pytest.raises(UserError, match="not finite"):
        prediction_table(records, np.array([[0.0, 1.0], [np.nan, 0.0]]), ["x", "y"])


def test_written_metrics_and_text(tmp_path: Path) -> None:
    import json

    found = compute_metrics(_table(HAND, CLASSES, np.random.default_rng(0)), CLASSES)
    write_metrics(found, tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text()) == found
    table = pd.read_csv(tmp_path / "metrics.csv", index_col="class")
    assert table.loc["COVID", "recall"] == 57 / 60
    assert table["support"].tolist() == [60] * 4
    assert per_class_table(found).shape == (4, 8)
    text = format_metrics(found)
    assert "224 of 240" in text
    assert "0.9500" in text


def test_the_last_batch_is_never_dropped(tiny_run: Path) -> None:
    import torch

    from config import load_run_config
    from dataset.data import load_dataset
    from evaluation.predictions import predict_logits
    from training.checkpoints import load_checkpoint

    checkpoint = load_checkpoint(tiny_run / "best.pt")
    data = load_run_config(tiny_run / "config.yaml").data
    part = load_dataset(data, 64, run_split=tiny_run / "split.csv").part("test")
    a, device = checkpoint.architecture, torch.device("cpu")
    logits = [
        predict_logits(checkpoint.model(), part, device, precision="fp32", batch=b, mean=a.mean, std=a.std)
        for b in (len(part), 7, 1)
    ]
    assert logits[0].shape == (len(part), 4)
    np.testing.assert_allclose(logits[1], logits[0], atol=2e-4)
    np.testing.assert_allclose(logits[2], logits[0], atol=2e-4)
