"""Colours of maps: colormaps, scales, and values blended over an image."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import matplotlib
import numpy as np
from matplotlib.colors import Colormap, LinearSegmentedColormap

from utils import UserError, did_you_mean, log

COLORMAP = "inferno"  # perceptually even
MAX_OPACITY = 0.6
LEAST_DIFFERENCE = 0.1  # of a uniform map: the least top of a scale of differences


def check_colormap(name: str) -> None:
    """Check that matplotlib has the colormap, and warn if its lightness both rises and falls.

    Magnitudes are read from lightness (Borland and Taylor 2007): where it turns, as in jet, readers see edges and rings
    that no map has. Lightness is L* of CIELAB (0 to 100) along the colormap.

    Raises: `UserError` with the nearest names.
    """
    if name not in matplotlib.colormaps:
        near = did_you_mean(name.lower(), {known.lower(): known for known in matplotlib.colormaps}, 3)
        raise UserError(f"--colormap {name}: unknown to matplotlib{near}; choose {COLORMAP}, viridis or another")
    colours = matplotlib.colormaps[name](np.linspace(0, 1, 256))[None, :, :3].astype(np.float32)
    steps = np.diff(cv2.cvtColor(colours, cv2.COLOR_RGB2LAB)[0, :, 0])
    if min(steps.clip(min=0).sum(), -steps.clip(max=0).sum()) > 1:
        log.warning(
            f"--colormap {name}: its lightness both rises and falls, so it shows edges that no map has; "
            f"{COLORMAP} (the default), viridis and cividis are even"
        )


class Scale(NamedTuple):
    """Colours for values from 0 to `top`, or, if `signed`, from -`top` to `top`; values beyond get the last colour."""

    top: float
    colormap: str | Colormap
    signed: bool = False

    @classmethod
    def for_differences(cls, furthest: float) -> Scale:
        """Return a scale from green over black to pink: its ends are equally light, its middle adds nothing.

        Args:
            furthest: the largest absolute difference, in multiples of a uniform map. Less than `LEAST_DIFFERENCE` is
                not stretched over all colours: two equal maps differ by rounding.
        """
        colours = LinearSegmentedColormap.from_list("difference", ["#4fdc8a", "black", "#ff9fdf"])
        return cls(max(furthest, LEAST_DIFFERENCE), colours, True)

    @property
    def colours(self) -> Colormap:
        """The colormap itself."""
        return matplotlib.colormaps[self.colormap] if isinstance(self.colormap, str) else self.colormap


def blend(grey: np.ndarray, values: np.ndarray, scale: Scale) -> np.ndarray:
    """Return values (h, w) in colour over an image (h, w) in [0, 255], as (h, w, 3) uint8.

    Opacity grows with the value; 0 shows the image alone.
    """
    share = np.clip(values / scale.top, -1.0 if scale.signed else 0.0, 1.0)
    opacity = MAX_OPACITY * np.abs(share)[..., None]
    colours = scale.colours((share + 1) / 2 if scale.signed else share)[..., :3] * 255
    return (opacity * colours + (1 - opacity) * grey[..., None]).round().astype(np.uint8)
