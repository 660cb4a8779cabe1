"""From folders and CSV files to records: one row per image.

Columns: `path`, `label`, `group` (the patient), `source`, `lung_mask`, `lesion_mask` (an image or a `boxes.csv`) and
`split` (train, val, test or empty); all are strings, empty if unknown. Layouts: `DIR/CLASS/images/*` with `masks/`,
`lesion_masks/`, `boxes.csv` and `CLASS.metadata.xlsx` (Kaggle), `DIR/CLASS/*`, either of them inside
`DIR/{train,val,test}/`, and a CSV with `path,label`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pandas as pd

from config import SPLITS
from dataset.boxes import match_boxes
from dataset.readers import is_image_file
from utils import UserError, count, read_table

COLUMNS = ["path", "label", "group", "source", "lung_mask", "lesion_mask", "split"]
SPLIT_FOLDERS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
SPLIT_NAMES = {name: split for split, names in SPLIT_FOLDERS.items() for name in names}
MASK_FOLDERS = {"lung_mask": "masks", "lesion_mask": "lesion_masks"}
MASKS = tuple(MASK_FOLDERS)
# Columns of a metadata sheet that name the patient, in upper case with single spaces.
PATIENT_COLUMNS = ("PATIENT", "PATIENT ID", "PATIENTID", "PATIENT_ID", "SUBJECT", "SUBJECT ID", "GROUP")


def find_records(path: Path, flag: str = "--data", fewest: int = 2) -> pd.DataFrame:
    """Return the records of a data folder or CSV, sorted by path, with `COLUMNS`.

    `group` is empty unless the metadata or the CSV names it.

    Raises: `UserError`, which names `flag`, for a path that does not exist, no images, or fewer than `fewest` classes.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{flag} {path}: no such folder or file")
    records = _from_csv(path, flag) if path.is_file() else _from_folder(path, flag)
    if records.empty:
        looked = "looked for CLASS/images/*, CLASS/*, train|val|test/CLASS/*"
        raise UserError(f"{flag} {path}: no images found ({looked}){_nested_hint(path, flag)}")
    classes = sorted(records["label"].unique())
    if len(classes) < fewest:
        needed = f"a classifier needs at least two{_nested_hint(path, flag)}"
        raise UserError(f"{flag} {path}: only one class, '{classes[0]}'; {needed}")
    return records.sort_values("path", ignore_index=True)[COLUMNS]


def _nested_hint(path: Path, flag: str) -> str:
    """Return ` (did you mean DIR?)` for a folder of classes one level down, as archives are unpacked; empty if none."""
    for folder in _subfolders(path) if path.is_dir() else []:
        if sum(any(map(is_image_file, _files(sub / "images"))) for sub in _subfolders(folder)) > 1:
            return f" (did you mean {flag} {folder}?)"
    return ""


def _subfolders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def _files(folder: Path) -> list[Path]:
    """Return the absolute paths of a folder's files, sorted by name; none if there is no such folder."""
    if not folder.is_dir():
        return []
    folder = folder.resolve()  # once: resolving every file would walk the whole path again
    with os.scandir(folder) as entries:
        return [folder / name for name in sorted(entry.name for entry in entries if entry.is_file())]


def _real(path: Path) -> str:
    """Return the path of a file that `_files` returned, with a link resolved."""
    return str(path.resolve() if path.is_symlink() else path)


def _from_folder(path: Path, flag: str) -> pd.DataFrame:
    """Return the records of a folder of classes, or of split folders with classes inside."""
    splits = [folder for folder in _subfolders(path) if folder.name.lower() in SPLIT_NAMES]
    classes = [folder for folder in _subfolders(path) if folder not in splits]
    tables = [_from_class(folder, "", flag) for folder in classes]
    if splits and (label := next((table["label"].iloc[0] for table in tables if len(table)), None)):
        raise UserError(f"{flag} {path}: class folder {label} beside split folder {splits[0].name}; keep one kind")
    tables += [_from_class(sub, SPLIT_NAMES[f.name.lower()], flag) for f in splits for sub in _subfolders(f)]
    tables = [table for table in tables if len(table)]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=COLUMNS)


def _from_class(folder: Path, split: str, flag: str) -> pd.DataFrame:
    """Return the records of a class folder: its images, its masks or boxes, and its metadata."""
    nested = folder / "images"
    images = [p for p in _files(nested if nested.is_dir() else folder) if is_image_file(p)]
    if broken := [p.name for p in images if str(p).encode(errors="replace") != os.fsencode(p)]:
        raise UserError(f"{flag} {folder}: the file name {broken[0]!r} is not UTF-8; rename the file")
    stems = [p.stem for p in images]
    table = pd.DataFrame({"path": [_real(p) for p in images]}, columns=COLUMNS, dtype=object).fillna("")
    table["label"], table["split"] = folder.name, split
    for column, name in MASK_FOLDERS.items():
        table[column] = match_masks(stems, folder / name)
    if (folder / "boxes.csv").is_file():  # boxes replace a missing lesion mask
        boxes = match_boxes(stems, folder / "boxes.csv")
        table["lesion_mask"] = table["lesion_mask"].where(table["lesion_mask"] != "", boxes)
    sheet = folder.with_name(folder.name + ".metadata.xlsx")
    if sheet.is_file() and images:
        metadata = _read_metadata(sheet).reindex([stem.lower() for stem in stems], fill_value="")
        table[metadata.columns] = metadata.to_numpy()
    return table


def match_masks(stems: list[str], folder: Path) -> list[str]:
    """Return the path of the mask in `folder` for each image stem; empty if there is none."""
    by_stem = {p.stem: _real(p) for p in _files(Path(folder)) if is_image_file(p)}
    return [by_stem.get(stem, "") for stem in stems]


def _read_metadata(path: Path) -> pd.DataFrame:
    """Return `source` (the URL) and `group`, indexed by the lower-case stem of FILE NAME, with or without extension.

    Lower case because the database itself writes NORMAL-1 for Normal-1.png.
    """
    try:
        sheet = pd.read_excel(path, dtype=str, keep_default_na=False, engine="openpyxl")
    except Exception as error:  # openpyxl raises nearly anything for a broken file
        raise UserError(f"{path}: cannot be read as an .xlsx file ({error}); fix or delete it") from None
    sheet.columns = [" ".join(str(name).upper().split()) for name in sheet.columns]
    if "FILE NAME" not in sheet:
        raise UserError(f"{path}: no FILE NAME column in its first row; fix or delete the file")
    # the first of columns with one name counts; a cell with an error of Excel (#N/A) is empty
    sheet = sheet.loc[:, ~sheet.columns.duplicated()].fillna("").apply(lambda column: column.str.strip())
    patient = next((name for name in PATIENT_COLUMNS if name in sheet), "")
    names = [Path(name).stem if is_image_file(Path(name)) else name for name in sheet["FILE NAME"].str.lower()]
    columns = {"source": sheet.get("URL", ""), "group": sheet.get(patient, "")}
    metadata = pd.DataFrame(columns, index=sheet.index).set_axis(names)
    return metadata[~metadata.index.duplicated(keep="last")]


def _from_csv(path: Path, flag: str) -> pd.DataFrame:
    """Read a CSV with `path,label` (paths relative to the CSV's folder) and optionally the other columns."""
    table = read_table(path, ("path", "label"), f"{flag} {path}")
    table = table.reindex(columns=COLUMNS, fill_value="").apply(lambda column: column.str.strip())
    table["split"] = table["split"].str.lower().replace(SPLIT_NAMES)
    paths = table["path"]
    faults = {
        "path or label is missing": (paths == "") | (table["label"] == ""),
        "the path is listed twice, or it is not a path": paths.duplicated() | paths.str.contains("\0", regex=False),
        "unknown split '{split}'; choose from train, val and test": ~table["split"].isin((*SPLITS, "")),
    }
    for fault, wrong in faults.items():
        if wrong.any():
            row = wrong.idxmax()
            raise UserError(f"{flag} {path}, line {row + 2}: {fault.format(split=table['split'][row])}")
    for column in ("path", *MASKS):
        table[column] = [str((path.parent / p).resolve()) if p else "" for p in table[column]]
    return table


def name_groups(records: pd.DataFrame, pattern: str | None) -> pd.Series:
    """Return the group of each record: the one that the metadata or the CSV names, else the first group of `pattern` in
    the file's stem, else the path: the image is a group of its own.

    Raises: `UserError` for a pattern that is not a regular expression with a group, or that matches no file name.
    """
    groups = records["group"]
    if pattern:
        try:
            matches = records["path"].map(lambda path: Path(path).stem).str.extract(pattern).iloc[:, 0].fillna("")
        except (re.error, ValueError) as error:
            raise UserError(f"--group-pattern {pattern}: not a pattern with a group in parentheses ({error})") from None
        if not matches.any():
            raise UserError(f"--group-pattern {pattern}: it matches none of the {count(len(records), 'file name')}")
        groups = groups.where(groups != "", matches)
    return groups.where(groups != "", records["path"])
