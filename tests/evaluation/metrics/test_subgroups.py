"""Tables of subgroups and patients."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from evaluation.metrics.subgroups import missed, per_patient, subgroups
from evaluation.predictions import Predictions
from tests.helpers.prediction_tables import random_predictions


def test_subgroups_by_hand() -> None:
    predictions = random_predictions(90, seed=2)
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
    predictions = random_predictions(300, seed=5)
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
    assert per_patient(random_predictions(10)) is None
