"""The predictions to compare: their files, names and output folder, reasons to distrust them, and one common order."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from config import SPLITS
from evaluation.metrics.formats import severe_warnings
from evaluation.predictions import Predictions
from utils import UserError, joint_name, log, make_folder, read_json

FILE = "predictions.csv"


def find_predictions(path: Path, split: str) -> Path:
    """Return the predictions of a run folder's `split`, of an evaluation folder, or in the file itself.

    Raises: `UserError` that says what is missing and how to make it.
    """
    for file in (path, path / FILE, path / split / FILE):
        if file.is_file():
            return file
    if not path.is_dir():
        raise UserError(f"{path}: no such run folder or file")
    command = f"python test.py --weights {shlex.quote(str(path))} --kind {split}"
    raise UserError(f"{path}: it has no {FILE} and no {split}/{FILE}; if it is a run folder, run {command}")


def name_files(files: Sequence[Path]) -> list[str]:
    """Return a name for each of these distinct files: as few of its last folders as distinguish it from the others.

    runs/X/test/predictions.csv is X, runs/X/predictions.csv is X too, and other/x.csv is x.
    """
    paths = [Path(os.path.abspath(file)) for file in files]
    whole = [(path.parent if path.name == FILE else path.with_suffix("")).parts for path in paths]
    short = [parts[:-1] if parts[-1] in SPLITS and len(parts) > 2 else parts for parts in whole]
    trails = next(t for t in (short, whole, [path.parts for path in paths]) if len(set(t)) == len(t))
    depths = [1] * len(files)
    while True:
        names = ["/".join(parts[-depth:]) for parts, depth in zip(trails, depths, strict=True)]
        if len(set(names)) == len(names):
            return names
        depths = [depth + (names.count(name) > 1) for name, depth in zip(names, depths, strict=True)]


def choose_files(paths: Sequence[Path], split: str, baseline: Path | None) -> tuple[dict[str, Path], str | None]:
    """Return the files to compare by name, and the baseline's name.

    Raises: `UserError` for fewer than two files, for one given twice, or as `find_predictions` does.
    """
    files: dict[Path, Path] = {}  # by real path, so that a link counts as its target
    for path in paths:
        file = find_predictions(path, split)
        if file.resolve() in files:
            raise UserError(f"{path}: given twice (both times {file.resolve()})")
        files[file.resolve()] = file
    base = baseline and find_predictions(baseline, split)
    if base:
        files.setdefault(base.resolve(), base)
    if len(files) < 2:
        raise UserError(f"{paths[0]}: only one run given; pass at least two to compare")
    names = dict(zip(files, name_files(list(files.values())), strict=True))
    return {names[key]: file for key, file in files.items()}, base and names[base.resolve()]


def default_folder(runs: Path, files: Mapping[str, Path], split: str, baseline: str | None) -> Path:
    """Return the folder in `runs` for a comparison of these predictions, by name.

    It is called compare-A-vs-B, with the split and the baseline if they are not the default. Only the test splits of
    runs in `runs`, without a baseline, do without a hash.
    """
    expected = [runs / name / "test" / FILE for name in files]
    base = [] if baseline is None else [files[baseline]]
    text = joint_name(list(files), [*files.values(), *base], expected)
    return runs / (f"compare-{text}" + ("" if split == "test" else f"-{split}") + "-baseline" * len(base))


def prepare_folder(folder: Path) -> Path:
    """Make the output folder. Raises: `UserError` if it holds anything but an earlier comparison."""
    make_folder(folder, "--output")
    if (folder / "comparison.json").exists():
        log.info(f"replacing the earlier comparison in {folder}")
    elif any(folder.iterdir()):
        raise UserError(f"--output {folder}: contains other files; choose another folder")
    return folder


def reasons_for_distrust(files: dict[str, Path]) -> dict[str, list[str]]:
    """Return, by name, the severe warnings in the `metrics.json` beside each `predictions.csv`; no key without any.

    Raises: `UserError` for a file that cannot be read.
    """
    beside = {name: file.with_name("metrics.json") for name, file in files.items() if file.name == FILE}
    remedy = "delete it, or run python test.py again"
    texts = {name: severe_warnings(read_json(file, remedy)) for name, file in beside.items() if file.is_file()}
    return {name: sentences for name, sentences in texts.items() if sentences}


def align(runs: dict[str, Predictions]) -> dict[str, Predictions]:
    """Return the runs with the first one's order of images, classes in alphabetical order, and common patients.

    Images are matched by sha256 where every row has one and they are unique on both sides, else by path. The patients
    are those of the first run that names any; a warning is logged about others that disagree.

    Raises: `UserError` that names two runs whose classes, images or labels differ.
    """
    (name, first), *others = runs.items()
    classes = sorted(first.classes)
    orders = {name: np.arange(len(first))}
    for other, second in others:
        here, there = set(classes), set(second.classes)
        if here != there:
            a, b = (", ".join(sorted(part)) or "none" for part in (here - there, there - here))
            only = f"only {name}: {a}; only {other}: {b}"
            raise UserError(f"{name} and {other} have different classes ({only}); compare runs of the same classes")
        orders[other] = _match(name, first, other, second)
    tables = {run: runs[run].table.iloc[order].reset_index(drop=True) for run, order in orders.items()}
    group = _common_patients(tables)
    return {
        run: Predictions(table.assign(group=group.fillna(table["path"])), classes, runs[run].where)
        for run, table in tables.items()
    }


def _match(name: str, first: Predictions, other: str, second: Predictions) -> np.ndarray:
    """Return the row of the second run that holds each image of the first, (n,)."""
    a, b = first.table, second.table
    hashed = all((table["sha256"] != "").all() and table["sha256"].is_unique for table in (a, b))
    by = "sha256" if hashed else "path"
    order = pd.Index(b[by]).get_indexer(a[by])
    if len(a) != len(b) or (order < 0).any():
        alone = {run: x["path"][~x[by].isin(y[by])] for run, x, y in ((name, a, b), (other, b, a))}
        examples = {run: f" (such as {paths.iloc[0]})" if len(paths) else "" for run, paths in alone.items()}
        counts = ", ".join(f"{len(paths)} only in {run}{examples[run]}" for run, paths in alone.items())
        raise UserError(f"{name} and {other} have different images (matched by {by}): {counts}; test both on the same")
    labels = b["label"].to_numpy()[order]
    wrong = np.flatnonzero(a["label"].to_numpy() != labels)
    if len(wrong):
        row = wrong[0]
        raise UserError(
            f"{name} and {other} disagree about the true class of {len(wrong)} of {len(a)} images: {a['path'][row]} is "
            f"{a['label'][row]} in {name} and {labels[row]} in {other}; fix the wrong label and evaluate that run again"
        )
    return order


def _common_patients(tables: dict[str, pd.DataFrame]) -> pd.Series:
    """Return the patients of the first table that names any, NaN where it names none."""
    groups = {run: table["group"].where(table["group"] != table["path"]) for run, table in tables.items()}
    (name, patients), *others = [item for item in groups.items() if item[1].notna().any()] or list(groups.items())
    for other, different in others:
        # the names may differ, as long as they divide the images alike
        if not np.array_equal(pd.factorize(different)[0], pd.factorize(patients)[0]):
            log.warning(f"{name} and {other} disagree about the patients (column group); those of {name} are used")
    return patients
