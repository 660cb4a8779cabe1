"""An external data set: all of its images, with its classes mapped to the model's by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml

from config import DataConfig
from dataset.cache import cache_folder, hash_files
from dataset.layouts import find_records, name_groups
from dataset.loading import RECORD_COLUMNS, data_folder
from utils import UserError, count, did_you_mean, log


@dataclass
class External:
    """The images of an external folder whose classes the model knows, and counts of the others."""

    records: pd.DataFrame  # with `RECORD_COLUMNS`; labels are the model's
    unknown: dict[str, int]  # images per class of the folder that the model does not know
    unreadable: int  # files without permission to read them


def load_external(data: DataConfig, classes: list[str], class_map: dict[str, str]) -> External:
    """Find the images of `data.path`, in any layout that `--data` understands, and hash them; its splits are ignored.

    An image whose class is neither one of `classes` nor mapped to one is counted and left out, never guessed.

    Raises: `UserError` for a folder without images, a map from or to a class that does not exist, or a folder with none
        of the model's classes.
    """
    folder, pattern = data_folder(data)
    records = find_records(folder, flag="--external", fewest=1)
    records["group"] = name_groups(records, pattern)
    labels = sorted(records["label"].unique())
    for source, target in class_map.items():
        for name, names, owner in ((source, labels, folder), (target, classes, "the model")):
            if name not in names:
                hint = did_you_mean(name, names) or f" (it has {', '.join(names)})"
                raise UserError(f"--map {source}={target}: {owner} has no class '{name}'{hint}")
    records["label"] = records["label"].replace(class_map)
    known = records["label"].isin(classes)
    unknown = records["label"][~known].value_counts().sort_index().to_dict()
    if not known.any():
        raise UserError(
            f"--external {folder}: none of its classes ({', '.join(labels)}) is one of the model's "
            f"({', '.join(classes)}); map them, for example --map {labels[0]}={classes[0]}"
        )
    for name, images in unknown.items():
        log.warning(f"left out: {count(images, 'image')} of class '{name}', which the model does not know")
    records = records[known].reset_index(drop=True)
    records["sha256"] = hash_files(list(records["path"]), cache_folder(data), data.workers)
    missing = records["sha256"].isna()
    if missing.all():
        raise UserError(f"--external {folder}: none of its files can be read; check their permissions")
    if missing.any():
        files = count(int(missing.sum()), "unreadable file")
        log.warning(f"left out: {files}, for example {records['path'][missing].iloc[0]}")
    return External(records[~missing].reset_index(drop=True)[RECORD_COLUMNS], unknown, int(missing.sum()))


def read_class_map(words: list[str]) -> dict[str, str]:
    """Merge `THEIRS=OURS` words and YAML files of such pairs into a mapping. Raises: `UserError` for anything else."""
    class_map: dict[str, str] = {}
    for word in words:
        for source, target in _read_pairs(word).items():
            if class_map.setdefault(source, target) != target:
                raise UserError(f"--map: '{source}' is mapped to both '{class_map[source]}' and '{target}'; keep one")
    return class_map


def _read_pairs(word: str) -> dict[str, str]:
    """Return the pairs of one `--map` word: `THEIRS=OURS`, or the name of a YAML file."""
    if Path(word).suffix.lower() not in (".yaml", ".yml"):
        source, _, target = word.partition("=")
        if not (source and target):
            raise UserError(f"--map {word}: pass THEIRS=OURS or a YAML file")
        return {source: target}
    try:
        pairs = dict(yaml.safe_load(Path(word).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise UserError(f"--map {word}: not a YAML file of lines 'their class: our class' ({reason})") from None
    return {str(source): str(target) for source, target in pairs.items()}
