"""Geometry of a model's square on the original image: maps laid back over it, and outlines of masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.path import Path as Curve

from dataset.readers import letterbox_frame


class Square(NamedTuple):
    """The square that images become as a model's input: the fit, `squash` or `letterbox`, and the side in pixels."""

    fit: str
    side: int

    def frame(self, height: int, width: int) -> tuple[float, float, float, float]:
        """Return where a (height, width) image lies in the square: (top, left, height, width) as shares of its side.

        `letterbox_frame` rounds to whole pixels of the square, so the scale down differs a little from that across.
        """
        if self.fit == "squash":
            return 0.0, 0.0, 1.0, 1.0
        top, left, tall, wide = letterbox_frame(height, width, self.side)
        return top / self.side, left / self.side, tall / self.side, wide / self.side


def lay_back(
    cam: np.ndarray, height: int, width: int, square: Square, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Return a finite map (h, w) over a model's square as (height, width) float32 over the original image.

    Row i of the map covers the shares i/h to (i + 1)/h of the square, whatever the grid; row y of the image has its
    centre at the share (y + 0.5)/height of the image's `Square.frame`. So on a squashed image a cell's centre
    (i + 0.5)/h becomes (i + 0.5)/h · height, exactly. Between the centres of cells the map is linear, beyond the
    outermost ones constant; cells smaller than pixels are averaged. What lies over a letterbox's padding is left out.

    Args:
        size: (rows, columns) of the result if the image is shown larger or smaller than it is.
    """
    top, left, tall, wide = square.frame(height, width)
    rows, columns = size or (height, width)
    return _weights(rows, cam.shape[0], top, tall) @ cam @ _weights(columns, cam.shape[1], left, wide).T


def _weights(pixels: int, cells: int, start: float, length: float) -> np.ndarray:
    """Return (pixels, cells): the weight of each cell in a pixel, along one side; every pixel's weights sum to 1."""
    centres = (start + (np.arange(pixels) + 0.5) / pixels * length) * cells - 0.5
    reach = max(1.0, length * cells / pixels)
    weights = np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(cells)) / reach)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def outline(masks: Mapping[str, np.ndarray], height: int, width: int, square: Square) -> dict[str, Curve]:
    """Return the outlines of masks (side, side) of 0 and 1 over the square, by name, on the original image.

    x and y run from 0 (left, top) to 1 (right, bottom). Empty masks have no outline.
    """
    top, left, tall, wide = square.frame(height, width)
    curves = {}
    for name, mask in masks.items():
        if mask.any():
            (curve,) = Figure().add_axes((0, 0, 1, 1)).contour(mask.astype(np.float32), [0.5]).get_paths()
            places = (curve.vertices + 0.5) / mask.shape[::-1]
            curves[name] = Curve((places - (left, top)) / (wide, tall), curve.codes)
    return curves
