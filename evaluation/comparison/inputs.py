"""The predictions to compare: their files, their names, the output folder, and reasons to distrust them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from config import SPLITS
from evaluation.metrics.formats import severe_warnings
from utils import UserError, log, make_folder, read_json, shortened_name

FILE = "predictions.csv"


def find_predictions(path: Path, split: str) -> Path:
    """Return the predictions of a run folder's `split`, of an evaluation folder, or in the file itself.

    Raises: `UserError` that says what is missing and how to make it.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"{path}: no such run folder or file")
    for file in (path / FILE, path / split / FILE):
        if file.is_file():
            return file
    if any((path / name).exists() for name in ("config.yaml", "run.json", "best.pt")):
        command = f"python test.py --weights {shlex.quote(str(path))} --kind {split}"
        raise UserError(f"{path}: there is no {split}/{FILE} yet; run {command}")
    raise UserError(f"{path}: this is not a run folder and has no {FILE}")


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
        raise UserError(f"{paths[0]}: one run alone; give two or more to compare")
    names = dict(zip(files, name_files(list(files.values())), strict=True))
    return {names[key]: file for key, file in files.items()}, base and names[base.resolve()]


def default_folder(names: Sequence[str], split: str, baseline: str | None) -> str:
    """Return compare-A-vs-B, with the split and the baseline if they are not the default."""
    text = shortened_name("-vs-".join(name.replace("/", "-") for name in names))
    return f"compare-{text}" + ("" if split == "test" else f"-{split}") + ("" if baseline is None else "-baseline")


def prepare_folder(folder: Path) -> Path:
    """Make the output folder. Raises: `UserError` if it holds anything but an earlier comparison."""
    make_folder(folder, "--output")
    if (folder / "comparison.json").exists():
        log.info(f"replacing the earlier comparison in {folder}")
    elif any(folder.iterdir()):
        raise UserError(f"--output {folder}: there are other files in it; name another folder")
    return folder


def reasons_for_distrust(files: dict[str, Path]) -> dict[str, list[str]]:
    """Return, by name, the severe warnings in the `metrics.json` beside each `predictions.csv`; no key without any.

    Raises: `UserError` for a file that cannot be read.
    """
    distrusted = {}
    for name, file in files.items():
        beside = file.with_name("metrics.json")
        if file.name == FILE and beside.is_file():
            texts = severe_warnings(read_json(beside, "delete it, or run python test.py again"))
            distrusted |= {name: texts} if texts else {}
    return distrusted
