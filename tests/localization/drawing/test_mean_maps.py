"""Mean maps of one model, and of two side by side."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from localization.drawing.panel import MeanMaps, draw_differences, draw_means
from localization.drawing.sheet import GAP, SIDE
from tests.helpers.drawing_case import LONG_CLASS, colour


def _tile(figure: Figure, number: int) -> np.ndarray:
    """Return a pixel of an image, counted in rows, at a quarter of its height and width."""
    images = [image for image in figure.images if len(image.get_array()) == SIDE]
    assert images[number].ox >= GAP
    shown = images[number].get_array()[SIDE // 4, SIDE // 4]
    return np.asarray(shown, int) if np.ndim(shown) else np.full(3, shown, int)


def _means(maps: dict[str, np.ndarray], grey: int = 0) -> MeanMaps:
    means = MeanMaps()
    for name, cam in maps.items():
        for _ in range(2):
            means.add(name, np.full((32, 32), grey, np.uint8), cam)
    return means


def _hot(cells: int, share: float) -> np.ndarray:
    """Return a map with this value in its upper left quarter, times its mean."""
    cam = np.full((cells, cells), (4 - share) / 3)
    cam[: cells // 2, : cells // 2] = share
    return cam


def test_mean_maps_have_one_scale() -> None:
    names = [LONG_CLASS, "B", "C", "D", "E"]
    figure = draw_means(_means({name: _hot(4, 4 / (k + 1)) for k, name in enumerate(names)}), "Layer$CAM$", "viridis")
    for k, name in enumerate(sorted(names)):
        assert _tile(figure, k) == pytest.approx(colour(1 / (names.index(name) + 1), "viridis"), abs=2)
    figure = draw_means(_means({"B": np.ones((4, 4))}), "Integrated gradients")
    assert _tile(figure, 0) == pytest.approx(colour(1), abs=2)


def test_differences_of_mean_maps() -> None:
    first = {"A": _hot(4, 2), "missing": _hot(4, 1), "same": _hot(4, 1), "z": _hot(4, 1)}
    second = {"A": _hot(8, 1), "same": _hot(8, 1), "z": _hot(8, 2)}
    names = ("resnet18-20260102-030405-a-long-name", "b")
    figure = draw_differences((_means(first, 90), _means(second, 90)), names, "Grad-CAM")
    for row, shares in enumerate(((1, 0.5), (0.5, 0), (0.5, 0.5), (0.5, 1))):
        for column, share in enumerate(shares, 1):
            assert _tile(figure, 4 * row + column) == pytest.approx(colour(share, grey=90), abs=2)
    more, missing, none, less = (_tile(figure, 4 * row + 3) for row in range(4))
    assert more[1] < more[[0, 2]].min() and less[1] > less[[0, 2]].max()
    assert none.tolist() == missing.tolist() == [90, 90, 90]
