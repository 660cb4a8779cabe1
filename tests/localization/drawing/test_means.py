"""Mean maps of one model, and of two side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from localization.drawing.means import GAP, HEAD, TILE, MeanMaps, draw_differences, draw_means
from tests.helpers.drawing_case import LONG_CLASS, colour


def _mean_tile(path: Path, row: int, column: int) -> np.ndarray:
    """The middle pixel of a tile of mean maps, rows counted from the top."""
    shown = np.asarray(Image.open(path).convert("RGB"), int)
    left, top = GAP + column * (TILE + GAP) + TILE / 2, row * (HEAD + TILE) + HEAD + TILE / 2
    return shown[round(top * 100), round(left * 100)]


def test_mean_maps_have_one_scale(tmp_path: Path) -> None:
    names = [LONG_CLASS, "B", "C", "D", "E"]
    images = {name: np.zeros((32, 32)) for name in names}
    maps = {name: np.full((4, 4), 1 / (k + 1)) for k, name in enumerate(names)}
    draw_means(tmp_path / "m.png", MeanMaps(images, maps, dict.fromkeys(names, 3)), "Layer$CAM$", "viridis")
    for k in range(5):
        assert _mean_tile(tmp_path / "m.png", k // 4, k % 4) == pytest.approx(colour(1 / (k + 1), "viridis"), abs=2)
    draw_means(tmp_path / "m.png", MeanMaps({"B": images["B"]}, {"B": maps["B"]}, {"B": 1}), "Integrated gradients")
    assert _mean_tile(tmp_path / "m.png", 0, 0) == pytest.approx(colour(1), abs=2)


def test_differences_of_mean_maps(tmp_path: Path) -> None:
    images = {name: np.full((32, 32), 90.0) for name in ("A", "same", "B", "missing")}
    first = {"A": np.full((4, 4), 2.0), "same": np.ones((4, 4)), "B": np.ones((4, 4)), "missing": np.ones((4, 4))}
    second = {"A": np.ones((7, 7)), "same": np.ones((7, 7)), "B": np.full((7, 7), 2.0)}
    counts = {"A": 5, "same": 3, "B": 1, "missing": 2}, {"A": 4, "same": 3, "B": 1}
    pair = tuple(
        MeanMaps({n: images[n] for n in maps}, maps, c) for maps, c in zip((first, second), counts, strict=True)
    )
    path = tmp_path / "d.png"
    draw_differences(path, pair, ("resnet18-20260102-030405-a-long-name", "b"), "Grad-CAM")
    for row, shares in enumerate(((1, 0.5), (0.5, 0.5), (0.5, 1), (0.5, 0))):
        for column, share in enumerate(shares):
            assert _mean_tile(path, row, column) == pytest.approx(colour(share, grey=90), abs=2)
    more, none, less, missing = (_mean_tile(path, row, 2) for row in range(4))
    assert more[1] < more[[0, 2]].min() and less[1] > less[[0, 2]].max()
    assert none.tolist() == missing.tolist() == [90, 90, 90]
