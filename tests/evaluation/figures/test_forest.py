"""The forest plot."""

from __future__ import annotations

import itertools

import pytest

from evaluation import compare
from evaluation.comparison.inputs import align
from evaluation.figures.forest import forest_figure
from tests.helpers.prediction_tables import predictions, table


@pytest.mark.parametrize("count", [2, 4, 10])
def test_nothing_in_the_forest_plot_overlaps(count: int) -> None:
    long = [f"timm-tf_efficientnet_lite{i}-20261123-12453{i}" + "-and_more_$x_1$" * (i % 3) for i in range(count)]
    runs = align({name: predictions(table(60, i, 1 + i / 5)) for i, name in enumerate(long)})
    figure = forest_figure(compare(runs, long[0] if count > 4 else None, resamples=50))
    figure.draw_without_rendering()
    for ax in figure.axes:
        labels = [label for label in ax.get_yticklabels() if label.get_visible() and label.get_text()]
        boxes = [
            text.get_window_extent() for text in (*(labels if ax.get_subplotspec().is_first_col() else []), *ax.texts)
        ]
        boxes += [ax.get_window_extent()]
        assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]
        assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)
