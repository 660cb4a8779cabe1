"""Metrics against a hand-worked table and scikit-learn; predictions written and read back."""

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
from evaluation.predictions import Predictions, prediction_table, read_predictions, write_predictions
from inference.predict import softmax
from utils import UserError

CLASSES = ["COVID", "Lung_Opacity", "Normal", "Viral Pneumonia"]
# 60 images per class, as in the seed project's test set; rows are the true class.
HAND = np.array([[57, 2, 1, 0], [1, 52, 6, 1], [0, 3, 57, 0], [0, 0, 2, 58]])


def _predictions(confusion: np.ndarray, classes: list[str], rng: np.random.Generator) -> Predictions:
    """Return predictions with this confusion matrix, each image of a different patient."""
    pairs = [(t, p) for t, p in np.ndindex(confusion.shape) for _ in range(confusion[t, p])]
    logits = rng.normal(size=(len(pairs), len(classes)))
    for row, (_, predicted) in zip(logits, pairs, strict=True):
        row[predicted] = row.max() + 0.5
    records = pd.DataFrame(
        {
            "path": [f"/x/{i}.png" for i in range(len(pairs))],
            "sha256": "0",
            "group": [f"g{i}" for i in range(len(pairs))],
            "source": "",
            "label": [classes[t] for t, _ in pairs],
        }
    )
    return Predictions(prediction_table(records, softmax(logits, records), classes), classes)


def test_hand_worked_table() -> None:
    """COVID: TP 57, FN 3, FP 1, TN 179. The seed project swapped precision and recall."""
    rows = compute_metrics(_predictions(HAND, CLASSES, np.random.default_rng(0)))["per_class"].values()
    values = {name: [row[name]["value"] for row in rows] for name in PER_CLASS}
    np.testing.assert_allclose(values["recall"], [57 / 60, 52 / 60, 57 / 60, 58 / 60])
    np.testing.assert_allclose(values["precision"], [57 / 58, 52 / 57, 57 / 66, 58 / 59])
    np.testing.assert_allclose(values["specificity"], [179 / 180, 175 / 180, 171 / 180, 179 / 180])
    np.testing.assert_allclose(values["accuracy"], [236 / 240, 227 / 240, 228 / 240, 237 / 240])
    np.testing.assert_allclose(values["f1"], [114 / 118, 104 / 117, 114 / 126, 116 / 119])


def test_hand_worked_headline() -> None:
    metrics = compute_metrics(_predictions(HAND, CLASSES, np.random.default_rng(0)))
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


def test_predictions_are_read_back_exactly(tmp_path: Path) -> None:
    table = _predictions(HAND[:2, :2], ["NA", "007"], np.random.default_rng(1)).table
    table["group"] = ["00012"] * len(table)
    write_predictions(table, tmp_path / "predictions.csv")
    back = read_predictions(tmp_path / "predictions.csv")
    assert back.classes == ["NA", "007"]
    pd.testing.assert_frame_equal(back.table, table, check_dtype=False)
    columns = ["path", "sha256", "label", "predicted", "confidence", "p_NA", "p_007", "group", "source"]
    assert back.table.columns.tolist() == columns
    np.testing.assert_array_equal(back.table["p_NA"], table["p_NA"])


def test_a_table_of_another_program_needs_few_columns(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("path,label,p_b,p_a\n1.png,a,0.2,0.8\n2.png,b,0.9,0.1\n")
    predictions = read_predictions(tmp_path / "table.csv")
    assert predictions.classes == ["b", "a"]
    assert predictions.table["predicted"].tolist() == ["a", "b"]
    assert predictions.table["confidence"].tolist() == [0.8, 0.9]
    assert predictions.patients.count == 2
    assert compute_metrics(predictions)["accuracy"]["value"] == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,label,p_a,p_b\n", ["no rows"]),
        ("", ["cannot be read"]),
        ("path,p_a,p_b\n1,0.5,0.5\n", ["no column 'label'"]),
        ("label,p_a,p_b\na,0.5,0.5\n", ["no column 'path'"]),
        ("path,label,p_a\n1,a,1\n", ["two or more classes"]),
        ("path,label,p_a,p_b\n1,a,0.5,0.5\n2,b,0.5,0.7\n", ["line 3", "sum to 1.2"]),
        ("path,label,p_a,p_b\n1,a,0.5,0.5\n2,b,nan,0.7\n", ["line 3", "p_a", "NaN"]),
        ("path,label,p_a,p_b\n1,a,0.5,0.5\n2,b,,0.7\n", ["line 3", "p_a", "empty"]),
        ("path,label,p_a,p_b\n1,a,0.5,half\n", ["not a number"]),
        ("path,label,p_a,p_b\n1,a,1.5,-0.5\n", ["line 2", "p_a", "not in [0, 1]"]),
        ("path,label,p_a,p_b\n1,a,0.5,0.5\n2,c,0.5,0.5\n", ["line 3", "label 'c'", "a, b"]),
        ("path,label,predicted,p_a,p_b\n1,a,c,0.5,0.5\n", ["line 2", "predicted 'c'"]),
        ("path,label,predicted,p_a,p_b\n1,a,a,0.6,0.4\n2,a,a,0.4,0.6\n", ["line 3", "predicted 'a'", "highest"]),
        ("path,label,p_a,p_b\n1,a,0.5,0.5\n1,b,0.5,0.5\n", ["line 3", "path '1'", "twice"]),
    ],
)
def test_bad_tables_are_refused(tmp_path: Path, text: str, words: list[str]) -> None:
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(UserError) as error:
        read_predictions(tmp_path / "bad.csv")
    assert "bad.csv" in str(error.value)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), error.value


def test_diverged_scores_are_refused() -> None:
    with pytest.raises(UserError, match="not finite"):
        softmax(np.array([[0.0, 1.0], [np.nan, 0.0]]), pd.DataFrame({"path": ["a", "b"]}))


def test_written_metrics_and_text(tmp_path: Path) -> None:
    import json

    metrics = compute_metrics(_predictions(HAND, CLASSES, np.random.default_rng(0)))
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
    few = compute_metrics(_predictions(HAND // 3, CLASSES, np.random.default_rng(0)))
    assert "COVID*" in format_metrics(few)
    assert with_limits({"value": None, "low": None, "high": None}) == "-"


def test_a_flawless_model_is_not_certain() -> None:
    """60 of 60 right: no interval collapses to a point, and one patient alone gives none."""
    perfect = np.diag([20, 25, 15])
    predictions = _predictions(perfect, ["a", "b", "c"], np.random.default_rng(0))
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
    predictions = _predictions(HAND, CLASSES, np.random.default_rng(0))
    metrics = compute_metrics(predictions.subset(predictions.labels == 0))
    assert metrics["mcc"]["value"] is None
    assert metrics["macro_average_precision"]["value"] is metrics["macro_auroc"]["value"] is None
    assert metrics["accuracy"]["value"] == 57 / 60


def test_the_last_batch_is_never_dropped(tiny_run: Path) -> None:
    import torch

    from config import load_run_config
    from dataset.loading import load_dataset
    from experiment.checkpoint import load_checkpoint
    from inference.predict import Runtime, predict_logits

    checkpoint = load_checkpoint(tiny_run / "best.pt")
    data = load_run_config(tiny_run / "config.yaml").data
    part = load_dataset(data, 64, run_split=tiny_run / "split.csv").images("test")
    runtimes = [Runtime(torch.device("cpu"), "fp32", batch) for batch in (len(part), 7, 1)]
    logits = [predict_logits(checkpoint.model(), part, checkpoint.architecture, runtime) for runtime in runtimes]
    assert logits[0].shape == (len(part), 4)
    np.testing.assert_allclose(logits[1], logits[0], atol=2e-4)
    np.testing.assert_allclose(logits[2], logits[0], atol=2e-4)
