"""Mean maps per class over an image set: of one model, and of two side by side."""

from __future__ import annotations

from collections import Counter

import numpy as np
from matplotlib.figure import Figure

from localization.drawing.colours import COLORMAP, Scale, blend
from localization.drawing.geometry import Square, lay_back
from localization.drawing.panel import Comparison, draw_comparisons
from localization.drawing.sheet import Tile, draw_sheet, shrink
from utils import count

COLUMNS = 4  # most classes in a row


class MeanMaps:
    """Mean maps and mean images by class.

    Attributes:
        counts: the number of maps.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._images: dict[str, np.ndarray] = {}
        self._maps: dict[str, np.ndarray] = {}

    def add(self, name: str, image: np.ndarray, cam: np.ndarray) -> None:
        """Add a map (h, w) of the class `name`, whatever its peak, and its image (side, side) uint8."""
        self._maps[name] = self._maps.get(name, 0) + cam / cam.mean(dtype=np.float64)
        self._images[name] = self._images.get(name, 0) + image.astype(np.float64)
        self.counts[name] += 1

    def image(self, name: str) -> np.ndarray:
        """Return the mean of the model's input images of a class, in [0, 255], in the size of a sheet's images."""
        return shrink(self._images[name] / self.counts[name])

    def map(self, name: str) -> np.ndarray | None:
        """Return the mean of the maps of a class over its image, each divided by its own mean; None without any."""
        if name not in self.counts:
            return None
        side, image = len(self._images[name]), self.image(name)
        return lay_back(self._maps[name] / self.counts[name], side, side, Square("squash", side), image.shape)


def draw_means(means: MeanMaps, title: str, colormap: str = COLORMAP) -> Figure:
    """Return the figure of the mean map of each class over its mean image, all on one colour scale.

    Args:
        title: the method's.
        colormap: a name of matplotlib's.
    """
    maps = {name: means.map(name) for name in sorted(means.counts)}
    scale = Scale(max(float(map_.max()) for map_ in maps.values()), colormap)
    tiles = [
        Tile(
            title=name,
            note=count(means.counts[name], "map"),
            pixels=blend(means.image(name), map_, scale),
            scale=scale,
        )
        for name, map_ in maps.items()
    ]
    foot = "Evidence, times that of a uniform map"
    return draw_sheet([f"{title}: mean maps"], tiles, foot, min(COLUMNS, len(tiles)))


def draw_differences(
    pair: tuple[MeanMaps, MeanMaps], names: tuple[str, str], title: str, colormap: str = COLORMAP
) -> Figure:
    """Return the figure of the mean maps of two models A and B per class, and A - B: a row per class.

    Args:
        pair: of A and of B, whose squares were made with the same fit, whatever their sides. Where a class is missing
            in one, its row has no difference.
        names: of A and of B.
        title: the method's.
        colormap: of A and B, a name of matplotlib's.
    """
    rows = [
        Comparison(
            title=name,
            pixels=next(means for means in pair if name in means.counts).image(name),
            maps=tuple(means.map(name) for means in pair),
            notes=tuple(count(means.counts[name], "map") for means in pair),
        )
        for name in sorted({*pair[0].counts, *pair[1].counts})
    ]
    return draw_comparisons([f"{title}: mean maps"], names, rows, colormap)
