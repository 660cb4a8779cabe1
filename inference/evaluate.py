"""The evaluation of one checkpoint or several: images, overlap with training, predictions and temperature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from command_line import typed_command
from config import Config
from dataset.external import load_external, read_class_map
from evaluation.metrics.operating_points import read_prevalences
from evaluation.metrics.temperature import Temperature, calibrated
from evaluation.predictions import Predictions, write_predictions
from evaluation.provenance import FileNote, Overlap, Provenance
from evaluation.results import Evaluation, refuse_other_data
from experiment.run_folder import now, runs_folder
from experiment.selection import select
from inference.ensemble import Ensemble
from inference.validation import ValidationFiles
from utils import UserError, device_name, git_commit, log, make_folder, versions


@dataclass(kw_only=True)
class Request:
    """A request to evaluate checkpoints.

    Attributes:
        config, given: the composed configuration, and the keys that the command line set.
        weights: checkpoints and run folders; none: the newest finished run.
        split: of the data, unless `external` names a folder; `class_map` renames its classes (`THEIRS=OURS`).
        classes: the expected number of classes.
        calibrated: divide the logits by the temperature.
        allow_overlap: evaluate training images too.
        quick: skip the validation images.
        sensitivity, prevalence: of the operating points.
        output: default: a folder in the run.
    """

    config: Config
    given: Mapping[str, Any]
    weights: Sequence[Path] = ()
    split: str = "test"
    external: Path | None = None
    class_map: Sequence[str] = ()
    classes: int | None = None
    tta: bool = False
    calibrated: bool = False
    allow_overlap: bool = False
    quick: bool = False
    sensitivity: Sequence[float] | None = None
    prevalence: Sequence[str] = ()
    output: Path | None = None

    @property
    def kind(self) -> str:
        """The split, or `external`."""
        return "external" if self.external else self.split


def evaluate_model(request: Request) -> Evaluation:
    """Predict the requested images with one checkpoint or several.

    Raises: `UserError`, before any prediction if possible, for checkpoints or images that cannot be evaluated.
    """
    ensemble = _load(request)
    records, facts = _find_images(request, ensemble)
    provenance = _provenance(request, ensemble).record(**facts)
    folder = request.output or _default_folder(request, ensemble)
    if request.output is None:
        refuse_other_data(folder, provenance)
    overlap = _check_overlap(request, ensemble, records)
    make_folder(folder, "--output")  # fail early, not after the predictions
    files = ValidationFiles(ensemble)
    validation = None if request.quick else files.predictions()
    temperature = _temperature(request, files, validation)
    probabilities = ensemble.predict(records, ensemble.first.data, request.kind)
    predictions = probabilities.labelled()
    unreadable = facts["unreadable"] + len(probabilities.unreadable)
    provenance = provenance.record(overlap=overlap, unreadable=unreadable)
    if request.calibrated:
        predictions = calibrated(predictions, temperature.value)
    if validation is not None and validation.shared(predictions):
        log.warning("no operating points: the thresholds were chosen on these images")
        validation = None
    if validation is not None:
        provenance = provenance.record(validation=_note_validation(files, validation, folder))
    return Evaluation(
        predictions=predictions,
        folder=folder,
        provenance=provenance,
        run=ensemble.first.run if len(ensemble.selections) == 1 else None,
        validation=validation,
        temperature=temperature,
    )


def _load(request: Request) -> Ensemble:
    """Load the checkpoints and check the request against them."""
    config, given = request.config, dict(request.given)
    if request.external:
        config = replace(config, data=replace(config.data, path=str(request.external)))
        given["data.path"] = config.data.path
    selections = [select(config, path, given) for path in request.weights or [None]]
    ensemble = Ensemble(selections=selections, batch=config.train.eval_batch, tta=request.tta)
    classes = ensemble.classes
    if request.classes not in (None, len(classes)):
        names = ", ".join(classes)
        raise UserError(f"--classes {request.classes}: the checkpoint has {len(classes)} classes ({names}); omit it")
    read_prevalences(list(request.prevalence), classes)  # fail early, not after the predictions
    return ensemble


def _default_folder(request: Request, ensemble: Ensemble) -> Path:
    """Return a folder in the run or, for several checkpoints, in an ensemble folder beside the runs."""
    suffixes = ["tta"] * request.tta + ["calibrated"] * request.calibrated
    folder = ensemble.first.output_folder(request.kind, suffixes)
    if len(ensemble.selections) == 1:
        return folder
    return runs_folder(request.config) / ensemble.folder_name() / folder.name


def _provenance(request: Request, ensemble: Ensemble) -> Provenance:
    """Return the provenance that is known before the images are read."""
    first = ensemble.first
    return Provenance().record(
        kind=request.kind,
        **ensemble.about(),
        device=device_name(first.device),
        command=typed_command(),
        commit=git_commit(),
        versions=versions(),
        finished=now(),
        sensitivity=request.sensitivity,
        prevalence=list(request.prevalence),
        data=first.data.path or "the run's own",
        data_path=first.data.path and str(Path(first.data.path).resolve()),
    )


def _find_images(request: Request, ensemble: Ensemble) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return the records of the split or of the external folder, and what metrics.json records of them.

    Raises: `UserError` where there are no images.
    """
    first = ensemble.first
    if request.external:
        class_map = read_class_map(list(request.class_map))
        external = load_external(first.data, ensemble.classes, class_map)
        facts = {"unknown_classes": external.unknown, "class_map": class_map, "unreadable": external.unreadable}
        return external.records, facts | {"title": f"{ensemble.name}, {request.external.resolve().name}"}
    dataset = first.dataset()
    records = dataset.images(request.split).records
    if records.empty:
        raise UserError(f"--kind {request.split}: this split has no images; choose another split")
    return records, {"unreadable": len(dataset.unreadable), "title": f"{ensemble.name}, {request.split} split"}


def _check_overlap(request: Request, ensemble: Ensemble, records: pd.DataFrame) -> Overlap | None:
    """Return the overlap with the training and validation images; None when the training split is evaluated.

    Raises: `UserError` that names some training images, unless they are allowed.
    """
    if request.kind == "train":
        return None
    trained = ensemble.trained_on(records)
    if trained and not request.allow_overlap:
        flag = f"--external {request.external}" if request.external else f"--kind {request.split}"
        raise UserError(
            f"{flag}: the model was TRAINED on {len(trained)} of these {len(records)} images "
            f"({', '.join(trained[:3])}{', …' if len(trained) > 3 else ''}); exclude them, or pass --allow-overlap"
        )
    validated = ensemble.validated_on(records) if request.kind != "val" else None
    return Overlap(len(trained), request.allow_overlap, validated)


def _temperature(request: Request, files: ValidationFiles, validation: Predictions | None) -> Temperature | None:
    """Return the temperature kept beside the checkpoint, or fitted on the validation predictions.

    Raises: `UserError` if `--calibrated` needs it and it is unavailable.
    """
    temperature = files.temperature(validation)
    if temperature is None and request.calibrated:
        raise UserError(
            "--calibrated: no temperature is available; it needs the run's validation images, or the .temperature.json "
            "that test.py wrote beside the checkpoint" + (" (drop --quick to fit one)" if request.quick else "")
        )
    losses = dict.fromkeys(("log_loss_before", "log_loss_after"))  # metrics.json has no log losses of validation
    return temperature and replace(temperature, **losses, applied=request.calibrated)


def _note_validation(files: ValidationFiles, validation: Predictions, folder: Path) -> FileNote:
    """Return a note of the validation predictions, which are written to `folder` unless kept beside a checkpoint."""
    file = files.predictions_file()
    if file is None:
        file = folder / "validation.csv"
        write_predictions(validation.table, file)
    return FileNote.of(file, folder)
