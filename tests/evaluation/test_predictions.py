"""Predictions written and read back, and tables that are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from evaluation.metrics.table import compute_metrics
from evaluation.predictions import read_predictions, write_predictions
from tests.helpers.prediction_tables import with_confusion
from utils import UserError


def test_predictions_are_read_back_exactly(tmp_path: Path) -> None:
    table = with_confusion(np.array([[57, 2], [1, 52]]), ["NA", "007"], np.random.default_rng(1)).table
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
