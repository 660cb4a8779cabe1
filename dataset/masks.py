"""Masks of radiographs: which belongs to which, whether it can be that picture's, and its key in the pixel cache.

A mask is a picture with the shape of its radiograph, at any resolution, or the boxes of a `boxes.csv`. What the user
named (`--lung-masks`, `--lesion-masks`, `--boxes`) and cannot be right stops the command; of what merely lies beside
the images, that mask is left out and said.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from config import DataConfig
from dataset.boxes import boxes_key, is_boxes, match_boxes, read_boxes, square_boxes
from dataset.cache import PixelStore, cache_folder, hash_files, in_parallel
from dataset.layouts import MASKS, match_masks
from dataset.readers import UnreadableImage, image_size, letterbox_frame, square_mask
from utils import UserError, log

Size = tuple[int, int]  # height, width


def named_masks(name: str, data: DataConfig) -> tuple[str, str] | None:
    """The flag and the path that name the masks `name` apart from the images; None where nothing does."""
    if name == "lung_mask":
        return ("--lung-masks", data.lung_masks) if data.lung_masks else None
    if data.boxes:
        return "--boxes", data.boxes
    return ("--lesion-masks", data.lesion_masks) if data.lesion_masks else None


def give_masks(records: pd.DataFrame, data: DataConfig) -> pd.DataFrame:
    """`records` with the masks that `data` names apart from the images, in place of those that the images brought.

    Raises: `UserError` for two sources of lesions, for what is not there, and where it has a mask of no image.
    """
    if data.boxes and data.lesion_masks:
        raise UserError(f"--boxes {data.boxes}: --lesion-masks {data.lesion_masks} is given too; leave one of them out")
    stems = [Path(path).stem for path in records["path"]]
    for name in MASKS:
        flag, path = named_masks(name, data) or ("", "")
        if not flag:
            continue
        boxes = flag == "--boxes"
        if not (Path(path).is_file() if boxes else Path(path).is_dir()):
            raise UserError(f"{flag} {path}: no such {'file' if boxes else 'folder'}")
        if boxes and not is_boxes(path):
            raise UserError(f"{flag} {path}: a .csv file is needed (image, x, y, width, height in pixels)")
        found = match_boxes(stems, Path(path)) if boxes else match_masks(stems, Path(path))
        if not any(found):
            what = "no box there names an image by its file's name or stem" if boxes else "no mask there has the stem"
            raise UserError(f"{flag} {path}: {what}" + ("" if boxes else " of an image") + f", such as {stems[0]}")
        records = records.assign(**{name: found})
    return records


def same_shape(mask: Size, image: Size) -> bool:
    """Whether the two have one aspect, but for a pixel of rounding at the coarser resolution.

    With an image of H×W, a mask of width w should be w·H/W high. |h - w·H/W| ≤ 1 is |h·W - w·H| ≤ W.
    """
    return abs(mask[0] * image[1] - mask[1] * image[0]) <= max(*mask, *image)


@dataclass
class _Plan:
    """How the masks of some pictures get into the cache: rows that are there already are found by their key.

    keys: picture → key of its mask. files: mask → hash, of masks that are read as they lie. made: picture → what makes
    the mask (side, fit) that is its alone. misfits and broken: mask, or line of boxes → why it is left out.
    """

    keys: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    made: dict[str, Callable[[int, str], np.ndarray]] = field(default_factory=dict)
    misfits: dict[str, str] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)

    def add_boxes(self, image: str, sha: str, file: str, size: Size) -> None:
        """Plan the boxes that `file` has of a picture: those that do not lie outside of it."""
        if not Path(file).is_file():
            self.broken[file] = "no such file"
            return
        boxes = read_boxes(file).get(Path(image).stem, ())
        if not boxes:
            self.broken[f"{file} of {image}"] = "no box there names it"
        for box in boxes:
            if not box.meets(*size):
                self.misfits[f"{file}, line {box.line}"] = f"no pixel of the box lies in {image}, {_shown(size)}"
        boxes = tuple(box for box in boxes if box.meets(*size))
        if boxes:
            self.keys[image] = boxes_key(sha, boxes)
            self.made[image] = partial(square_boxes, boxes, size)

    def add_file(self, image: str, mask: str, sha: str, sizes: tuple[Size, Size], store: PixelStore) -> None:
        """Plan the file of a mask; `sizes` are the picture's and the mask's. The store says side and fit."""
        size, own = sizes
        if not same_shape(own, size):
            self.misfits[mask] = f"{_shown(own)}, but {image} has {_shown(size)}: another image's shape"
            return
        frame = letterbox_frame(*size, store.side)
        if store.fit == "letterbox" and letterbox_frame(*own, store.side) != frame:
            # Rounded to another size, it would lie a pixel beside its picture.
            self.keys[image] = hashlib.sha256(f"{sha} {frame}".encode()).hexdigest()
            self.made[image] = lambda side, fit: square_mask(Path(mask), side, fit, size)
        else:
            self.keys[image] = self.files[mask] = sha


def _shown(size: Size) -> str:
    return f"{size[1]}×{size[0]} pixels"


def _sizes(item: tuple[str, str]) -> tuple[Size, Size] | str:
    """The sizes of a picture and of its mask (of boxes: the picture's), or why they cannot be had."""
    image, mask = item
    try:
        size = image_size(Path(image))
        return size, size if is_boxes(mask) else image_size(Path(mask))
    except UnreadableImage as error:
        return str(error)


def mask_keys(store: PixelStore, name: str, records: pd.DataFrame, data: DataConfig) -> list[str]:
    """Cache the masks `name` of `records` and return their keys, empty where there is none that can be used.

    Raises: `UserError` where the user named the masks, and one has another image's shape, a box lies outside of its
    picture, or none can be read.
    """
    named = named_masks(name, data)
    wanted = [row for row in zip(records["path"], records["sha256"], records[name], strict=True) if row[2]]
    if named and len(records) and not wanted:
        log.warning(f"{' '.join(named)}: it has none of the {len(records)} chosen pictures: no scores")
    files = list({mask for *_, mask in wanted if not is_boxes(mask)})
    hashes = dict(zip(files, hash_files(files, cache_folder(data), data.workers), strict=True))
    measured = in_parallel(_sizes, [(path, mask) for path, _, mask in wanted], data.workers, "sizes of masks", "mask")
    plan = _Plan()
    for (path, sha, mask), sizes in zip(wanted, measured, strict=True):
        if isinstance(sizes, str):
            plan.broken[mask] = sizes
        elif is_boxes(mask):
            plan.add_boxes(path, sha, mask, sizes[0])
        elif hashes[mask] is None:
            plan.broken[mask] = "it may not be read"
        else:
            plan.add_file(path, mask, hashes[mask], sizes, store)
    if named and plan.misfits:
        where, reason = next(iter(plan.misfits.items()))
        more = f" ({len(plan.misfits) - 1} more like it)" if len(plan.misfits) > 1 else ""
        raise UserError(f"{named[0]} {where}: {reason}; mend or remove it{more}")
    _build(store, plan, dict(zip(records["path"], records[name], strict=True)), data)
    left_out = plan.misfits | plan.broken
    if left_out:
        where, reason = next(iter(left_out.items()))
        if named and not plan.keys:
            raise UserError(f"{' '.join(named)}: no mask there can be used, for example {where} ({reason})")
        more = f" and {len(left_out) - 1} more" if len(left_out) > 1 else ""
        log.warning(f"left out of the {mask_noun(name)} masks: {where} ({reason}){more}")
    return [plan.keys.get(path, "") for path in records["path"]]


def _build(store: PixelStore, plan: _Plan, masks: dict[str, str], data: DataConfig) -> None:
    """Fill the store as planned; what cannot be read after all loses its key."""

    def make(path: Path, side: int, fit: str) -> np.ndarray:
        return plan.made[str(path)](side, fit)

    failed = store.build(list(plan.made), [plan.keys[path] for path in plan.made], data.workers, make)
    plan.broken |= {masks[path]: reason for path, reason in failed.items()}
    plan.broken |= store.build(list(plan.files), list(plan.files.values()), data.workers)
    plan.keys = {path: key for path, key in plan.keys.items() if masks[path] not in plan.broken}


def mask_noun(name: str) -> str:
    """Return `lung` or `lesion`."""
    return name.removesuffix("_mask")
