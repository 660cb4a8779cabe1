"""Which images a verb works on: given files and folders, or some of the test split."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from dataset.blank import without_empty_masks, without_flat_images
from dataset.cache import cache_folder, hash_files
from dataset.image_set import ImageSet, make_image_set
from dataset.layouts import MASKS, name_groups
from dataset.loading import RECORD_COLUMNS, read_split
from dataset.masks import give_masks
from dataset.readers import is_image_file
from evaluation.predictions import read_predictions
from experiment.selection import Selection
from utils import UserError, log

FLAT = "one value only: nothing to explain"


def chosen_images(chosen: Selection, images: list[Path] | None, count: int, seed: int, errors: int = 0) -> ImageSet:
    """The pictures to explain, with their masks: the given files and folders, else `count` per class of the test split
    and the `errors` most confident errors that the run's `test/predictions.csv` holds.

    Given files that the run knows by content have its label. A picture of one value only is left out, as an unreadable
    one is. Raises: `UserError` for a file that is no image or has one value only, a folder without any other, a test
    split without images, masks that cannot be the pictures', or errors asked for before test.py has run.
    """
    checkpoint, data = chosen.checkpoint, chosen.data
    if images is not None:
        return _given_images(chosen, images)
    dataset = chosen.dataset()
    test = dataset.records[dataset.records["split"] == "test"]
    if test.empty:
        raise UserError("the test split has no images; give --image PATH, or --data DIR")
    drawn = [rows.sample(min(count, len(rows)), random_state=seed) for _, rows in test.groupby("label")]
    if errors:
        drawn.append(test[test["sha256"].isin(_worst(chosen, errors))])
    records = pd.concat(drawn).sort_index()
    records = records[~records.index.duplicated()].reset_index(drop=True)
    part, _ = make_image_set(records, checkpoint.classes, data, checkpoint.size, masks=True)
    part, flat = without_flat_images(part, data.fit)
    for path in flat:
        log.warning(f"{path}: left out ({FLAT})")
    if not len(part):
        raise UserError(f"the chosen test images: {FLAT}; give --image PATH, or --data DIR")
    return without_empty_masks(part, data)


def _worst(chosen: Selection, count: int) -> list[str]:
    """The hashes of the `count` wrong answers with the highest confidence in the run's test predictions."""
    path = chosen.output_folder("test") / "predictions.csv"
    if not path.is_file():
        raise UserError(f"--errors {count}: {path} is not there; run python test.py --weights {chosen.checkpoint.path}")
    found = read_predictions(path, chosen.checkpoint.classes)
    wrong = found.table[~found.correct].sort_values("confidence", ascending=False, kind="stable")
    return list(wrong["sha256"].head(count))


def _patients(records: pd.DataFrame, chosen: Selection) -> pd.Series:
    """The patient of each given image: as the run knows it, else by `--group-pattern`, else by the run's own pattern
    where the names are like that (other images may be named otherwise), else the image alone.
    """
    try:
        return name_groups(records, chosen.data.group_pattern)
    except UserError:
        if chosen.pattern_given:
            raise
        return name_groups(records, None)


def _given_images(chosen: Selection, images: list[Path]) -> ImageSet:
    checkpoint, data = chosen.checkpoint, chosen.data
    for path in images:
        if not path.exists():
            raise UserError(f"--image {path}: no such file or folder")
    files = [
        file.resolve()
        for path in images
        for file in (sorted(p for p in path.iterdir() if is_image_file(p)) if path.is_dir() else [path])
    ]
    if not files:
        raise UserError(f"--image {images[0]}: no images in it")
    records = pd.DataFrame({"path": [str(f) for f in files]}).reindex(columns=RECORD_COLUMNS, fill_value="")
    records["sha256"] = hash_files(list(records["path"]), cache_folder(data), data.workers)
    if chosen.run is not None:
        known = read_split(chosen.run / "split.csv").drop_duplicates("sha256")
        known = records[["sha256"]].merge(known, how="left", on="sha256").fillna("")
        for column in ("label", "group", "source", *MASKS):
            records[column] = known[column].to_numpy()
    records["group"] = _patients(records, chosen)
    part, unreadable = make_image_set(give_masks(records, data), checkpoint.classes, data, checkpoint.size, masks=True)
    part, flat = without_flat_images(part, data.fit)
    reasons = {path: f"no readable image: {reason}" for path, reason in unreadable.items()} | dict.fromkeys(flat, FLAT)
    for path, reason in reasons.items():
        if Path(path) in {p.resolve() for p in images} or not len(part):
            raise UserError(f"--image {path}: {reason}")
        log.warning(f"{path}: left out ({reason})")
    return without_empty_masks(part, data)
