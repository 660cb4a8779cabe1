"""All that was found in one radiograph on one picture: the radiograph, and beside it each method's map over it."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.path import Path as Curve
from matplotlib.transforms import Affine2D
from PIL import Image

from localization.drawing.colours import COLORMAP, Scale, blend
from localization.drawing.figure import OUTLINES, draw_outlines, fitted, new_figure
from localization.drawing.geometry import Square, lay_back, outline
from localization.drawing.overlay import ImageWithMasks, MapEntry
from utils import atomic_write

COLUMNS = 5
MANY = 6  # more tiles than these are saved in a palette of 256 colours, which takes a third of the space
# In pixels of the panel:
SIDE = 224  # a radiograph's longer side
NARROWEST = 170  # a column, for its texts
GAP = 14  # between tiles
LINE, TITLE, NOTE, BAR = 19, 19, 14, 20  # heights of a line of the head, of a tile's title, its note and its bar
FONT = 10  # points


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What the panel's head says; what is empty or None is left out.

    Attributes:
        name: the radiograph's file.
        target: the class explained, with its `probability`.
        label: the true class.
        predicted: the predicted class.
    """

    name: str
    target: str
    probability: float | None = None
    label: str = ""
    predicted: str = ""

    def parts(self) -> list[str]:
        sure = "" if self.probability is None else f" (probability {self.probability:.2f})"
        known = (("true class", self.label), ("predicted", self.predicted))
        return [f"evidence for {self.target}{sure}", *(f"{words} {name}" for words, name in known if name)]


@dataclass(kw_only=True)
class _Tile:
    """One picture of the panel.

    Attributes:
        pixels: (h, w, 3) uint8.
        words: over the picture.
        scale: of the bar below it; None: no bar.
        mark: a place on the bar that is pointed at.
        legend: names of the outlines to be explained below.
    """

    title: str
    pixels: np.ndarray
    note: str = ""
    words: str = ""
    scale: Scale | None = None
    mark: float | None = None
    legend: Sequence[str] = ()


class PanelDrawer:
    """Draws panels one after another on one figure.

    Pictures and bars are laid out as pixels, and matplotlib adds texts and outlines: axes and a colour bar for each of
    sixteen tiles would take several times as long.

    Args:
        square: how the radiographs became the model's input.
        colormap: a name of matplotlib's.
    """

    def __init__(self, square: Square, colormap: str = COLORMAP) -> None:
        self.square, self.colormap = square, colormap
        self.figure = new_figure(1, 1)

    def draw(
        self,
        path: Path,
        image: ImageWithMasks,
        entries: Sequence[MapEntry],
        subject: Subject,
        rescaled: bool = False,
    ) -> None:
        """Save the panel of one image as PNG; the image's longer side becomes `SIDE` pixels.

        Args:
            entries: one per method.
            rescaled: whether the maps are means of several layers', each divided by its peak.
        """
        small, curves, first = self._start(image)
        tiles = [first]
        for entry in entries:
            tile = _Tile(title=entry.title, pixels=_grey(small), note=entry.note, words=entry.state.caption)
            if entry.state.scored:
                tile.scale, tile.mark = entry.scale(self.colormap)
                heat = lay_back(entry.cam, *image.pixels.shape, self.square, small.shape)
                tile.pixels = blend(small, heat, tile.scale)
            tiles.append(tile)
        shared = any(tile.mark is not None for tile in tiles)
        foot = "Of several layers, each divided by its peak, the mean. " if rescaled else "Maps are not rescaled. "
        foot += "Colours run from 0 to "
        foot += "the top of a shared scale; a mark and a number: this map's own peak." if shared else "each map's peak."
        self._save(path, subject, tiles, curves, foot)

    def draw_pair(
        self,
        path: Path,
        image: ImageWithMasks,
        pair: tuple[MapEntry, MapEntry],
        squares: tuple[Square, Square],
        subject: Subject,
    ) -> None:
        """Save the maps of two models A and B of one image, and A - B, as PNG.

        Each map is divided by its own mean over the image: what is compared is where two models look, not how large
        their gradients are. A and B have one scale, from 0 to the higher peak; their entries' own `peak` is not used.

        Args:
            image: its masks are over the drawer's own square.
            pair: of A and of B; titles are the models' names.
            squares: how the image became A's and B's input.
        """
        small, curves, first = self._start(image)
        maps = {}
        for letter, entry, square in zip("AB", pair, squares, strict=True):
            if entry.state.scored:
                heat = lay_back(entry.cam, *image.pixels.shape, square, small.shape)
                maps |= {letter: heat / heat.mean(dtype=np.float64)} if heat.any() else {}
        scale = Scale(max((float(heat.max()) for heat in maps.values()), default=1.0), self.colormap)
        tiles = [first]
        for letter, entry in zip("AB", pair, strict=True):
            tile = _Tile(title=f"{letter}: {entry.title}", pixels=_grey(small), note=entry.note)
            tile.words = entry.state.caption
            if letter in maps:
                tile.pixels, tile.scale = blend(small, maps[letter], scale), scale
            else:
                tile.words = tile.words or "none of it lies on the image"
            tiles.append(tile)
        if len(maps) == 2:
            difference = maps["A"] - maps["B"]
            signed = Scale.of_differences(float(np.abs(difference).max()))
            tiles.append(_Tile(title="A - B", pixels=blend(small, difference, signed), scale=signed))
        else:
            tiles.append(_Tile(title="A - B", pixels=_grey(small), words="no difference: a map is missing"))
        foot = "In multiples of each map's mean: a uniform map has 1 everywhere. Pink: more in A; green: more in B."
        self._save(path, subject, tiles, curves, foot)

    def _start(self, image: ImageWithMasks) -> tuple[np.ndarray, dict[str, Curve], _Tile]:
        """Return the small image, the outlines of its masks, and the first tile: the image alone with the legend."""
        small = _small(image.pixels)
        curves = outline(image.masks, *image.pixels.shape, self.square)
        return small, curves, _Tile(title="Image", pixels=_grey(small), legend=list(curves))

    def _save(
        self, path: Path, subject: Subject, tiles: Sequence[_Tile], curves: Mapping[str, Curve], foot: str
    ) -> None:
        """Lay the tiles out between head and foot, and save all."""
        tall, wide = tiles[0].pixels.shape[:2]
        rows = -(-len(tiles) // COLUMNS)
        columns = -(-len(tiles) // rows)
        pitch = max(wide, NARROWEST) + GAP
        above = TITLE + NOTE * any(tile.note for tile in tiles)
        row_height = above + tall + BAR + NOTE * any(tile.mark is not None for tile in tiles) + GAP
        width = columns * pitch + GAP
        self.figure.clear()
        head = self._flow(subject.parts(), width - 2 * GAP)
        top = GAP + LINE * (1 + len(head)) + NOTE // 2
        sheet = _Sheet(self.figure, width, top + rows * row_height + LINE)
        sheet.text(GAP, GAP, subject.name, width - 2 * GAP, fontsize=11, weight="bold")
        for number, line in enumerate(head):
            sheet.text(GAP, GAP + LINE * (1 + number), line, width - 2 * GAP)
        for number, tile in enumerate(tiles):
            row, column = divmod(number, columns)
            sheet.place(tile, GAP + column * pitch, top + row * row_height, above, pitch - GAP, curves)
        sheet.text(GAP, top + rows * row_height, foot, width - 2 * GAP, fontsize=8, color="0.3")
        sheet.save(path, reduced=len(tiles) > MANY)

    def _flow(self, parts: Sequence[str], width: int) -> list[str]:
        """The parts in as few lines as they fit in."""
        lines = [parts[0]]
        for part in parts[1:]:
            longer = f"{lines[-1]}  ·  {part}"
            if fitted(self.figure, longer, width, fontsize=FONT) == longer:
                lines[-1] = longer
            else:
                lines.append(part)
        return lines


class _Sheet:
    """A panel in the making: pixels on a canvas, and texts and outlines on a figure of its size.

    Places are in pixels from the left and from the top.
    """

    def __init__(self, figure: Figure, width: int, height: int) -> None:
        self.figure, self.canvas = figure, np.full((height, width, 4), 255, np.uint8)
        self.colormaps: dict[str, np.ndarray] = {}
        figure.set_size_inches(width / figure.dpi, height / figure.dpi)

    def text(self, left: float, top: float, text: str, width: float, fontsize: float = FONT, **options: Any) -> None:
        """One line of at most `width` pixels, from `left`, below `top`."""
        text = fitted(self.figure, text, width, fontsize=fontsize, weight=options.get("weight"))
        self._write(left, top, text, va="top", fontsize=fontsize, **options)

    def _write(self, left: float, top: float, text: str, **options: Any) -> None:
        height, width = self.canvas.shape[:2]
        self.figure.text(left / width, 1 - top / height, text, parse_math=False, **options)

    def place(self, tile: _Tile, left: int, top: int, above: int, width: int, curves: Mapping[str, Curve]) -> None:
        """A tile: its titles, `above` pixels below them the picture with outlines and words, then bar or legend."""
        self.text(left, top, tile.title, width)
        self.text(left, top + TITLE, tile.note, width, fontsize=8, color="0.3")
        top, (tall, wide) = top + above, tile.pixels.shape[:2]
        self.canvas[top : top + tall, left : left + wide, :3] = tile.pixels
        draw_outlines(self.figure, curves, Affine2D().scale(wide, -tall).translate(left, len(self.canvas) - top))
        if tile.words:
            room = max(wide, NARROWEST)
            lines = -(-len(tile.words) // (room // 6))
            words = textwrap.fill(tile.words, len(tile.words) // lines + 5)
            ground = {"facecolor": "black", "alpha": 0.75, "pad": 3, "edgecolor": "none"}
            middle, bottom = left + room / 2, top + tall - 8
            self._write(middle, bottom, words, ha="center", va="bottom", color="white", fontsize=8, bbox=ground)
        below = top + tall + 7
        if tile.scale is not None:
            self._bar(tile.scale, tile.mark, left, below, width)
        for name in tile.legend:
            words, colour = OUTLINES[name]
            self.canvas[below + 3 : below + 6, left : left + 16, :3] = np.array(to_rgb(colour)) * 255
            self.text(left + 21, below - 2, words, width / 2, fontsize=8)
            left += 72

    def _bar(self, scale: Scale, mark: float | None, left: int, top: int, width: int) -> None:
        """The colours of a scale with its ends, and below them a mark with its value."""
        ends = (f"-{scale.top:.2g}" if scale.signed else "0", f"{scale.top:.2g}")
        first, last = left + 7 * len(ends[0]) + 5, left + width - 7 * len(ends[1]) - 5
        colours = scale.colours(np.linspace(0, 1, last - first))[:, :3] * 255
        self.canvas[top : top + 9, first:last, :3] = colours.round()
        self.colormaps[scale.colours.name] = colours[:: max(1, len(colours) // 64)].round().astype(np.uint8)
        self._write(left, top + 4, ends[0], va="center_baseline", fontsize=8)
        self._write(left + width, top + 4, ends[1], ha="right", va="center_baseline", fontsize=8)
        if mark is not None:
            at = first + min(mark / scale.top, 1) * (last - first)
            to_the_right = at < (first + last) / 2
            self._write(at, top + 10, "▲", ha="center", va="top", fontsize=6)
            shift, align = (6, "left") if to_the_right else (-6, "right")
            self._write(at + shift, top + 11, f"{mark:.2g}", ha=align, va="top", fontsize=8)

    def save(self, path: Path, reduced: bool) -> None:
        """Save all that was placed; `reduced`: in a palette of its own colours."""
        self.figure.figimage(self.canvas, zorder=-1)
        self.figure.canvas.draw()
        pixels = np.ascontiguousarray(np.asarray(self.figure.canvas.buffer_rgba())[..., :3])
        drawn = Image.fromarray(pixels)
        if reduced:
            palette = Image.fromarray(self._sample(pixels)[None]).quantize(256, kmeans=3)
            drawn = drawn.quantize(palette=palette, dither=Image.Dither.NONE)
            colours, ground = drawn.getpalette(), 3 * drawn.getpixel((0, 0))
            colours[ground : ground + 3] = 255, 255, 255  # it had become nearly white, which looks grey on a page
            drawn.putpalette(colours)
        with atomic_write(path, "wb") as file:
            drawn.save(file, format="png")

    def _sample(self, pixels: np.ndarray) -> np.ndarray:
        """(n, 3) pixels that a palette is to be made of. Steps are seen where there is colour, not in a radiograph's
        grain, so coloured pixels count four times; and the bars, which are small, count as a share of the picture.
        """
        sample = pixels.reshape(-1, 3)[:: max(1, pixels.size // 100_000)]
        coloured = sample[np.ptp(sample.astype(int), axis=1) > 30]
        bars = [np.repeat(colours, len(sample) // 256, axis=0) for colours in self.colormaps.values()]
        return np.concatenate([sample, coloured, coloured, coloured, *bars])


def _small(radiograph: np.ndarray) -> np.ndarray:
    """The radiograph with its longer side at `SIDE` pixels."""
    height, width = radiograph.shape
    scale = SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(radiograph, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def _grey(radiograph: np.ndarray) -> np.ndarray:
    """(h, w) as (h, w, 3)."""
    return np.repeat(radiograph[..., None], 3, 2)
