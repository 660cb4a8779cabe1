"""Evaluate a trained classifier: predictions, metrics with 95 % intervals, plots, and report.html.

python test.py                                  # the newest finished run, its test split
python test.py --weights runs/NAME/best.pt      # one checkpoint; several are an ensemble
python test.py --external DIR --map flu="Viral Pneumonia"     # another hospital's folder
python test.py --weights FILE --data DIR        # a checkpoint away from its run, or images that were moved
python test.py --predictions FILE.csv           # what another program predicted: path, label, p_CLASS…
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from command_line import Parser, add_data_flags, run_verb, typed_command
from config import Config
from utils import UserError, log, make_folder

if TYPE_CHECKING:
    import pandas as pd

    from evaluation.predictions import Predictions
    from inference.ensemble import Ensemble
    from inference.validation import ValidationFiles

KINDS = ("train", "val", "test")


def parser() -> Parser:
    parser = Parser(prog="test.py", description=__doc__)
    add_data_flags(parser)
    add = parser.add_argument
    add(
        "--weights",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="a checkpoint, or a run folder (its best.pt); several: their mean probability; default: the "
        "newest finished run",
    )
    add("--kind", choices=KINDS, help="which split (default test)")
    add("--external", type=Path, metavar="DIR", help="all images of another folder instead of a split")
    add(
        "--map",
        action="append",
        default=[],
        metavar="THEIRS=OURS",
        help="a class of --external by the model's name, or a YAML file of such pairs; may be repeated",
    )
    add("--predictions", type=Path, metavar="FILE", help="evaluate this table of predictions instead of a model")
    add("--validation", type=Path, metavar="FILE", help="with --predictions: those of the validation images")
    add("--tta", action="store_true", help="average the probabilities of each picture and its mirror image")
    add("--calibrated", action="store_true", help="divide the logits by the temperature that was fitted on validation")
    add("--allow-overlap", action="store_true", help="evaluate also on images that were trained on; the report says so")
    add(
        "--sensitivity",
        type=float,
        nargs="+",
        metavar="S",
        help="of the operating points, in (0, 1] (default 0.9 0.95)",
    )
    add(
        "--prevalence",
        action="append",
        default=[],
        metavar="CLASS=P",
        help="for PPV and NPV, in (0, 1); default: the class's share of the images; may be repeated",
    )
    add(
        "--quick",
        action="store_true",
        help="predictions, metrics, confusion matrix alone: no validation, no report",
    )
    add("--classes", type=int, metavar="N", help="check that the checkpoint has N classes")
    add("--output", type=Path, metavar="DIR", help="where to write (default: a folder in the run)")
    parser.config_flag(
        "--model", "model", help="check that the checkpoint is of this model; without --weights, take its newest run"
    )
    parser.config_flag("--batch", "train.eval_batch", type=int)
    parser.config_flag("--device", "device")
    parser.config_flag("--precision", "precision", help="auto: as trained", choices=("auto", "fp32", "bf16"))
    parser.config_flag("--save", "save", metavar="DIR", help="the folder that run folders are in (default runs)")
    return parser


def main(argv: Sequence[str]) -> None:
    arguments, config, given = parser().read_command(argv)
    _check_flags(arguments, given)
    if arguments.predictions is not None:
        _evaluate_table(arguments)
    else:
        _evaluate_model(arguments, config, given)


def _check_flags(arguments: argparse.Namespace, given: dict[str, Any]) -> None:
    """Refuse flags that contradict each other."""
    if arguments.external is not None:
        if arguments.kind is not None or "data.path" in given or "data.subset" in given:
            raise UserError(
                f"--external {arguments.external}: all its images are evaluated; leave --kind, --data and --subset out"
            )
    elif arguments.map:
        raise UserError("--map: it names the classes of --external DIR")
    if arguments.predictions is not None:
        names = ("weights", "kind", "external", "tta", "calibrated", "allow_overlap", "classes")
        unfit = [name for name in names if getattr(arguments, name)]
        keys = [key for key in given if key != "data.cache_dir"]  # that one changes nothing here
        if unfit or keys:
            flag = f"--{unfit[0].replace('_', '-')}" if unfit else keys[0]
            raise UserError(f"--predictions {arguments.predictions}: a table has no model; leave {flag} out")
    elif arguments.validation is not None:
        raise UserError("--validation: it goes with --predictions; a run knows its validation images")
    for value in arguments.sensitivity or ():
        if not 0 < value <= 1:
            raise UserError(f"--sensitivity {value:g}: a number in (0, 1] is needed")


def _evaluate_table(arguments: argparse.Namespace) -> None:
    """Metrics and report of a predictions file; what an earlier evaluation noted beside it is kept."""
    from evaluation.metrics.temperature import temperature_from_validation
    from evaluation.predictions import read_predictions
    from evaluation.results import earlier_results, note_file, noted_file

    path = arguments.predictions.resolve()
    predictions = read_predictions(arguments.predictions)
    earlier = earlier_results(path)
    about = earlier.get("evaluation") or {"title": path.name, "data": str(arguments.predictions)}
    arguments.sensitivity = arguments.sensitivity or about.get("sensitivity")
    arguments.prevalence = arguments.prevalence or about.get("prevalence") or []
    file = arguments.validation or noted_file(path.parent, about.get("validation"))
    validation = read_predictions(file, predictions.classes) if file else None
    if validation is not None and (shared := validation.shared(predictions)):
        raise UserError(
            f"--validation {file}: {len(shared)} of its images are evaluated too ({shared[0]}): thresholds and "
            "temperature must be decided by other images"
        )
    temperature = earlier.get("temperature")
    if arguments.validation and not (temperature and temperature["applied"]):
        found = temperature_from_validation(validation)
        temperature = found and found | {"applied": False}
    folder = arguments.output or (path.parent if earlier else path.with_name(f"{path.stem}-evaluation"))
    about |= {"sensitivity": arguments.sensitivity, "prevalence": arguments.prevalence}
    about["validation"] = file and note_file(file, folder)
    run = path.parent.parent if earlier and (path.parent.parent / "run.json").is_file() else None
    _write(arguments, predictions, folder, about, run=run, validation=validation, temperature=temperature)


def _evaluate_model(arguments: argparse.Namespace, config: Config, given: dict[str, Any]) -> None:
    """Predict with one checkpoint or several, and evaluate."""
    from evaluation.metrics.operating_points import read_prevalences
    from evaluation.metrics.temperature import calibrated
    from evaluation.predictions import write_predictions
    from evaluation.results import note_file, refuse_other_data
    from experiment.run_folder import runs_folder
    from experiment.selection import select
    from inference.ensemble import Ensemble
    from inference.validation import ValidationFiles

    if arguments.external:
        config.data.path = given["data.path"] = str(arguments.external)
    weights = arguments.weights or [None]
    selections = [select(config, path, given) for path in weights]
    members = Ensemble(selections=selections, batch=config.train.eval_batch, tta=arguments.tta)
    files = ValidationFiles(members)
    first, kind = members.first, "external" if arguments.external else arguments.kind or "test"
    if arguments.classes not in (None, len(members.classes)):
        raise UserError(
            f"--classes {arguments.classes}: the checkpoint has {len(members.classes)} ({', '.join(members.classes)})"
        )
    read_prevalences(arguments.prevalence, members.classes)  # found out now, not after the predictions
    folder = first.output_folder(kind, suffixes=[*["tta"] * members.tta, *["calibrated"] * arguments.calibrated])
    if len(weights) > 1:
        folder = runs_folder(config) / members.folder_name() / folder.name
    records, about = _images(arguments, members, kind)
    if arguments.output is None:
        refuse_other_data(folder, about)
    about |= {"overlap": _overlap(arguments, members, records, kind)}
    folder = make_folder(arguments.output or folder, "--output")  # found out now, not after the predictions
    validation = None if arguments.quick else files.predictions()
    temperature = _temperature(arguments, files, validation)
    found = members.predict(records, first.data, kind)
    predictions = found.labelled()
    about["unreadable"] += len(found.unreadable)
    if arguments.calibrated:
        predictions = calibrated(predictions, temperature["value"])
    if validation is not None and validation.shared(predictions):
        log.warning("no operating points: these images chose the thresholds")
        validation = None
    if validation is not None:
        file = files.predictions_file()
        if file is None:  # of an ensemble, or of a run whose folder takes no files
            file = folder / "validation.csv"
            write_predictions(validation.table, file)
        about["validation"] = note_file(file, folder)
    run = first.run if len(weights) == 1 else None
    _write(arguments, predictions, folder, about, run=run, validation=validation, temperature=temperature)


def _images(arguments: argparse.Namespace, members: Ensemble, kind: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The records to evaluate, and what is to be said about them."""
    from experiment.run_folder import now
    from utils import device_name, git_commit, versions

    first = members.first
    about: dict[str, Any] = {
        "kind": kind,
        **members.about(),
        "device": device_name(first.device),
        "command": typed_command(),
        "commit": git_commit(),
        "versions": versions(),
        "finished": now(),
        "sensitivity": arguments.sensitivity,
        "prevalence": arguments.prevalence,
        "data": first.data.path or "the run's own",
        "data_path": first.data.path and str(Path(first.data.path).resolve()),
    }
    if arguments.external:
        from dataset.external import load_external, read_class_map

        found = load_external(first.data, members.classes, read_class_map(arguments.map))
        extra = {"unknown_classes": found.unknown, "class_map": found.class_map, "unreadable": found.unreadable}
        return found.records, about | extra | {"title": f"{members.name}, {arguments.external.resolve().name}"}
    dataset = first.dataset()
    records = dataset.images(kind).records
    if records.empty:
        raise UserError(f"--kind {kind}: this split has no images")
    return records, about | {"unreadable": len(dataset.unreadable), "title": f"{members.name}, {kind} split"}


def _overlap(
    arguments: argparse.Namespace, members: Ensemble, records: pd.DataFrame, kind: str
) -> dict[str, Any] | None:
    """Refuse images that were trained on, by name; with --allow-overlap count them. None for the training images."""
    if kind == "train":
        return None
    trained = members.trained_on(records)
    if trained and not arguments.allow_overlap:
        where = f"--external {arguments.external}" if kind == "external" else f"--kind {kind}"
        raise UserError(
            f"{where}: the model was TRAINED on {len(trained)} of these {len(records)} images ({', '.join(trained[:3])}"
            f"{', …' if len(trained) > 3 else ''}): leave them out, or say --allow-overlap"
        )
    validated = members.validated_on(records) if kind != "val" else None
    return {"trained_on": len(trained), "allowed": arguments.allow_overlap, "validated_on": validated}


def _temperature(
    arguments: argparse.Namespace, files: ValidationFiles, validation: Predictions | None
) -> dict[str, Any] | None:
    """The temperature that lies beside the checkpoint, or that validation decides."""
    found = files.temperature(validation)
    if found is None and arguments.calibrated:
        raise UserError(
            "--calibrated: there is no temperature: it needs the run's validation images, or the .temperature.json "
            "that test.py wrote beside the checkpoint" + (" (--quick makes none)" if arguments.quick else "")
        )
    keys = ("value", "fitted_on", "n")
    return found and {key: found[key] for key in keys} | {"applied": arguments.calibrated}


def _write(
    arguments: argparse.Namespace, predictions: Predictions, folder: Path, about: dict[str, Any], **extra: Any
) -> None:
    """Write the evaluation folder and show the metrics."""
    from evaluation.metrics.formats import format_metrics
    from evaluation.metrics.operating_points import SENSITIVITIES, read_prevalences
    from evaluation.results import write_results

    make_folder(folder, "--output")
    if (folder / "metrics.json").exists():
        log.info(f"replacing the earlier results in {folder}")
    metrics = write_results(
        predictions,
        folder,
        about,
        wanted=tuple(arguments.sensitivity or SENSITIVITIES),
        prevalence=read_prevalences(arguments.prevalence, predictions.classes),
        quick=arguments.quick,
        **extra,
    )
    log.info(f"{about.get('title', '')}, {len(predictions)} images\n\n{format_metrics(metrics)}\n")
    for warning in metrics["warnings"]:
        (log.warning if warning["level"] == "severe" else log.info)(
            ("" if warning["level"] == "severe" else "caution: ") + warning["text"]
        )
    log.info(f"\nwritten: {folder}" + ("" if arguments.quick else f"\nopen {folder / 'report.html'}"))


if __name__ == "__main__":
    run_verb(main)
