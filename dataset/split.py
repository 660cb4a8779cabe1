"""A stratified split into train, val and test that keeps every patient's images together."""

from __future__ import annotations

import numpy as np
import pandas as pd

from config import SPLITS
from utils import UserError, count, log

PerClass = tuple[int | None, int | None]  # images of val and of test per class; None: a fraction


def merge_copies(groups: pd.Series, hashes: pd.Series) -> np.ndarray:
    """Return a number per image, (n,) int64, that images of one patient and copies of one image share.

    Every image takes the lowest number among its copies, then among its patient's images, until nothing changes.
    """
    patients, contents = pd.factorize(groups)[0], pd.factorize(hashes)[0]
    numbers = pd.Series(patients)
    while True:
        merged = numbers.groupby(contents).transform("min").groupby(patients).transform("min")
        if merged.equals(numbers):
            return merged.to_numpy()
        numbers = merged


def split_targets(labels: np.ndarray, fractions: list[float], per_class: PerClass) -> np.ndarray:
    """Return the target number of images per split and class, (3, classes) float64.

    Targets are fractions of the class, or for val and test a number per class if one is given.
    """
    counts = np.bincount(labels).astype(np.float64)
    targets = np.outer(fractions, counts)
    for row, images in enumerate(per_class, 1):
        if images is not None:
            targets[row] = images
    targets[0] = counts - targets[1] - targets[2]
    return targets


def assign_groups(labels: np.ndarray, groups: np.ndarray, targets: np.ndarray, seed: int) -> np.ndarray:
    """Return the split of every image, (n,) int64: 0 train, 1 val, 2 test.

    Groups are assigned in random order, larger ones first, each to the split where it most reduces the squared distance
    to the targets, relative to the target. The groups of a single image come last and make the counts exact.
    """
    rng = np.random.default_rng([seed, 0x5B117])
    unique, inverse = np.unique(groups, return_inverse=True)
    content = np.zeros((len(unique), targets.shape[1]))
    np.add.at(content, (inverse, labels), 1)
    order = rng.permutation(len(unique))
    order = order[np.argsort(-content.sum(1)[order], kind="stable")]
    weight = np.where(targets > 0, 1 / np.maximum(targets, 1e-9), 1e9)  # a target of 0 stays empty
    have, chosen = np.zeros_like(targets), np.zeros(len(unique), np.int64)
    for group in order:
        row = content[group]
        cost = (((have + row - targets) ** 2 - (have - targets) ** 2) * weight).sum(1)
        split = int(cost.argmin())
        have[split] += row
        chosen[group] = split
    return chosen[inverse]


def split_records(
    records: pd.DataFrame, fractions: list[float], seed: int, per_class: PerClass = (None, None)
) -> pd.Series:
    """Return the split of every record. A split that the data defines is kept; a missing val is taken from its train.

    Args:
        records: with `label`, `group`, `sha256` and `split`.
        fractions: of train, val and test.
        seed: `data.split_seed`.
        per_class: images of val and test per class instead of a fraction.

    Raises: `UserError` for a class with too few images, or a split for some of the images only.
    """
    labels = pd.factorize(records["label"], sort=True)[0]
    groups = merge_copies(records["group"], records["sha256"])
    given = records["split"].to_numpy(str)
    if (given != "").all():
        if leaking := int((pd.Series(given).groupby(groups).nunique() > 1).sum()):
            shared = f"{count(leaking, 'patient')} with images in, or copied to, more than one of the data's splits"
            log.warning(f"{shared}: test results will be too optimistic")
        if (given == "val").any() or fractions[1] == 0:
            return records["split"]
        train = given == "train"
        share = fractions[1] / (fractions[0] + fractions[1])
        targets = split_targets(labels[train], [1 - share, share, 0], (per_class[0], None))
        assigned = given.astype(object)
        assigned[train] = np.array(SPLITS)[assign_groups(labels[train], groups[train], targets, seed)]
        log.info(f"no val split in the data: using {count((assigned == 'val').sum(), 'train image')} for validation")
        return pd.Series(assigned, records.index)
    if (given != "").any():
        raise UserError("--data: some images have a split and others have none; define it for all or for none")
    targets = split_targets(labels, fractions, per_class)
    if (targets[0] < 1).any():
        number = int(targets[0].argmin())
        name, images = sorted(records["label"].unique())[number], count(np.bincount(labels)[number], "image")
        remedy = "lower data.val_per_class and data.test_per_class, or add images"
        raise UserError(f"--data: class '{name}' has {images}, too few for val and test; {remedy}")
    return pd.Series(np.array(SPLITS, object)[assign_groups(labels, groups, targets, seed)], records.index)
