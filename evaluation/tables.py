"""The evaluation of a table of predictions: from another program, or from test.py to be computed again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from evaluation.metrics.operating_points import read_prevalences
from evaluation.metrics.temperature import Temperature, temperature_from_validation
from evaluation.predictions import Predictions, read_predictions
from evaluation.provenance import FileNote, Provenance
from evaluation.results import Evaluation
from utils import UserError, read_json


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
