"""Mean maps per class over a part: of one model, and of two beside each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from localization.drawing.overlay import COLORMAP, Scale, Square, blend, draw_bar, fitted, lay_back, new_figure
from utils import atomic_write

TILE = 2.6  # inches: a tile's side
GAP, HEAD, FOOT = 0.12, 0.45, 0.85  # inches: between tiles, above a tile for its title, below all for the colour bars
UNIT = "evidence, times that of a uniform map"


def draw_means(
    path: Path,
    pictures: dict[str, np.ndarray],
    maps: dict[str, np.ndarray],
    counts: dict[str, int],
    method: str,
    colormap: str = COLORMAP,
) -> None:
    """Save the mean map of each class over the mean radiograph of its images, all on one colour scale.

    Args:
        path: the picture to write.
        pictures: per class (side, side), the mean of the model's input pictures, in [0, 255].
        maps: per class (h, w), the mean of the maps, each divided by its own mean: 1 is what a uniform map has.
        counts: per class the number of maps.
        method: the method's title.
        colormap: a name of matplotlib's.
    """
    scale = Scale(max(float(cam.max()) for cam in maps.values()), colormap)
    tiles = [
        (name, f"{counts[name]} maps", blend(pictures[name], _spread(cam, pictures[name]), scale))
        for name, cam in maps.items()
    ]
    columns = min(4, len(tiles))
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    _save(path, rows, [(0, columns - 1, scale, f"{method}\n{UNIT}")])


def draw_differences(
    path: Path,
    pictures: dict[str, np.ndarray],
    maps_a: dict[str, np.ndarray],
    maps_b: dict[str, np.ndarray],
    counts: dict[str, tuple[int, int]],
    names: tuple[str, str],
    method: str,
    colormap: str = COLORMAP,
) -> None:
    """Save the mean maps of two models A and B per class, and A - B: one row per class, one scale for A and B.

    Args:
        path: the picture to write.
        pictures: per class (side, side), the mean of the input pictures, in [0, 255]; both models' squares were made
            with the same fit, whatever their sides.
        maps_a, maps_b: as `draw_means` takes them; where a class is missing, its row has no difference.
        counts: per class the numbers of A's and of B's maps.
        names: of A and of B.
        method: the method's title.
        colormap: of A and B, a name of matplotlib's.
    """
    spread = [{name: _spread(cam, pictures[name]) for name, cam in maps.items()} for maps in (maps_a, maps_b)]
    differences = {name: spread[0][name] - spread[1][name] for name in pictures if all(name in maps for maps in spread)}
    scale = Scale(max(float(cam.max()) for maps in (maps_a, maps_b) for cam in maps.values()), colormap)
    signed = Scale.of_differences(max((float(np.abs(found).max()) for found in differences.values()), default=0.0))
    rows = []
    for name, picture in pictures.items():
        nothing = np.zeros_like(picture)
        row = [
            (name, f"{letter}: {model}, {count} maps", blend(picture, maps.get(name, nothing), scale))
            for letter, model, count, maps in zip("AB", names, counts[name], spread, strict=True)
        ]
        words = "A - B" if name in differences else "A - B: one has no map"
        rows.append([*row, (name, words, blend(picture, differences.get(name, nothing), signed))])
    bars = [(0, 1, scale, f"{method}\n{UNIT}"), (2, 2, signed, "more in B  ←   A - B   →  more in A\n" + UNIT)]
    _save(path, rows, bars)


def _spread(cam: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """A map (h, w) over the whole picture (side, side)."""
    return lay_back(cam, *picture.shape, Square("squash", len(picture)))


def _save(
    path: Path,
    rows: list[list[tuple[str, str, np.ndarray]]],
    bars: list[tuple[int, int, Scale, str]],
) -> None:
    """Rows of tiles (two lines of title, (side, side, 3) uint8) above bars (first and last column, scale, label)."""
    width, height = len(rows[0]) * (TILE + GAP) + GAP, len(rows) * (HEAD + TILE) + FOOT
    figure = new_figure(width, height)
    for down, row in enumerate(rows):
        bottom = height - (down + 1) * (HEAD + TILE)
        for across, (*lines, picture) in enumerate(row):
            left = GAP + across * (TILE + GAP)
            ax = figure.add_axes((left / width, bottom / height, TILE / width, TILE / height))
            ax.imshow(picture)
            ax.set_axis_off()
            lines = [fitted(figure, line, TILE * figure.dpi, fontsize=9) for line in lines]
            ax.set_title("\n".join(lines), fontsize=9, parse_math=False)
    for first, last, scale, label in bars:
        left, length = GAP + first * (TILE + GAP), (last - first) * (TILE + GAP) + TILE
        draw_bar(
            figure.add_axes(((left + 0.15) / width, (FOOT - 0.25) / height, (length - 0.3) / width, 0.12 / height)),
            scale,
            label,
        )
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=figure.dpi)
