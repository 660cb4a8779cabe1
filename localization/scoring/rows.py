"""The rows of cams.csv and controls.csv: one map each, with its scores."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from localization.states import MapState
from utils import atomic_write

MASKS = {"lung": "lungs", "lesion": "lesions"}  # prefix of a score → its words
MASK_SCORES = ("energy", "area", "lift", "hit", "hit_area", "iou", "ap")
FAITHFULNESS = ("deletion", "insertion", "drop", "increase", "road")
SCORES = (*(f"{mask}_{score}" for mask in MASKS for score in MASK_SCORES), *FAITHFULNESS)
CONTROLS = {"uniform": "uniform", "gaussian": "Gaussian", "randomised": "randomised", "oracle": "oracle"}
COLUMNS = ["file", "path", "label", "predicted", "target", "method", "status", "peak", *SCORES]
CONTROL_COLUMNS = ["path", "target", "method", "control", "status", *SCORES]


@dataclass(kw_only=True)
class MapRow:
    """One map of one image.

    Attributes:
        model: the model's name.
        path, group, label: of the image's record; `group` is the patient.
        predicted, target: the predicted class and the explained one.
        method: a key of `METHODS`.
        control: empty for the model's own map; else one of `CONTROLS`: the uniform map, the centred Gaussian, the
            method on a randomised model, or the mask itself on the method's grid.
        file: the name of the overlay; empty for a control.
        peak: the map's maximum.
        scores: of `SCORES`, those that the map has.
    """

    model: str
    path: str
    group: str
    label: str
    predicted: str
    target: str
    method: str
    state: MapState
    peak: float
    control: str = ""
    file: str = ""
    scores: dict[str, float] = field(default_factory=dict)


def write_rows(path: Path, rows: Iterable[MapRow], columns: list[str]) -> None:
    """Write rows as CSV; a cell is empty where a score is absent or NaN."""
    write_table(path, [{"status": row.state, **vars(row), **row.scores} for row in rows], columns)


def write_table(path: Path, rows: list[dict[str, Any]], columns: list[str], float_format: str | None = None) -> None:
    """Write columns of rows as CSV, atomically; a cell is empty where a value is absent or NaN."""
    with atomic_write(path) as file:
        pd.DataFrame(rows, columns=columns).to_csv(file, index=False, float_format=float_format, lineterminator="\n")
