"""A panel: one image, and beside it each method's map over it, or the maps of two models and their difference."""

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
SAMPLING = 113  # every so many pixels make the palette; a prime, so that columns do not line up
# In pixels of the panel:
SIDE = 224  # an image's longer side
NARROWEST = 170  # a column, for its text
GAP = 14  # between tiles
LINE, TITLE, NOTE, BAR = 19, 19, 14, 20  # heights of a line of the head, of a tile's title, its note and its bar
FONT = 10  # points
SMALL = {"fontsize": 8, "color": "0.3"}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The head of a panel; empty fields are left out.

    Attributes:
        name: the image's file.
        target: the class explained, with its `probability`.
        label: the true class.
        predicted: the predicted class.
    """

    name: str
    target: str
    probability: float | None = None
    label: str = ""
    predicted: str = ""

    def phrases(self) -> list[str]:
        """Return the phrases under the name."""
        probability = "" if self.probability is None else f" (probability {self.probability:.2f})"
        classes = (("true class", self.label), ("predicted", self.predicted))
        return [f"evidence for {self.target}{probability}", *(f"{words} {name}" for words, name in classes if name)]


@dataclass(kw_only=True)
class _Tile:
    """One image of the panel.

    Attributes:
        pixels: (h, w, 3) uint8.
        note: a smaller line under the title.
        caption: words over the image.
        scale: of the bar below the image; None: no bar.
        mark: a value that is marked on the bar.
        legend: names of the outlines that are explained below the image.
    """

    title: str
    pixels: np.ndarray
    note: str = ""
    caption: str = ""
    scale: Scale | None = None
    mark: float | None = None
    legend: Sequence[str] = ()


class PanelDrawer:
    """Draws panels one after another on one figure.

    Images and bars are laid out as pixels, and matplotlib adds text and outlines: axes and a colour bar for each of
    sixteen tiles would take several times as long.

    Args:
        square: how the images became the model's input.
        colormap: a name of matplotlib's.
    """

    def __init__(self, square: Square, colormap: str = COLORMAP) -> None:
        self.square, self.colormap = square, colormap
        self.figure = new_figure(1, 1)

    def draw(
        self, path: Path, image: ImageWithMasks, entries: Sequence[MapEntry], subject: Subject, rescaled: bool = False
    ) -> None:
        """Save the panel of one image as PNG; the image's longer side becomes `SIDE` pixels.

        Args:
            entries: one per method.
            rescaled: whether the maps are means of several layers', each divided by its peak.
        """
        small, tiles = _shrink(image.pixels), []
        for entry in entries:
            tile = _Tile(title=entry.title, pixels=_grey(small), note=entry.note, caption=entry.state.caption)
            if entry.state.scored:
                tile.scale, tile.mark = entry.scale(self.colormap)
                heat = lay_back(entry.cam, *image.pixels.shape, self.square, small.shape)
                tile.pixels = blend(small, heat, tile.scale)
            tiles.append(tile)
        shared = any(tile.mark is not None for tile in tiles)
        foot = "Means of several layers, each divided by its peak. " if rescaled else "Maps are not rescaled. "
        foot += "Colours run from 0 to "
        foot += "the top of a shared scale; the mark shows a map's own peak." if shared else "each map's peak."
        self._save(path, subject, image, tiles, foot)

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
        small, maps = _shrink(image.pixels), {}
        for letter, entry, square in zip("AB", pair, squares, strict=True):
            if entry.state.scored:
                heat = lay_back(entry.cam, *image.pixels.shape, square, small.shape)
                maps |= {letter: heat / heat.mean(dtype=np.float64)} if heat.any() else {}
        scale = Scale(max((float(heat.max()) for heat in maps.values()), default=1.0), self.colormap)
        tiles = []
        for letter, entry in zip("AB", pair, strict=True):
            tile = _Tile(title=f"{letter}: {entry.title}", pixels=_grey(small), caption=entry.state.caption)
            if letter in maps:
                tile.pixels, tile.scale = blend(small, maps[letter], scale), scale
            else:
                tile.caption = tile.caption or "all of it is outside the image"
            tiles.append(tile)
        difference = _Tile(title="A - B", pixels=_grey(small), caption="no difference: a map is missing")
        if len(maps) == 2:
            values = maps["A"] - maps["B"]
            signed = Scale.for_differences(float(np.abs(values).max()))
            difference = _Tile(title="A - B", pixels=blend(small, values, signed), scale=signed)
        foot = "In multiples of each map's mean: a uniform map has 1 everywhere. Pink: more in A; green: more in B."
        self._save(path, subject, image, [*tiles, difference], foot)

    def _save(self, path: Path, subject: Subject, image: ImageWithMasks, tiles: Sequence[_Tile], foot: str) -> None:
        """Lay out the image and the tiles between head and foot, with the outlines of its masks, and save the panel."""
        curves = outline(image.masks, *image.pixels.shape, self.square)
        tiles = [_Tile(title="Image", pixels=_grey(_shrink(image.pixels)), legend=list(curves)), *tiles]
        tall, wide = tiles[0].pixels.shape[:2]
        rows = -(-len(tiles) // COLUMNS)
        columns = -(-len(tiles) // rows)
        pitch = max(wide, NARROWEST) + GAP
        above = TITLE + NOTE * any(tile.note for tile in tiles)
        row_height = above + tall + BAR + NOTE * any(tile.mark is not None for tile in tiles) + GAP
        width = columns * pitch + GAP
        self.figure.clear()
        head = self._flow(subject.phrases(), width - 2 * GAP)
        top = GAP + LINE * (1 + len(head)) + NOTE // 2
        sheet = _Sheet(self.figure, width, top + rows * row_height + LINE)
        sheet.text(GAP, GAP, subject.name, width - 2 * GAP, fontsize=11, weight="bold")
        for number, line in enumerate(head):
            sheet.text(GAP, GAP + LINE * (1 + number), line, width - 2 * GAP)
        for number, tile in enumerate(tiles):
            row, column = divmod(number, columns)
            left, below_head = GAP + column * pitch, top + row * row_height
            sheet.text(left, below_head, tile.title, pitch - GAP)
            sheet.text(left, below_head + TITLE, tile.note, pitch - GAP, **SMALL)
            sheet.place(tile, left, below_head + above, pitch - GAP, curves)
        sheet.text(GAP, top + rows * row_height, foot, width - 2 * GAP, **SMALL)
        sheet.save(path, reduced=len(tiles) > MANY)

    def _flow(self, phrases: Sequence[str], width: int) -> list[str]:
        """Return the phrases in as few lines as they fit into."""
        lines = [phrases[0]]
        for phrase in phrases[1:]:
            longer = f"{lines[-1]}  ·  {phrase}"
            if fitted(self.figure, longer, width, fontsize=FONT) == longer:
                lines[-1] = longer
            else:
                lines.append(phrase)
        return lines


class _Sheet:
    """A panel in the making: pixels on a canvas, and text and outlines on a figure of its size.

    Positions are in pixels from the left and from the top.
    """

    def __init__(self, figure: Figure, width: int, height: int) -> None:
        self.figure, self.canvas = figure, np.full((height, width, 4), 255, np.uint8)
        figure.set_size_inches(width / figure.dpi, height / figure.dpi)

    def text(self, left: float, top: float, text: str, width: float, fontsize: float = FONT, **options: Any) -> None:
        """Write one line of at most `width` pixels, from `left`, below `top`."""
        shown = fitted(self.figure, text, width, fontsize=fontsize, weight=options.get("weight"))
        self._write(left, top, shown, va="top", fontsize=fontsize, **options)

    def _write(self, left: float, top: float, text: str, **options: Any) -> None:
        height, width = self.canvas.shape[:2]
        self.figure.text(left / width, 1 - top / height, text, parse_math=False, **options)

    def place(self, tile: _Tile, left: int, top: int, width: int, curves: Mapping[str, Curve]) -> None:
        """Draw a tile's image with outlines and caption, and below it the bar or the legend."""
        tall, wide = tile.pixels.shape[:2]
        self.canvas[top : top + tall, left : left + wide, :3] = tile.pixels
        draw_outlines(self.figure, curves, Affine2D().scale(wide, -tall).translate(left, len(self.canvas) - top))
        if tile.caption:
            room = max(wide, NARROWEST)
            lines = -(-len(tile.caption) // (room // 6))
            words = textwrap.fill(tile.caption, len(tile.caption) // lines + 5)
            ground = {"facecolor": "black", "alpha": 0.75, "pad": 3, "edgecolor": "none"}
            middle, bottom = left + room / 2, top + tall - 8
            self._write(middle, bottom, words, ha="center", va="bottom", color="white", fontsize=8, bbox=ground)
        below = top + tall + 7
        if tile.scale is not None:
            self._bar(tile.scale, tile.mark, left, below, width)
        for number, name in enumerate(tile.legend):
            (words, colour), at = OUTLINES[name], left + 72 * number
            self.canvas[below + 3 : below + 6, at : at + 16, :3] = np.array(to_rgb(colour)) * 255
            self.text(at + 21, below - 2, words, width / 2, fontsize=8)

    def _bar(self, scale: Scale, mark: float | None, left: int, top: int, width: int) -> None:
        """Draw the colours of a scale between its ends, and below them a mark with its value."""
        ends = (f"-{scale.top:.2g}" if scale.signed else "0", f"{scale.top:.2g}")
        first, last = left + 7 * len(ends[0]) + 5, left + width - 7 * len(ends[1]) - 5
        colours = scale.colours(np.linspace(0, 1, last - first))[:, :3] * 255
        self.canvas[top : top + 9, first:last, :3] = colours.round()
        self._write(left, top + 4, ends[0], va="center_baseline", fontsize=8)
        self._write(left + width, top + 4, ends[1], ha="right", va="center_baseline", fontsize=8)
        if mark is not None:
            at = first + min(mark / scale.top, 1) * (last - first)
            shift, align = (6, "left") if at < (first + last) / 2 else (-6, "right")
            self._write(at, top + 10, "▲", ha="center", va="top", fontsize=6)
            self._write(at + shift, top + 11, f"{mark:.2g}", ha=align, va="top", fontsize=8)

    def save(self, path: Path, reduced: bool) -> None:
        """Save the panel as PNG; `reduced`: in a palette of 256 colours."""
        self.figure.figimage(self.canvas, zorder=-1)
        self.figure.canvas.draw()
        pixels = np.ascontiguousarray(np.asarray(self.figure.canvas.buffer_rgba())[..., :3])
        panel = Image.fromarray(pixels)
        if reduced:
            sample = Image.fromarray(np.ascontiguousarray(pixels.reshape(1, -1, 3)[:, ::SAMPLING]))
            palette = sample.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3)
            panel = panel.quantize(palette=palette, dither=Image.Dither.NONE)
            colours, ground = panel.getpalette(), 3 * panel.getpixel((0, 0))
            panel.putpalette([*colours[:ground], 255, 255, 255, *colours[ground + 3 :]])  # else it is nearly white
        with atomic_write(path, "wb") as file:
            panel.save(file, format="png")


def _shrink(image: np.ndarray) -> np.ndarray:
    """Return the image (height, width) with its longer side at `SIDE` pixels."""
    height, width = image.shape
    scale = SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def _grey(image: np.ndarray) -> np.ndarray:
    """Return (h, w) as (h, w, 3)."""
    return np.repeat(image[..., None], 3, 2)
