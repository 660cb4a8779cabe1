"""Drawing a map over its radiograph, in the radiograph's own geometry."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np

from dataset.readers import letterbox_frame
from localization.states import MapState
from utils import UserError, atomic_write, log

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from matplotlib.path import Path as Curve
    from matplotlib.transforms import Transform

COLORMAP = "inferno"  # perceptually even, and read in RGB by matplotlib alone
MAX_OPACITY = 0.6
LEAST_DIFFERENCE = 0.1  # of a uniform map: the least top of a scale of differences
BOX_KEY = "Radiograph"  # the PNG text chunk with left, top, right, bottom of the image in the overlay, in pixels
LONGEST_SIDE = 1024  # pixels of an overlay's picture: larger radiographs are drawn smaller
OUTLINES = {"lung_mask": ("lungs", "deepskyblue"), "lesion_mask": ("lesion", "orange")}  # as in the contact sheet


class Square(NamedTuple):
    """How radiographs became a model's input: the fit, `squash` or `letterbox`, and the square's side in pixels."""

    fit: str
    side: int

    def frame(self, height: int, width: int) -> tuple[float, float, float, float]:
        """Where a (height, width) picture lies in the square: (top, left, height, width) as shares of its side.

        `letterbox_frame` rounds to whole pixels of the square, so the scale down differs a little from that across.
        """
        if self.fit == "squash":
            return 0.0, 0.0, 1.0, 1.0
        top, left, tall, wide = letterbox_frame(height, width, self.side)
        return top / self.side, left / self.side, tall / self.side, wide / self.side


def lay_back(
    cam: np.ndarray, height: int, width: int, square: Square, size: tuple[int, int] | None = None
) -> np.ndarray:
    """A finite map (h, w) over a model's square as (height, width) float32 over the original picture.

    Row i of the map covers the shares i/h to (i + 1)/h of the square, of whatever grid; row y of the picture has its
    centre at the share (y + 0.5)/height of the picture's `Square.frame`. So a cell's centre (i + 0.5)/h of a squashed
    picture is laid on (i + 0.5)/h · height, exactly. Between the centres of cells the map is linear, beyond the
    outermost ones constant; where cells are smaller than pixels they are averaged. What lies over a letterbox's padding
    is left out.

    Args:
        size: (rows, columns) of the result, where the picture is shown larger or smaller than it is.
    """
    top, left, tall, wide = square.frame(height, width)
    rows, columns = size or (height, width)
    return _weights(rows, cam.shape[0], top, tall) @ cam @ _weights(columns, cam.shape[1], left, wide).T


def _weights(pixels: int, cells: int, start: float, length: float) -> np.ndarray:
    """(pixels, cells): how much of each cell a pixel shows, along one side; every pixel's sum to 1."""
    centres = (start + (np.arange(pixels) + 0.5) / pixels * length) * cells - 0.5
    reach = max(1.0, length * cells / pixels)
    weights = np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(cells)) / reach)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def check_colormap(name: str) -> None:
    """Refuse a colormap that matplotlib does not have, and warn of one whose lightness turns on the way.

    Magnitudes are read from lightness (Borland and Taylor 2007): where it turns, as in jet, edges and rings are seen
    that no map has. It is measured as L* of CIELAB (0 to 100) along the colormap.

    Raises: `UserError` with the nearest names.
    """
    import matplotlib

    if name not in matplotlib.colormaps:
        known = {known.lower(): known for known in matplotlib.colormaps}
        near = [known[word] for word in difflib.get_close_matches(name.lower(), known, n=3)]
        hint = f"did you mean {' or '.join(near)}?" if near else f"some are {COLORMAP}, viridis, cividis and gray"
        raise UserError(f"--colormap {name}: matplotlib has no such colormap; {hint}")
    colours = matplotlib.colormaps[name](np.linspace(0, 1, 256))[None, :, :3].astype(np.float32)
    steps = np.diff(cv2.cvtColor(colours, cv2.COLOR_RGB2LAB)[0, :, 0])
    if min(steps.clip(min=0).sum(), -steps.clip(max=0).sum()) > 1:
        log.warning(
            f"--colormap {name}: its lightness both rises and falls, so that it shows edges that no map has; "
            f"{COLORMAP} (the default), viridis and cividis are even"
        )


class Scale(NamedTuple):
    """Colours for values from 0 to `top`, or, `signed`, from -`top` to `top`; what lies beyond has the last colour."""

    top: float
    colormap: str | Colormap
    signed: bool = False

    @classmethod
    def of_differences(cls, furthest: float) -> Scale:
        """From green over black to pink: both ends equally light, and the middle as dark as where there is nothing.

        Args:
            furthest: the largest difference in size, in multiples of a uniform map. Less than `LEAST_DIFFERENCE` is not
                stretched over all colours: two equal maps differ by rounding.
        """
        from matplotlib.colors import LinearSegmentedColormap

        colours = LinearSegmentedColormap.from_list("difference", ["#4fdc8a", "black", "#ff9fdf"])
        return cls(max(furthest, LEAST_DIFFERENCE), colours, True)

    @property
    def colours(self) -> Colormap:
        import matplotlib

        return matplotlib.colormaps[self.colormap] if isinstance(self.colormap, str) else self.colormap


def blend(grey: np.ndarray, values: np.ndarray, scale: Scale) -> np.ndarray:
    """Values (h, w) in colour over a radiograph (h, w), [0, 255]: (h, w, 3) uint8. The larger, the more opaque: 0 shows
    the radiograph alone.
    """
    share = np.clip(values / scale.top, -1.0 if scale.signed else 0.0, 1.0)
    opacity = MAX_OPACITY * np.abs(share)[..., None]
    colours = scale.colours((share + 1) / 2 if scale.signed else share)[..., :3] * 255
    return (opacity * colours + (1 - opacity) * grey[..., None]).round().astype(np.uint8)


def outline(masks: Mapping[str, np.ndarray], height: int, width: int, square: Square) -> dict[str, Curve]:
    """The outlines of masks (side, side) of 0 and 1 over the square, keyed as `OUTLINES`, on the original picture: x
    and y run from 0 (left, top) to 1 (right, bottom). Masks that are empty are left out.
    """
    from matplotlib.figure import Figure
    from matplotlib.path import Path as Curve

    top, left, tall, wide = square.frame(height, width)
    found = {}
    for name, mask in masks.items():
        if mask.any():
            (curve,) = Figure().add_axes((0, 0, 1, 1)).contour(mask.astype(np.float32), [0.5]).get_paths()
            places = (curve.vertices + 0.5) / mask.shape[::-1]
            found[name] = Curve((places - (left, top)) / (wide, tall), curve.codes)
    return found


def draw_outlines(figure: Figure, curves: Mapping[str, Curve], place: Transform) -> None:
    """Draw what `outline` found where `place` takes it, dark-edged: orange over an orange map is not seen otherwise."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Curve

    for name, curve in curves.items():
        for colour, points in (("black", 1.9), (OUTLINES[name][1], 1.0)):
            line = PathPatch(curve, fill=False, edgecolor=colour, linewidth=points, transform=place)
            line.set_clip_path(Curve.unit_rectangle(), place)  # nothing is outlined over a letterbox's padding
            figure.add_artist(line)


def draw_legend(figure: Figure, names: Iterable[str], **where: Any) -> None:
    """Say what the colours of these outlines are, if there are any; `where` as `Figure.legend` takes it."""
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=OUTLINES[name][1], linewidth=2.5, label=OUTLINES[name][0]) for name in names]
    if lines:
        figure.legend(handles=lines, frameon=False, fontsize=9, handlelength=1.2, borderaxespad=0, **where)


def draw_bar(ax: Axes, scale: Scale, label: str, mark: float | None = None) -> None:
    """Fill `ax` with the colours of the scale and their values; `mark` points at a map's own peak and names it."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    low = -scale.top if scale.signed else 0
    upright = ax.bbox.height > ax.bbox.width
    colours = ScalarMappable(Normalize(low, scale.top), scale.colormap)
    bar = ax.figure.colorbar(colours, cax=ax, orientation="vertical" if upright else "horizontal")
    if mark is not None:
        ax.plot([0], [min(mark, scale.top)], ">", color="black", markersize=6, clip_on=False)
        label += f"; this map's peak: {mark:.2g}"
    bar.set_label(label, fontsize=9, parse_math=False)
    ax.tick_params(labelsize=8)


def new_figure(width: float, height: float, **options: Any) -> Figure:
    """A figure of so many inches, at 100 pixels to the inch, that can measure its texts."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    return FigureCanvasAgg(Figure(figsize=(width, height), dpi=100, **options)).figure


def fitted(figure: Figure, text: str, width: float, **font: Any) -> str:
    """The text, without its middle if it is more than `width` pixels wide on the figure."""
    artist, whole, kept = figure.text(0, 0, text, parse_math=False, **font), text, len(text)
    while kept > 2 and (wide := artist.get_window_extent(figure.canvas.get_renderer()).width) > width:
        kept = max(2, min(kept - 1, int(kept * width / wide)))
        text = f"{whole[: (kept + 1) // 2].rstrip()}…{whole[len(whole) - kept // 2 :].lstrip()}"
        artist.set_text(text)
    artist.remove()
    return text


class OverlayDrawer:
    """Draws overlays one after another on one figure: making a figure costs more than drawing on it.

    Args:
        square: how the radiographs became the model's input.
        colormap: a name of matplotlib's.
    """

    def __init__(self, square: Square, colormap: str = COLORMAP) -> None:
        self.square, self.colormap = square, colormap
        # Fixed places: a layout engine would draw everything twice to find them.
        self.figure = new_figure(6.4, 5.7)

    def draw(
        self,
        path: Path,
        radiograph: np.ndarray,
        cam: np.ndarray,
        state: MapState,
        title: str,
        *,
        unit: str,
        peak: float | None = None,
        masks: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Save one overlay as PNG.

        Args:
            path: the picture to write.
            radiograph: (height, width) uint8.
            cam: (h, w) float32 over the square, on its own grid, not rescaled.
            state: a map that is not scored has no colours; any state but `ok` has a caption.
            title: class, probability and the like; a line that is too long loses its middle.
            unit: what the colour bar shows.
            peak: the top of the colours, > 0; None: the map's own peak. A map far below it looks weak.
            masks: of `OUTLINES`, (side, side) over the square, to be outlined.
        """
        from matplotlib.transforms import Affine2D

        full, shrink = radiograph.shape, min(1.0, LONGEST_SIDE / max(radiograph.shape))
        size = tuple(max(1, round(edge * shrink)) for edge in full)
        if shrink < 1:
            radiograph = cv2.resize(radiograph, size[::-1], interpolation=cv2.INTER_AREA)
        self.figure.clear()
        ax = self.figure.add_axes((0.01, 0.01, 0.8, 0.89))
        if not state.scored:
            ax.imshow(radiograph, cmap="gray", vmin=0, vmax=255)
        else:
            own = float(cam.max())
            scale = Scale(own if peak is None else peak, self.colormap)
            ax.imshow(blend(radiograph, lay_back(cam, *full, self.square, size), scale))
            place = self.figure.add_axes((0.85, 0.14, 0.03, 0.7))
            draw_bar(place, scale, unit, None if scale.top == own else own)
        if state.caption:
            _say(ax, state.caption)
        lines = [fitted(self.figure, line, 0.8 * self.figure.bbox.width, fontsize=10) for line in title.split("\n")]
        ax.set_title("\n".join(lines), fontsize=10, parse_math=False)  # file names may hold dollar signs
        ax.set_axis_off()
        ax.apply_aspect()
        curves = outline(masks or {}, *full, self.square)
        draw_outlines(self.figure, curves, Affine2D().scale(*size[::-1]).translate(-0.5, -0.5) + ax.transData)
        draw_legend(self.figure, curves, loc="lower left", bbox_to_anchor=(0.83, 0.015))
        place, bottom = ax.get_window_extent(), self.figure.bbox.height
        box = (place.x0, bottom - place.y1, place.x1, bottom - place.y0)
        with atomic_write(path, "wb") as file:
            self.figure.savefig(
                file,
                format="png",
                dpi=self.figure.dpi,
                metadata={BOX_KEY: ",".join(str(round(edge)) for edge in box)},
                pil_kwargs={"compress_level": 2},  # a third of the time
            )


def read_box(text: Mapping[str, str]) -> tuple[int, int, int, int] | None:
    """Return where the image lies in an overlay (left, top, right, bottom, in pixels); None where the PNG's text chunks
    do not say.
    """
    box = text.get(BOX_KEY)
    return None if box is None else tuple(round(float(edge)) for edge in box.split(","))


def _say(ax: Axes, words: str) -> None:
    ground = {"facecolor": "black", "alpha": 0.75, "pad": 4, "edgecolor": "none"}
    ax.text(0.5, 0.03, words, transform=ax.transAxes, ha="center", va="bottom", color="white", fontsize=11, bbox=ground)
