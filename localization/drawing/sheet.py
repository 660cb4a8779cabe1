"""A sheet of tiles in a grid, with text and colour bars, and the parts that it shares with overlays.

Images and bars are placed as pixels, without axes: those of sixteen tiles would take several times as long.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Curve
from matplotlib.transforms import Affine2D, Transform

from localization.drawing.colours import Scale
from utils import atomic_write, elide

OUTLINES = {"lung_mask": ("lungs", "deepskyblue"), "lesion_mask": ("lesion", "orange")}  # as in the contact sheet
CAPTION = {"ha": "center", "va": "bottom", "color": "white"}
CAPTION["bbox"] = {"facecolor": "black", "alpha": 0.75, "pad": 4, "edgecolor": "none"}
DPI = 100
# In pixels of a sheet:
SIDE = 224  # an image's longer side
NARROWEST = 170  # a column, for its text
GAP = 14  # around tiles
LINE = 19  # height of a line of the head
TITLE, NOTE, BAR, BELOW = 20, 16, 9, 32  # heights of a tile's title, note and bar, and of the bar with its numbers


@dataclass(kw_only=True)
class Tile:
    """One image of a sheet.

    Attributes:
        pixels: (h, w) or (h, w, 3) uint8.
        note: a smaller line under the title.
        caption: words over the image.
        scale: of the bar below the image; None: no bar.
        mark: a value marked on the bar: the map's own peak.
    """

    title: str
    pixels: np.ndarray
    note: str = ""
    caption: str = ""
    scale: Scale | None = None
    mark: float | None = None


def shrink(image: np.ndarray) -> np.ndarray:
    """Return the image (height, width) with its longer side at `SIDE` pixels."""
    height, width = image.shape
    scale = SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def draw_sheet(
    head: Sequence[str], tiles: Sequence[Tile], foot: str, columns: int, curves: Mapping[str, Curve] | None = None
) -> Figure:
    """Return a figure of tiles between head and foot; a line that is too long loses its middle.

    Args:
        head: lines, the first one in bold.
        tiles: with images of one size.
        curves: outlines on every image, by name of `OUTLINES`.
    """
    tall, wide = tiles[0].pixels.shape[:2]
    room = max(wide, NARROWEST)
    above = TITLE + NOTE * any(tile.note for tile in tiles)
    top, row_height = GAP + LINE * len(head), above + tall + BELOW + GAP
    width = columns * (room + GAP) + GAP
    height = top + -(-len(tiles) // columns) * row_height + LINE
    figure = new_figure(width / DPI, height / DPI)

    def write(left: float, below: float, text: str, room: float, size: float = 8, **options: Any) -> None:
        shown = fitted(figure, text, room, fontsize=size, weight=options.get("weight"))
        options = {"va": "top", "fontsize": size, "parse_math": False} | options
        figure.text(left / width, 1 - below / height, shown, **options)

    for number, line in enumerate(head):
        write(GAP, GAP / 2 + LINE * number, line, width - 2 * GAP, 10, weight="normal" if number else "bold")
    for number, tile in enumerate(tiles):
        left, y = GAP + number % columns * (room + GAP), top + number // columns * row_height
        write(left, y, tile.title, room, 10)
        write(left, y + LINE, tile.note, room, color="0.3")
        image, under = y + above, y + above + tall
        figure.figimage(tile.pixels, left, height - under, cmap="gray", vmin=0, vmax=255, origin="upper")
        place = Affine2D().scale(wide, -tall).translate(left, height - image)
        draw_outlines(figure, curves or {}, place)
        if tile.caption:
            middle, bottom = (left + room / 2) / width, 1 - (under - 8) / height
            figure.text(middle, bottom, textwrap.fill(tile.caption, room // 6), fontsize=8, **CAPTION)
        if tile.scale is not None:
            figure.figimage(_bar(tile, room), left, height - under - 6 - BAR, origin="upper")
            least = -tile.scale.top if tile.scale.signed else 0
            write(left, under + 17, f"{least:.2g}", room)
            write(left + room, under + 17, f"{tile.scale.top:.2g}", room, ha="right")
            if tile.mark is not None:
                write(left + room / 2, under + 17, f"peak {tile.mark:.2g}", room, ha="center")
    write(GAP, height - LINE, foot, width - 2 * GAP, color="0.3")
    anchor = GAP / width, 1 - (top + above + tall + 6) / height
    draw_legend(figure, curves or {}, loc="upper left", bbox_to_anchor=anchor, ncols=2)
    return figure


def _bar(tile: Tile, width: int) -> np.ndarray:
    """Return the colours of a tile's scale, with a black line at its mark: (height, width, 3) in [0, 1]."""
    bar = np.repeat(tile.scale.colours(np.linspace(0, 1, width))[None, :, :3], BAR, 0)
    if tile.mark is not None:
        at = round(min(tile.mark / tile.scale.top, 1) * (width - 3))
        bar[:, at : at + 3] = 1
        bar[:, at + 1] = 0
    return bar


def new_figure(width: float, height: float) -> Figure:
    """Return a figure of that many inches, at 100 pixels per inch, that can measure its text."""
    return FigureCanvasAgg(Figure(figsize=(width, height), dpi=DPI)).figure


def save_png(figure: Figure, path: Path, **options: Any) -> None:
    """Save a figure as PNG, atomically, one pixel per pixel of the figure."""
    with atomic_write(path, "wb") as file:
        # Compression level 2 takes a third of the default's time.
        figure.savefig(file, format="png", dpi=figure.dpi, pil_kwargs={"compress_level": 2}, **options)


def fitted(figure: Figure, text: str, width: float, **font: Any) -> str:
    """Return the text, without its middle if it is more than `width` pixels wide on the figure."""
    artist, shown, kept = figure.text(0, 0, text, parse_math=False, **font), text, len(text)
    while kept > 2 and (wide := artist.get_window_extent(figure.canvas.get_renderer()).width) > width:
        kept = max(2, min(kept - 1, int(kept * width / wide)))
        shown = elide(text, kept + 1)
        artist.set_text(shown)
    artist.remove()
    return shown


def draw_outlines(figure: Figure, curves: Mapping[str, Curve], place: Transform) -> None:
    """Draw outlines of the unit square where `place` maps it, with a dark edge: orange on orange would be invisible."""
    for name, curve in curves.items():
        for colour, points in (("black", 1.9), (OUTLINES[name][1], 1.0)):
            line = PathPatch(curve, fill=False, edgecolor=colour, linewidth=points, transform=place)
            line.set_clip_path(Curve.unit_rectangle(), place)  # nothing is outlined over a letterbox's padding
            figure.add_artist(line)


def draw_legend(figure: Figure, names: Iterable[str], **where: Any) -> None:
    """Explain the colours of these outlines, if there are any; `where` as `Figure.legend` takes it."""
    lines = [Line2D([], [], color=OUTLINES[name][1], linewidth=2.5, label=OUTLINES[name][0]) for name in names]
    if lines:
        figure.legend(handles=lines, frameon=False, fontsize=9, handlelength=1.2, borderaxespad=0, **where)
