"""Sheets of maps: the methods on one image, mean maps per class, and two models beside their difference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.path import Path as Curve

from localization.drawing.colours import COLORMAP, Scale, blend
from localization.drawing.geometry import Square, lay_back, outline
from localization.drawing.overlay import ImageWithMasks, MapEntry
from localization.drawing.sheet import Tile, draw_sheet, shrink
from utils import count

COLUMNS = 5  # most images in a row
PARTS = slice(0, 2), slice(2, 3)  # of a comparison: A and B, A - B


def draw_panel(
    image: ImageWithMasks,
    entries: Sequence[MapEntry],
    head: Sequence[str],
    square: Square,
    colormap: str = COLORMAP,
    rescaled: bool = False,
) -> Figure:
    """Return the figure of one image and beside it each method's map over it.

    Args:
        entries: one per method.
        head: lines above them.
        square: how the image became the model's input.
        colormap: a name of matplotlib's.
        rescaled: whether the maps are means of several layers', each divided by its peak.
    """
    small = shrink(image.pixels)
    tiles = [Tile(title="Image", pixels=small)]
    for entry in entries:
        tile = Tile(title=entry.title, pixels=small, note=entry.note, caption=entry.state.caption)
        if entry.state.scored:
            tile.scale, tile.mark = entry.scale(colormap)
            tile.pixels = blend(small, lay_back(entry.cam, *image.pixels.shape, square, small.shape), tile.scale)
        tiles.append(tile)
    rows = -(-len(tiles) // COLUMNS)
    foot = "Means of several layers, each divided by its peak. " if rescaled else "Maps are not rescaled. "
    foot += "Colours run from 0 to the number on the right."
    return draw_sheet(head, tiles, foot, -(-len(tiles) // rows), outline(image.masks, *image.pixels.shape, square))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Maps of two models A and B over one image.

    Attributes:
        title: the image's.
        pixels: (h, w), the image, values in [0, 255].
        maps: (h, w) of A and of B, in multiples of a uniform map; None: no map.
        notes: of A's and of B's tile.
    """

    title: str
    pixels: np.ndarray
    maps: tuple[np.ndarray | None, np.ndarray | None]
    notes: tuple[str, str] = ("", "")


def draw_comparisons(
    head: Sequence[str],
    names: tuple[str, str],
    comparisons: Sequence[Comparison],
    colormap: str = COLORMAP,
    curves: Mapping[str, Curve] | None = None,
) -> Figure:
    """Return the figure of comparisons: a row each of the image, A, B and A - B; A and B have one scale in all rows.

    Args:
        names: of A and of B.
        colormap: of A and B, a name of matplotlib's.
        curves: outlines on every image.
    """
    maps = [(a, b, None if a is None or b is None else a - b) for a, b in (row.maps for row in comparisons)]
    tops = [[np.abs(map_).max() for three in maps for map_ in three[part] if map_ is not None] for part in PARTS]
    scale = Scale(float(max(tops[0], default=1)), colormap)
    signed = Scale.for_differences(float(max(tops[1], default=0)))
    titles = (f"A: {names[0]}", f"B: {names[1]}", "A - B")
    tiles = []
    for row, three in zip(comparisons, maps, strict=True):
        grey = row.pixels.round().astype(np.uint8)
        notes = (*row.notes, "no difference: a map is missing" if three[2] is None else "")
        tiles.append(Tile(title=row.title, pixels=grey))
        for title, note, map_, colours in zip(titles, notes, three, (scale, scale, signed), strict=True):
            shown = {} if map_ is None else {"pixels": blend(row.pixels, map_, colours), "scale": colours}
            tiles.append(Tile(**{"title": title, "note": note, "pixels": grey, **shown}))
    foot = "In multiples of each map's mean: a uniform map has 1 everywhere. Pink: more in A; green: more in B."
    return draw_sheet(head, tiles, foot, 4, curves)


def draw_pair(
    image: ImageWithMasks,
    pair: tuple[MapEntry, MapEntry],
    squares: tuple[Square, Square],
    head: list[str],
    colormap: str,
) -> Figure:
    """Return the figure of the maps of two models A and B of one image, and A - B.

    Each map is divided by its own mean over the image: what is compared is where two models look, not how large their
    gradients are. A and B have one scale, from 0 to the higher peak; their entries' own `peak` is not used.

    Args:
        image: its masks are over A's square.
        pair: of A and of B; titles are the models' names.
        squares: how the image became A's and B's input.
    """
    small, shape = shrink(image.pixels), image.pixels.shape
    maps, notes = [], []
    for entry, square in zip(pair, squares, strict=True):
        heat = lay_back(entry.cam, *shape, square, small.shape) if entry.state.scored else np.zeros(1)
        maps.append(heat / heat.mean(dtype=np.float64) if heat.any() else None)
        notes.append(entry.state.caption or ("" if heat.any() else "all of it is outside the image"))
    comparison = Comparison(title="Image", pixels=small, maps=tuple(maps), notes=tuple(notes))
    names = tuple(entry.title for entry in pair)
    return draw_comparisons(head, names, [comparison], colormap, outline(image.masks, *shape, squares[0]))


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
    tiles = []
    for name, map_ in maps.items():
        pixels, note = blend(means.image(name), map_, scale), count(means.counts[name], "map")
        tiles.append(Tile(title=name, note=note, pixels=pixels, scale=scale))
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
    rows = []
    for name in sorted({*pair[0].counts, *pair[1].counts}):
        pixels = next(means for means in pair if name in means.counts).image(name)
        maps, notes = zip(*((means.map(name), count(means.counts[name], "map")) for means in pair), strict=True)
        rows.append(Comparison(title=name, pixels=pixels, maps=maps, notes=notes))
    return draw_comparisons([f"{title}: mean maps"], names, rows, colormap)
