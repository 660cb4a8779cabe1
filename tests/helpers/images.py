"""Small image files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np


def write_image(path: Path, value: int = 0) -> None:
    """Write an image of 8 x 8 equal pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _, data = cv2.imencode(path.suffix.lower(), np.full((8, 8), value, np.uint8))
    path.write_bytes(data.tobytes())
