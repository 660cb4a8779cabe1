"""Drawing a map over its radiograph, in the radiograph's own geometry."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dataset.readers import letterbox_frame
from localization.scoring import enlarge
from utils import atomic_write

COLORMAP = "inferno"  # perceptually even, and read in RGB by matplotlib alone
MAX_OPACITY = 0.6
BOX = "Radiograph"  # the PNG's text chunk: left, top, right, bottom of the radiograph in the picture, in pixels
LONGEST_SIDE = 1024  # pixels of an overlay's picture: larger radiographs are drawn smaller


def lay_back(cam: np.ndarray, height: int, width: int, fit: str) -> np.ndarray:
    """A map (h, w) on the feature grid as (height, width) float32 on the original picture.

    A squashed picture fills the grid. Of a letterboxed one the map's part over the padding is cut away: the map is
    enlarged to the square that the picture was padded to, at the picture's own resolution, and the picture cut out.
    """
    if fit == "squash":
        return enlarge(cam[None], height, width)[0]
    side = max(height, width)
    top, left, inner_height, inner_width = letterbox_frame(height, width, side)
    return enlarge(cam[None], side, side)[0, top : top + inner_height, left : left + inner_width]


class OverlayDrawer:
    """Draws overlays one after another on one figure: making a figure costs more than drawing on it."""

    def __init__(self) -> None:
        from matplotlib.figure import Figure

        # Fixed places: a layout engine would draw everything twice to find them.
        self.figure = Figure(figsize=(6.4, 5.7))

    def draw(self, path: Path, radiograph: np.ndarray, cam: np.ndarray, fit: str, status: str, title: str) -> None:
        """Save one overlay as PNG.

        Args:
            path: the picture to write.
            radiograph: (height, width) uint8.
            cam: (h, w) float32 on the feature grid, not rescaled; colours run from 0 to its own peak, and the colour
                bar says what that is.
            fit: how the radiograph became a square.
            status: `ok`, or `empty` or `nan`: then no colours are drawn, and the picture says so.
            title: class, probability and the like.
        """
        import cv2

        height, width = radiograph.shape
        scale = min(1.0, LONGEST_SIDE / max(height, width))
        if scale < 1:
            smaller = (max(1, round(width * scale)), max(1, round(height * scale)))
            radiograph = cv2.resize(radiograph, smaller, interpolation=cv2.INTER_AREA)
            height, width = radiograph.shape
        self.figure.clear()
        ax = self.figure.add_axes((0.01, 0.01, 0.8, 0.89))
        ax.imshow(radiograph, cmap="gray", vmin=0, vmax=255)
        ax.set_axis_off()
        ax.set_title(title, fontsize=10, parse_math=False)  # file names may hold dollar signs
        if status == "ok":
            heat = lay_back(cam, height, width, fit)
            peak = float(cam.max())
            shown = ax.imshow(heat, cmap=COLORMAP, vmin=0, vmax=peak, alpha=MAX_OPACITY * np.clip(heat / peak, 0, 1))
            bar = self.figure.colorbar(shown, cax=self.figure.add_axes((0.85, 0.1, 0.03, 0.72)))
            bar.set_label("Grad-CAM (not rescaled)", fontsize=9)
            bar.ax.tick_params(labelsize=8)
            bar.solids.set_alpha(1)
        else:
            words = {"empty": "no positive evidence for this class", "nan": "the map is not finite"}[status]
            ax.text(
                0.5,
                0.03,
                words,
                transform=ax.transAxes,
                ha="center",
                va="bottom",
                color="white",
                fontsize=11,
                bbox={"facecolor": "black", "alpha": 0.75, "pad": 4, "edgecolor": "none"},
            )
        ax.apply_aspect()
        place, bottom = ax.get_window_extent(), self.figure.bbox.height
        box = (place.x0, bottom - place.y1, place.x1, bottom - place.y0)
        with atomic_write(path, "wb") as file:
            self.figure.savefig(
                file,
                format="png",
                dpi=self.figure.dpi,
                metadata={BOX: ",".join(str(round(edge)) for edge in box)},
                pil_kwargs={"compress_level": 2},  # a third of the time
            )


def draw_means(
    path: Path, pictures: dict[str, np.ndarray], maps: dict[str, np.ndarray], counts: dict[str, int]
) -> None:
    """Save the mean map of each class over the mean radiograph of its images, all on one colour scale.

    Args:
        path: the picture to write.
        pictures: per class (side, side), the mean of the model's input pictures, in [0, 255].
        maps: per class (h, w), the mean of the maps, each divided by its own mean: 1 is what a uniform map has.
        counts: per class the number of maps.
    """
    from matplotlib.figure import Figure

    columns = min(4, len(maps))
    rows = -(-len(maps) // columns)
    figure = Figure(figsize=(2.7 * columns + 0.9, 3.0 * rows + 0.2), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    peak = max(float(cam.max()) for cam in maps.values())
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, (name, cam) in zip(axes.flat, maps.items(), strict=False):
        picture = pictures[name]
        heat = enlarge(cam[None], *picture.shape)[0]
        ax.imshow(picture, cmap="gray", vmin=0, vmax=255)
        opacity = MAX_OPACITY * np.clip(heat / peak, 0, 1)
        shown = ax.imshow(heat, cmap=COLORMAP, vmin=0, vmax=peak, alpha=opacity)
        ax.set_title(f"{name}\n{counts[name]} maps", fontsize=9, parse_math=False)
    bar = figure.colorbar(shown, ax=axes, shrink=0.8)
    bar.set_label("evidence, times that of a uniform map", fontsize=9)
    bar.solids.set_alpha(1)
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=110)
