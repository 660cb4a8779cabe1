"""A model's predictions on a set of images, the table from which everything else in this room is computed."""

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
    """A checked table of predictions, and the same in numbers.

    Parameters
    ----------
    table : pandas.DataFrame
        Columns `path`, `label` and `p_CLASS` for every class, and optionally the others of `COLUMNS`. `predicted` and
        `confidence` default to the class of the highest probability and that probability, `group` (the patient) to
        the path, `sha256` and `source` to empty text. Further columns are kept.
    classes : list of str
        The class names, in the order of the columns of `probabilities`.
    where : str
        The file, for error messages.

    Attributes
    ----------
    labels, predicted : numpy.ndarray
        (n,) int64, the numbers of the true and of the predicted classes.
    probabilities : numpy.ndarray
        (n, classes) float64.

    Raises
    ------
    UserError
        If the table has no rows or lacks a column, if probabilities are not numbers in [0, 1] or do not sum to 1, if
        `predicted` is not the class of the highest probability, if a class is unknown, or if a path occurs twice. The
        error names `where` and, for a cell, its line.

    Examples
    --------
    >>> import pandas as pd
    >>> from evaluation import Predictions
    >>> table = pd.DataFrame({"path": ["1.png", "2.png"], "label": ["ill", "well"], "p_ill": [0.8, 0.6]})
    >>> predictions = Predictions(table.assign(p_well=1 - table["p_ill"]), ["ill", "well"])
    >>> len(predictions), predictions.predicted.tolist(), predictions.correct.tolist()
    (2, [0, 0], [True, False])
    """

    table: pd.DataFrame
    classes: list[str]
    where: str = "predictions"

    def __post_init__(self) -> None:
        table = self.table = self.table.reset_index(drop=True)
        columns = [f"p_{name}" for name in self.classes]
        for column in ("path", "label", *columns):
            if column not in table:
                raise UserError(f"{self.where}: no column '{column}', only {', '.join(map(str, table))}; add it")
        if table.empty:
            raise UserError(f"{self.where}: no rows; write one for each image")
        self.probabilities = self._check_probabilities(columns)
        winner = np.array(self.classes, object)[self.probabilities.argmax(1)]
        defaults = {"predicted": winner, "confidence": self.confidence, "group": "", "sha256": "", "source": ""}
        table = table.assign(**{name: values for name, values in defaults.items() if name not in table})
        self.table = table.assign(group=table["group"].where(table["group"] != "", table["path"]))
        self.labels, self.predicted = self._class_numbers("label"), self._class_numbers("predicted")
        chosen = self.probabilities[np.arange(len(self)), self.predicted]
        reason = "is not the class with the highest probability; fix the column or leave it out"
        self._refuse(chosen < self.confidence, "predicted", reason)
        self._refuse(self.table["path"].duplicated(), "path", "occurs twice")

    def __len__(self) -> int:
        return len(self.table)

    @property
    def confidence(self) -> np.ndarray:
        """The probability of the predicted class, (n,)."""
        return self.probabilities.max(1)

    @property
    def correct(self) -> np.ndarray:
        """True where the predicted class is the true one, (n,) bool."""
        return self.labels == self.predicted

    @property
    def unknown_patients(self) -> int:
        """The number of images whose patient is unknown: each counts as a separate patient, named by the path."""
        return int((self.table["group"] == self.table["path"]).sum())

    @cached_property
    def patients(self) -> Patients:
        """The patient of each image."""
        return Patients(self.table["group"].to_numpy(str))

    def subset(self, chosen: np.ndarray) -> Predictions:
        """Return some of the predictions.

        Parameters
        ----------
        chosen : numpy.ndarray
            (n,) bool, True for the images to keep, at least one.

        Returns
        -------
        Predictions

        Raises
        ------
        UserError
            If no image is chosen.

        Examples
        --------
        >>> import pandas as pd
        >>> from evaluation import Predictions
        >>> table = pd.DataFrame({"path": ["1.png", "2.png"], "label": ["ill", "well"], "p_ill": [0.8, 0.6]})
        >>> predictions = Predictions(table.assign(p_well=1 - table["p_ill"]), ["ill", "well"])
        >>> list(predictions.subset(~predictions.correct).table["path"])
        ['2.png']
        """
        return Predictions(self.table[chosen], self.classes, self.where)

    def shared(self, other: Predictions) -> list[str]:
        """Return which of the images another table holds too.

        Parameters
        ----------
        other : Predictions
            Images are the same if their hashes are equal; if a hash is unknown in either table, if their paths are.

        Returns
        -------
        list of str
            Paths in this table.

        Examples
        --------
        >>> import pandas as pd
        >>> from evaluation import Predictions
        >>> table = pd.DataFrame({"path": ["1.png", "2.png"], "label": ["ill", "well"], "p_ill": [0.8, 0.6]})
        >>> predictions = Predictions(table.assign(p_well=1 - table["p_ill"]), ["ill", "well"])
        >>> predictions.shared(predictions.subset(predictions.correct))
        ['1.png']
        """
        hashed = (self.table["sha256"] != "").all() and (other.table["sha256"] != "").all()
        by = "sha256" if hashed else "path"
        return list(self.table["path"][self.table[by].isin(other.table[by])])

    def _check_probabilities(self, columns: list[str]) -> np.ndarray:
        try:
            values = self.table[columns].astype(np.float64).to_numpy()
        except ValueError as error:
            raise UserError(f"{self.where}: a probability is not a number ({str(error).splitlines()[0]})") from None
        for column, numbers in zip(columns, values.T, strict=True):
            self._refuse(np.isnan(numbers), column, "is NaN or empty")
            self._refuse((numbers < 0) | (numbers > 1), column, "is not in [0, 1]")
        total = values.sum(1)
        wrong = np.abs(total - 1) > SUM_TOLERANCE
        self._refuse(wrong, "path", f"has probabilities that sum to {total[wrong.argmax()]:g}, not to 1")
        return values

    def _class_numbers(self, column: str) -> np.ndarray:
        numbers = self.table[column].map({name: i for i, name in enumerate(self.classes)})
        self._refuse(numbers.isna(), column, f"is not one of the classes ({', '.join(self.classes)})")
        return numbers.to_numpy(np.int64)

    def _refuse(self, wrong: np.ndarray | pd.Series, column: str, reason: str) -> None:
        if np.any(wrong):
            row = int(np.argmax(wrong))
            raise UserError(f"{self.where}: line {row + 2}: {column} '{self.table[column][row]}' {reason}")


def prediction_table(records: pd.DataFrame, probabilities: np.ndarray, classes: list[str]) -> pd.DataFrame:
    """Return the contract's table: path, sha256, label, predicted, confidence, p_CLASS…, group, source.

    `probabilities` is (n, classes), in the order of `records` and `classes`.
    """
    table = records[["path", "sha256", "label"]].reset_index(drop=True)
    table["predicted"] = np.array(classes, object)[probabilities.argmax(1)]
    table["confidence"] = probabilities.max(1)
    table[[f"p_{name}" for name in classes]] = probabilities
    table[["group", "source"]] = records[["group", "source"]].to_numpy()
    return table


def write_predictions(table: pd.DataFrame, path: Path) -> None:
    """Write `predictions.csv`, atomically and without loss (floats in their shortest exact form)."""
    with atomic_write(path) as file:
        table.to_csv(file, index=False, lineterminator="\n")


def read_predictions(path: Path, classes: list[str] | None = None) -> Predictions:
    """Read and check a `predictions.csv`, one of this project or of another program.

    Parameters
    ----------
    path : Path or str
        A CSV file with the columns that `Predictions` describes. Text stays text, whatever it looks like, and floats
        come back exactly.
    classes : list of str, optional
        The class names in order; default: those of the columns `p_CLASS`, in the file's order.

    Returns
    -------
    Predictions

    Raises
    ------
    UserError
        If the file cannot be read, has fewer than two classes, or fails the checks of `Predictions`.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from evaluation import read_predictions
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "predictions.csv"
    ...     _ = file.write_text("path,label,p_ill,p_well\\n1.png,ill,0.8,0.2\\n2.png,ill,0.3,0.7\\n")
    ...     predictions = read_predictions(file)
    >>> predictions.classes, predictions.correct.tolist()
    (['ill', 'well'], [True, False])
    """
    try:
        header = list(pd.read_csv(path, nrows=0))
        numbers = [name for name in header if name.startswith("p_") or name == "confidence"]
        text, empty = dict.fromkeys({*header} - {*numbers}, str), {name: ["", "nan", "NaN"] for name in numbers}
        table = pd.read_csv(path, dtype=text, keep_default_na=False, na_values=empty)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as predictions ({str(error).splitlines()[0]})") from None
    names = classes or [name.removeprefix("p_") for name in header if name.startswith("p_")]
    if len(names) < 2:
        raise UserError(f"{path}: columns p_CLASS for two or more classes are needed")
    return Predictions(table, names, str(path))
