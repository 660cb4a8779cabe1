"""Boxes as lesion masks: a `boxes.csv` with image (a file's name or its stem), finding, x, y, width and height.

x and y are those of the box's upper left corner; all four in pixels of the image.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from dataset.readers import fit_square, is_image_file
from utils import UserError

COLUMNS = ("image", "x", "y", "width", "height")


class Box(NamedTuple):
    """A box in pixels, and the line of the file that it stands in."""

    x: float
    y: float
    width: float
    height: float
    line: int

    def pixels(self, height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns of a picture of `height` × `width` that lie in the box; what is outside is cut."""
        rows, columns = ((self.y, self.y + self.height, height), (self.x, self.x + self.width, width))
        return tuple(slice(*(round(min(max(edge, 0), size)) for edge in edges)) for *edges, size in (rows, columns))

    def meets(self, height: int, width: int) -> bool:
        """Whether a pixel of a picture of `height` × `width` lies in the box."""
        return all(part.start < part.stop for part in self.pixels(height, width))


Boxes = tuple[Box, ...]


def is_boxes(mask: str) -> bool:
    """Whether a record's mask is a file of boxes, not a picture."""
    return mask.lower().endswith(".csv")


@lru_cache(maxsize=64)
def read_boxes(path: str) -> dict[str, Boxes]:
    """The boxes of each image by its stem, and by its name where the file has that.

    Raises: `UserError` for a missing column, a line without an image or without four numbers, or a side not above 0.
    """
    try:
        # Blank lines are kept, so that lines count as in an editor; a comma too many at a line's end shifts nothing.
        table = pd.read_csv(path, dtype={"image": str}, skip_blank_lines=False, index_col=False).dropna(how="all")
        table.columns = [str(column).strip() for column in table.columns]
        missing = [c for c in COLUMNS if c not in table]
        if missing:
            raise UserError(f"{path}: no column '{missing[0]}' (needed: {', '.join(COLUMNS)})")
        numbers = table[list(COLUMNS[1:])].astype(float).to_numpy()
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be read as boxes ({str(error).splitlines()[0]}); mend or remove it") from None
    lines, names = table.index + 2, table["image"].str.strip()
    wrong = np.flatnonzero(names.isna() | ~np.isfinite(numbers).all(1) | (numbers[:, 2:] <= 0).any(1))
    if len(wrong):
        raise UserError(
            f"{path}: line {lines[wrong[0]]} has no box (the image or a number is missing, or a side is not above 0)"
        )
    found: dict[str, Boxes] = {}
    for line, name, box in zip(lines, names, numbers.tolist(), strict=True):
        for key in {name, Path(name).stem if is_image_file(Path(name)) else name}:
            found[key] = (*found.get(key, ()), Box(*box, line=int(line)))
    return found


def match_boxes(stems: list[str], path: Path) -> list[str]:
    """The file `path`, resolved, for each image stem that it has a box of; empty for the others."""
    file = str(path.resolve())
    known = read_boxes(file)
    return [file if stem in known else "" for stem in stems]


def boxes_key(image_sha: str, boxes: Boxes) -> str:
    """The cache's key of a picture's boxes: they and the picture's size decide the mask."""
    return hashlib.sha256(f"{image_sha} {[box[:4] for box in boxes]}".encode()).hexdigest()


def square_boxes(boxes: Boxes, size: tuple[int, int], side: int, fit: str) -> np.ndarray:
    """The union of the boxes of a picture of `size` (height, width) as a mask (side, side) uint8 of 0 and 1."""
    mask = np.zeros(size, np.float32)
    for box in boxes:
        mask[box.pixels(*size)] = 1
    return (fit_square(mask, side, fit) >= 0.5).astype(np.uint8)
