"""Operating points by hand, and the coverage of predictive values."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from evaluation.metrics.operating_points import operating_points, square_and_add
from evaluation.predictions import Predictions


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
