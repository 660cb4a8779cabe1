"""An overlay: one map over its image, in the image's own geometry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.transforms import Affine2D

from localization.drawing.colours import COLORMAP, Scale, blend
from localization.drawing.geometry import Square, lay_back, outline
from localization.drawing.sheet import CAPTION, draw_legend, draw_outlines, fitted, new_figure, save_png
from localization.states import MapState

BOX_KEY = "Radiograph"  # the PNG text chunk with left, top, right, bottom of the image in the overlay, in pixels
LONGEST_SIDE = 1024  # pixels of an overlay's image: larger images are drawn smaller


@dataclass(frozen=True)
class ImageWithMasks:
    """An image, (height, width) uint8, and its masks by name of `OUTLINES`, (side, side) over the model's square."""

    pixels: np.ndarray
    masks: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class MapEntry:
    """One map of an image.

    Attributes:
        title: the method's, or the model's.
        cam: (h, w) float32 over the model's square, on its own grid, not rescaled.
        state: a map that is not scored has no colours; any state but `ok` has a caption.
        peak: the value with the brightest colour, > 0; None: the map's own peak. A map far below it looks weak.
        note: a smaller line under the title in a panel.
    """

    title: str
    cam: np.ndarray
    state: MapState
    peak: float | None = None
    note: str = ""

    def scale(self, colormap: str) -> tuple[Scale, float | None]:
        """Return the scale of the map's colours, and the map's own peak if that is not the top of the scale."""
        own_peak = float(self.cam.max())
        top = own_peak if self.peak is None else self.peak
        return Scale(top, colormap), None if top == own_peak else own_peak


def draw_overlay(
    path: Path, image: ImageWithMasks, entry: MapEntry, title: str, square: Square, colormap: str = COLORMAP
) -> Figure:
    """Save one overlay as PNG, with the image's box in a text chunk (`BOX_KEY`), and return its figure.

    Args:
        entry: its `title` labels the colour bar.
        title: class, probability and the like; a line that is too long loses its middle.
        square: how the image became the model's input.
        colormap: a name of matplotlib's.
    """
    figure = new_figure(6.4, 5.7)  # fixed places: a layout engine would draw everything twice to find them
    pixels = image.pixels
    full, shrink = pixels.shape, min(1.0, LONGEST_SIDE / max(pixels.shape))
    size = tuple(max(1, round(edge * shrink)) for edge in full)
    if shrink < 1:
        pixels = cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_AREA)
    ax = figure.add_axes((0.01, 0.01, 0.8, 0.89))
    if entry.state.scored:
        scale, mark = entry.scale(colormap)
        ax.imshow(blend(pixels, lay_back(entry.cam, *full, square, size), scale))
        _draw_bar(figure.add_axes((0.85, 0.14, 0.03, 0.7)), scale, entry.title, mark)
    else:
        ax.imshow(pixels, cmap="gray", vmin=0, vmax=255)
    if entry.state.caption:
        ax.text(0.5, 0.03, entry.state.caption, transform=ax.transAxes, fontsize=11, **CAPTION)
    lines = [fitted(figure, line, 0.8 * figure.bbox.width, fontsize=10) for line in title.split("\n")]
    ax.set_title("\n".join(lines), fontsize=10, parse_math=False)  # file names may hold dollar signs
    ax.set_axis_off()
    ax.apply_aspect()
    curves = outline(image.masks, *full, square)
    draw_outlines(figure, curves, Affine2D().scale(*size[::-1]).translate(-0.5, -0.5) + ax.transData)
    draw_legend(figure, curves, loc="lower left", bbox_to_anchor=(0.83, 0.015))
    place, bottom = ax.get_window_extent(), figure.bbox.height
    box = (place.x0, bottom - place.y1, place.x1, bottom - place.y0)
    save_png(figure, path, metadata={BOX_KEY: ",".join(str(round(edge)) for edge in box)})
    return figure


def _draw_bar(ax: Axes, scale: Scale, label: str, mark: float | None) -> None:
    """Fill `ax` with the colours of the scale and their values; `mark` points at a map's own peak and names it."""
    bar = ax.figure.colorbar(ScalarMappable(Normalize(0, scale.top), scale.colormap), cax=ax)
    if mark is not None:
        ax.plot([0], [min(mark, scale.top)], ">", color="black", markersize=6, clip_on=False)
        label += f"; this map's peak: {mark:.2g}"
    bar.set_label(label, fontsize=9, parse_math=False)
    ax.tick_params(labelsize=8)
