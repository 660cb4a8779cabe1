"""Maps laid back on pictures to the pixel, colours, and what overlays, panels and mean maps show."""

from __future__ import annotations

import itertools
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image

from dataset.readers import fit_square, letterbox_frame
from localization.drawing.means import GAP, HEAD, TILE, draw_differences, draw_means
from localization.drawing.overlay import (
    MAX_OPACITY,
    OverlayDrawer,
    Scale,
    Square,
    blend,
    check_colormap,
    fitted,
    lay_back,
    new_figure,
)
from localization.drawing.panel import Entry, PanelDrawer, Subject
from localization.states import MapState
from utils import UserError

SHAPES = [(64, 64), (90, 61), (61, 90), (301, 299), (53, 200)]  # square, portrait, landscape, odd sizes
LONG = "00_Thoraxröntgenaufnahme_posterior-anterior_Patient_0815_nach_Intubation_und_Umlagerung_2021-03-17.jpg"
CLASS = "Bakterielle Lungenentzündung mit Pleuraerguss"


def _crosses(height: int, width: int, square: Square) -> tuple[np.ndarray, np.ndarray]:
    """For every row and column of a picture a line of one pixel is drawn there, taken to the model's square as the
    cache does it, and laid back: the profiles (rows, rows) and (columns, columns) across the lines.
    """
    found = []
    for axis, length in enumerate((height, width)):
        profiles = []
        for place in range(length):
            picture = np.zeros((height, width), np.float32)
            np.moveaxis(picture, axis, 0)[place] = 1
            back = lay_back(fit_square(picture, square.side, square.fit), height, width, square)
            assert back.shape == (height, width)
            profiles.append(back.sum(1 - axis))
        found.append(np.array(profiles))
    return found[0], found[1]


@pytest.mark.parametrize("shape", [(64, 64), (90, 61), (61, 90), (53, 99)])
@pytest.mark.parametrize("fit", ["squash", "letterbox"])
def test_a_cross_is_found_again_to_the_pixel(shape: tuple[int, int], fit: str) -> None:
    """Wherever it is drawn, where the square has at least the picture's resolution."""
    for profiles in _crosses(*shape, Square(fit, 113)):
        assert profiles.argmax(1).tolist() == list(range(len(profiles)))


@pytest.mark.parametrize("shape", [(90, 61), (61, 90), (141, 139)])
@pytest.mark.parametrize("fit", ["squash", "letterbox"])
def test_a_cross_is_found_again_in_a_coarser_square(shape: tuple[int, int], fit: str) -> None:
    """Within half a pixel of the square, and over all places without bias: a frame that is wrongly rounded has one."""
    square = Square(fit, 32)
    frame = letterbox_frame(*shape, 32)[2:] if fit == "letterbox" else (32, 32)
    for profiles, cells in zip(_crosses(*shape, square), frame, strict=True):
        places, pixel = np.arange(len(profiles)), len(profiles) / cells
        errors = profiles @ places / profiles.sum(1) - places
        inside = slice(int(2 * pixel), -int(2 * pixel))  # at the border the map goes on as it ends
        assert np.abs(errors[inside]).max() <= 0.5 * pixel
        assert abs(errors[inside].mean()) <= 0.05


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("fit", "side"), [("squash", 224), ("letterbox", 224), ("letterbox", 100)])
def test_cells_of_a_coarse_grid_lie_where_the_model_saw_them(shape: tuple[int, int], fit: str, side: int) -> None:
    """The centre of cell (i, j) is ((i + 0.5)/h, (j + 0.5)/w) of the square, and from there in the picture's frame."""
    grid = (7, 6)
    top, left, tall, wide = letterbox_frame(*shape, side) if fit == "letterbox" else (0, 0, side, side)
    tried = 0
    for cell in itertools.product(range(1, grid[0] - 1), range(1, grid[1] - 1)):
        place = (
            ((cell[0] + 0.5) * side / grid[0] - top) * shape[0] / tall,
            ((cell[1] + 0.5) * side / grid[1] - left) * shape[1] / wide,
        )
        if not all(1 < p < size - 1 for p, size in zip(place, shape, strict=True)):
            continue  # over the padding
        cam = np.zeros(grid, np.float32)
        cam[cell] = 1
        back = lay_back(cam, *shape, Square(fit, side))
        found = np.unravel_index(back.argmax(), shape)
        assert all(abs(f + 0.5 - p) <= 0.5 + 1e-4 for f, p in zip(found, place, strict=True))
        tried += 1
    assert tried >= 3


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fit", ["squash", "letterbox"])
@pytest.mark.parametrize("size", [None, (37, 41)])
def test_a_slope_keeps_its_values_in_every_geometry(
    shape: tuple[int, int], fit: str, size: tuple[int, int] | None
) -> None:
    """Linear interpolation of a linear map is exact: each pixel's value is its own place in the square."""
    side, cells = 96, 12
    top, left, tall, wide = letterbox_frame(*shape, side) if fit == "letterbox" else (0, 0, side, side)
    centres = (np.arange(cells, dtype=np.float32) + 0.5) / cells
    rows, columns = size or shape
    down = (top + (np.arange(rows) + 0.5) / rows * tall) / side
    across = (left + (np.arange(columns) + 0.5) / columns * wide) / side
    for cam, wanted in (
        (np.tile(centres[:, None], (1, cells)), np.tile(down[:, None], (1, columns))),
        (np.tile(centres, (cells, 1)), np.tile(across, (rows, 1))),
    ):
        back = lay_back(cam, *shape, Square(fit, side), size)
        assert np.abs(back - wanted.clip(centres[0], centres[-1])).max() < 1e-5


def test_a_squashed_map_is_resized_as_torch_does_it() -> None:
    cam = np.random.default_rng(0).random((40, 30)).astype(np.float32)
    for size in ((77, 101), (25, 19), (77, 19)):
        tensor = F.interpolate(torch.from_numpy(cam)[None, None], size, mode="bilinear", antialias=True)
        assert np.abs(lay_back(cam, *size, Square("squash", 40)) - tensor[0, 0].numpy()).max() < 1e-5


def test_colormaps(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    from utils import log

    monkeypatch.setattr(log, "propagate", True)
    with pytest.raises(UserError, match=r"--colormap Viridas: .*viridis"):
        check_colormap("Viridas")
    with pytest.raises(UserError, match=r"^--colormap : matplotlib has no such"):
        check_colormap("")
    for name in ("inferno", "inferno_r", "viridis", "magma", "cividis", "plasma", "gray", "hot"):
        check_colormap(name)
    assert not caplog.records
    uneven = ("jet", "jet_r", "rainbow", "hsv", "turbo", "nipy_spectral", "coolwarm", "twilight", "tab10")
    for name in uneven:
        check_colormap(name)
    assert list(dict.fromkeys(record.getMessage().split()[1] for record in caplog.records)) == [f"{n}:" for n in uneven]


def _colour(share: float, colormap: str = "inferno", grey: float = 0) -> np.ndarray:
    """What a share of the scale looks like over a grey: opaque in proportion to it."""
    opacity = MAX_OPACITY * share
    return opacity * 255 * np.array(matplotlib.colormaps[colormap](float(share))[:3]) + (1 - opacity) * grey


def test_colours_over_a_radiograph() -> None:
    grey = np.full((2, 2), 100, np.uint8)
    shown = blend(grey, np.array([[0, 1], [2, 9]]), Scale(2, "viridis")).astype(int)
    assert (shown[0, 0] == 100).all()  # nothing there: the radiograph alone
    for at, share in (((0, 1), 0.5), ((1, 0), 1), ((1, 1), 1)):
        assert shown[at] == pytest.approx(_colour(share, "viridis", 100), abs=1)


def test_differences_are_neutral_at_zero_and_even_on_both_sides() -> None:
    scale = Scale.of_differences(2)
    grey = np.full((1, 3), 90, np.uint8)
    less, none, more = blend(grey, np.array([[-2, 0, 2]]), scale)[0].astype(int)
    assert none.tolist() == [90, 90, 90]
    assert less[1] > less[[0, 2]].max() and more[1] < more[[0, 2]].min()  # green, and its opposite
    bright = [colour @ (0.2126, 0.7152, 0.0722) for colour in (less, more)]
    assert bright[0] == pytest.approx(bright[1], rel=0.05) and min(bright) > 100
    assert Scale.of_differences(1e-7).top == pytest.approx(0.1)  # rounding is not stretched


def _overlay(path: Path) -> np.ndarray:
    """The radiograph's part of an overlay, where its text chunk says that it is: (height, width, 3) int."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB").crop(tuple(map(int, picture.text["Radiograph"].split(",")))), int)


def _words(figure: Figure) -> list[str]:
    return [text.get_text() for ax in figure.axes for text in ax.texts]


@pytest.mark.parametrize("peak", [None, 1.0, 4.0])
def test_a_weak_map_looks_weak_on_a_shared_scale(tmp_path: Path, peak: float | None) -> None:
    drawer = OverlayDrawer(Square("squash", 64), "viridis")
    cam = np.full((7, 7), 1, np.float32)
    drawer.draw(
        tmp_path / "o.png", np.zeros((64, 64), np.uint8), cam, MapState.OK, "title", unit="Layer$CAM$", peak=peak
    )
    shown = _overlay(tmp_path / "o.png")
    assert np.abs(shown[20:-20, 20:-20] - _colour(1 / (peak or 1), "viridis")).max() <= 2
    label = drawer.figure.axes[1].get_ylabel()
    assert label.startswith("Layer$CAM$")
    assert ("peak" in label) == (peak == 4)
    assert drawer.figure.axes[1].get_ylim() == (0, peak or 1)


@pytest.mark.parametrize("state", list(MapState))
def test_a_doubtful_map_is_shown_with_words_and_an_absent_one_without_colours(tmp_path: Path, state: MapState) -> None:
    absent = {MapState.EMPTY: 0, MapState.NAN: np.nan}
    cam = np.full((7, 7), absent.get(state, 1), np.float32)
    radiograph = np.full((90, 61), 120, np.uint8)
    overlay, panel = OverlayDrawer(Square("letterbox", 64)), PanelDrawer(Square("letterbox", 64))
    overlay.draw(tmp_path / "o.png", radiograph, cam, state, "t", unit="m")
    panel.draw(tmp_path / "p.png", radiograph, [Entry("m", cam, state)], Subject("name", "A"))
    upper = _overlay(tmp_path / "o.png")[2:300, 2:-2]
    tile = np.asarray(Image.open(tmp_path / "p.png"), int)[120:200, 220:340]
    for shown in (upper, tile):
        assert (np.ptp(shown, axis=2).max() > 30) == (state not in absent)
    said = [state.caption] if state is not MapState.OK else []
    assert _words(overlay.figure) == said
    assert all(words in [" ".join(text.get_text().split()) for text in panel.figure.texts] for words in said)
    assert len(overlay.figure.axes) == (1 if state in absent else 2)


@pytest.mark.parametrize(("fit", "shape"), [("squash", (90, 60)), ("letterbox", (90, 60)), ("letterbox", (60, 90))])
def test_masks_are_outlined_where_they_are(tmp_path: Path, fit: str, shape: tuple[int, int]) -> None:
    """A rectangle of the picture, made a mask of the square as the cache does it, is outlined on the overlay."""
    square, (height, width) = Square(fit, 90), shape
    inside = np.zeros(shape, np.float32)
    rows, columns = (height // 3, height * 2 // 3), (width // 3, width * 5 // 6)
    inside[slice(*rows), slice(*columns)] = 1
    masks = {"lung_mask": fit_square(inside, 90, fit) >= 0.5, "lesion_mask": np.zeros((90, 90), np.uint8)}
    drawer = OverlayDrawer(square)
    drawer.draw(
        tmp_path / "o.png", np.zeros(shape, np.uint8), np.zeros((3, 3)), MapState.EMPTY, "t", unit="m", masks=masks
    )
    shown = _overlay(tmp_path / "o.png")
    blue = np.argwhere((shown[..., 2] > 150) & (shown[..., 0] < 60))
    for axis, (edges, length) in enumerate(((rows, height), (columns, width))):
        found = (blue[:, axis].min() + 0.5, blue[:, axis].max() + 0.5)
        assert found == pytest.approx([edge / length * shown.shape[axis] for edge in edges], abs=1.6)
    (legend,) = drawer.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["lungs"]  # an empty mask has no outline


def test_without_masks_there_is_no_legend(tmp_path: Path) -> None:
    overlay, panel = OverlayDrawer(Square("squash", 32)), PanelDrawer(Square("squash", 32))
    overlay.draw(tmp_path / "o.png", np.zeros((9, 9), np.uint8), np.ones((3, 3)), MapState.OK, "t", unit="m")
    panel.draw(
        tmp_path / "p.png", np.zeros((9, 9), np.uint8), [Entry("m", np.ones((3, 3)), MapState.OK)], Subject("n", "A")
    )
    assert not overlay.figure.legends
    assert not {"lungs", "lesion"} & {text.get_text() for text in panel.figure.texts}


def test_a_long_title_stays_on_the_picture(tmp_path: Path) -> None:
    drawer = OverlayDrawer(Square("squash", 32))
    title = f"{LONG}{LONG}\nevidence for {CLASS} (probability 0.93); true class {CLASS}"
    drawer.draw(tmp_path / "o.png", np.zeros((90, 60), np.uint8), np.ones((3, 3)), MapState.OK, title, unit="m")
    lines = drawer.figure.axes[0].get_title().split("\n")
    assert [line[:6] for line in lines] == ["00_Tho", "eviden"] and [line[-3:] for line in lines] == ["jpg", "uss"]
    extent = drawer.figure.axes[0].title.get_window_extent()
    assert extent.x0 >= 0 and extent.x1 <= drawer.figure.bbox.width and extent.y1 <= drawer.figure.bbox.height


def test_fitted_keeps_both_ends() -> None:
    figure = new_figure(3, 1)
    assert fitted(figure, "short $a_$", 300) == "short $a_$"
    for width in (60, 150, 299):
        found = fitted(figure, LONG, width, fontsize=9)
        head, tail = found.split("…")
        assert LONG.startswith(head) and LONG.endswith(tail) and abs(len(head) - len(tail)) <= 1
        artist = figure.text(0, 0, found, fontsize=9)
        assert width - 20 < artist.get_window_extent(figure.canvas.get_renderer()).width <= width
        artist.remove()
    assert not figure.texts


@pytest.mark.parametrize(
    ("count", "shape"), [(1, (90, 60)), (2, (60, 90)), (4, (300, 30)), (4, (30, 300)), (7, (90, 61)), (15, (64, 64))]
)
def test_texts_of_a_panel_do_not_meet(tmp_path: Path, count: int, shape: tuple[int, int]) -> None:
    drawer = PanelDrawer(Square("letterbox", 64))
    masks = {"lung_mask": np.eye(64) == 0, "lesion_mask": np.eye(64) == 1}
    states = list(MapState)
    cam = np.full((7, 7), 1.234e-5, np.float32)
    entries = [
        Entry(
            f"Integrated gradients, {i}", cam, states[i % 5], (None, 2e-5, 3.21e-4)[i % 3], "lung lift 1.02, lesion 1.3"
        )
        for i in range(count)
    ]
    subject = Subject(LONG, CLASS, 0.934, "Virale Lungenentzündung", CLASS)
    drawer.draw(tmp_path / "p.png", np.zeros(shape, np.uint8), entries, subject, masks)
    boxes = [text.get_window_extent() for text in drawer.figure.texts if text.get_text()]
    titles = [text.get_text() for text in drawer.figure.texts if text.get_text().startswith(("Integ", "Radio"))]
    assert len(titles) == count + 1
    width, height = drawer.figure.bbox.size
    assert all(b.x0 >= 0 and b.y0 >= 0 and b.x1 <= width and b.y1 <= height for b in boxes)
    for a, b in itertools.combinations(boxes, 2):
        across, down = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert across <= 1 or down <= 2, (a, b)  # a line's box has some room above and below its letters
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.size == (round(width), round(height))
        assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


def _tiles(path: Path, value: int) -> list[np.ndarray]:
    """The columns of a panel's only row, cut to where the first has the radiograph's one value: (h, w, 3) int each."""
    shown = np.asarray(Image.open(path).convert("RGB"), int)
    is_value = (shown == value).all(2)
    left = np.flatnonzero(is_value.sum(0) > 20)
    gaps = np.flatnonzero(np.diff(left) > 1)
    first = left[: gaps[0] + 1] if len(gaps) else left
    rows = np.flatnonzero(is_value[:, first[len(first) // 2]])
    pitch = len(first) + 14 if len(first) >= 170 else 184
    count = (shown.shape[1] - 14) // pitch
    return [shown[rows[0] : rows[-1] + 1, first[0] + k * pitch : first[-1] + 1 + k * pitch] for k in range(count)]


@pytest.mark.parametrize(("count", "off"), [(3, 1), (7, 6)])
def test_colours_of_a_panel(tmp_path: Path, count: int, off: int) -> None:
    """Each map on its own scale; many tiles are saved in a palette, which shifts colours a little."""
    peaks = [None, 1.0, 2.0, 4.0, 8.0, None, 3.0][:count]
    entries = [Entry(str(i), np.full((4, 4), 1, np.float32), MapState.OK, peak) for i, peak in enumerate(peaks)]
    radiograph = np.full((60, 90), 80, np.uint8)
    PanelDrawer(Square("letterbox", 64)).draw(tmp_path / "p.png", radiograph, entries, Subject("n", "A"))
    tiles = _tiles(tmp_path / "p.png", 80)
    assert tiles[0].shape[:2] == (149, 224)  # the aspect is the radiograph's
    for tile, peak in zip(tiles[1:], peaks, strict=False):
        assert np.abs(tile[5:-5, 5:-5] - _colour(1 / (peak or 1), grey=80)).max() <= off


def test_two_models_on_one_picture(tmp_path: Path) -> None:
    """Maps that differ in grid, size of gradients and geometry, and say the same, have no difference."""
    squares = Square("squash", 64), Square("letterbox", 90)
    radiograph = np.full((60, 90), 80, np.uint8)
    left = np.repeat([[1.0, 0.0]], 2, 0).astype(np.float32)
    uniform = np.ones((5, 5), np.float32)
    drawer, subject = PanelDrawer(squares[0]), Subject("n", "A")

    def tiles(
        a: np.ndarray, b: np.ndarray, states: tuple[MapState, MapState] = (MapState.OK, MapState.OK)
    ) -> list[np.ndarray]:
        pair = Entry("model a", a, states[0]), Entry("model b", b, states[1])
        drawer.draw_pair(tmp_path / "p.png", radiograph, pair, squares, subject)
        return _tiles(tmp_path / "p.png", 80)

    raw, a, b, difference = tiles(uniform * 1e-6, uniform * 3)
    assert (raw == 80).all() and (difference == 80).all()
    assert np.abs(a - b).max() <= 1 and np.ptp(a, axis=2).min() > 30
    difference = tiles(left, uniform)[3][75]
    assert difference[5][1] < difference[5][[0, 2]].min()  # more in A on the left
    assert difference[-5][1] > difference[-5][[0, 2]].max()
    words = {text.get_text() for text in drawer.figure.texts}
    assert {"A: model a", "B: model b", "A - B", "-1", "1"} <= words
    for states in ((MapState.EMPTY, MapState.OK), (MapState.OK, MapState.NAN)):
        maps = (uniform * 0 if states[0] == "empty" else uniform, uniform if states[1] == "ok" else uniform * np.nan)
        upper = [tile[:60] for tile in tiles(*maps, states)]
        assert [np.ptp(tile, axis=2).max() > 30 for tile in upper] == [
            False,
            *(status == "ok" for status in states),
            False,
        ]
        assert "no difference: a map is missing" in {t.get_text() for t in drawer.figure.texts}
    padding = np.zeros((90, 90), np.float32)
    padding[:10] = 1
    tiles(uniform, padding)
    assert "none of it lies on the picture" in {t.get_text() for t in drawer.figure.texts}


def _mean_tile(path: Path, row: int, column: int) -> np.ndarray:
    """The middle pixel of a tile of mean maps, rows counted from the top."""
    shown = np.asarray(Image.open(path).convert("RGB"), int)
    left, top = GAP + column * (TILE + GAP) + TILE / 2, row * (HEAD + TILE) + HEAD + TILE / 2
    return shown[round(top * 100), round(left * 100)]


def test_mean_maps_have_one_scale(tmp_path: Path) -> None:
    names = [CLASS, "B", "C", "D", "E"]
    pictures = {name: np.zeros((32, 32)) for name in names}
    maps = {name: np.full((4, 4), 1 / (k + 1)) for k, name in enumerate(names)}
    draw_means(tmp_path / "m.png", pictures, maps, dict.fromkeys(names, 3), "Layer$CAM$", "viridis")
    for k in range(5):
        assert _mean_tile(tmp_path / "m.png", k // 4, k % 4) == pytest.approx(_colour(1 / (k + 1), "viridis"), abs=2)
    draw_means(tmp_path / "m.png", {"B": pictures["B"]}, {"B": maps["B"]}, {"B": 1}, "Integrated gradients")
    assert _mean_tile(tmp_path / "m.png", 0, 0) == pytest.approx(_colour(1), abs=2)


def test_differences_of_mean_maps(tmp_path: Path) -> None:
    pictures = {name: np.full((32, 32), 90.0) for name in ("A", "same", "B", "missing")}
    first = {"A": np.full((4, 4), 2.0), "same": np.ones((4, 4)), "B": np.ones((4, 4)), "missing": np.ones((4, 4))}
    second = {"A": np.ones((7, 7)), "same": np.ones((7, 7)), "B": np.full((7, 7), 2.0)}
    counts = {"A": (5, 4), "same": (3, 3), "B": (1, 1), "missing": (2, 0)}
    path = tmp_path / "d.png"
    draw_differences(path, pictures, first, second, counts, ("resnet18-20260102-030405-a-long-name", "b"), "Grad-CAM")
    for row, shares in enumerate(((1, 0.5), (0.5, 0.5), (0.5, 1), (0.5, 0))):
        for column, share in enumerate(shares):
            assert _mean_tile(path, row, column) == pytest.approx(_colour(share, grey=90), abs=2)
    more, none, less, missing = (_mean_tile(path, row, 2) for row in range(4))
    assert more[1] < more[[0, 2]].min() and less[1] > less[[0, 2]].max()
    assert none.tolist() == missing.tolist() == [90, 90, 90]
