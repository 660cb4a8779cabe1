"""An evaluation folder: from checked predictions to metrics, tables, plots and the report."""

from __future__ import annotations

import os
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
from evaluation.metrics.formats import write_metrics
from evaluation.metrics.operating_points import SENSITIVITIES, operating_points
from evaluation.metrics.subgroups import per_patient, subgroups
from evaluation.metrics.table import compute_metrics
from evaluation.metrics.temperature import before_and_after, calibrated
from evaluation.predictions import Predictions, write_predictions
from utils import UserError, file_sha256, log, read_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure


DRAWN = ("confusion_matrix.png", "roc.png", "precision_recall.png", "reliability.png", "report.html")


def write_results(
    predictions: Predictions,
    folder: Path,
    about: dict[str, Any],
    *,
    run: Path | None = None,
    validation: Predictions | None = None,
    temperature: dict[str, Any] | None = None,
    wanted: tuple[float, ...] = SENSITIVITIES,
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
    metrics = compute_metrics(predictions)
    metrics |= {
        "ece_if_perfect": _if_perfect(predictions),
        "temperature": temperature and temperature | {"ece_here": _ece_with(predictions, temperature)},
        "operating_points": _operating_points(predictions, validation, temperature, wanted, prevalence),
        "subgroups": subgroups(predictions),
        "per_patient": per_patient(predictions),
        "evaluation": about,
    }
    metrics["warnings"] = cautions(predictions, metrics, about)
    write_predictions(predictions.table, folder / "predictions.csv")
    write_metrics(metrics, folder)
    for name in DRAWN:  # what an earlier evaluation drew would be misread beside these numbers
        (folder / name).unlink(missing_ok=True)
    save_figure(confusion_figure(metrics, str(about.get("title", ""))), folder / "confusion_matrix.png")
    if not quick:
        curves = class_curves(predictions, metrics)
        save_figure(roc_figure(curves["roc"]), folder / "roc.png")
        save_figure(precision_recall_figure(curves["precision_recall"]), folder / "precision_recall.png")
        save_figure(_reliability(predictions, temperature), folder / "reliability.png")
        from report.page import write_report  # Jinja2 and the template, for those who want a report

        try:
            write_report(folder, run)
        except UserError as error:
            log.warning(f"no report: {error}")
    return metrics


def _if_perfect(predictions: Predictions) -> dict[str, float]:
    """The ECE that a perfectly calibrated model of these confidences and patients would show."""
    confidence = predictions.confidence
    effect = predictions.patients.design_effect(predictions.correct - confidence)
    mean, p95 = calibration.perfect_error(confidence, calibration.equal_width(confidence), effect)
    return {"mean": mean, "p95": p95}


def _ece_with(predictions: Predictions, temperature: dict[str, Any]) -> float:
    """The ECE of these images with the temperature, which other images decided."""
    scaled = before_and_after(predictions.probabilities, temperature)[1].max(1)
    return calibration.expected_calibration_error(scaled, predictions.correct, calibration.equal_width(scaled))


def _operating_points(
    predictions: Predictions,
    validation: Predictions | None,
    temperature: dict[str, Any] | None,
    wanted: tuple[float, ...],
    prevalence: dict[str, float] | None,
) -> list[dict[str, Any]]:
    """Thresholds are chosen on the scale that they are used on: of calibrated probabilities, if those are evaluated."""
    if validation is None:
        return []
    if temperature and temperature["applied"]:
        validation = calibrated(validation, temperature["value"])
    return operating_points(validation, predictions, wanted, prevalence)


def _reliability(predictions: Predictions, temperature: dict[str, Any] | None) -> Figure:
    """The reliability diagram, and where a temperature is known the one with it."""

    def bins(probabilities: np.ndarray) -> calibration.Bins:
        confidence = probabilities.max(1)
        return calibration.reliability(confidence, predictions.correct, calibration.equal_width(confidence))

    plain, scaled = before_and_after(predictions.probabilities, temperature)
    if scaled is None:
        return reliability_figure(bins(plain), None)
    return reliability_figure(bins(plain), bins(scaled), temperature["value"])


def earlier_results(path: Path) -> dict[str, Any]:
    """What test.py noted beside a `predictions.csv` of its own; empty for the table of another program."""
    beside = path.parent / "metrics.json"
    if path.name != "predictions.csv" or not beside.is_file():
        return {}
    found = read_json(beside, "remove it, or run test.py again")
    return found if isinstance(found.get("evaluation"), dict) and "confusion" in found else {}


def note_file(file: Path, folder: Path) -> dict[str, str]:
    """Where a file is, seen from `folder`, and the SHA-256 of what is in it."""
    return {"path": os.path.relpath(file, folder), "sha256": file_sha256(file)}


def noted_file(folder: Path, note: dict[str, str] | None) -> Path | None:
    """The file that `note_file` noted; None, with the reason said, where it is gone or holds something else now."""
    if not note:
        return None
    file = folder / note["path"]
    if file.is_file() and file_sha256(file) == note["sha256"]:
        return file
    log.warning(f"{file} is gone or has changed: no operating points")
    return None


def refuse_other_data(folder: Path, about: dict[str, Any]) -> None:
    """Two folders of images may have one name: the results of one must not replace the other's."""
    if (folder / "metrics.json").is_file():
        earlier = read_json(folder / "metrics.json", "remove it").get("evaluation") or {}
        if earlier.get("data_path", about["data_path"]) != about["data_path"]:
            raise UserError(f"{folder}: it holds the results for {earlier['data']}; name another folder: --output DIR")
