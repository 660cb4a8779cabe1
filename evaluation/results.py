"""An evaluation folder: from checked predictions to metrics, tables and figures; or from a table of predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from evaluation.cautions import cautions
from evaluation.figures import plots
from evaluation.metrics import calibration
from evaluation.metrics.curves import class_curves
from evaluation.metrics.formats import format_metrics, write_metrics
from evaluation.metrics.operating_points import SENSITIVITIES, operating_points, read_prevalences
from evaluation.metrics.subgroups import per_patient, subgroups
from evaluation.metrics.table import compute_metrics
from evaluation.metrics.temperature import Temperature, calibrated, temperature_from_validation
from evaluation.predictions import Predictions, read_predictions, write_predictions
from evaluation.provenance import FileNote, Provenance
from utils import UserError, count, log, make_folder, read_json

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
    metrics = compute_metrics(predictions) | {
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
    plots.save_figure(plots.confusion_figure(metrics, provenance.title), folder / "confusion_matrix.png")
    if not quick:
        curves = class_curves(predictions, metrics)
        plots.save_figure(plots.roc_figure(curves["roc"]), folder / "roc.png")
        plots.save_figure(plots.precision_recall_figure(curves["precision_recall"]), folder / "precision_recall.png")
        plots.save_figure(_reliability(predictions, temperature), folder / "reliability.png")
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
        return plots.reliability_figure(bins(predictions.probabilities), None)
    plain, scaled = temperature.before_and_after(predictions.probabilities)
    return plots.reliability_figure(bins(plain), bins(scaled), temperature.value)


def table_evaluation(
    table: Path,
    *,
    validation: Path | None = None,
    output: Path | None = None,
    sensitivity: Sequence[float] | None = None,
    prevalence: Sequence[str] = (),
) -> Evaluation:
    """Read a table of predictions to evaluate; what an earlier evaluation recorded is kept.

    Args:
        table: a `predictions.csv` of this or another program.
        validation: predictions for validation images; default: those that an earlier evaluation used.
        output: the folder for the results; default: beside the table.
        sensitivity, prevalence: default: those of an earlier evaluation.

    Raises: `UserError` for a table that cannot be read, or validation images that are evaluated too.
    """
    path = table.resolve()
    predictions = read_predictions(table)
    read_prevalences(list(prevalence), predictions.classes)  # fail early
    earlier = _earlier_results(path)
    provenance = Provenance.from_json(earlier.get("evaluation"))
    if not provenance.recorded:
        provenance = provenance.record(title=path.name, data=str(table))
    folder = output or (path.parent if earlier else path.with_name(f"{path.stem}-evaluation"))
    file = validation or (provenance.validation and provenance.validation.find(path.parent))
    chosen_on = _read_validation(file, predictions) if file else None
    temperature = Temperature.from_json(earlier["temperature"]) if earlier.get("temperature") else None
    if validation and not (temperature and temperature.applied):
        temperature = temperature_from_validation(chosen_on)
        temperature = temperature and replace(temperature, applied=False)
    return Evaluation(
        predictions=predictions,
        folder=folder,
        provenance=provenance.record(
            sensitivity=sensitivity or provenance.sensitivity,
            prevalence=list(prevalence or provenance.prevalence),
            validation=file and FileNote.of(file, folder),
        ),
        run=path.parent.parent if earlier and (path.parent.parent / "run.json").is_file() else None,
        validation=chosen_on,
        temperature=temperature,
    )


def _read_validation(file: Path, evaluated: Predictions) -> Predictions:
    validation = read_predictions(file, evaluated.classes)
    if shared := validation.shared(evaluated):
        raise UserError(
            f"--validation {file}: it has {len(shared)} of the evaluated images, such as {shared[0]}; choose "
            "thresholds and the temperature on other images"
        )
    return validation


def _earlier_results(path: Path) -> dict[str, Any]:
    """Return what test.py wrote beside its own `predictions.csv`; empty for the table of another program."""
    beside = path.parent / "metrics.json"
    if path.name != "predictions.csv" or not beside.is_file():
        return {}
    metrics = read_json(beside, "delete it, or run test.py again")
    return metrics if isinstance(metrics.get("evaluation"), dict) and "confusion" in metrics else {}


def refuse_other_data(folder: Path, provenance: Provenance) -> None:
    """Raise `UserError` if the folder has the results of other data: two data folders may have the same name."""
    if (folder / "metrics.json").is_file():
        earlier = Provenance.from_json(read_json(folder / "metrics.json", "fix or delete it").get("evaluation"))
        if "data_path" in earlier.recorded and earlier.data_path != provenance.data_path:
            raise UserError(f"{folder}: it has the results for {earlier.data}; choose another folder with --output DIR")
