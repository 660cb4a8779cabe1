"""Mean maps per class over an image set: of one model, and of two side by side."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from localization.drawing.colours import COLORMAP, Scale, blend
from localization.drawing.figure import draw_bar, fitted, new_figure, save_png
from localization.drawing.geometry import Square, lay_back
from utils import count

TILE = 2.6  # inches: a tile's side
GAP, HEAD, FOOT = 0.12, 0.45, 0.85  # inches: between tiles, above a tile for its title, below all for the colour bars
UNIT = "evidence, times that of a uniform map"


class MeanMaps(NamedTuple):
    """Mean maps and mean images by class.

    Attributes:
        images: (side, side), the mean of the model's input images, in [0, 255].
        maps: (h, w), the mean of the maps, each divided by its own mean: a uniform map has 1 everywhere.
        counts: the number of maps.
    """

    images: dict[str, np.ndarray]
    maps: dict[str, np.ndarray]
    counts: dict[str, int]


class MeanAccumulator:
    """Sums maps and images by class."""

    def __init__(self) -> None:
        self._images: dict[str, np.ndarray] = {}
        self._maps: dict[str, np.ndarray] = {}
        self._counts: Counter[str] = Counter()

    def add(self, name: str, image: np.ndarray, cam: np.ndarray) -> None:
        """Add a map (h, w) of the class `name`, whatever its peak, and its image (side, side) uint8."""
        self._maps[name] = self._maps.get(name, 0) + cam / cam.mean(dtype=np.float64)
        self._images[name] = self._images.get(name, 0) + image.astype(np.float64)
        self._counts[name] += 1

    def means(self) -> MeanMaps:
        """Return the means by class, classes sorted."""
        counts = dict(sorted(self._counts.items()))
        return MeanMaps(
            {name: self._images[name] / number for name, number in counts.items()},
            {name: self._maps[name] / number for name, number in counts.items()},
            counts,
        )


class _Tile(NamedTuple):
    """Two lines of title, and (side, side, 3) uint8."""

    title: str
    subtitle: str
    pixels: np.ndarray


class _Bar(NamedTuple):
    """A colour bar below the columns `first` to `last`."""

    first: int
    last: int
    scale: Scale
    label: str


def draw_means(path: Path, means: MeanMaps, title: str, colormap: str = COLORMAP) -> None:
    """Save the mean map of each class over its mean image, all on one colour scale, as PNG.

    Args:
        title: the method's.
        colormap: a name of matplotlib's.
    """
    scale = Scale(max(float(cam.max()) for cam in means.maps.values()), colormap)
    tiles = [
        _Tile(
            name, count(means.counts[name], "map"), blend(means.images[name], _spread(cam, means.images[name]), scale)
        )
        for name, cam in means.maps.items()
    ]
    columns = min(4, len(tiles))
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    _save(path, rows, [_Bar(0, columns - 1, scale, f"{title}\n{UNIT}")])


def draw_differences(
    path: Path, pair: tuple[MeanMaps, MeanMaps], names: tuple[str, str], title: str, colormap: str = COLORMAP
) -> None:
    """Save the mean maps of two models A and B per class, and A - B: a row per class, one scale for A and B.

    Args:
        pair: of A and of B, whose squares were made with the same fit, whatever their sides. Where a class is missing
            in one, its row has no difference.
        names: of A and of B.
        title: the method's.
        colormap: of A and B, a name of matplotlib's.
    """
    images = pair[1].images | pair[0].images
    spread = [{name: _spread(cam, images[name]) for name, cam in means.maps.items()} for means in pair]
    differences = {name: spread[0][name] - spread[1][name] for name in images if all(name in maps for maps in spread)}
    scale = Scale(max(float(cam.max()) for means in pair for cam in means.maps.values()), colormap)
    signed = Scale.for_differences(max((float(np.abs(map_).max()) for map_ in differences.values()), default=0.0))
    rows = []
    for name, image in images.items():
        nothing = np.zeros_like(image)
        row = [
            _Tile(
                name,
                f"{letter}: {model}, {count(means.counts.get(name, 0), 'map')}",
                blend(image, maps.get(name, nothing), scale),
            )
            for letter, model, means, maps in zip("AB", names, pair, spread, strict=True)
        ]
        words = "A - B" if name in differences else "A - B: one has no map"
        rows.append([*row, _Tile(name, words, blend(image, differences.get(name, nothing), signed))])
    label = "more in B  ←   A - B   →  more in A\n" + UNIT
    _save(path, rows, [_Bar(0, 1, scale, f"{title}\n{UNIT}"), _Bar(2, 2, signed, label)])


def _spread(cam: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Enlarge a map (h, w) to the whole image (side, side)."""
    return lay_back(cam, *image.shape, Square("squash", len(image)))


def _save(path: Path, rows: list[list[_Tile]], bars: list[_Bar]) -> None:
    """Save rows of tiles above colour bars."""
    width, height = len(rows[0]) * (TILE + GAP) + GAP, len(rows) * (HEAD + TILE) + FOOT
    figure = new_figure(width, height)
    for down, row in enumerate(rows):
        bottom = height - (down + 1) * (HEAD + TILE)
        for across, tile in enumerate(row):
            left = GAP + across * (TILE + GAP)
            ax = figure.add_axes((left / width, bottom / height, TILE / width, TILE / height))
            ax.imshow(tile.pixels)
            ax.set_axis_off()
            lines = [fitted(figure, line, TILE * figure.dpi, fontsize=9) for line in (tile.title, tile.subtitle)]
            ax.set_title("\n".join(lines), fontsize=9, parse_math=False)
    for bar in bars:
        left, length = GAP + bar.first * (TILE + GAP), (bar.last - bar.first) * (TILE + GAP) + TILE
        place = ((left + 0.15) / width, (FOOT - 0.25) / height, (length - 0.3) / width, 0.12 / height)
        draw_bar(figure.add_axes(place), bar.scale, bar.label)
    save_png(figure, path)
