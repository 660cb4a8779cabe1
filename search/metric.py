"""The metric that a search optimises: any metric of metrics.json, on the validation images."""

from __future__ import annotations

import re
from dataclasses import dataclass

from evaluation.metrics.table import OVERALL, PER_CLASS, compute_metrics
from evaluation.predictions import Predictions
from utils import UserError, did_you_mean

LOWER_IS_BETTER = ("ece", "adaptive_ece", "brier", "log_loss")


@dataclass(frozen=True)
class Metric:
    """A metric of metrics.json by name: `macro_f1`, or `per_class.COVID.recall`."""

    name: str
    short_name: str  # without its class
    class_name: str | None = None

    @property
    def direction(self) -> str:
        """Return Optuna's name for the better direction: `minimize` or `maximize`."""
        return "minimize" if self.name in LOWER_IS_BETTER else "maximize"

    @property
    def words(self) -> str:
        """Return the name for tables and plots."""
        return self.short_name.replace("_", " ") + (f" of {self.class_name}" if self.class_name else "")

    def value(self, predictions: Predictions) -> float | None:
        """Return the value; None if it is undefined, such as the precision of a class that was never predicted."""
        metrics = compute_metrics(predictions, resamples=0)
        return (metrics["per_class"][self.class_name] if self.class_name else metrics)[self.short_name]["value"]

    def check_class(self, classes: list[str]) -> None:
        """Check that the metric's class is one of `classes`. Raises: `UserError`."""
        if self.class_name is not None and self.class_name not in classes:
            near = did_you_mean(self.class_name, classes)
            raise UserError(f"--metric {self.name}: unknown class{near}; choose from {', '.join(classes)}")


def read_metric(name: str) -> Metric:
    """Return the metric of that name. Raises: `UserError` for an unknown one, or one on another split."""
    if re.match(r"(train|test|external)[._/]", name):
        raise UserError(
            f"--metric {name}: only validation images may decide a search; a model that memorised the training images "
            "would win on them, and test images used to select a model no longer test it"
        )
    match = re.fullmatch(r"(?:per_class\.(.+)\.)?(\w+)", name)
    if match is None or match[2] not in (PER_CLASS if match[1] else OVERALL):
        raise UserError(
            f"--metric {name}: unknown metric{did_you_mean(name, list(OVERALL))}; choose from {', '.join(OVERALL)}, or "
            f"per_class.CLASS.NAME, NAME being one of {', '.join(PER_CLASS)}"
        )
    return Metric(name, match[2], match[1])
