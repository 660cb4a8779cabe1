"""The scores of many maps in one table, over models, classes and methods, with intervals and beside controls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from intervals import Patients, mean_interval, mean_over_patients, proportion_interval
from localization.scoring.rows import CONTROLS, MASKS, SCORES, MapRow, write_table

LOWER_IS_BETTER = ("deletion", "drop")
PROPORTIONS = ("lung_hit", "lesion_hit", "increase")
OF_ORACLE = tuple(f"{mask}_{score}" for mask in MASKS for score in ("lift", "energy", "iou", "ap"))
TO_BEAT = ("uniform", "gaussian", "randomised")  # by a method whose maps show what the model has learned
ROUNDING = 1e-9  # a smaller difference counts as none
ALL = "all"
FIELDS = ["model", "class_name", "method", "group", "state"]
COLUMNS = ["model", "class", "method", "score", "value", "low", "high", "n", "patients", *CONTROLS]
COLUMNS += ["n_randomised", "of_oracle", "better_than"]


@dataclass(frozen=True, kw_only=True)
class SummaryRow:
    """One score of one model, class and method: a row of scores.csv.

    Attributes:
        value: the mean over the images whose map is scored.
        low, high: its 95 % limits with the patient as the unit; NaN for one patient.
        n, patients: the images and patients with the score.
        controls: of `CONTROLS`, each control's mean over those of these images that have it; NaN if none has.
        n_randomised: the images that have the randomised model's score; costly methods run on few.
        of_oracle: value / the oracle's, of lift, energy, iou and ap; else NaN.
        better_than: the controls whose paired difference per image has its 95 % interval wholly on the good side
            (lower for deletion and drop), each alone: not corrected for the number of methods.
        maps, states: the number of maps, scored or not, and of those of each state.
    """

    model: str
    class_name: str
    method: str
    score: str
    value: float
    low: float
    high: float
    n: int
    patients: int
    controls: dict[str, float]
    n_randomised: int
    of_oracle: float
    better_than: tuple[str, ...]
    maps: int
    states: dict[str, int]

    def comparable(self, control: str) -> bool:
        """Return whether the control is known, of two images at least: a difference on one image shows nothing."""
        few = control == "randomised" and self.n_randomised < 2
        return not np.isnan(self.controls[control]) and not few

    @property
    def beats_controls(self) -> bool:
        """True if the method is better than each comparable control of `TO_BEAT`, and there is at least one."""
        comparable = {control for control in TO_BEAT if self.comparable(control)}
        return bool(comparable) and comparable <= set(self.better_than)


Cells = dict[tuple[str, str, str], dict[str, SummaryRow]]  # (model, class, method) → score → row


def summarise(rows: Sequence[MapRow]) -> list[SummaryRow]:
    """Return a row per model, class, method and score: models and methods in order, classes sorted, `all` last.

    A labelled image counts if it is correctly classified and its map explains that class; images without a label are
    summarised by the class explained, in parentheses. Scores that no map has make no row.
    """
    counted = [(row, name) for row in rows if not row.control and (name := _class_of(row))]
    scores = {_key(row, row.control): row.scores for row in rows if row.control}
    values = _matrix([row.scores if row.state.scored else {} for row, _ in counted])
    controls = {name: _matrix([scores.get(_key(row, name), {}) for row, _ in counted]) for name in CONTROLS}
    frame = pd.DataFrame([{**vars(row), "class_name": name} for row, name in counted], columns=FIELDS)
    patients = np.unique(frame["group"], return_inverse=True)[1]
    summary = []
    for cell, members in _cells(frame):
        cell |= {"maps": len(members), "states": dict(Counter(frame["state"][members]))}
        for column in np.flatnonzero(~np.isnan(values).all(0)):
            others = {control: matrix[members, column] for control, matrix in controls.items()}
            summary.append(_summary_row(SCORES[column], values[members, column], others, patients[members], **cell))
    return summary


def _class_of(row: MapRow) -> str | None:
    """Return the class under which a map is summarised; None if the image is not classified as the explained class."""
    if not row.label:
        return f"({row.target})"
    return row.label if row.label == row.predicted == row.target else None


def _key(row: MapRow, control: str) -> tuple[str, ...]:
    return control, row.model, row.path, row.method


def _matrix(scores: Sequence[dict[str, float]]) -> np.ndarray:
    """Return (rows, scores) float64, NaN where a score is absent."""
    return np.array([[row.get(score, np.nan) for score in SCORES] for row in scores]).reshape(-1, len(SCORES))


def _cells(frame: pd.DataFrame) -> Iterator[tuple[dict[str, Any], pd.Index]]:
    """Yield each model, class and method, in the order of the table, and the rows that belong to them."""
    for model, of_model in frame.groupby("model", sort=False):
        classes = sorted(of_model["class_name"].unique())
        for name in [*classes, ALL] if len(classes) > 1 else classes:
            of_class = of_model if name == ALL else of_model[of_model["class_name"] == name]
            for method in frame["method"].unique():
                members = of_class.index[of_class["method"] == method]
                if len(members):
                    yield {"model": model, "class_name": name, "method": method}, members


def _summary_row(
    score: str, values: np.ndarray, controls: dict[str, np.ndarray], patients: np.ndarray, **cell: Any
) -> SummaryRow:
    """Return the mean of a score's (n,) values, with the same images' controls beside it; `cell`: the other fields."""
    valid = ~np.isnan(values)
    interval = dict(zip(("value", "low", "high"), _interval(score, values[valid], patients[valid]), strict=True))
    both = {control: valid & ~np.isnan(control_values) for control, control_values in controls.items()}
    means = {control: float(controls[control][b].mean()) if b.any() else np.nan for control, b in both.items()}
    better = (
        control
        for control, b in both.items()
        if not (control == "uniform" and score in ("drop", "increase"))
        and b.any()
        and _beats(score, values[b], controls[control][b], patients[b])
    )
    has_oracle = score in OF_ORACLE and means["oracle"] > 0
    of_oracle = float(values[both["oracle"]].mean() / means["oracle"]) if has_oracle else np.nan
    counts = {"n": int(valid.sum()), "patients": len(np.unique(patients[valid]))}
    counts["n_randomised"] = int(both["randomised"].sum())
    beside = {"controls": means, "of_oracle": of_oracle, "better_than": tuple(better)}
    return SummaryRow(score=score, **cell, **interval, **counts, **beside)


def _interval(score: str, values: np.ndarray, patients: np.ndarray) -> tuple[float, float, float]:
    """Return mean and limits of (n,) values without NaN: hits and misses make a proportion, shared hits a mean."""
    if score not in PROPORTIONS or len(np.unique(patients)) < 2 or not np.isin(values, (0, 1)).all():
        value, low, high = mean_over_patients(values, patients)
        return value, *np.clip((low, high), *_range(score)).tolist()
    hits = values[:, None] == 1
    _, low, high = proportion_interval(hits, np.ones_like(hits), Patients(patients))
    return float(values.mean()), float(low[0]), float(high[0])


def _range(score: str) -> tuple[float, float]:
    """Return the range of a score, beyond which a symmetric interval may reach."""
    return (-np.inf if score == "road" else 0.0), (np.inf if score.endswith(("lift", "road")) else 1.0)


def _beats(score: str, values: np.ndarray, control: np.ndarray, patients: np.ndarray) -> bool:
    """Return whether the 95 % interval of the mean paired difference is wholly on the good side; not for one patient.

    The difference of proportions is by MOVER: a t interval would have no width where every map hits and no control.
    """
    if score not in PROPORTIONS:
        better = control - values if score in LOWER_IS_BETTER else values - control
        return mean_over_patients(better, patients)[1] > ROUNDING
    (value, low, high), (other, other_low, other_high) = (_interval(score, v, patients) for v in (values, control))
    limits = (np.array(pair) for pair in ((value, -other), (low, -other_high), (high, -other_low)))
    influence = np.stack([values - value, other - control], 1)
    return mean_interval(*limits, influence, Patients(patients))[0] > ROUNDING


def write_summary(path: Path, summary: Iterable[SummaryRow]) -> None:
    """Write scores.csv: numbers with six digits, empty for NaN, names separated by spaces."""
    tables = [
        {**vars(row), "class": row.class_name, **row.controls, "better_than": " ".join(row.better_than)}
        for row in summary
    ]
    write_table(path, tables, COLUMNS, "%.6g")


def by_method(summary: Iterable[SummaryRow]) -> Cells:
    """Return the rows by (model, class, method) and score, in the summary's order."""
    cells: Cells = {}
    for row in summary:
        cells.setdefault((row.model, row.class_name, row.method), {})[row.score] = row
    return cells
