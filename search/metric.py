"""Which number a search is after: any metric of metrics.json, on the validation images."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evaluation.metrics.table import OVERALL, PER_CLASS, compute_metrics
from utils import UserError

if TYPE_CHECKING:
    from evaluation.predictions import Predictions

LOWER_IS_BETTER = ("ece", "adaptive_ece", "brier", "log_loss")


@dataclass(frozen=True)
class Metric:
    """A metric of metrics.json by name: `macro_f1`, or `per_class.COVID.recall`."""

    name: str
    class_name: str | None = None

    @property
    def direction(self) -> str:
        """As Optuna has it: `minimize` or `maximize`."""
        return "minimize" if self.name in LOWER_IS_BETTER else "maximize"

    @property
    def words(self) -> str:
        """For tables and plots."""
        own = self.name.rsplit(".", 1)[-1].replace("_", " ")
        return f"{own} of {self.class_name}" if self.class_name else own

    def of(self, predictions: Predictions) -> float | None:
        """Its value; None where it is undefined, such as the precision of a class that was never predicted."""
        found = compute_metrics(predictions, resamples=0)
        if self.class_name is not None:
            found = found["per_class"][self.class_name]
        return found[self.name.rsplit(".", 1)[-1]]["value"]

    def check_class(self, classes: list[str]) -> None:
        """Raises: `UserError` where there is no such class."""
        if self.class_name is not None and self.class_name not in classes:
            near = difflib.get_close_matches(self.class_name, classes, n=1)
            hint = f": did you mean {near[0]}?" if near else ""
            raise UserError(f"--metric {self.name}: no class {self.class_name}{hint} (there are {', '.join(classes)})")


def read_metric(name: str) -> Metric:
    """Raises: `UserError` for a name that metrics.json does not have, and for any split but validation."""
    split, _, rest = name.replace("/", ".").partition(".")
    if split in ("test", "train", "external") or name.startswith(("test_", "train_")):
        why = {
            "train": "a model that knows them by heart would win",
            "test": "the test images would choose the model, and say nothing true of it afterwards",
        }
        raise UserError(
            f"--metric {name}: a search is decided on the validation images alone: {why.get(split[:5], why['test'])}"
        )
    if split == "per_class":
        class_name, _, own = rest.rpartition(".")
        if class_name and own in PER_CLASS:
            return Metric(f"per_class.{class_name}.{own}", class_name)
        raise UserError(f"--metric {name}: per_class.CLASS.NAME is needed, with one of {', '.join(PER_CLASS)}")
    if name not in OVERALL:
        near = difflib.get_close_matches(name, OVERALL, n=1)
        hint = f": did you mean {near[0]}?" if near else ""
        raise UserError(
            f"--metric {name}: no such metric{hint} (there are {', '.join(OVERALL)}, and per_class.CLASS.NAME)"
        )
    return Metric(name)
