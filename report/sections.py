"""The sections of the report: a row in `SECTIONS`, a function for the content and a template of the same name each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from config import SPLITS
from evaluation.figures import plots
from evaluation.metrics import calibration
from evaluation.metrics.curves import class_curves
from evaluation.metrics.subgroups import MOST_VALUES
from evaluation.metrics.table import PER_CLASS
from evaluation.metrics.temperature import Temperature
from evaluation.phrases import join, patients_named, with_limits
from report.checklist import answered_standards
from report.facts import collect_facts
from report.gallery import error_tiles, mean_maps_uri
from report.inputs import Inputs
from report.svg import figure_svg
from utils import best_epoch, count


def if_perfect(metrics: dict[str, Any]) -> str | None:
    """Return the ECE that a perfectly calibrated model would have; None if unknown."""
    error = metrics["ece_if_perfect"]
    if error is None or None in (error["mean"], error["p95"]):
        return None
    return f"{error['mean']:.3f} if perfectly calibrated (at most {error['p95']:.3f} in 95 % of samples)"


def _run_card(inputs: Inputs) -> dict[str, Any]:
    return {"facts": collect_facts(inputs), "record": inputs.record, "splits": _images_per_split(inputs)}


def _images_per_split(inputs: Inputs) -> dict[str, Any] | None:
    """Return the images per class and split, with totals, and the patients of each split if all are known."""
    split = inputs.split
    if split is None:
        return None
    names = [name for name in SPLITS if (split["split"] == name).any()]
    tables = [split[split["split"] == name] for name in names]
    labels = sorted(split["label"].unique())
    rows = [(label, [int((table["label"] == label).sum()) for table in tables]) for label in labels]
    rows.append(("all classes", [len(table) for table in tables]))
    if patients_named(split):
        rows.append(("patients", [table["group"].nunique() for table in tables]))
    return {"names": names, "rows": rows}


def _training(inputs: Inputs) -> dict[str, Any]:
    if inputs.history is None:
        return {"curves": None}
    history = inputs.history.astype({"epoch": int}).to_dict("records")
    best = best_epoch(history)
    label = (
        f"Learning curves over {count(len(history), 'epoch')}: validation loss is lowest in epoch {best['epoch']}, "
        f"{best['valid_loss']:.3f}, with a validation accuracy of {best['valid_accuracy']:.3f}."
    )
    figure = plots.learning_curves_figure(history, best["epoch"])
    return {"curves": {"svg": figure_svg(figure, label), "label": label}}


def _confusion(inputs: Inputs) -> dict[str, Any]:
    """Return the matrix with each cell's share of its row, None for a class that does not occur."""
    counts = np.array(inputs.metrics["confusion"])
    totals = counts.sum(1)
    rows = [
        (name, int(total), [(int(cell), cell / total if total else None) for cell in row])
        for name, total, row in zip(inputs.metrics["classes"], totals, counts, strict=True)
    ]
    return {"rows": rows, "columns": [int(total) for total in counts.sum(0)]}


def _per_class(inputs: Inputs) -> dict[str, Any]:
    return {"per_class_metrics": [name for name in PER_CLASS if name != "accuracy"]}


def _thresholds(inputs: Inputs) -> dict[str, Any] | None:
    """Leave the section out for validation images, which chose the thresholds."""
    return {} if inputs.metrics["operating_points"] and inputs.provenance.kind != "val" else None


def _ranking(inputs: Inputs) -> dict[str, Any]:
    metrics = inputs.metrics
    curves = class_curves(inputs.predictions, metrics)
    kinds = (
        ("ROC curves", plots.roc_figure, "roc", "AUROC"),
        ("Precision and recall", plots.precision_recall_figure, "precision_recall", "average precision"),
    )
    figures = []
    for title, draw, kind, name in kinds:
        shown, left_out = plots.shown_curves(curves[kind])
        areas = [f"{curve.name} {with_limits(curve.area)}" for curve in shown]
        label = f"{title}, one class against the rest: {name} {join(areas)}." if shown else f"{title}: none."
        lacking = [c for c in metrics["classes"] if c not in {curve.name for curve in curves[kind]}]
        notes = []
        if left_out:
            share = f"{len(left_out)} of {len(curves[kind]) - 1} classes"
            notes.append(f"Not drawn for lack of space: {share} ({join(left_out)}).")
        if lacking:
            notes.append(f"No curve for {join(lacking)}: these images do not define one.")
        svg = figure_svg(draw(curves[kind]), " ".join([label, *notes]))
        figures.append({"title": title, "svg": svg, "notes": notes})
    return {"ranking": figures}


def _calibration(inputs: Inputs) -> dict[str, Any]:
    """Return the reliability diagram as predicted and, if a temperature is known, with it; each with its ECE."""
    panels = [("As predicted", inputs.predictions.probabilities)]
    if inputs.metrics["temperature"]:
        temperature = Temperature.from_json(inputs.metrics["temperature"])
        titles = ("Before temperature scaling", f"After, with temperature {temperature.value:.2f}")
        panels = zip(titles, temperature.before_and_after(inputs.predictions.probabilities), strict=True)
    figures = []
    for title, probabilities in panels:
        confidence, correct = probabilities.max(1), inputs.predictions.correct
        bins = calibration.equal_width(confidence)
        error = calibration.expected_calibration_error(confidence, correct, bins)
        figure = plots.reliability_figure(calibration.reliability(confidence, correct, bins), None)
        figure.axes[0].set_title("")  # it is a heading on the page
        svg = figure_svg(figure, f"Reliability, {title}: ECE {error:.3f}.")
        figures.append({"title": title, "ece": error, "svg": svg})
    return {"reliability": figures}


def _errors(inputs: Inputs) -> dict[str, Any]:
    """Return the most confident errors; relative paths start in this folder, or in that of another program's table."""
    provenance = inputs.provenance
    elsewhere = [] if provenance.weights or not provenance.data else [Path(provenance.data).parent]
    return {
        "tiles": error_tiles(inputs.predictions, inputs.maps, [inputs.folder, *elsewhere]),
        "errors": int((~inputs.predictions.correct).sum()),
    }


def _mean_maps(inputs: Inputs) -> dict[str, Any]:
    return {"mean_maps": inputs.maps.mean and mean_maps_uri(inputs.maps.mean)}


def _groups(inputs: Inputs) -> dict[str, Any]:
    """Return which sources the table has, or why there is none."""
    table = inputs.predictions.table
    names = sorted(set(table["source"]) - {""})
    which = "all images" if (table["source"] != "").all() else "all images of known source"
    if "source" in (inputs.metrics["subgroups"] or {}):
        many = len(names) > MOST_VALUES
        text = f"The {MOST_VALUES} largest of {len(names)} sources; the others are combined." if many else ""
    elif not names:
        text = "No table by source: the data do not record a source for these images."
    elif len(names) == 1:
        text = f"No table by source: {which} are from {names[0]}."
    else:
        text = f"No table by source, although {len(names)} sources are known: metrics.json has no such table."
    return {"sources": text}


def _checklist(inputs: Inputs) -> dict[str, Any]:
    return {"checklist": answered_standards(collect_facts(inputs))}


@dataclass(frozen=True)
class Section:
    """One section of the page.

    Attributes:
        key: its id on the page, and the name of its template.
        title, link: its heading, and its link in the contents.
        content: what its template takes; None leaves the section out.
    """

    key: str
    title: str
    link: str
    content: Callable[[Inputs], dict[str, Any] | None]


SECTIONS = (
    Section("run", "Run card", "Run card", _run_card),
    Section("training", "Training", "Training", _training),
    Section("confusion", "Confusion matrix", "Confusion matrix", _confusion),
    Section("classes", "Per class", "Classes", _per_class),
    Section("thresholds", "Thresholds for a target sensitivity", "Thresholds", _thresholds),
    Section("ranking", "ROC and precision-recall curves", "ROC and precision", _ranking),
    Section("calibration", "Calibration", "Calibration", _calibration),
    Section("errors", "The most confident errors", "Errors", _errors),
    Section("maps", "The mean map of each class", "Mean maps", _mean_maps),
    Section("groups", "By source and other groups", "Sources", _groups),
    Section("checklist", "Reporting checklist", "Reporting checklist", _checklist),
)
