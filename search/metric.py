"""The metric that a search optimises: any metric of metrics.json, on the validation images."""

from __future__ import annotations

from dataclasses import dataclass

from evaluation.metrics.table import OVERALL, PER_CLASS, compute_metrics
from evaluation.predictions import Predictions
from utils import UserError, did_you_mean

LOWER_IS_BETTER = ("ece", "adaptive_ece", "brier", "log_loss")


@dataclass(frozen=True)
class Metric:
    """A metric of metrics.json by name: `macro_f1`, or `per_class.COVID.recall`."""

    name: str
    class_name: str | None = None

    @property
    def direction(self) -> str:
        """Return Optuna's name for the better direction: `minimize` or `maximize`."""
        return "minimize" if self.name in LOWER_IS_BETTER else "maximize"

    @property
    def words(self) -> str:
        """Return the name for tables and plots."""
        words = self.name.rsplit(".", 1)[-1].replace("_", " ")
        return f"{words} of {self.class_name}" if self.class_name else words

    def value(self, predictions: Predictions) -> float | None:
        """Return the value; None if it is undefined, such as the precision of a class that was never predicted."""
        metrics = compute_metrics(predictions, resamples=0)
        if self.class_name is not None:
            metrics = metrics["per_class"][self.class_name]
        return metrics[self.name.rsplit(".", 1)[-1]]["value"]

    def check_class(self, classes: list[str]) -> None:
        """Check that the metric's class is one of `classes`. Raises: `UserError`."""
        if self.class_name is not None and self.class_name not in classes:
            near = did_you_mean(self.class_name, classes)
            raise UserError(f"--metric {self.name}: unknown class{near}; choose from {', '.join(classes)}")


def read_metric(name: str) -> Metric:
    """Return the metric of that name. Raises: `UserError` for an unknown one, or one on another split."""
    split, _, rest = name.replace("/", ".").partition(".")
    if split in ("train", "test", "external") or name.startswith(("train_", "test_")):
        memorised = "a model that memorised the training images would win"
        reason = memorised if name.startswith("train") else "test images that select a model cannot judge it"
        raise UserError(f"--metric {name}: only validation images may decide a search: {reason}")
    if split == "per_class":
        class_name, _, metric = rest.rpartition(".")
        if class_name and metric in PER_CLASS:
            return Metric(f"per_class.{class_name}.{metric}", class_name)
        raise UserError(f"--metric {name}: expected per_class.CLASS.NAME, NAME being one of {', '.join(PER_CLASS)}")
    if name not in OVERALL:
        raise UserError(
            f"--metric {name}: unknown metric{did_you_mean(name, list(OVERALL))}; choose from {', '.join(OVERALL)}, or "
            "per_class.CLASS.NAME"
        )
    return Metric(name)
