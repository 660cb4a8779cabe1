"""The images that a verb or a program works on: given files, folders or arrays, or some of the test split."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from dataset.cache import cache_folder, hash_files
from dataset.image_set import ImageSet, make_image_set, without_empty_masks, without_flat_images
from dataset.layouts import MASKS, name_groups
from dataset.loading import RECORD_COLUMNS, read_split
from dataset.masks import give_masks
from dataset.readers import fit_square, is_image_file, to_uint8
from evaluation.predictions import read_predictions
from experiment.checkpoint import Checkpoint
from experiment.selection import Selection
from utils import UserError, log

FLAT = "all pixels have one value, so there is nothing to explain"


def images_from_split(selection: Selection, count: int, seed: int, errors: int = 0) -> ImageSet:
    """Return images of the test split to explain, with their masks, in the order of the data.

    Args:
        count: images per class, drawn by `seed`.
        errors: the number of most confident errors in the run's `test/predictions.csv` to add.

    Images of a single value are left out with a warning. Raises: `UserError` for a test split without images, masks
    that cannot belong to their image, or errors without test predictions.
    """
    checkpoint, data = selection.checkpoint, selection.data
    dataset = selection.dataset()
    test = dataset.records[dataset.records["split"] == "test"]
    if test.empty:
        raise UserError("the test split has no images; pass --image PATH or --data DIR")
    drawn = [rows.sample(min(count, len(rows)), random_state=seed) for _, rows in test.groupby("label")]
    if errors:
        drawn.append(test[test["sha256"].isin(_worst_errors(selection, errors))])
    records = pd.concat(drawn).sort_index()
    records = records[~records.index.duplicated()].reset_index(drop=True)
    images, _ = make_image_set(records, checkpoint.classes, data, checkpoint.size, masks=True)
    images = without_flat(images, data.fit, f"the selected test images: {FLAT}; pass --image PATH or --data DIR")
    return without_empty_masks(images, data)


def without_flat(images: ImageSet, fit: str, refusal: str) -> ImageSet:
    """Leave images of a single value out, with a warning. Raises: `UserError(refusal)` if none remain."""
    images, flat = without_flat_images(images, fit)
    for path in flat:
        log.warning(f"{path}: left out ({FLAT})")
    if not len(images):
        raise UserError(refusal)
    return images


def images_from_paths(selection: Selection, paths: Sequence[Path], flag: str = "--image") -> ImageSet:
    """Return the images of `paths` to explain, with their masks, as `image_records` finds them.

    Unreadable images and images of a single value are left out with a warning. Raises: `UserError` that names `flag`,
    as `image_records` does, if such an image was given itself, or no image remains.
    """
    checkpoint, data = selection.checkpoint, selection.data
    records = image_records(selection, paths, flag)
    images, unreadable = make_image_set(
        give_masks(records, data), checkpoint.classes, data, checkpoint.size, masks=True
    )
    images, flat = without_flat_images(images, data.fit)
    reasons = {path: f"cannot be read: {reason}" for path, reason in unreadable.items()} | dict.fromkeys(flat, FLAT)
    for path, reason in reasons.items():
        if Path(path) in {given.resolve() for given in paths} or not len(images):
            raise UserError(f"{flag} {path}: {reason}")
        log.warning(f"{path}: left out ({reason})")
    return without_empty_masks(images, data)


def image_records(selection: Selection, paths: Sequence[Path], flag: str = "--image") -> pd.DataFrame:
    """Return the records of given files, and of the images in given folders, with `RECORD_COLUMNS` and hashes.

    Images that the run has by content keep its label, patient, source and masks; the label of others is empty.
    Raises: `UserError` that names `flag` for a path that does not exist, or no image in a folder.
    """
    for path in paths:
        if not path.exists():
            raise UserError(f"{flag} {path}: no such file or folder")
    files = [
        str(file.resolve())
        for path in paths
        for file in (sorted(p for p in path.iterdir() if is_image_file(p)) if path.is_dir() else [path])
    ]
    if not files:
        raise UserError(f"{flag} {paths[0]}: it has no images" if paths else f"{flag}: no images given")
    data = selection.data
    records = pd.DataFrame({"path": files}).reindex(columns=RECORD_COLUMNS, fill_value="")
    records["sha256"] = hash_files(files, cache_folder(data), data.workers)
    if selection.run is not None:
        split = read_split(selection.run / "split.csv").drop_duplicates("sha256")
        same = records[["sha256"]].merge(split, how="left", on="sha256").fillna("")
        for column in ("label", "group", "source", *MASKS):
            records[column] = same[column].to_numpy()
    records["group"] = _patients(records, selection)
    return records


class ArrayStore:
    """Pixels in memory, (n, side, side) uint8, with the interface of a `PixelStore`."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels, self.side = pixels, pixels.shape[-1]

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return the pixels of `rows`: (n, side, side) uint8."""
        return self.pixels[rows]


def images_from_arrays(arrays: np.ndarray | Iterable[np.ndarray], checkpoint: Checkpoint) -> ImageSet:
    """Return images given as pixels, as squares of the checkpoint's input size. Their paths are `array-0`, ….

    Args:
        arrays: one image, (height, width); several of one size, (n, height, width); or any number of (height, width)
            each. uint8 and uint16 span their whole range, floats [0, 1]: bright bone, dark air.

    Raises: `UserError` for an array of another shape, type or range.
    """
    arrays = separate(arrays)
    squares = [_square(pixels, index, checkpoint) for index, pixels in enumerate(arrays)]
    if not squares:
        raise UserError("images: no arrays given")
    records = pd.DataFrame({"path": [f"array-{index}" for index in range(len(squares))]})
    records = records.reindex(columns=RECORD_COLUMNS, fill_value="").assign(group=records["path"])
    store, rows = ArrayStore(np.stack(squares)), np.arange(len(squares))
    stores = {"image": (store, rows)} | {mask: (store, np.full_like(rows, -1)) for mask in MASKS}
    sizes = {path: pixels.shape for path, pixels in zip(records["path"], arrays, strict=True)}
    return ImageSet(records=records, classes=checkpoint.classes, stores=stores, sizes=sizes)


def separate(arrays: np.ndarray | Iterable[np.ndarray]) -> list[np.ndarray]:
    """Return a list of images of an array or a sequence of arrays."""
    if not hasattr(arrays, "ndim"):
        return [np.asarray(array) for array in arrays]
    if arrays.ndim == 3 and arrays.shape[-1] in (3, 4):
        raise UserError(f"images: an array of shape {tuple(arrays.shape)} looks like colour; convert it to grey")
    return list(np.asarray(arrays)) if arrays.ndim == 3 else [np.asarray(arrays)]


def _square(pixels: np.ndarray, index: int, checkpoint: Checkpoint) -> np.ndarray:
    """Return one array as the cache keeps an image: (size, size) uint8."""
    if pixels.ndim != 2 or not pixels.size:
        raise UserError(f"images: array {index} has shape {pixels.shape}; (height, width) in grey is needed")
    if np.issubdtype(pixels.dtype, np.floating):
        if not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1):
            raise UserError(f"images: array {index} has floats outside [0, 1]; rescale them")
        pixels = (pixels * np.float64(65535)).round().astype(np.uint16)
    if pixels.dtype not in (np.uint8, np.uint16):
        raise UserError(f"images: array {index} is {pixels.dtype}; uint8, uint16 or floats in [0, 1] are needed")
    return to_uint8(fit_square(np.ascontiguousarray(pixels), checkpoint.size, checkpoint.fit))


def _worst_errors(selection: Selection, count: int) -> list[str]:
    """Return the hashes of the `count` most confident errors among the run's test predictions."""
    path = selection.output_folder("test") / "predictions.csv"
    if not path.is_file():
        weights = selection.checkpoint.path
        raise UserError(f"--errors {count}: {path} does not exist; run python test.py --weights {weights}")
    predictions = read_predictions(path, selection.checkpoint.classes)
    wrong = predictions.table[~predictions.correct].sort_values("confidence", ascending=False, kind="stable")
    return list(wrong["sha256"].head(count))


def _patients(records: pd.DataFrame, selection: Selection) -> pd.Series:
    """Return the patient of each image: recorded by the run, else from the file name, else the image alone.

    A `--group-pattern` must match some names; the run's own pattern need not, as other images may be named otherwise.
    """
    try:
        return name_groups(records, selection.data.group_pattern)
    except UserError:
        if selection.pattern_given:
            raise
        return name_groups(records, None)
