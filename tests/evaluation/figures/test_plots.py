"""Curves of many classes."""

from __future__ import annotations

import itertools

import pytest

from evaluation.figures.plots import precision_recall_figure, roc_figure, shown_curves
from evaluation.metrics.curves import class_curves
from evaluation.metrics.table import compute_metrics
from evaluation.predictions import Predictions
from tests.helpers.report_case import make_table


@pytest.mark.slow
@pytest.mark.parametrize(("size", "panels", "left_out"), [(2, 3, 0), (14, 15, 0), (23, 24, 0), (30, 24, 7)])
def test_every_class_has_its_curve_up_to_a_limit(size: int, panels: int, left_out: int) -> None:
    """The figure says how many it leaves out, and the label names what is drawn."""
    names = [f"finding {i:02d}" for i in range(size)]
    predictions = Predictions(make_table(size * 4, names), names)
    curves = class_curves(predictions, compute_metrics(predictions, resamples=0))["roc"]
    shown, rest = shown_curves(curves)
    figure = roc_figure(curves)
    titles = [ax.get_title().split("\n")[0] for ax in figure.axes if ax.get_title()]
    assert titles == [curve.name for curve in shown] == [*names[: panels - 1], "mean"]
    assert rest == names[panels - 1 :] and len(rest) == left_out
    for drawn in (figure, precision_recall_figure(curves)):
        drawn.draw_without_rendering()
        boxes = [ax.title.get_window_extent() for ax in drawn.axes if ax.get_title()]
        assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    heading = figure.get_suptitle()
    assert heading == (f"not shown (no room): {left_out} of {size} classes" if left_out else "")
