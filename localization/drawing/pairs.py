"""The same images under two models: differences of maps and of mean maps."""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from localization.drawing.maps import DrawnMaps, read_with_masks
from localization.drawing.means import draw_differences
from localization.drawing.overlay import MapEntry
from localization.drawing.panel import PanelDrawer, Subject
from localization.methods.table import METHODS
from localization.scoring.rows import MapRow
from utils import log


def draw_pairs(folder: Path, pair: tuple[DrawnMaps, DrawnMaps], colormap: str) -> int:
    """Draw the two maps and their difference for each image and method that both models have, and those of the means.

    Images for which the models explain different classes are left out and counted in a log line; the means are per
    class in any case.

    Returns: the number of panels drawn.
    """
    first, second = pair
    others = {(row.path, row.method): row for row in second.rows}
    both = [(row, others[key]) for row in first.rows if (key := (row.path, row.method)) in others]
    same = [(a, b) for a, b in both if a.target == b.target]
    _draw_panels(folder, pair, same, colormap)
    if first.square.fit == second.square.fit:
        _draw_mean_differences(folder, pair, colormap)
    else:
        log.warning(
            f"{first.name} and {second.name} use different fits (squash, letterbox); mean differences are left out"
        )
    if len(same) < len(both):
        log.info(
            f"not compared: {len(both) - len(same)} of {len(both)} maps explain different classes in the two models"
        )
    if not both:
        log.warning(f"{first.name} and {second.name} share no image and method; nothing to compare")
    return len(same)


def _draw_panels(
    folder: Path, pair: tuple[DrawnMaps, DrawnMaps], rows: list[tuple[MapRow, MapRow]], colormap: str
) -> None:
    """Draw a panel per pair of rows: of one image, method and class."""
    first, second = pair
    drawer = PanelDrawer(first.square, colormap)
    index = {path: i for i, path in enumerate(first.images.records["path"])}
    for a, b in tqdm(rows, desc="differences", unit="image", leave=False):
        entries = tuple(
            MapEntry(title=drawn.name, cam=drawn.maps[row.path, row.method], state=row.state)
            for drawn, row in zip(pair, (a, b), strict=True)
        )
        drawer.draw_pair(
            folder / a.file.replace(f"__{a.method}__", f"__{a.method}__difference__"),
            read_with_masks(first.images, index[a.path]),
            entries,
            (first.square, second.square),
            Subject(name=f"{Path(a.path).name}: {METHODS[a.method].title}", target=a.target, label=a.label),
        )


def _draw_mean_differences(folder: Path, pair: tuple[DrawnMaps, DrawnMaps], colormap: str) -> None:
    """Draw the mean maps of each method that both models have, and their difference."""
    first, second = pair
    for method in (method for method in first.means if method in second.means):
        means = first.means[method], second.means[method]
        if any(mean.counts for mean in means):
            names = first.name, second.name
            draw_differences(folder / f"difference_{method}.png", means, names, METHODS[method].title, colormap)
