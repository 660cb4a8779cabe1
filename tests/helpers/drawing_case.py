"""Names that are too long for their place, and the colours that a map should have."""

from __future__ import annotations

import matplotlib
import numpy as np

from localization.drawing.colours import MAX_OPACITY

LONG_NAME = "00_Thoraxröntgenaufnahme_posterior-anterior_Patient_0815_nach_Intubation_und_Umlagerung_2021-03-17.jpg"
LONG_CLASS = "Bakterielle Lungenentzündung mit Pleuraerguss"


def colour(share: float, colormap: str = "inferno", grey: float = 0) -> np.ndarray:
    """Return the colour of a share of the scale over a grey: opaque in proportion to the share."""
    opacity = MAX_OPACITY * share
    return opacity * 255 * np.array(matplotlib.colormaps[colormap](float(share))[:3]) + (1 - opacity) * grey
