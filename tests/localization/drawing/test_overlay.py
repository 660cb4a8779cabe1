"""Overlays: colours on own and shared scales, captions, outlines and titles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from dataset.readers import fit_square
from localization.drawing.geometry import Square
from localization.drawing.overlay import BOX_KEY, ImageWithMasks, MapEntry, draw_overlay
from localization.drawing.panel import draw_panel
from localization.drawing.sheet import save_png
from localization.states import MapState
from tests.helpers.drawing_case import LONG_CLASS, LONG_NAME, colour


def _overlay(path: Path) -> np.ndarray:
    """Return the image's part of an overlay, where its text chunk says it is: (height, width, 3) int."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").crop([int(edge) for edge in image.text[BOX_KEY].split(",")]), int)


def _words(figure: Figure) -> list[str]:
    return [text.get_text() for ax in figure.axes for text in ax.texts]


@pytest.mark.parametrize("peak", [None, 1.0, 4.0])
def test_a_weak_map_looks_weak_on_a_shared_scale(tmp_path: Path, peak: float | None) -> None:
    cam = np.full((7, 7), 1, np.float32)
    entry = MapEntry(title="Layer$CAM$", cam=cam, state=MapState.OK, peak=peak)
    image = ImageWithMasks(np.zeros((64, 64), np.uint8))
    figure = draw_overlay(tmp_path / "o.png", image, entry, "title", Square("squash", 64), "viridis")
    shown = _overlay(tmp_path / "o.png")
    assert np.abs(shown[20:-20, 20:-20] - colour(1 / (peak or 1), "viridis")).max() <= 2
    label = figure.axes[1].get_ylabel()
    assert label.startswith("Layer$CAM$")
    assert ("peak" in label) == (peak == 4)
    assert figure.axes[1].get_ylim() == (0, peak or 1)


@pytest.mark.parametrize("state", list(MapState))
def test_a_doubtful_map_is_shown_with_words_and_an_absent_one_without_colours(tmp_path: Path, state: MapState) -> None:
    absent = {MapState.EMPTY: 0, MapState.NAN: np.nan}
    cam = np.full((7, 7), absent.get(state, 1), np.float32)
    image, entry = ImageWithMasks(np.full((90, 61), 120, np.uint8)), MapEntry(title="m", cam=cam, state=state)
    overlay = draw_overlay(tmp_path / "o.png", image, entry, "t", Square("letterbox", 64))
    panel = draw_panel(image, [entry], ["name", "evidence"], Square("letterbox", 64))
    save_png(panel, tmp_path / "p.png")
    upper = _overlay(tmp_path / "o.png")[2:300, 2:-2]
    tile = np.asarray(Image.open(tmp_path / "p.png").convert("RGB"), int)[120:200, 220:340]
    for shown in (upper, tile):
        assert (np.ptp(shown, axis=2).max() > 30) == (state not in absent)
    captions = [state.caption] if state is not MapState.OK else []
    assert _words(overlay) == captions
    assert all(words in [" ".join(text.get_text().split()) for text in panel.texts] for words in captions)
    assert len(overlay.axes) == (1 if state in absent else 2)


@pytest.mark.parametrize(("fit", "shape"), [("squash", (90, 60)), ("letterbox", (90, 60)), ("letterbox", (60, 90))])
def test_masks_are_outlined_where_they_are(tmp_path: Path, fit: str, shape: tuple[int, int]) -> None:
    """A rectangle of the image, made a mask of the square as the cache does it, is outlined on the overlay."""
    square, (height, width) = Square(fit, 90), shape
    inside = np.zeros(shape, np.float32)
    rows, columns = (height // 3, height * 2 // 3), (width // 3, width * 5 // 6)
    inside[slice(*rows), slice(*columns)] = 1
    masks = {"lung_mask": fit_square(inside, 90, fit) >= 0.5, "lesion_mask": np.zeros((90, 90), np.uint8)}
    entry = MapEntry(title="m", cam=np.zeros((3, 3)), state=MapState.EMPTY)
    figure = draw_overlay(tmp_path / "o.png", ImageWithMasks(np.zeros(shape, np.uint8), masks), entry, "t", square)
    shown = _overlay(tmp_path / "o.png")
    blue = np.argwhere((shown[..., 2] > 150) & (shown[..., 0] < 60))
    for axis, (edges, length) in enumerate(((rows, height), (columns, width))):
        outline = (blue[:, axis].min() + 0.5, blue[:, axis].max() + 0.5)
        assert outline == pytest.approx([edge / length * shown.shape[axis] for edge in edges], abs=1.6)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["lungs"]  # an empty mask has no outline


def test_without_masks_there_is_no_legend(tmp_path: Path) -> None:
    image = ImageWithMasks(np.zeros((9, 9), np.uint8))
    entry = MapEntry(title="m", cam=np.ones((3, 3)), state=MapState.OK)
    overlay = draw_overlay(tmp_path / "o.png", image, entry, "t", Square("squash", 32))
    assert not overlay.legends
    assert not draw_panel(image, [entry], ["n"], Square("squash", 32)).legends


def test_a_long_title_stays_on_the_image(tmp_path: Path) -> None:
    title = f"{LONG_NAME}{LONG_NAME}\nevidence for {LONG_CLASS} (probability 0.93); true class {LONG_CLASS}"
    entry = MapEntry(title="m", cam=np.ones((3, 3)), state=MapState.OK)
    image = ImageWithMasks(np.zeros((90, 60), np.uint8))
    figure = draw_overlay(tmp_path / "o.png", image, entry, title, Square("squash", 32))
    lines = figure.axes[0].get_title().split("\n")
    assert [line[:6] for line in lines] == ["00_Tho", "eviden"] and [line[-3:] for line in lines] == ["jpg", "uss"]
    extent = figure.axes[0].title.get_window_extent()
    assert extent.x0 >= 0 and extent.x1 <= figure.bbox.width and extent.y1 <= figure.bbox.height
