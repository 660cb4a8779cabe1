"""An evaluation folder: from checked predictions to metrics, tables, plots and the report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation import calibration
from evaluation.cautions import cautions
from evaluation.curves import class_curves
from evaluation.metrics import compute_metrics, write_metrics
from evaluation.operating_points import WANTED, operating_points
from evaluation.plots import confusion_figure, precision_recall_figure, reliability_figure, roc_figure, save_figure
from evaluation.predictions import Predictions, write_predictions
from evaluation.subgroups import per_patient, subgroups

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_results(
    predictions: Predictions,
    folder: Path,
    about: dict[str, Any],
    *,
    run: Path | None = None,
    validation: Predictions | None = None,
    temperature: dict[str, Any] | None = None,
    wanted: tuple[float, ...] = WANTED,
    prevalence: dict[str, float] | None = None,
    quick: bool = False,
) -> dict[str, Any]:
    """Write `predictions.csv` and all that follows from it into `folder`, and return what `metrics.json` holds.

    Args:
        predictions: what the numbers are computed from.
        about: who answered, and which images these are; goes into `metrics.json` as `evaluation`.
        run: the run folder that the report tells of, if there is one.
        validation: decides the thresholds of the operating points.
        temperature: `value`, `fitted_on`, `n` and `applied`, where one is known.
        wanted: sensitivities of the operating points.
        prevalence: of classes, for PPV and NPV; default: their shares of these images.
        quick: predictions, metrics and the confusion matrix alone.
    """
    write_predictions(predictions.table, folder / "predictions.csv")
    metrics = compute_metrics(predictions)
    confidence = predictions.confidence
    mean, p95 = calibration.perfect_error(confidence, calibration.equal_width(confidence))
    metrics |= {
        "ece_if_perfect": {"mean": mean, "p95": p95},
        "temperature": temperature,
        "operating_points": operating_points(validation, predictions, wanted, prevalence) if validation else [],
        "subgroups": subgroups(predictions),
        "per_patient": per_patient(predictions),
        "evaluation": about,
    }
    metrics["warnings"] = cautions(predictions, metrics, about)
    write_metrics(metrics, folder)
    save_figure(confusion_figure(metrics, str(about.get("title", ""))), folder / "confusion_matrix.png")
    if not quick:
        curves = class_curves(predictions, metrics)
        save_figure(roc_figure(curves["roc"]), folder / "roc.png")
        save_figure(precision_recall_figure(curves["precision_recall"]), folder / "precision_recall.png")
        save_figure(_reliability(predictions, temperature), folder / "reliability.png")
        from evaluation.report import write_report  # Jinja2 and the templates, for those who want a report

        write_report(folder, run)
    return metrics


def _reliability(predictions: Predictions, temperature: dict[str, Any] | None) -> Figure:
    """The reliability diagram, and where a temperature is known the one with it."""

    def bins(probabilities: np.ndarray) -> calibration.Bins:
        confidence = probabilities.max(1)
        return calibration.reliability(confidence, predictions.correct, calibration.equal_width(confidence))

    plain, scaled = calibration.before_and_after(predictions.probabilities, temperature)
    if scaled is None:
        return reliability_figure(bins(plain), None)
    return reliability_figure(bins(plain), bins(scaled), temperature["value"])
