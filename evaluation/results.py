"""An evaluation folder: from checked predictions to metrics, tables and figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.cautions import cautions
from evaluation.figures.plots import (
    confusion_figure,
    precision_recall_figure,
    reliability_figure,
    roc_figure,
    save_figure,
)
from evaluation.metrics import calibration
from evaluation.metrics.curves import class_curves
from evaluation.metrics.formats import format_metrics, write_metrics
from evaluation.metrics.operating_points import SENSITIVITIES, operating_points, read_prevalences
from evaluation.metrics.subgroups import per_patient, subgroups
from evaluation.metrics.table import compute_metrics
from evaluation.metrics.temperature import Temperature, calibrated
from evaluation.predictions import Predictions, write_predictions
from evaluation.provenance import Provenance
from utils import UserError, count, log, make_folder, read_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DRAWN = ("confusion_matrix.png", "roc.png", "precision_recall.png", "reliability.png", "report.html")


@dataclass(kw_only=True)
class Evaluation:
    """Predictions to evaluate, and what is known about them.

    Attributes:
        folder: where the results go.
        provenance: the model and the images; goes into `metrics.json` as `evaluation`.
        run: the run folder behind the predictions; None for an ensemble or another program.
        validation: predictions that choose the thresholds of the operating points.
        temperature: with `applied` set; None if unknown.
    """

    predictions: Predictions
    folder: Path
    provenance: Provenance
    run: Path | None = None
    validation: Predictions | None = None
    temperature: Temperature | None = None


def write_results(evaluation: Evaluation, quick: bool = False) -> dict[str, Any]:
    """Write `predictions.csv` and all that follows from it into the folder, and return what `metrics.json` holds.

    `quick`: predictions, metrics and the confusion matrix alone.
    """
    predictions, provenance, temperature = evaluation.predictions, evaluation.provenance, evaluation.temperature
    folder = make_folder(evaluation.folder, "--output")
    if (folder / "metrics.json").exists():
        log.info(f"replacing the earlier results in {folder}")
    metrics = compute_metrics(predictions)
    metrics |= {
        "ece_if_perfect": _if_perfect(predictions),
        "temperature": temperature and temperature.to_json() | {"ece_here": _ece_with(predictions, temperature)},
        "operating_points": _operating_points(evaluation),
        "subgroups": subgroups(predictions),
        "per_patient": per_patient(predictions),
        "evaluation": provenance.to_json(),
    }
    metrics["warnings"] = cautions(predictions, metrics, provenance)
    write_predictions(predictions.table, folder / "predictions.csv")
    write_metrics(metrics, folder)
    for name in DRAWN:  # earlier figures would not match these numbers
        (folder / name).unlink(missing_ok=True)
    save_figure(confusion_figure(metrics, provenance.title), folder / "confusion_matrix.png")
    if not quick:
        curves = class_curves(predictions, metrics)
        save_figure(roc_figure(curves["roc"]), folder / "roc.png")
        save_figure(precision_recall_figure(curves["precision_recall"]), folder / "precision_recall.png")
        save_figure(_reliability(predictions, temperature), folder / "reliability.png")
    return metrics


def log_results(evaluation: Evaluation, metrics: dict[str, Any], report: Path | None) -> None:
    """Print the metrics, the cautions, and where the results are."""
    images = count(len(evaluation.predictions), "image")
    log.info(f"{evaluation.provenance.title}, {images}\n\n{format_metrics(metrics)}\n")
    for warning in metrics["warnings"]:
        if warning["level"] == "severe":
            log.warning(warning["text"])
        else:
            log.info(f"caution: {warning['text']}")
    log.info(f"\nwritten: {evaluation.folder}" + (f"\nopen {report}" if report else ""))


def _if_perfect(predictions: Predictions) -> dict[str, float]:
    """Return the ECE that a perfectly calibrated model of these confidences and patients would show."""
    confidence = predictions.confidence
    effect = predictions.patients.design_effect(predictions.correct - confidence)
    mean, p95 = calibration.perfect_error(confidence, calibration.equal_width(confidence), effect)
    return {"mean": mean, "p95": p95}


def _ece_with(predictions: Predictions, temperature: Temperature) -> float:
    """Return the ECE of these images with the temperature, which was fitted on other images."""
    scaled = temperature.before_and_after(predictions.probabilities)[1].max(1)
    return calibration.expected_calibration_error(scaled, predictions.correct, calibration.equal_width(scaled))


def _operating_points(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return the operating points; thresholds are chosen on calibrated probabilities if those are evaluated."""
    validation, temperature, provenance = evaluation.validation, evaluation.temperature, evaluation.provenance
    if validation is None:
        return []
    if temperature and temperature.applied:
        validation = calibrated(validation, temperature.value)
    prevalence = read_prevalences(provenance.prevalence, evaluation.predictions.classes)
    sensitivities = tuple(provenance.sensitivity or SENSITIVITIES)
    return operating_points(validation, evaluation.predictions, sensitivities, prevalence)


def _reliability(predictions: Predictions, temperature: Temperature | None) -> Figure:
    """Return the reliability diagram and, if a temperature is known, the one with it."""

    def bins(probabilities: np.ndarray) -> calibration.Bins:
        confidence = probabilities.max(1)
        return calibration.reliability(confidence, predictions.correct, calibration.equal_width(confidence))

    if temperature is None:
        return reliability_figure(bins(predictions.probabilities), None)
    plain, scaled = temperature.before_and_after(predictions.probabilities)
    return reliability_figure(bins(plain), bins(scaled), temperature.value)


def refuse_other_data(folder: Path, provenance: Provenance) -> None:
    """Raise `UserError` if the folder has the results of other data: two data folders may have the same name."""
    if (folder / "metrics.json").is_file():
        earlier = Provenance.from_json(read_json(folder / "metrics.json", "fix or delete it").get("evaluation"))
        if "data_path" in earlier.recorded and earlier.data_path != provenance.data_path:
            raise UserError(f"{folder}: it has the results for {earlier.data}; choose another folder with --output DIR")
