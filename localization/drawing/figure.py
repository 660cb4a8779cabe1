"""Parts that overlays, panels and mean maps share: figures that measure their text, outlines, legends, colour bars."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Curve
from matplotlib.transforms import Transform

from localization.drawing.colours import Scale
from utils import atomic_write, elide

OUTLINES = {"lung_mask": ("lungs", "deepskyblue"), "lesion_mask": ("lesion", "orange")}  # as in the contact sheet


def new_figure(width: float, height: float) -> Figure:
    """Return a figure of that many inches, at 100 pixels per inch, that can measure its text."""
    return FigureCanvasAgg(Figure(figsize=(width, height), dpi=100)).figure


def save_png(figure: Figure, path: Path, **options: Any) -> None:
    """Save a figure as PNG, atomically, one pixel per pixel of the figure."""
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=figure.dpi, **options)


def fitted(figure: Figure, text: str, width: float, **font: Any) -> str:
    """Return the text, without its middle if it is more than `width` pixels wide on the figure."""
    artist, shown, kept = figure.text(0, 0, text, parse_math=False, **font), text, len(text)
    while kept > 2 and (wide := artist.get_window_extent(figure.canvas.get_renderer()).width) > width:
        kept = max(2, min(kept - 1, int(kept * width / wide)))
        shown = elide(text, kept + 1)
        artist.set_text(shown)
    artist.remove()
    return shown


def draw_outlines(figure: Figure, curves: Mapping[str, Curve], place: Transform) -> None:
    """Draw outlines of the unit square where `place` maps it, with a dark edge: orange on orange would be invisible."""
    for name, curve in curves.items():
        for colour, points in (("black", 1.9), (OUTLINES[name][1], 1.0)):
            line = PathPatch(curve, fill=False, edgecolor=colour, linewidth=points, transform=place)
            line.set_clip_path(Curve.unit_rectangle(), place)  # nothing is outlined over a letterbox's padding
            figure.add_artist(line)


def draw_legend(figure: Figure, names: Iterable[str], **where: Any) -> None:
    """Explain the colours of these outlines, if there are any; `where` as `Figure.legend` takes it."""
    lines = [Line2D([], [], color=OUTLINES[name][1], linewidth=2.5, label=OUTLINES[name][0]) for name in names]
    if lines:
        figure.legend(handles=lines, frameon=False, fontsize=9, handlelength=1.2, borderaxespad=0, **where)


def draw_bar(ax: Axes, scale: Scale, label: str, mark: float | None = None) -> None:
    """Fill `ax` with the colours of the scale and their values; `mark` points at a map's own peak and names it."""
    low = -scale.top if scale.signed else 0
    upright = ax.bbox.height > ax.bbox.width
    colours = ScalarMappable(Normalize(low, scale.top), scale.colormap)
    bar = ax.figure.colorbar(colours, cax=ax, orientation="vertical" if upright else "horizontal")
    if mark is not None:
        ax.plot([0], [min(mark, scale.top)], ">", color="black", markersize=6, clip_on=False)
        label += f"; this map's peak: {mark:.2g}"
    bar.set_label(label, fontsize=9, parse_math=False)
    ax.tick_params(labelsize=8)
