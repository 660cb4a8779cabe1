"""Folders and CSV files to records: one row per radiograph.

Columns: `path`, `label`, `group` (the patient), `source`, `lung_mask`, `lesion_mask` (a picture or a `boxes.csv`) and
`split` (train, val, test or empty): all strings, empty where unknown. Understood: `DIR/CLASS/images/*` with `masks/`,
`lesion_masks/`, `boxes.csv` and `CLASS.metadata.xlsx` (Kaggle), `DIR/CLASS/*`, either below `DIR/{train,val,test}/`,
and a CSV with `path,label`.
"""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path

import pandas as pd

from config import SPLITS
from dataset.boxes import read_boxes
from dataset.readers import is_image_file
from utils import UserError

COLUMNS = ["path", "label", "group", "source", "lung_mask", "lesion_mask", "split"]
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
MASK_FOLDERS = {"lung_mask": "masks", "lesion_mask": "lesion_masks"}
MASKS = tuple(MASK_FOLDERS)
# Columns of a metadata sheet that name the patient, in upper case with single spaces.
PATIENT_COLUMNS = ("PATIENT", "PATIENT ID", "PATIENTID", "PATIENT_ID", "SUBJECT", "SUBJECT ID", "GROUP")


def find_records(path: Path, flag: str = "--data", fewest: int = 2) -> pd.DataFrame:
    """The records of a data folder or CSV, sorted by path, with the columns of this module.

    `group` is empty unless the metadata or the CSV names it. Raises: `UserError` that names `flag` for a path that is
    not there, no images, or fewer than `fewest` classes.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{flag} {path}: no such folder or file")
    try:
        records = _from_csv(path) if path.is_file() else _from_folder(path)
    except UserError as error:
        raise UserError(str(error).replace("--data", flag, 1)) from None
    if records.empty:
        raise UserError(f"{flag} {path}: no images found (looked for CLASS/images/*, CLASS/*, train|val|test/CLASS/*)")
    classes = sorted(records["label"].unique())
    if len(classes) < fewest:
        raise UserError(
            f"{flag} {path}: only one class, '{classes[0]}'; a classifier needs two or more" + _nested_hint(path)
        )
    return records.sort_values("path", ignore_index=True)[COLUMNS]


def _from_folder(path: Path) -> pd.DataFrame:
    parts = [p for p in _subfolders(path) if p.name.lower() in SPLIT_NAMES]
    classes = _from_classes(path, "")
    if not parts:
        return classes
    if not classes.empty:
        raise UserError(
            f"--data {path}: class folders ({classes['label'].iloc[0]}) stand beside split folders ({parts[0].name}); "
            "keep one kind"
        )
    return pd.concat([_from_classes(p, SPLIT_NAMES[p.name.lower()]) for p in parts], ignore_index=True)


def _nested_hint(path: Path) -> str:
    for folder in _subfolders(path) if path.is_dir() else []:
        if sum(any(map(is_image_file, _files(sub / "images"))) for sub in _subfolders(folder)) > 1:
            return f" (did you mean --data {folder}?)"
    return ""


def _subfolders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def _files(folder: Path) -> list[Path]:
    """The files of a folder, by name, with their absolute paths; none where there is no such folder."""
    if not folder.is_dir():
        return []
    folder = folder.resolve()  # once: a file's own resolve() walks the whole path again
    with os.scandir(folder) as entries:
        return [folder / name for name in sorted(entry.name for entry in entries if entry.is_file())]


def _real(path: Path) -> str:
    """The path of a file that `_files` gave, a link followed."""
    return str(path.resolve() if path.is_symlink() else path)


def _from_classes(root: Path, split: str) -> pd.DataFrame:
    tables = [_from_class(folder, split) for folder in _subfolders(root)]
    tables = [table for table in tables if not table.empty]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=COLUMNS)


def _from_class(folder: Path, split: str) -> pd.DataFrame:
    if folder.name.lower() in SPLIT_NAMES and not split:
        return pd.DataFrame(columns=COLUMNS)  # train, val or test is no class
    nested = folder / "images"
    images = [p for p in _files(nested if nested.is_dir() else folder) if is_image_file(p)]
    for image in images:
        if not str(image).isprintable() and any("\ud800" <= c <= "\udfff" for c in str(image)):
            raise UserError(f"--data {folder}: the name of {image.name!r} is not UTF-8; rename it")
    table = pd.DataFrame({"path": [_real(p) for p in images]}, columns=COLUMNS, dtype=object).fillna("")
    table["label"], table["split"] = folder.name, split
    stems = [p.stem for p in images]
    for column, name in MASK_FOLDERS.items():
        table[column] = match_masks(stems, folder / name)
    if (folder / "boxes.csv").is_file():  # boxes stand in for a lesion mask where there is none
        boxes = str((folder / "boxes.csv").resolve())
        known = read_boxes(boxes)
        table["lesion_mask"] = [
            mask or (boxes if s in known else "") for mask, s in zip(table["lesion_mask"], stems, strict=True)
        ]
    metadata = folder.with_name(folder.name + ".metadata.xlsx")
    if metadata.is_file() and images:
        known = _read_metadata(metadata)
        for column in ("source", "group"):
            table[column] = [known.get(stem.lower(), {}).get(column, "") for stem in stems]
    return table


def match_masks(stems: list[str], folder: Path) -> list[str]:
    """The mask in `folder` of each image stem, as a path; empty where there is none."""
    by_stem = {p.stem: _real(p) for p in _files(Path(folder)) if is_image_file(p)}
    return [by_stem.get(stem, "") for stem in stems]


def _read_metadata(path: Path) -> dict[str, dict[str, str]]:
    """FILE NAME (lower case: the database itself writes NORMAL-1 for Normal-1.png) → source (URL) and group."""
    import openpyxl
    from openpyxl.utils.exceptions import InvalidFileException

    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        rows = list(book.worksheets[0].iter_rows(values_only=True))
        book.close()
    except (InvalidFileException, zipfile.BadZipFile, KeyError, ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be read as an .xlsx file ({error}); mend or remove it") from None
    header = [" ".join(str(cell or "").upper().split()) for cell in (rows[0] if rows else ())]
    if "FILE NAME" not in header:
        raise UserError(f"{path}: no FILE NAME column in its first row; mend or remove it")
    name_at = header.index("FILE NAME")
    url_at = header.index("URL") if "URL" in header else None
    patient_at = next((header.index(c) for c in PATIENT_COLUMNS if c in header), None)

    def cell(row: tuple, at: int | None) -> str:
        return "" if at is None or at >= len(row) or row[at] is None else str(row[at]).strip()

    return {
        Path(cell(row, name_at).lower()).stem
        if is_image_file(Path(cell(row, name_at)))
        else cell(row, name_at).lower(): {"source": cell(row, url_at), "group": cell(row, patient_at)}
        for row in rows[1:]
    }


def _from_csv(path: Path) -> pd.DataFrame:
    """A CSV with `path,label` (paths relative to the CSV's folder) and optionally the other columns."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False)
    except (ValueError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"--data {path}: cannot be read as CSV ({str(error).splitlines()[0]})") from None
    table.columns = [str(c).strip().lower() for c in table.columns]
    if not table.columns.is_unique:
        raise UserError(f"--data {path}: two columns have one name ({', '.join(table.columns)})")
    for needed in ("path", "label"):
        if needed not in table:
            raise UserError(f"--data {path}: no column '{needed}' (there are {', '.join(table.columns)})")
    empty = table.index[(table["path"] == "") | (table["label"] == "")]
    if len(empty):
        raise UserError(f"--data {path}: line {empty[0] + 2} has no path or no label")
    table = table.reindex(columns=COLUMNS, fill_value="").apply(lambda column: column.str.strip())
    twice = table.index[table.duplicated("path") | table["path"].str.contains("\0", regex=False)]
    if len(twice):
        raise UserError(f"--data {path}: line {twice[0] + 2}: a path that was there before, or no path at all")
    for column in ("path", "lung_mask", "lesion_mask"):
        table[column] = [str((path.parent / p).resolve()) if p else "" for p in table[column]]
    table["split"] = table["split"].str.strip().str.lower().map(lambda s: SPLIT_NAMES.get(s, s))
    wrong = table.index[~table["split"].isin((*SPLITS, ""))]
    if len(wrong):
        raise UserError(
            f"--data {path}: line {wrong[0] + 2}: split '{table['split'][wrong[0]]}' is none of train, val, test"
        )
    return table


def name_groups(records: pd.DataFrame, pattern: str | None) -> pd.Series:
    """The group of each record: what the metadata or CSV says, else the pattern's first group in the file's stem,
    else the image alone (its own path). Raises: `UserError` for a pattern that is no regular expression with a group.
    """
    groups = records["group"].copy()
    if pattern:
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise UserError(f"--group-pattern {pattern}: not a regular expression ({error})") from None
        if compiled.groups < 1:
            raise UserError(f"--group-pattern {pattern}: it needs a group in parentheses that captures the patient")
        found = records["path"].map(lambda p: ((m := compiled.search(Path(p).stem)) and m[1]) or "")
        if not (found != "").any():
            raise UserError(f"--group-pattern {pattern}: it matches none of {len(records)} file names")
        groups = groups.where(groups != "", found)
    return groups.where(groups != "", records["path"])
