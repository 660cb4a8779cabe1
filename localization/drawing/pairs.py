"""The same pictures under two models: where the one looks and the other does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dataset.layouts import MASKS
from dataset.readers import read_image, to_uint8
from localization.drawing.maps import Drawn
from localization.drawing.means import draw_differences
from localization.drawing.panel import Entry, PanelDrawer, Subject
from localization.methods.table import METHODS
from localization.states import MapState
from utils import log


def draw_pairs(folder: Path, pair: tuple[Drawn, Drawn], colormap: str) -> int:
    """Draw for each picture and method that both models have the two maps and their difference, and that of the means.

    Pictures on which the two explain different classes are left out of the single pictures and counted in a line; the
    means are per class in any case.

    Returns: how many pictures were drawn.
    """
    from tqdm import tqdm

    first, second = pair
    theirs = {(row["path"], row["method"]): row for row in second.rows}
    drawer = PanelDrawer(first.square, colormap)
    index = {path: i for i, path in enumerate(first.part.records["path"])}
    both = [(row, theirs[key]) for row in first.rows if (key := (row["path"], row["method"])) in theirs]
    same = [(a, b) for a, b in both if a["target"] == b["target"]]
    for a, b in tqdm(same, desc="differences", unit="picture", leave=False):
        i, path, method = index[a["path"]], Path(a["path"]), a["method"]
        masks = {m: first.part.gather(m, np.array([i]))[0] for m in MASKS if first.part.has(m)[i]}
        entries = tuple(
            Entry(of.name, of.maps[row["path"], method], MapState(row["status"]))
            for of, row in zip(pair, (a, b), strict=True)
        )
        drawer.draw_pair(
            folder / a["file"].replace(f"__{method}__", f"__{method}__difference__"),
            to_uint8(read_image(path)),
            entries,
            (first.square, second.square),
            Subject(f"{path.name}: {METHODS[method].title}", a["target"], None, a["label"]),
            masks,
        )
    alike = first.square.fit == second.square.fit
    if not alike:
        log.warning(f"{first.name} and {second.name} see their pictures fitted differently: no mean differences")
    for method in (method for method in first.means if alike and method in second.means):
        means = first.means[method], second.means[method]
        pictures = means[1].pictures | means[0].pictures
        if pictures:
            counts = {name: tuple(mean.counts.get(name, 0) for mean in means) for name in pictures}
            names = first.name, second.name
            path = folder / f"difference_{method}.png"
            maps = [mean.maps for mean in means]
            draw_differences(path, pictures, *maps, counts, names, METHODS[method].title, colormap)
    if len(same) < len(both):
        log.info(f"{len(both) - len(same)} of {len(both)} maps explain different classes in the two models: not paired")
    if not both:
        log.warning(f"{first.name} and {second.name} have no picture and method in common: nothing to compare")
    return len(same)
