"""Masks: matching them to their images, checking that they fit, and their keys in the pixel cache.

A mask is an image with the shape of its radiograph, at any resolution, or the boxes of a `boxes.csv`. A mask that does
not fit stops the command if the user named it (`--lung-masks`, `--lesion-masks`, `--boxes`); if it was found beside the
images, it is left out with a warning.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from config import DataConfig
from dataset.boxes import Boxes, boxes_key, is_boxes, match_boxes, read_boxes, square_boxes
from dataset.cache import PixelStore, cache_folder, hash_files, in_parallel
from dataset.layouts import MASKS, match_masks
from dataset.readers import UnreadableImage, image_size, letterbox_frame, square_mask
from utils import UserError, count, log

Size = tuple[int, int]  # height, width


class NamedMasks(NamedTuple):
    """A flag that names masks apart from the images, and its path."""

    flag: str
    path: str

    def __str__(self) -> str:
        return " ".join(self)


def named_masks(name: str, data: DataConfig) -> NamedMasks | None:
    """Return the flag and path that name the masks `name` (one of `MASKS`), or None if the images bring their own."""
    lesions = (("--boxes", data.boxes), ("--lesion-masks", data.lesion_masks))
    flags = (("--lung-masks", data.lung_masks),) if name == "lung_mask" else lesions
    return next((NamedMasks(flag, path) for flag, path in flags if path), None)


def give_masks(records: pd.DataFrame, data: DataConfig) -> pd.DataFrame:
    """Return `records` with the masks that `data` names, which replace those found beside the images.

    Raises: `UserError` for two sources of lesions, a path that does not exist, or masks of which none fits an image.
    """
    if data.boxes and data.lesion_masks:
        raise UserError(f"--boxes {data.boxes}: --lesion-masks {data.lesion_masks} is given too; pass only one of them")
    stems = [Path(path).stem for path in records["path"]]
    for name in MASKS:
        if named := named_masks(name, data):
            records = records.assign(**{name: _match(stems, named)})
    return records


def _match(stems: list[str], named: NamedMasks) -> list[str]:
    """Return the named mask of each image stem, as a path; empty if there is none."""
    path, boxes = Path(named.path), named.flag == "--boxes"
    if not (path.is_file() and is_boxes(named.path) if boxes else path.is_dir()):
        raise UserError(f"{named}: no such {'file, or no .csv of image, x, y, width, height' if boxes else 'folder'}")
    masks = match_boxes(stems, path) if boxes else match_masks(stems, path)
    if not any(masks):
        raise UserError(f"{named}: no {'box' if boxes else 'mask'} has the name of an image, such as {stems[0]}")
    return masks


def same_shape(mask: Size, image: Size) -> bool:
    """Return whether both have the same aspect ratio, up to one pixel of rounding at the coarser resolution.

    With an image of H×W, a mask of width w should be w·H/W high. |h - w·H/W| ≤ 1 is |h·W - w·H| ≤ W.
    """
    return abs(mask[0] * image[1] - mask[1] * image[0]) <= max(*mask, *image)


class _Mask(NamedTuple):
    """The mask of one image: its key in the cache, what it is made of (a file or boxes), and the size of the image."""

    key: str
    source: str | Boxes
    image_size: Size


def _square(mask: _Mask, side: int, fit: str) -> np.ndarray:
    """Return a mask as the cache keeps it, (side, side) uint8 of 0 and 1."""
    if isinstance(mask.source, str):
        return square_mask(Path(mask.source), side, fit, mask.image_size)
    return square_boxes(mask.source, mask.image_size, side, fit)


@dataclass
class _Plan:
    """The masks of some images, by image; and why others are left out, by file or line."""

    masks: dict[str, _Mask] = field(default_factory=dict)
    misfits: dict[str, str] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)

    def add_boxes(self, image: str, sha: str, file: str, size: Size) -> None:
        """Plan the boxes that `file` has for an image of `size`, except those outside it."""
        boxes = read_boxes(file).get(Path(image).stem, ()) if Path(file).is_file() else ()
        if not boxes:
            self.broken[f"{file} of {image}"] = "no such file, or no box for this image"
        outside = f"the box is outside {image}, {_shown(size)}"
        self.misfits |= {f"{file}, line {box.line}": outside for box in boxes if not box.meets(*size)}
        if inside := tuple(box for box in boxes if box.meets(*size)):
            self.masks[image] = _Mask(boxes_key(sha, inside), inside, size)

    def add_file(self, image: str, mask: str, sha: str, sizes: tuple[Size, Size], store: PixelStore) -> None:
        """Plan a mask file with the hash `sha`; `sizes` are the image's and the mask's."""
        size, mask_size = sizes
        if not same_shape(mask_size, size):
            self.misfits[mask] = f"{_shown(mask_size)}, but {image} has {_shown(size)}: another shape"
            return
        frame = letterbox_frame(*size, store.side)
        if store.fit == "letterbox" and letterbox_frame(*mask_size, store.side) != frame:
            # The mask's own frame, rounded to another size, would be shifted by a pixel.
            sha = hashlib.sha256(f"{sha} {tuple(frame)}".encode()).hexdigest()
        self.masks[image] = _Mask(sha, mask, size)


def _shown(size: Size) -> str:
    return f"{size[1]}×{size[0]} pixels"


def _sizes(item: tuple[str, str]) -> tuple[Size, Size] | str:
    """Return the sizes of an image and of its mask (of boxes: the image's), or why one of them cannot be read."""
    image, mask = item
    try:
        size = image_size(Path(image))
        return size, size if is_boxes(mask) else image_size(Path(mask))
    except UnreadableImage as error:
        return str(error)


def mask_keys(store: PixelStore, name: str, records: pd.DataFrame, data: DataConfig) -> list[str]:
    """Cache the masks `name` of `records` and return their keys; empty for an image without a usable mask.

    Masks found beside the images and left out are logged as a warning.

    Raises: `UserError` if the user named the masks, and one has another image's shape, a box is outside its image, or
        none can be read.
    """
    named = named_masks(name, data)
    masks = dict(zip(records["path"], records[name], strict=True))
    if named and masks and not any(masks.values()):
        log.warning(f"{named}: no mask for any of the {count(len(records), 'chosen image')}: no scores")
    plan = _plan_masks(store, name, records[records[name] != ""], data)
    if named and plan.misfits:
        raise UserError(f"{named.flag} {_first_of(plan.misfits)}; fix or delete it")
    planned = list(plan.masks.values())
    failed = store.build(planned, [mask.key for mask in planned], data.workers, _square)
    keys = {image: mask.key for image, mask in plan.masks.items() if mask not in failed}
    plan.broken |= {masks[image]: failed[mask] for image, mask in plan.masks.items() if mask in failed}
    if left_out := plan.misfits | plan.broken:
        if named and not keys:
            raise UserError(f"{named}: no usable mask, for example {_first_of(left_out)}")
        log.warning(f"left out: {name.replace('_', ' ')} {_first_of(left_out)}")
    return [keys.get(path, "") for path in records["path"]]


def _first_of(reasons: dict[str, str]) -> str:
    """Return the first file or line with its reason, and the number of others."""
    where, reason = next(iter(reasons.items()))
    return f"{where} ({reason}){f' and {len(reasons) - 1} more' if len(reasons) > 1 else ''}"


def _plan_masks(store: PixelStore, name: str, records: pd.DataFrame, data: DataConfig) -> _Plan:
    """Check the masks of `records`, all of which have one, and plan how each gets into the store."""
    pairs = list(zip(records["path"], records[name], strict=True))
    files = list({mask for _, mask in pairs if not is_boxes(mask)})
    hashes = dict(zip(files, hash_files(files, cache_folder(data), data.workers), strict=True))
    measured = in_parallel(_sizes, pairs, data.workers, "sizes of masks", "mask")
    plan = _Plan()
    for (path, mask), sha, sizes in zip(pairs, records["sha256"], measured, strict=True):
        if isinstance(sizes, str):
            plan.broken[mask] = sizes
        elif is_boxes(mask):
            plan.add_boxes(path, sha, mask, sizes[0])
        elif hashes[mask] is None:
            plan.broken[mask] = "no permission to read it"
        else:
            plan.add_file(path, mask, hashes[mask], sizes, store)
    return plan
