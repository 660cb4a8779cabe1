"""The same images under two models: differences of maps and of mean maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from localization.drawing.geometry import Square, lay_back, outline
from localization.drawing.maps import DrawnMaps, read_with_masks
from localization.drawing.means import draw_differences
from localization.drawing.overlay import ImageWithMasks, MapEntry
from localization.drawing.panel import Comparison, draw_comparisons
from localization.drawing.sheet import save_png, shrink
from localization.methods.table import METHODS
from utils import count, log


def draw_pairs(folder: Path, pair: tuple[DrawnMaps, DrawnMaps], colormap: str) -> None:
    """Draw the two maps and their difference for each image and method that both models have, and those of the means.

    Images for which the models explain different classes are left out and counted in a log line; the means are per
    class in any case.
    """
    first, second = pair
    others = {(row.path, row.method): row for row in second.rows}
    both = [(row, others[key]) for row in first.rows if (key := (row.path, row.method)) in others]
    same = [(a, b) for a, b in both if a.target == b.target]
    index = {path: i for i, path in enumerate(first.images.records["path"])}
    for a, b in tqdm(same, desc="differences", unit="image", leave=False):
        entries = tuple(
            MapEntry(title=drawn.name, cam=drawn.maps[row.path, row.method], state=row.state)
            for drawn, row in zip(pair, (a, b), strict=True)
        )
        head = [f"{Path(a.path).name}: {METHODS[a.method].title}", f"evidence for {a.target}"]
        head += [f"true class {a.label}"] if a.label else []
        image = read_with_masks(first.images, index[a.path])
        figure = draw_pair(image, entries, (first.square, second.square), head, colormap)
        save_png(figure, folder / a.file.replace(f"__{a.method}__", f"__{a.method}__difference__"))
    log.info(
        f"compared: {len(same)} of {count(len(both), 'map')}; the others explain different classes in the two models"
    )
    if first.square.fit != second.square.fit:
        log.warning(f"{first.name} and {second.name}: different fits (squash, letterbox); no differences of means")
        return
    for method in (method for method in first.means if method in second.means):
        means = first.means[method], second.means[method]
        if any(mean.counts for mean in means):
            figure = draw_differences(means, (first.name, second.name), METHODS[method].title, colormap)
            save_png(figure, folder / f"difference_{method}.png")


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
    maps: list[np.ndarray | None] = []
    captions = []
    for entry, square in zip(pair, squares, strict=True):
        heat = lay_back(entry.cam, *shape, square, small.shape) if entry.state.scored else np.zeros(1)
        maps.append(heat / heat.mean(dtype=np.float64) if heat.any() else None)
        captions.append(entry.state.caption or ("" if heat.any() else "all of it is outside the image"))
    comparison = Comparison(title="Image", pixels=small, maps=tuple(maps), captions=tuple(captions))
    names = tuple(entry.title for entry in pair)
    return draw_comparisons(head, names, [comparison], colormap, outline(image.masks, *shape, squares[0]))
