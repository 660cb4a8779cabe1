"""Another hospital's folder: all of its images, its classes mapped by name to those that a model knows."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from config import DataConfig
from dataset.cache import cache_folder, hash_files
from dataset.layouts import find_records, name_groups
from dataset.loading import RECORD_COLUMNS, data_folder
from utils import UserError, log


@dataclass
class External:
    """The images of classes that the model knows, and how many there are of the others.

    `records` have `RECORD_COLUMNS`, labels in the model's words; `unknown` counts images by the folder's own class
    name; `class_map` holds what was renamed; `unreadable` counts files that may not be read.
    """

    records: pd.DataFrame
    unknown: dict[str, int]
    class_map: dict[str, str]
    unreadable: int


def load_external(data: DataConfig, classes: list[str], class_map: dict[str, str]) -> External:
    """Find the images of `data.path`, any layout that `--data` understands, and hash them; splits in it are ignored.

    A class that neither is one of `classes` nor is mapped to one is counted, never guessed. Raises: `UserError` for a
    folder without images, a map from or to a class that is not there, or none of the model's classes.
    """
    folder, pattern = data_folder(data)
    records = find_records(folder, flag="--external", fewest=1)
    records["group"] = name_groups(records, pattern)
    found = sorted(records["label"].unique())
    for theirs, ours in class_map.items():
        if theirs not in found:
            raise UserError(f"--map {theirs}={ours}: {folder} has no class '{theirs}'{_near(theirs, found)}")
        if ours not in classes:
            raise UserError(f"--map {theirs}={ours}: the model has no class '{ours}'{_near(ours, classes)}")
    records["label"] = records["label"].replace(class_map)
    known = records["label"].isin(classes)
    unknown = {str(name): int(n) for name, n in records["label"][~known].value_counts().sort_index().items()}
    if not known.any():
        raise UserError(
            f"--external {folder}: none of its classes ({', '.join(found)}) is one of the model's "
            f"({', '.join(classes)}); name them: --map {found[0]}={classes[0]}"
        )
    for name, count in unknown.items():
        log.warning(f"{count} images of class '{name}', which the model does not know, are left out")
    records = records[known].reset_index(drop=True)
    records["sha256"] = hash_files(list(records["path"]), cache_folder(data), data.workers)
    missing = records["sha256"].isna()
    if missing.any():
        log.warning(
            f"{int(missing.sum())} files may not be read, for example {records['path'][missing].iloc[0]}"
        )
    if missing.all():
        raise UserError(f"--external {folder}: none of its files may be read")
    return External(records[~missing].reset_index(drop=True)[RECORD_COLUMNS], unknown, class_map, int(missing.sum()))


def _near(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f": did you mean '{near[0]}'?" if near else f" (it has {', '.join(names)})"


def read_class_map(given: list[str]) -> dict[str, str]:
    """`THEIRS=OURS` words and YAML files of such pairs as one mapping. Raises: `UserError` for anything else."""
    import yaml

    found: dict[str, str] = {}
    for word in given:
        if Path(word).suffix.lower() in (".yaml", ".yml"):
            try:
                pairs = yaml.safe_load(Path(word).read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
                reason = getattr(error, "strerror", None) or type(error).__name__
                raise UserError(f"--map {word}: cannot be read as YAML ({reason})") from None
            if not isinstance(pairs, dict):
                raise UserError(f"--map {word}: lines of the form 'their class: our class' are needed")
            pairs = {str(theirs): str(ours) for theirs, ours in pairs.items()}
        else:
            theirs, equals, ours = word.partition("=")
            if not (theirs and equals and ours):
                raise UserError(f"--map {word}: THEIRS=OURS, or a YAML file, is needed")
            pairs = {theirs: ours}
        twice = sorted(name for name in pairs if found.get(name, pairs[name]) != pairs[name])
        if twice:
            raise UserError(f"--map: '{twice[0]}' is mapped to both '{found[twice[0]]}' and '{pairs[twice[0]]}'")
        found |= pairs
    return found
