"""`load_dataset` is the one entry to radiographs: files → records → split → pixel cache → batches on the device."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from config import DataConfig
from dataset.cache import cache_folder, hash_files
from dataset.image_set import ImageSet, decode_images, make_image_set
from dataset.layouts import find_records, name_groups
from dataset.masks import give_masks
from dataset.phantom.constants import GROUP_PATTERN, VERSION
from dataset.phantom.write import write_phantom
from dataset.split import split_records
from utils import UserError, atomic_write, log

SUBSET = {"train": 1000, "val": 100, "test": 100}
RECORD_COLUMNS = ["path", "sha256", "label", "group", "source", "lung_mask", "lesion_mask", "split"]


@dataclass
class Dataset:
    """All readable radiographs of a data folder, with their split.

    `unreadable` maps the files that were left out to the reason.
    """

    records: pd.DataFrame
    classes: list[str]
    unreadable: dict[str, str]
    data: DataConfig
    side: int

    def images(self, split: str, side: int | None = None, masks: bool = False) -> ImageSet:
        """The radiographs of one split (`train`, `val` or `test`), cached at `side` (default: the dataset's)."""
        chosen = self.records[self.records["split"] == split].reset_index(drop=True)
        limit = SUBSET[split]
        if self.data.subset and len(chosen) > limit:
            chosen = chosen.sample(limit, random_state=self.data.split_seed).sort_index().reset_index(drop=True)
        return make_image_set(chosen, self.classes, self.data, side or self.side, masks)[0]

    def table(self) -> pd.DataFrame:
        """Images per class (rows, with a total) and split, and the number of patients."""
        table = pd.crosstab(self.records["label"], self.records["split"])
        table = table.reindex(columns=[s for s in (*SUBSET, "") if s in table]).rename(columns={"": "unused"})
        table["all"] = table.sum(axis=1)
        table["patients"] = self.records.groupby("label")["group"].nunique()
        table.loc["all classes"] = [*table.drop(columns="patients").sum(), self.records["group"].nunique()]
        return table.rename_axis(index="class", columns=None)


def load_dataset(
    data: DataConfig,
    side: int,
    *,
    classes: list[str] | None = None,
    run_split: Path | None = None,
) -> Dataset:
    """Find the radiographs that `data` names, split them by patient, and fill the pixel cache.

    Args:
        data: the `data` keys; without `path`, the run's split.csv, and without a run the phantom.
        side: side in pixels of the square pictures.
        classes: class names in the model's order; default: the data's, alphabetical.
        run_split: a run's split.csv. With `data.path` too, its images keep the run's split, matched by content.

    Raises: `UserError` for missing data, fewer than two classes, classes that differ from the given ones, masks that
        were named and are of no image, or more than `data.max_unreadable` unreadable files.
    """
    if data.path is None and run_split is not None:
        records = read_split(run_split)
    else:
        folder, pattern = data_folder(data)
        records = find_records(folder)
        records["group"] = name_groups(records, pattern)
    records = give_masks(records, data)
    _check_classes(records, classes)
    labels = set(records["label"])
    records, unreadable = _readable(records, data, side)
    if lost := sorted(labels - set(records["label"])):
        raise UserError(f"--data: no image of class '{lost[0]}' can be read")
    if data.path is not None and run_split is not None:
        known = read_split(run_split)
        records = _named_by_content(records, known)
        records["split"] = _split_by_content(records, known)
    if run_split is None or (records["split"] == "").all():
        records["split"] = split_records(records, data.split, data.split_seed, data.val_per_class, data.test_per_class)
    _check_split(records)
    return Dataset(records[RECORD_COLUMNS], classes or sorted(records["label"].unique()), unreadable, data, side)


def _check_split(records: pd.DataFrame) -> None:
    """Say which classes have no image in val or test; none in train is a `UserError` where there is a train split."""
    for split in SUBSET:
        absent = sorted(set(records["label"]) - set(records["label"][records["split"] == split]))
        if absent and split == "train" and (records["split"] == "train").any():
            raise UserError(f"--data: class '{absent[0]}' has no training image; add images, or change data.split")
        if absent and split != "train" and (records["split"] == split).any():
            log.warning(f"no {split} image of {', '.join(absent)}: nothing can be said of it there")


def data_folder(data: DataConfig) -> tuple[Path, str | None]:
    """Where the images are, and the pattern of their patients; draws the phantom where no path is given."""
    if data.path is None:
        root = cache_folder(data) / f"phantom-v{VERSION}-{data.phantom_count}-{data.phantom_seed}"
        try:
            write_phantom(root, data.phantom_count, data.phantom_seed, workers=data.workers or None)
        except (ValueError, OSError) as error:
            raise UserError(f"data.cache_dir: the phantom cannot be drawn ({error})") from None
        return root, data.group_pattern
    path = Path(data.path).expanduser()
    if data.group_pattern is None and (path / "phantom.json").is_file():
        return path, GROUP_PATTERN
    return path, data.group_pattern


def read_split(path: Path) -> pd.DataFrame:
    """A run's split.csv, all columns text. Raises: `UserError` for one that cannot be read."""
    try:
        records = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]}); give --data DIR") from None
    missing = [c for c in RECORD_COLUMNS if c not in records]
    if missing:
        raise UserError(f"{path}: no column '{missing[0]}'; give --data DIR")
    return records


def _check_classes(records: pd.DataFrame, classes: list[str] | None) -> None:
    found = set(records["label"])
    if classes is not None and found != set(classes):
        extra, absent = sorted(found - set(classes)), sorted(set(classes) - found)
        parts = ["the data has " + ", ".join(extra) + ", which the model does not know"] if extra else []
        parts += ["the data has no " + ", ".join(absent)] if absent else []
        raise UserError(
            "--data: its classes differ from the checkpoint's: "
            + "; ".join(parts)
            + f" (the checkpoint's: {', '.join(classes)})"
        )


def _readable(records: pd.DataFrame, data: DataConfig, side: int) -> tuple[pd.DataFrame, dict[str, str]]:
    """`records` with `sha256`, without the files that cannot be read (they are counted, and limited)."""
    before = records.get("sha256")
    records = records.assign(sha256=hash_files(list(records["path"]), cache_folder(data), data.workers))
    missing = records["sha256"].isna()
    unreadable = dict.fromkeys(records["path"][missing], "no such file, or it may not be read")
    if before is not None and (changed := int((~missing & (before != records["sha256"])).sum())):
        log.warning(f"{changed} files have changed since the run's split.csv was written")
    unreadable |= decode_images(records[~missing], data, side)[1]
    if unreadable:
        path, reason = next(iter(unreadable.items()))
        message = f"{len(unreadable)} of {len(records)} images cannot be read, for example {path} ({reason})"
        if len(unreadable) > data.max_unreadable * len(records):
            if before is not None and len(unreadable) == len(records):
                message += " (if the images were moved, give --data DIR)"
            raise UserError(
                f"{message}: more than data.max_unreadable={data.max_unreadable:g} of them; mend the files, or raise it"
            )
        log.warning(f"{message}: left out")
    return records[~records["path"].isin(unreadable)].reset_index(drop=True), unreadable


def _named_by_content(records: pd.DataFrame, known: pd.DataFrame) -> pd.DataFrame:
    """`records` with the patients and sources that the run knows of the same pictures: moved files keep them."""
    known = known.drop_duplicates("sha256").set_index("sha256")
    group = known["group"].where(known["group"] != known["path"], "")
    records = records.copy()
    for column, names in (("group", group), ("source", known["source"])):
        found = records["sha256"].map(names).fillna("")
        records[column] = found.where(found != "", records[column])
    return records


def _split_by_content(records: pd.DataFrame, known: pd.DataFrame) -> pd.Series:
    """The run's split of every picture, by its bytes; empty for pictures that the run has not seen."""
    split = records["sha256"].map(dict(zip(known["sha256"], known["split"], strict=True))).fillna("")
    unknown = int((split == "").sum())
    if unknown > len(records) / 2:
        log.info(
            f"other data than the run's ({unknown} of {len(records)} images are not in its split.csv): split afresh"
        )
        return records["split"]
    if unknown:
        log.info(f"{unknown} of {len(records)} images are not in the run's split.csv: they are left out")
    return split


def write_split(records: pd.DataFrame, path: Path) -> None:
    """Write records as a CSV that `--data` takes; its paths are relative to its folder, so that both can move."""
    folder = path.resolve().parent
    table = records.drop(columns="sha256")
    table["group"] = table["group"].where(table["group"] != table["path"], "")  # an image without a patient
    for column in ("path", "lung_mask", "lesion_mask"):
        table[column] = [os.path.relpath(p, folder) if p else "" for p in table[column]]
    with atomic_write(path) as file:
        table.to_csv(file, index=False, lineterminator="\n")
