"""Images of a single value, in which nothing can be explained, and empty masks, which nothing can be scored against."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from config import DataConfig
from dataset.image_set import ImageSet
from dataset.layouts import MASKS
from dataset.masks import mask_noun, named_masks
from utils import UserError, count, log


def without_flat_images(images: ImageSet, fit: str) -> tuple[ImageSet, list[str]]:
    """Return the images without those of a single value, as the model sees them, and the paths of those.

    `fit` is the images' `data.fit`: the padding of a letterbox does not belong to the image.
    """

    def flat(index: int, pixels: np.ndarray) -> bool:
        pixels = pixels[images.content(index, fit) or ...]
        return pixels.min() == pixels.max()

    kept = np.ones(len(images), bool)
    kept[_select(images, "image", np.arange(len(images)), flat)] = False
    return images.take(kept), list(images.records["path"][~kept])


def without_empty_masks(images: ImageSet, data: DataConfig) -> ImageSet:
    """Return the images without their empty masks, which are counted in a line of the log.

    An empty lung mask is a fault; an image without a finding has an empty lesion mask.
    Raises: `UserError` if all masks that the user named are empty.
    """
    for name in MASKS:
        there = np.flatnonzero(images.has(name))
        empty = _select(images, name, there, lambda _, mask: not mask.any())
        if len(empty):
            _report_empty(images, name, empty, len(there), data)
            images = images.without_masks(name, empty)
    return images


def _select(images: ImageSet, name: str, indices: np.ndarray, test: Callable[[int, np.ndarray], bool]) -> np.ndarray:
    """Return those of `indices` whose pixels of `name` pass the test; the cache is read in blocks."""
    blocks = (zip(*block, strict=True) for block in images.blocks(name, indices))
    return np.array([index for block in blocks for index, pixels in block if test(index, pixels)], np.int64)


def _report_empty(images: ImageSet, name: str, empty: np.ndarray, masks: int, data: DataConfig) -> None:
    """Log how many of the `masks` are empty. Raises: `UserError` if the user named them, and all are empty."""
    kind, first, named = mask_noun(name), images.records[name].iloc[empty[0]], named_masks(name, data)
    if named and len(empty) == masks:
        raise UserError(
            f"{named}: the masks of all chosen images ({len(empty)}) are empty at {images.side}×{images.side} pixels, "
            f"for example {first}; pass other masks, or leave {named.flag} out"
        )
    line = f"{count(len(empty), f'empty {kind} mask')}, for example {first}: no {kind} scores"
    (log.warning if kind == "lung" else log.info)(line)
