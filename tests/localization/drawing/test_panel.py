"""Panels and mean maps: text that never overlaps, colours of every tile, and two models side by side."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from localization.drawing.geometry import Square
from localization.drawing.overlay import ImageWithMasks, MapEntry
from localization.drawing.panel import MeanMaps, draw_differences, draw_means, draw_pair, draw_panel
from localization.drawing.sheet import GAP, SIDE, save_png
from localization.states import MapState
from tests.helpers.drawing_case import LONG_CLASS, LONG_NAME, colour


@pytest.mark.parametrize(
    ("count", "shape"), [(1, (90, 60)), (2, (60, 90)), (4, (300, 30)), (4, (30, 300)), (7, (90, 61)), (15, (64, 64))]
)
def test_texts_of_a_panel_do_not_meet(tmp_path: Path, count: int, shape: tuple[int, int]) -> None:
    masks = {"lung_mask": np.eye(64) == 0, "lesion_mask": np.eye(64) == 1}
    states = list(MapState)
    cam = np.full((7, 7), 1.234e-5, np.float32)
    entries = [
        MapEntry(
            title=f"Integrated gradients, {i}",
            cam=cam,
            state=states[i % 5],
            peak=(None, 2e-5, 3.21e-4)[i % 3],
            note="lung lift 1.02, lesion 1.3",
        )
        for i in range(count)
    ]
    head = [LONG_NAME, f"evidence for {LONG_CLASS} (probability 0.93)", f"true class {LONG_CLASS}, predicted A"]
    image = ImageWithMasks(np.zeros(shape, np.uint8), masks)
    figure = draw_panel(image, entries, head, Square("letterbox", 64))
    save_png(figure, tmp_path / "p.png")
    boxes = [text.get_window_extent() for text in (*figure.texts, *figure.legends[0].get_texts()) if text.get_text()]
    titles = [text.get_text() for text in figure.texts if text.get_text().startswith(("Integ", "Image"))]
    assert len(titles) == count + 1
    width, height = figure.bbox.size
    assert all(b.x0 >= 0 and b.y0 >= 0 and b.x1 <= width and b.y1 <= height for b in boxes)
    for a, b in itertools.combinations(boxes, 2):
        across, down = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert across <= 1 or down <= 2, (a, b)  # a line's box has some room above and below its letters
    with Image.open(tmp_path / "p.png") as image:
        assert image.size == (round(width), round(height))
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


def _tiles(path: Path, value: int) -> list[np.ndarray]:
    """Return the columns of a panel's only row, cut to the rows of the first tile's one value: (h, w, 3) int."""
    shown = np.asarray(Image.open(path).convert("RGB"), int)
    is_value = (shown == value).all(2)
    left = np.flatnonzero(is_value.sum(0) > 20)
    gaps = np.flatnonzero(np.diff(left) > 1)
    first = left[: gaps[0] + 1] if len(gaps) else left
    rows = np.flatnonzero(is_value[:, first[len(first) // 2]])
    pitch = len(first) + 14 if len(first) >= 170 else 184
    count = (shown.shape[1] - 14) // pitch
    return [shown[rows[0] : rows[-1] + 1, first[0] + k * pitch : first[-1] + 1 + k * pitch] for k in range(count)]


@pytest.mark.parametrize("count", [3, 7])
def test_colours_of_a_panel(tmp_path: Path, count: int) -> None:
    """Each map on its own scale."""
    peaks = [None, 1.0, 2.0, 4.0, 8.0, None, 3.0][:count]
    entries = [
        MapEntry(title=str(i), cam=np.full((4, 4), 1, np.float32), state=MapState.OK, peak=peak)
        for i, peak in enumerate(peaks)
    ]
    image = ImageWithMasks(np.full((60, 90), 80, np.uint8))
    save_png(draw_panel(image, entries, ["n"], Square("letterbox", 64)), tmp_path / "p.png")
    tiles = _tiles(tmp_path / "p.png", 80)
    assert tiles[0].shape[:2] == (149, 224)  # the image's aspect
    for tile, peak in zip(tiles[1:], peaks, strict=False):
        assert np.abs(tile[5:-5, 5:-5] - colour(1 / (peak or 1), grey=80)).max() <= 1


def test_two_models_on_one_image(tmp_path: Path) -> None:
    """Maps that differ in grid, size of gradients and geometry, and say the same, have no difference."""
    squares = Square("squash", 64), Square("letterbox", 90)
    image = ImageWithMasks(np.full((60, 90), 80, np.uint8))
    left = np.repeat([[1.0, 0.0]], 2, 0).astype(np.float32)
    uniform = np.ones((5, 5), np.float32)
    words: set[str] = set()

    def tiles(
        a: np.ndarray, b: np.ndarray, states: tuple[MapState, MapState] = (MapState.OK, MapState.OK)
    ) -> list[np.ndarray]:
        pair = tuple(
            MapEntry(title=f"model {name}", cam=cam, state=state)
            for name, cam, state in zip("ab", (a, b), states, strict=True)
        )
        figure = draw_pair(image, pair, squares, ["n"], "inferno")
        words.clear()
        words.update(" ".join(text.get_text().split()) for text in figure.texts)
        save_png(figure, tmp_path / "p.png")
        return _tiles(tmp_path / "p.png", 80)

    raw, a, b, difference = tiles(uniform * 1e-6, uniform * 3)
    assert (raw == 80).all() and (difference == 80).all()
    assert np.abs(a - b).max() <= 1 and np.ptp(a, axis=2).min() > 30
    difference = tiles(left, uniform)[3][75]
    assert difference[5][1] < difference[5][[0, 2]].min()  # more in A on the left
    assert difference[-5][1] > difference[-5][[0, 2]].max()
    assert {"A: model a", "B: model b", "A - B", "-1", "1"} <= words
    for states in ((MapState.EMPTY, MapState.OK), (MapState.OK, MapState.NAN)):
        maps = (uniform * 0 if states[0] == "empty" else uniform, uniform if states[1] == "ok" else uniform * np.nan)
        upper = [tile[:60] for tile in tiles(*maps, states)]
        assert [np.ptp(tile, axis=2).max() > 30 for tile in upper] == [
            False,
            *(status == "ok" for status in states),
            False,
        ]
        assert "no difference: a map is missing" in words
    padding = np.zeros((90, 90), np.float32)
    padding[:10] = 1
    tiles(uniform, padding)
    assert "all of it is outside the image" in words


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
