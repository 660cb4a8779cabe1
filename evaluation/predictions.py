"""A model's answers to a set of radiographs, as the table that everything else is computed from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from intervals import Patients
from utils import UserError, atomic_write

COLUMNS = ("path", "sha256", "label", "predicted", "confidence", "group", "source")
SUM_TOLERANCE = 1e-3  # other programs write probabilities with a few digits


@dataclass
class Predictions:
    """A checked predictions table, in numbers.

    Args:
        table: the columns of the contract; `predicted` and `confidence` follow from the probabilities where they are
            absent, `group` from the path (each image a patient of its own), `sha256` and `source` are empty.
        classes: class names, in the order of the columns `p_CLASS`.
        where: the file, for errors.

    Attributes:
        labels, predicted: (n,) int64, class numbers.
        probabilities: (n, classes) float64.

    Raises: `UserError` that names the file and the line: no rows, a missing column, probabilities that are no numbers
        in [0, 1] or do not sum to 1, an unknown class, or a path that was there before.
    """

    table: pd.DataFrame
    classes: list[str]
    where: str = "predictions"

    def __post_init__(self) -> None:
        self.table = self.table.reset_index(drop=True)
        columns = [f"p_{name}" for name in self.classes]
        for column in ("path", "label", *columns):
            if column not in self.table:
                raise UserError(f"{self.where}: no column '{column}' (there are {', '.join(map(str, self.table))})")
        if not len(self.table):
            raise UserError(f"{self.where}: no rows")
        self.probabilities = self._check_probabilities(columns)
        self._fill_in()
        self.labels, self.predicted = self._numbers("label"), self._numbers("predicted")
        chosen = self.probabilities[np.arange(len(self)), self.predicted]
        reason = "is not the class of the highest probability; mend the column, or leave it out"
        self._refuse(chosen < self.confidence, "predicted", reason)
        self._refuse(self.table["path"].duplicated(), "path", "was there before")

    def __len__(self) -> int:
        return len(self.table)

    @property
    def confidence(self) -> np.ndarray:
        """The winning class's probability, (n,)."""
        return self.probabilities.max(1)

    @property
    def correct(self) -> np.ndarray:
        """Whether the predicted class is the true one, (n,) bool."""
        return self.labels == self.predicted

    @property
    def support(self) -> np.ndarray:
        """The number of images of each class, (classes,)."""
        return np.bincount(self.labels, minlength=len(self.classes))

    @property
    def unknown_patients(self) -> int:
        """Images whose patient is not known: they count as a patient of their own, named by the path."""
        return int((self.table["group"] == self.table["path"]).sum())

    @cached_property
    def patients(self) -> Patients:
        """Who the images belong to."""
        return Patients(self.table["group"].to_numpy(str))

    def subset(self, chosen: np.ndarray) -> Predictions:
        """The predictions that the (n,) mask `chosen` takes, at least one."""
        return Predictions(self.table[chosen], self.classes, self.where)

    def shared(self, other: Predictions) -> list[str]:
        """The paths of the images that both hold: the same bytes where the hashes are known, else the same path."""
        known = (self.table["sha256"] != "").all() and (other.table["sha256"] != "").all()
        by = "sha256" if known else "path"
        return list(self.table["path"][self.table[by].isin(other.table[by])])

    def _fill_in(self) -> None:
        table = self.table.copy()
        winner = np.array(self.classes, object)[self.probabilities.argmax(1)]
        derived = {"predicted": winner, "confidence": self.confidence, "group": "", "sha256": "", "source": ""}
        for column, values in derived.items():
            if column not in table:
                table[column] = values
        table["group"] = table["group"].where(table["group"] != "", table["path"])
        self.table = table

    def _check_probabilities(self, columns: list[str]) -> np.ndarray:
        try:
            values = self.table[columns].astype(np.float64).to_numpy()
        except ValueError as error:
            raise UserError(f"{self.where}: a probability is no number ({str(error).splitlines()[0]})") from None
        for number, name in enumerate(columns):
            self._refuse(np.isnan(values[:, number]), name, "is NaN or empty")
            self._refuse((values[:, number] < 0) | (values[:, number] > 1), name, "is not in [0, 1]")
        total = values.sum(1)
        off = np.abs(total - 1) > SUM_TOLERANCE
        if off.any():
            row = int(off.argmax())
            raise UserError(f"{self.where}: line {row + 2}: its probabilities sum to {total[row]:g}, not to 1")
        return values

    def _numbers(self, column: str) -> np.ndarray:
        number = {name: i for i, name in enumerate(self.classes)}
        found = self.table[column].map(number)
        self._refuse(found.isna(), column, f"is none of the classes ({', '.join(self.classes)})")
        return found.to_numpy(np.int64)

    def _refuse(self, wrong: np.ndarray | pd.Series, column: str, reason: str) -> None:
        if np.any(wrong):
            row = int(np.argmax(wrong))
            raise UserError(f"{self.where}: line {row + 2}: {column} '{self.table[column][row]}' {reason}")


def prediction_table(records: pd.DataFrame, probabilities: np.ndarray, classes: list[str]) -> pd.DataFrame:
    """The contract's predictions: path, sha256, label, predicted, confidence, p_CLASS…, group, source.

    `probabilities` is (n, classes), in the order of `records` and `classes`.
    """
    table = records[["path", "sha256", "label"]].reset_index(drop=True)
    table["predicted"] = np.array(classes, object)[probabilities.argmax(1)]
    table["confidence"] = probabilities.max(1)
    for index, name in enumerate(classes):
        table[f"p_{name}"] = probabilities[:, index]
    table["group"], table["source"] = records["group"].to_numpy(), records["source"].to_numpy()
    return table


def write_predictions(table: pd.DataFrame, path: Path) -> None:
    """Write `predictions.csv`, atomically and without loss (floats by their shortest exact form)."""
    with atomic_write(path) as file:
        table.to_csv(file, index=False, lineterminator="\n")


def read_predictions(path: Path, classes: list[str] | None = None) -> Predictions:
    """Read and check a `predictions.csv`: text stays text, whatever it looks like, and floats come back exactly.

    `classes` default to those of the columns `p_CLASS`, in their order. Raises: `UserError` as `Predictions` does.
    """
    try:
        header = pd.read_csv(path, nrows=0)
        numbers = [c for c in header.columns if c.startswith("p_") or c == "confidence"]
        text = {c: str for c in header.columns if c not in numbers}
        empty = {column: ["", "nan", "NaN"] for column in numbers}
        table = pd.read_csv(path, dtype=text, keep_default_na=False, na_values=empty)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as predictions ({str(error).splitlines()[0]})") from None
    classes = classes or [c.removeprefix("p_") for c in header.columns if c.startswith("p_")]
    if len(classes) < 2:
        raise UserError(f"{path}: a column p_CLASS for each of two or more classes is needed")
    return Predictions(table, classes, str(path))
