"""Bring the predictions of several runs into one order of images and classes, with one set of patients."""

from __future__ import annotations

import numpy as np
import pandas as pd

from evaluation.predictions import Predictions
from utils import UserError, log


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
            raise UserError(f"{name} and {other} have different classes: only {name}: {a}; only {other}: {b}")
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
        alone = [_alone(run, x.loc[~x[by].isin(y[by]), "path"]) for run, x, y in ((name, a, b), (other, b, a))]
        raise UserError(f"{name} and {other} have different images (matched by {by}): {alone[0]}, {alone[1]}")
    labels = b["label"].to_numpy()[order]
    wrong = np.flatnonzero(a["label"].to_numpy() != labels)
    if len(wrong):
        row = wrong[0]
        raise UserError(
            f"{name} and {other} disagree about the true class of {len(wrong)} of {len(a)} images: {a['path'][row]} is "
            f"{a['label'][row]} in {name} and {labels[row]} in {other}"
        )
    return order


def _alone(run: str, paths: pd.Series) -> str:
    return f"{len(paths)} only in {run}" + (f" (such as {paths.iloc[0]})" if len(paths) else "")


def _common_patients(tables: dict[str, pd.DataFrame]) -> pd.Series:
    """Return the patients of the first table that names any, NaN where it names none."""
    groups = {run: table["group"].where(table["group"] != table["path"]) for run, table in tables.items()}
    (name, patients), *others = [item for item in groups.items() if item[1].notna().any()] or list(groups.items())
    for other, different in others:
        # the names may differ, as long as they divide the images alike
        if not np.array_equal(pd.factorize(different)[0], pd.factorize(patients)[0]):
            log.warning(f"{name} and {other} disagree about the patients (column group); those of {name} are used")
    return patients
