"""The images of one split, and batches of them on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from config import DataConfig
from dataset.cache import PixelStore, cache_folder
from dataset.layouts import MASKS
from dataset.masks import mask_keys, named_masks
from dataset.readers import image_size, letterbox_frame
from dataset.transforms import Augment, Normalisation, normalise
from pretrained_models import Architecture
from utils import UserError, count, log

BLOCK = 1024  # images read at a time by `ImageSet.blocks`


@dataclass
class Batch:
    """Some images on the device."""

    inputs: torch.Tensor  # (n, channels, side, side) float32, normalised, channels last
    labels: torch.Tensor  # (n,) int64, -1 for a label that is not one of the model's classes
    indices: np.ndarray  # (n,) int64, rows of the records


@dataclass(frozen=True)
class Schedule:
    """The order of an epoch, how it is cut into batches, and how its images are augmented.

    Args:
        order: (n,) rows of the records; default: as recorded, each once.
        positions: the positions in `order` of every batch; default: consecutive batches.
        augment: the transform of training images, a function of (seed, epoch, position).
        epoch: from 1; used by `augment` alone.
    """

    order: np.ndarray | None = None
    positions: Sequence[range] | None = None
    augment: Augment | None = None
    epoch: int = 0


ALL = Schedule()  # every image once


@dataclass(kw_only=True)
class ImageSet:
    """The images of one split: records, and pixels (uint8 rows of the cache, read a batch at a time).

    Args:
        records: one row per image, with `RECORD_COLUMNS`.
        classes: class names in the model's order.
        stores: `image`, `lung_mask` and `lesion_mask` → (store, rows).
        device_bytes: how much of a GPU's memory the images may take.
        sizes: path → (height, width) of images that are not files, before they became squares.
    """

    records: pd.DataFrame
    classes: list[str]
    stores: dict[str, tuple[PixelStore, np.ndarray]]
    device_bytes: int = 0
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    labels: np.ndarray = field(init=False)
    _resident: dict[torch.device, torch.Tensor] = field(init=False, default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.labels = pd.Index(self.classes).get_indexer(self.records["label"]).astype(np.int64)

    def __len__(self) -> int:
        return len(self.records)

    @property
    def side(self) -> int:
        """Side of the cached images in pixels."""
        return self.stores["image"][0].side

    def gather(self, name: str, indices: np.ndarray) -> np.ndarray:
        """Return the pixels of `image`, `lung_mask` or `lesion_mask`: (n, side, side) uint8; zeros without a mask."""
        store, rows = self.stores[name]
        return store.read(rows[indices])

    def content(self, index: int, fit: str) -> tuple[slice, slice] | None:
        """Return the rows and columns of the square that an image covers; None: all of them, without padding."""
        if fit != "letterbox":
            return None
        path = self.records["path"].iloc[index]
        return letterbox_frame(*(self.sizes.get(path) or image_size(Path(path))), self.side).slices

    def blocks(self, name: str, indices: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the pixels of all `indices` as (indices, pixels), at most `BLOCK` at a time."""
        for start in range(0, len(indices), BLOCK):
            yield indices[start : start + BLOCK], self.gather(name, indices[start : start + BLOCK])

    def each(self, name: str, indices: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Yield every one of `indices` with its pixels, (side, side); the cache is read in blocks."""
        for block in self.blocks(name, indices):
            yield from zip(*block, strict=True)

    def has(self, name: str) -> np.ndarray:
        """Return which images have the mask `name`: (n,) bool."""
        return self.stores[name][1] >= 0

    def take(self, kept: np.ndarray) -> ImageSet:
        """Return the images that `kept`, (n,) bool, selects."""
        stores = {name: (store, rows[kept]) for name, (store, rows) in self.stores.items()}
        return replace(self, records=self.records[kept].reset_index(drop=True), stores=stores)

    def fits(self, device: torch.device) -> bool:
        """Return whether the device has memory of its own, with room for all images."""
        needed = len(self) * self.side**2
        return device.type == "cuda" and needed <= min(self.device_bytes, torch.cuda.mem_get_info(device)[0] // 4)

    def resident(self, device: torch.device) -> torch.Tensor | None:
        """Return all images on the device, (n, side, side) uint8, if they fit: moved by the first call, then kept."""
        if device not in self._resident and self.fits(device):
            pixels = torch.empty((len(self), self.side, self.side), dtype=torch.uint8, device=device)
            for indices, block in self.blocks("image", np.arange(len(self))):
                pixels[indices[0] : indices[-1] + 1] = torch.from_numpy(block)
            self._resident[device] = pixels
        return self._resident.get(device)

    def batches(
        self, device: torch.device, batch: int, normalisation: Architecture | Normalisation, schedule: Schedule = ALL
    ) -> Iterator[Batch]:
        """Yield all images, or those of `schedule`, in batches; the last batch may be smaller, nothing is dropped.

        A thread reads the next batch while the device works on this one. On a GPU with room for them all images are
        moved once (`resident`).

        Args:
            batch: images per batch.
            normalisation: the mean and standard deviation that the model expects: an `Architecture`, or explicit ones.
        """
        order = np.arange(len(self)) if schedule.order is None else schedule.order
        steps = schedule.positions
        if steps is None:
            steps = [range(start, min(start + batch, len(order))) for start in range(0, len(order), batch)]
        chunks = [order[positions.start : positions.stop] for positions in steps]
        resident = self.resident(device)

        def read(chunk: np.ndarray) -> list[torch.Tensor]:
            """Read the labels and the pixels of a chunk (the rows of resident ones) into memory the GPU can copy."""
            pixels = self.gather("image", chunk) if resident is None else chunk
            tensors = [torch.from_numpy(pixels), torch.from_numpy(self.labels[chunk])]
            return [tensor.pin_memory() for tensor in tensors] if device.type == "cuda" else tensors

        for positions, chunk, tensors in zip(steps, chunks, _one_ahead(read, chunks), strict=True):
            pixels, labels = (tensor.to(device, non_blocking=True) for tensor in tensors)
            if resident is not None:
                pixels = resident.index_select(0, pixels)
            if schedule.augment is None:
                grey = pixels.float().div_(255)
            else:
                grey, _ = schedule.augment(pixels, schedule.epoch, np.array(positions))
            yield Batch(normalise(grey, normalisation.mean, normalisation.std), labels, chunk)


def _one_ahead(work: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """Yield `work(item)` for each item in order; a thread works on the next one in the meantime."""
    with ThreadPoolExecutor(1) as pool:
        jobs = (pool.submit(work, item) for item in items)
        waiting = list(islice(jobs, 1))
        while waiting:
            result = waiting.pop().result()
            waiting += islice(jobs, 1)
            yield result


def decode_images(records: pd.DataFrame, data: DataConfig, side: int) -> tuple[PixelStore, dict[str, str]]:
    """Fill the pixel cache for `records` (with `sha256`).

    Returns: the store, and path → reason of every file that cannot be read.
    """
    store = PixelStore(cache_folder(data), side, data.fit)
    return store, store.build(list(records["path"]), list(records["sha256"]), data.workers)


def make_image_set(
    records: pd.DataFrame, classes: list[str], data: DataConfig, side: int, masks: bool = False
) -> tuple[ImageSet, dict[str, str]]:
    """Fill the pixel cache for `records` (with `sha256`) and, if asked for, their masks.

    Returns: the images that can be read, and path → reason of the others. A mask that cannot be used counts as absent,
    with a warning (`dataset.masks.mask_keys`).
    Raises: `UserError` for a mask that the user named and that cannot belong to its image.
    """
    store, unreadable = decode_images(records, data, side)
    records = records[~records["path"].isin(unreadable)].reset_index(drop=True)
    stores = {"image": (store, store.rows(records["sha256"]))}
    for name in MASKS if masks else ():
        store = PixelStore(cache_folder(data), side, data.fit, "mask")
        stores[name] = (store, store.rows(mask_keys(store, name, records, data)))
    memory = round(data.device_memory * 2**30)
    return ImageSet(records=records, classes=classes, stores=stores, device_bytes=memory), unreadable


def without_flat_images(images: ImageSet, fit: str) -> tuple[ImageSet, list[str]]:
    """Return the images without those of a single value, in which nothing can be explained, and the paths of those.

    `fit` is the images' `data.fit`: the padding of a letterbox does not belong to the image.
    """
    everything = images.each("image", np.arange(len(images)))
    contents = (pixels[images.content(index, fit) or ...] for index, pixels in everything)
    kept = np.array([pixels.min() < pixels.max() for pixels in contents], bool)
    return images.take(kept), list(images.records["path"][~kept])


def without_empty_masks(images: ImageSet, data: DataConfig) -> ImageSet:
    """Return the images without their empty masks, which nothing can be scored against; a line of the log counts them.

    An empty lung mask is a fault; an image without a finding has an empty lesion mask.
    Raises: `UserError` if all masks that the user named are empty.
    """
    for name in MASKS:
        there = np.flatnonzero(images.has(name))
        empty = [index for index, mask in images.each(name, there) if not mask.any()]
        if not empty:
            continue
        kind, first, named = name.removesuffix("_mask"), images.records[name].iloc[empty[0]], named_masks(name, data)
        if named and len(empty) == len(there):
            all_empty = f"the masks of all chosen images ({len(empty)}) are empty at {images.side}×{images.side} pixels"
            raise UserError(f"{named}: {all_empty}, for example {first}; pass other masks, or leave {named.flag} out")
        line = f"{count(len(empty), f'empty {kind} mask')}, for example {first}: no {kind} scores"
        (log.warning if kind == "lung" else log.info)(line)
        store, rows = images.stores[name]
        rows = np.where(np.isin(np.arange(len(rows)), empty), -1, rows)
        images = replace(images, stores=images.stores | {name: (store, rows)})
    return images
