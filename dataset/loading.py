"""From the configuration to a `Dataset`: find the files, hash and decode them, and split them by patient."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from config import DataConfig
from dataset.cache import cache_folder, hash_files
from dataset.image_set import ImageSet, decode_images, make_image_set
from dataset.layouts import MASKS, find_records, name_groups
from dataset.masks import give_masks
from dataset.phantom.constants import GROUP_PATTERN, VERSION
from dataset.phantom.write import write_phantom
from dataset.split import split_records
from utils import UserError, atomic_write, count, log, read_table

SUBSET = {"train": 1000, "val": 100, "test": 100}  # the most images of a split under data.subset
RECORD_COLUMNS = ["path", "sha256", "label", "group", "source", *MASKS, "split"]


@dataclass(kw_only=True)
class Dataset:
    """All readable images of a data folder, with their split.

    Args:
        records: one row per image, with `RECORD_COLUMNS`.
        classes: class names in the model's order.
        unreadable: path → reason of the files that were left out.
        data: the `data` keys.
        side: side in pixels of the square images.
    """

    records: pd.DataFrame
    classes: list[str]
    unreadable: dict[str, str]
    data: DataConfig
    side: int

    def images(self, split: str, side: int | None = None, masks: bool = False) -> ImageSet:
        """Return the images of one split (`train`, `val` or `test`), cached at `side` (default: the dataset's)."""
        records = self.records[self.records["split"] == split]
        if self.data.subset and len(records) > SUBSET[split]:
            records = records.sample(SUBSET[split], random_state=self.data.split_seed).sort_index()
        records = records.reset_index(drop=True)
        return make_image_set(records, self.classes, self.data, side or self.side, masks)[0]

    def table(self) -> pd.DataFrame:
        """Return the images per class (rows, with a total) and split, and the number of patients."""
        table = pd.crosstab(self.records["label"], self.records["split"])
        table = table.reindex(columns=[s for s in (*SUBSET, "") if s in table]).rename(columns={"": "unused"})
        table["all"] = table.sum(axis=1)
        table["patients"] = self.records.groupby("label")["group"].nunique()
        table.loc["all classes"] = [*table.drop(columns="patients").sum(), self.records["group"].nunique()]
        return table.rename_axis(index="class", columns=None)


def load_dataset(
    data: DataConfig, side: int, *, classes: list[str] | None = None, run_split: Path | None = None
) -> Dataset:
    """Find the images that `data` names, split them by patient, and fill the pixel cache.

    Args:
        data: the `data` keys; without `path`, the images of `run_split`; without both, the phantom.
        side: side in pixels of the square images.
        classes: class names in the model's order; default: the data's, alphabetical.
        run_split: a run's split.csv. With `data.path` too, images of the same content keep the run's split.

    Raises: `UserError` for missing data, fewer than two classes, classes that differ from the given ones, named masks
        that fit no image, or more than `data.max_unreadable` unreadable files.
    """
    if data.path is None and run_split is not None:
        records = read_split(run_split)
    else:
        folder, pattern = data_folder(data)
        records = find_records(folder)
        records["group"] = name_groups(records, pattern)
    records = give_masks(records, data)
    labels = set(records["label"])
    expected = set(classes or labels)
    if labels != expected:
        unknown, absent = (", ".join(sorted(names)) or "none" for names in (labels - expected, expected - labels))
        difference = f"unknown to it: {unknown}; missing: {absent}; rename the folders or use test.py --external --map"
        raise UserError(f"--data: classes differ from the checkpoint's ({', '.join(classes)}): {difference}")
    records, unreadable = _readable(records, data, side)
    if lost := sorted(labels - set(records["label"])):
        raise UserError(f"--data: no image of class '{lost[0]}' can be read")
    if data.path is not None and run_split is not None:
        records = _match_run(records, read_split(run_split))
    if run_split is None or (records["split"] == "").all():
        per_class = data.val_per_class, data.test_per_class
        records["split"] = split_records(records, data.split, data.split_seed, per_class)
    _check_split(records)
    classes = classes or sorted(records["label"].unique())
    return Dataset(records=records[RECORD_COLUMNS], classes=classes, unreadable=unreadable, data=data, side=side)


def data_folder(data: DataConfig) -> tuple[Path, str | None]:
    """Return the folder or CSV of the images and the pattern of their patients; without a path, draw the phantom."""
    if data.path is None:
        root = cache_folder(data) / f"phantom-v{VERSION}-{data.phantom_count}-{data.phantom_seed}"
        try:
            write_phantom(root, data.phantom_count, data.phantom_seed, workers=data.workers)
        except (ValueError, OSError) as error:
            raise UserError(f"data.cache_dir: the phantom cannot be drawn ({error})") from None
        return root, data.group_pattern
    path = Path(data.path).expanduser()
    phantom = data.group_pattern is None and (path / "phantom.json").is_file()
    return path, GROUP_PATTERN if phantom else data.group_pattern


def _check_split(records: pd.DataFrame) -> None:
    """Warn of classes without an image in val or test. Raises: `UserError` for one without a training image."""
    for split in SUBSET:
        rows = records["split"] == split
        absent = sorted(set(records["label"]) - set(records["label"][rows])) if rows.any() else []
        if absent and split == "train":
            raise UserError(f"--data: class '{absent[0]}' has no training image; add images or change data.split")
        if absent:
            log.warning(f"no {split} images, hence no {split} results, for {', '.join(absent)}")


def _readable(records: pd.DataFrame, data: DataConfig, side: int) -> tuple[pd.DataFrame, dict[str, str]]:
    """Hash and decode the files. Returns: the readable records with `sha256`, and path → reason of the others.

    Raises: `UserError` for more than `data.max_unreadable` unreadable files.
    """
    before = records.get("sha256")
    records = records.assign(sha256=hash_files(list(records["path"]), cache_folder(data), data.workers))
    missing = records["sha256"].isna()
    unreadable = dict.fromkeys(records["path"][missing], "no such file, or no permission to read it")
    if before is not None and (changed := int((~missing & (before != records["sha256"])).sum())):
        log.warning(f"{count(changed, 'file')} changed since the run's split.csv was written")
    unreadable |= decode_images(records[~missing], data, side)[1]
    if unreadable:
        path, reason = next(iter(unreadable.items()))
        message = f"{len(unreadable)} of {count(len(records), 'image')} cannot be read, for example {path} ({reason})"
        if len(unreadable) > data.max_unreadable * len(records):
            remedy = "fix the files or raise the limit" + "; if they were moved, pass --data DIR" * (before is not None)
            raise UserError(f"{message}: more than data.max_unreadable={data.max_unreadable:g}; {remedy}")
        log.warning(f"{message}: left out")
    return records[~records["path"].isin(unreadable)].reset_index(drop=True), unreadable


def _match_run(records: pd.DataFrame, run: pd.DataFrame) -> pd.DataFrame:
    """Return `records` with the split, patients and sources that the run's split.csv has for the same content.

    Images that the run does not know have an empty split; if they are the majority, the records keep their own split.
    """
    split = records["sha256"].map(dict(zip(run["sha256"], run["split"], strict=True))).fillna("")
    run = run.drop_duplicates("sha256").set_index("sha256")
    run["group"] = run["group"].where(run["group"] != run["path"], "")
    known = {column: records["sha256"].map(run[column]).fillna("") for column in ("group", "source")}
    records = records.assign(**{name: values.where(values != "", records[name]) for name, values in known.items()})
    unknown = int((split == "").sum())
    new = unknown > len(records) / 2
    if unknown:
        action = "a new split is drawn" if new else "left out"
        log.info(f"not in the run's split.csv: {unknown} of {count(len(records), 'image')}; {action}")
    return records if new else records.assign(split=split)


def read_split(path: Path) -> pd.DataFrame:
    """Read a run's split.csv, all columns as text. Raises: `UserError` for one that cannot be read."""
    return read_table(path, RECORD_COLUMNS, str(path), "; pass --data DIR")


def write_split(records: pd.DataFrame, path: Path) -> None:
    """Write records as a CSV that `--data` takes; its paths are relative to its folder, so that both can move."""
    folder = path.resolve().parent
    table = records.drop(columns="sha256")
    table["group"] = table["group"].where(table["group"] != table["path"], "")  # no patient is known
    for column in ("path", *MASKS):
        table[column] = [os.path.relpath(p, folder) if p else "" for p in table[column]]
    with atomic_write(path) as file:
        table.to_csv(file, index=False, lineterminator="\n")
