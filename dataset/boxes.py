"""Boxes as lesion masks: a `boxes.csv` with image (a file's name or its stem), finding, x, y, width and height.

x and y are the upper left corner of the box; all four numbers are in pixels of the image.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from dataset.readers import fit_square, is_image_file
from utils import UserError, read_table

COLUMNS = ("image", "x", "y", "width", "height")


class Box(NamedTuple):
    """A box in pixels, and its line in the file."""

    x: float
    y: float
    width: float
    height: float
    line: int

    def pixels(self, height: int, width: int) -> tuple[slice, slice]:
        """Return the rows and columns of an image of `height` × `width` that are in the box, which is clipped to it."""
        rows, columns = ((self.y, self.y + self.height, height), (self.x, self.x + self.width, width))
        return tuple(slice(*(round(min(max(edge, 0), size)) for edge in edges)) for *edges, size in (rows, columns))

    def meets(self, height: int, width: int) -> bool:
        """Return whether the box contains a pixel of an image of `height` × `width`."""
        return all(span.start < span.stop for span in self.pixels(height, width))


Boxes = tuple[Box, ...]


def is_boxes(mask: str) -> bool:
    """Return whether a record's mask is a file of boxes, not an image."""
    return mask.lower().endswith(".csv")


@lru_cache(maxsize=64)
def read_boxes(path: str) -> dict[str, Boxes]:
    """Return the boxes of each image by its stem, and by its file name if the file uses it.

    Raises: `UserError` for a missing column, a line without an image or four numbers, or a width or height that is not
        positive.
    """
    table = read_table(Path(path), COLUMNS, path, "; fix or delete it")
    numbers = table[list(COLUMNS[1:])].apply(pd.to_numeric, errors="coerce").to_numpy(float)
    lines, names = table.index + 2, table["image"].str.strip()
    wrong = (names == "") | ~np.isfinite(numbers).all(1) | (numbers[:, 2:] <= 0).any(1)
    if wrong.any():
        reason = "the image or a number is missing, or width or height is not above 0; fix or delete the line"
        raise UserError(f"{path}, line {lines[wrong.argmax()]}: {reason}")
    boxes: dict[str, Boxes] = {}
    for line, name, box in zip(lines, names, numbers.tolist(), strict=True):
        for key in {name, Path(name).stem if is_image_file(Path(name)) else name}:
            boxes[key] = (*boxes.get(key, ()), Box(*box, line=int(line)))
    return boxes


def match_boxes(stems: list[str], path: Path) -> list[str]:
    """Return the resolved `path` for each image stem that has a box in this file; empty for the others."""
    file = str(path.resolve())
    boxes = read_boxes(file)
    return [file if stem in boxes else "" for stem in stems]


def boxes_key(image_sha: str, boxes: Boxes) -> str:
    """Return the cache key of an image's boxes: the mask depends on them and on the size of the image."""
    return hashlib.sha256(f"{image_sha} {[box[:4] for box in boxes]}".encode()).hexdigest()


def square_boxes(boxes: Boxes, size: tuple[int, int], side: int, fit: str) -> np.ndarray:
    """Return the union of the boxes of an image of `size` (height, width) as a mask, (side, side) uint8 of 0 and 1."""
    mask = np.zeros(size, np.float32)
    for box in boxes:
        mask[box.pixels(*size)] = 1
    return (fit_square(mask, side, fit) >= 0.5).astype(np.uint8)
