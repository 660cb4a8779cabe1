"""Boxes as lesion masks: a `boxes.csv` with image (a file's stem), finding, x, y, width and height in its pixels."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from dataset.readers import fit_square, read_image
from utils import UserError

COLUMNS = ("image", "x", "y", "width", "height")
Boxes = tuple[tuple[float, float, float, float], ...]


@lru_cache(maxsize=64)
def read_boxes(path: str) -> dict[str, Boxes]:
    """The boxes (x, y, width, height) of each image stem. Raises: `UserError` for a missing column or no number."""
    try:
        table = pd.read_csv(path, dtype={"image": str})
        missing = [c for c in COLUMNS if c not in table]
        if missing:
            raise UserError(f"{path}: no column '{missing[0]}' (needed: {', '.join(COLUMNS)})")
        numbers = table[list(COLUMNS[1:])].astype(float).to_numpy()
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be read as boxes ({str(error).splitlines()[0]}); mend or remove it") from None
    wrong = np.flatnonzero(~np.isfinite(numbers).all(1) | (numbers[:, 2:] <= 0).any(1))
    if len(wrong):
        raise UserError(f"{path}: line {wrong[0] + 2} has no box (a number is missing, or a side is not above 0)")
    found: dict[str, Boxes] = {}
    for stem, box in zip(table["image"], map(tuple, numbers), strict=True):
        found[stem] = (*found.get(stem, ()), box)
    return found


def boxes_key(image_sha: str, boxes: Boxes) -> str:
    """The cache's key of a picture's boxes: they and the picture's size decide the mask."""
    return hashlib.sha256(f"{image_sha} {boxes}".encode()).hexdigest()


def square_boxes(boxes: dict[str, Boxes], image: Path, side: int, fit: str) -> np.ndarray:
    """The union of the boxes of the picture `image` as a mask (side, side) uint8 of 0 and 1; what lies outside is cut.

    `boxes` holds them by path.

    Raises: `UnreadableImage`.
    """
    height, width = read_image(image).shape
    mask = np.zeros((height, width), np.float32)
    for x, y, w, h in boxes[str(image)]:
        mask[max(0, round(y)) : max(0, round(y + h)), max(0, round(x)) : max(0, round(x + w))] = 1
    return (fit_square(mask, side, fit) >= 0.5).astype(np.uint8)
