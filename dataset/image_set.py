"""The radiographs of one split, and batches of them on the device.

Nothing heavy is imported at the top: `dataset.data` is a program, and imports this before it answers `--help`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from config import DataConfig
from utils import PROJECT

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch

    from dataset.cache import PixelStore
    from dataset.transforms import Augment

MASKS = ("lung_mask", "lesion_mask")
BLOCK = 1024  # pictures moved to a GPU at a time


@dataclass
class Batch:
    """Some pictures on the device."""

    inputs: torch.Tensor  # (n, channels, side, side) float32, normalised, channels last
    labels: torch.Tensor  # (n,) int64, -1 where the label is no class of the model
    indices: np.ndarray  # (n,) int64, rows of the part's records
    masks: torch.Tensor | None = None  # (n, 2, side, side) uint8: lungs, lesion; zeros where there is none


@dataclass
class ImageSet:
    """The radiographs of one split: records, and pixels (uint8 rows of the cache, read a batch at a time).

    Args:
        records: one row per picture, with `RECORD_COLUMNS`.
        classes: class names in the model's order.
        stores: `image`, `lung_mask` and `lesion_mask` → (store, rows).
        device_bytes: how much of a GPU's memory the pictures may take.
    """

    records: pd.DataFrame
    classes: list[str]
    stores: dict[str, tuple[PixelStore, np.ndarray]]
    device_bytes: int = 0
    labels: np.ndarray = field(init=False)
    _resident: dict[torch.device, torch.Tensor] = field(init=False, default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        import numpy as np

        number = {name: i for i, name in enumerate(self.classes)}
        self.labels = np.array([number.get(label, -1) for label in self.records["label"]], np.int64)
        for store, _ in self.stores.values():
            store.open()

    def __len__(self) -> int:
        return len(self.records)

    @property
    def side(self) -> int:
        """Side of the cached pictures in pixels."""
        return self.stores["image"][0].side

    def gather(self, name: str, indices: np.ndarray) -> np.ndarray:
        """Pixels of `image`, `lung_mask` or `lesion_mask`: (n, side, side) uint8; zeros where there is no mask."""
        store, rows = self.stores[name]
        return store.read(rows[indices])

    def has(self, name: str) -> np.ndarray:
        """(n,) bool: which pictures have the mask `name`."""
        return self.stores[name][1] >= 0

    def take(self, kept: np.ndarray) -> ImageSet:
        """The part with those of its pictures alone that `kept` (n,) bool takes."""
        stores = {name: (store, rows[kept]) for name, (store, rows) in self.stores.items()}
        return replace(self, records=self.records[kept].reset_index(drop=True), stores=stores)

    def fits(self, device: torch.device) -> bool:
        """Whether the device has memory of its own, and room in it for all pictures."""
        import torch

        needed = len(self) * self.side**2
        return device.type == "cuda" and needed <= min(self.device_bytes, torch.cuda.mem_get_info(device)[0] // 4)

    def resident(self, device: torch.device) -> torch.Tensor | None:
        """All pictures on the device, (n, side, side) uint8, where they fit: moved at the first call, then kept."""
        import numpy as np
        import torch

        if device not in self._resident and self.fits(device):
            pixels = torch.empty((len(self), self.side, self.side), dtype=torch.uint8, device=device)
            for start in range(0, len(self), BLOCK):
                block = self.gather("image", np.arange(start, min(start + BLOCK, len(self))))
                pixels[start : start + len(block)] = torch.from_numpy(block)
            self._resident[device] = pixels
        return self._resident.get(device)

    def batches(
        self,
        device: torch.device,
        batch: int,
        side: int,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        order: np.ndarray | None = None,
        positions: Sequence[range] | None = None,
        augment: Augment | None = None,
        epoch: int = 0,
        masks: bool = False,
    ) -> Iterator[Batch]:
        """Batches in `order` (default: as recorded), the last one as small as it comes; nothing is dropped.

        The next batch is made ready by a thread while the device works on this one; on a GPU that has room for them
        all pictures are moved once (`resident`). `positions` are the places in `order` of every batch, where they are
        not simply `batch` after `batch`: augmentation is a function of (seed, epoch, place).
        """
        from concurrent.futures import ThreadPoolExecutor

        import numpy as np
        import torch

        from dataset.sampling import epoch_steps
        from dataset.transforms import normalise

        order = np.arange(len(self)) if order is None else order
        if positions is None and augment is not None:
            positions = epoch_steps(len(order), batch)
        elif positions is None:
            positions = [range(i, min(i + batch, len(order))) for i in range(0, len(order), batch)]
        chunks = [order[places.start : places.stop] for places in positions]

        resident = self.resident(device)

        def fetch(chunk: np.ndarray) -> list[torch.Tensor | None]:
            """Pixels (or the rows of the resident ones), masks and labels, where the device can fetch them."""
            pixels = self.gather("image", chunk) if resident is None else chunk
            planes = np.stack([self.gather(m, chunk) for m in MASKS], 1) if masks else None
            found = [a if a is None else torch.from_numpy(a) for a in (pixels, planes, self.labels[chunk])]
            return [a if a is None or device.type != "cuda" else a.pin_memory() for a in found]

        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(fetch, chunks[0]) if chunks else None
            for number, chunk in enumerate(chunks):
                pixels, planes, labels = (a if a is None else a.to(device, non_blocking=True) for a in coming.result())
                if number + 1 < len(chunks):
                    coming = pool.submit(fetch, chunks[number + 1])
                if resident is not None:
                    pixels = resident.index_select(0, pixels)
                if augment is not None:
                    grey, planes = augment(pixels, epoch, np.array(positions[number]), planes)
                else:
                    grey = pixels.float().div_(255)
                assert grey.shape[-1] == side, "cached pictures that are not augmented have the model's input size"
                yield Batch(normalise(grey, mean, std), labels, chunk, planes)


def cache_folder(data: DataConfig) -> Path:
    """`data.cache_dir`, relative to the project."""
    return PROJECT / data.cache_dir


def make_image_set(
    records: pd.DataFrame,
    classes: list[str],
    data: DataConfig,
    side: int,
    masks: bool = False,
) -> tuple[ImageSet, dict[str, str]]:
    """Fill the cache for `records` (with `sha256`) and return them as a `ImageSet`, without those that cannot be read,
    and the reasons of those. A mask that cannot be used counts as absent, and is said (`dataset.masks.mask_keys`).

    Raises: `UserError` for a mask that the user named and that cannot be that picture's.
    """
    from dataset.cache import PixelStore
    from dataset.masks import mask_keys

    folder = cache_folder(data)
    store = PixelStore(folder, side, data.fit)
    unreadable = store.build(list(records["path"]), list(records["sha256"]), data.workers)
    records = records[~records["path"].isin(unreadable)].reset_index(drop=True)
    stores = {"image": (store, store.rows(records["sha256"]))}
    for name in MASKS if masks else ():
        store = PixelStore(folder, side, data.fit, "mask")
        stores[name] = (store, store.rows(mask_keys(store, name, records, data)))
    return ImageSet(records, classes, stores, round(data.device_memory * 2**30)), unreadable
