"""`report.html`: one evaluation on one page, with everything embedded, made from files alone."""

from __future__ import annotations

import base64
import hashlib
import re
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from config import SPLITS
from evaluation.cautions import cautions
from evaluation.figures.palette import COLOURS, MEAN_COLOUR
from evaluation.figures.plots import (
    learning_curves_figure,
    precision_recall_figure,
    reliability_figure,
    roc_figure,
    shown_curves,
)
from evaluation.metrics import calibration
from evaluation.metrics.curves import class_curves
from evaluation.metrics.subgroups import MOST_VALUES
from evaluation.metrics.table import PER_CLASS, SMALL
from evaluation.metrics.temperature import before_and_after
from evaluation.phrases import join, of_patients, patients_named, sampling_unit, threshold, with_limits, words
from experiment.run_folder import best_epoch
from intervals import LEVEL
from report.facts import Facts, collect_facts, fill
from report.gallery import MOST_ERRORS, error_tiles, mean_maps_uri
from report.inputs import OPTIONAL, Inputs, read_inputs
from utils import UserError, atomic_write, count, log

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
HEADLINE = ("balanced_accuracy", "macro_f1", "mcc", "macro_auroc", "ece")
# The run card: what is shown, and the fact that says it.
CARD = (
    ("Data", "data"),
    ("Sources", "sources"),
    ("Split", "split"),
    ("Between the parts", "disjoint"),
    ("Patients told apart", "patients_known"),
    ("Evaluated", "n_evaluated"),
    ("Overlap", "overlap"),
    ("Model", "model"),
    ("Parameters", "parameters"),
    ("Initial weights", "init"),
    ("Training", "training"),
    ("Augmentation", "augmentation"),
    ("Sampling", "sampling"),
    ("Kept", "selection"),
    ("Ensemble", "ensemble"),
    ("Mirror images", "tta"),
    ("Preprocessing", "preprocessing"),
    ("Precision", "precision"),
    ("Device", "device"),
    ("Time", "seconds"),
    ("Seed", "seed"),
    ("Versions", "software"),
    ("Commit", "commit"),
)
SURFACE = "#fefefe"  # a figure's stand-in for the colour of the page
PAGE_COLOURS = {  # a figure's colours that follow light and dark; legends are framed in matplotlib's #cccccc
    "#000000": "currentColor",
    SURFACE: "var(--page)",
    "#cccccc": "var(--line)",
    MEAN_COLOUR.lower(): "var(--muted)",
    COLOURS[0].lower(): "var(--accent)",
}


def write_report(folder: Path, run: Path | None) -> Path:
    """Write `folder/report.html`, atomically, and return its path.

    Args:
        folder: an evaluation folder with `predictions.csv` and `metrics.json`.
        run: the run folder behind it; None for an ensemble or the predictions of another program.

    Raises: `UserError` as `read_inputs` does.
    """
    page = _environment().get_template("report.html.j2").render(_page(read_inputs(folder, run)))
    path = folder / "report.html"
    with atomic_write(path) as file:
        file.write(page)
    return path


def renew_report(run: Path) -> None:
    """Write the report of the run's test split again, if there is one: it shows the run's maps."""
    if not (run / "test" / "report.html").is_file():
        return
    try:
        log.info(f"the report shows the maps: {write_report(run / 'test', run)}")
    except (UserError, OSError) as error:
        log.warning(f"the report stays as it was: {error}")


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "limits": with_limits,
        "words": words,
        "count": count,
        "sha256": _digest,
        "threshold": threshold,
    }
    return environment


def _digest(text: str) -> str:
    """What a content security policy calls a script by."""
    return base64.b64encode(hashlib.sha256(str(text).encode()).digest()).decode()


def _page(inputs: Inputs) -> dict[str, Any]:
    """Everything that the template shows."""
    facts, metrics, about = collect_facts(inputs), inputs.metrics, inputs.evaluation
    warnings, maps = metrics.get("warnings"), inputs.maps
    points = None if about.get("kind") == "val" else metrics.get("operating_points")  # validation chose them
    return {
        "title": about.get("title") or (inputs.run or inputs.folder).resolve().name,
        "run": inputs.run and inputs.run.resolve().name,
        "about": about,
        "metrics": dict.fromkeys((*OPTIONAL, "subgroups")) | metrics | {"operating_points": points},
        "if_perfect": _if_perfect(metrics),
        "headline": _headline(inputs),
        "unit": sampling_unit(inputs.predictions.table),
        "per_patient": metrics.get("per_patient") if patients_named(inputs.predictions.table) else None,
        "measures": HEADLINE,
        "per_class_measures": [name for name in PER_CLASS if name != "accuracy"],
        "warnings": cautions(inputs.predictions, metrics, about) if warnings is None else warnings,
        "card": [(term, facts[name]) for term, name in CARD],
        "commands": _commands(inputs),
        "parts": _parts(inputs),
        "curves": _learning_curves(inputs),
        "confusion": _confusion(metrics),
        "ranking": _ranking_figures(inputs),
        "reliability": _reliability_figures(inputs),
        "tiles": error_tiles(inputs.predictions, maps, _folders(inputs)),
        "maps": maps,
        "errors": int((~inputs.predictions.correct).sum()),
        "most_errors": MOST_ERRORS,
        "mean_maps": maps.mean and mean_maps_uri(maps.mean),
        "sources": _sources(inputs),
        "checklist": _checklist(facts),
        "small": SMALL,
        "level": f"{LEVEL:.0%}".replace("%", " %"),
    }


def _headline(inputs: Inputs) -> str:
    """`149 of 160 radiographs of 81 patients right: accuracy 0.931 [0.880, 0.962]`."""
    predictions = inputs.predictions
    images = f"{count(len(predictions), 'radiograph')}{of_patients(predictions.table)}"
    accuracy = with_limits(inputs.metrics["accuracy"]).replace(" ", "\u00a0")  # stays on one line
    return f"{int(predictions.correct.sum()):,} of {images} right: accuracy {accuracy}"


def _if_perfect(metrics: dict[str, Any]) -> str | None:
    """What a perfectly calibrated model would show, None where that is not known."""
    found = metrics.get("ece_if_perfect") or {}
    if found.get("mean") is None or found.get("p95") is None:
        return None
    return f"if perfectly calibrated {found['mean']:.3f}, at most {found['p95']:.3f} in 95 % of samples"


def _folders(inputs: Inputs) -> list[Path]:
    """Where the relative paths of a table may start: beside it, and beside the file that another program wrote."""
    theirs = None if inputs.evaluation.get("weights") else inputs.evaluation.get("data")
    return [inputs.folder, *([Path(theirs).parent] if theirs else [])]


def _sources(inputs: Inputs) -> str:
    """Which sources the table by source has, or why there is none."""
    table = inputs.predictions.table
    names = sorted(set(table["source"]) - {""})
    if "source" in (inputs.metrics.get("subgroups") or {}):
        return f"The {MOST_VALUES} largest of {len(names)} sources, and the others together." * (
            len(names) > MOST_VALUES
        )
    if not names:
        return "No table by source: the data name no source of these images."
    whose = "all images" if (table["source"] != "").all() else "all images of known source"
    if len(names) == 1:
        return f"No table by source: {whose} are from {names[0]}."
    return f"No table by source, though {len(names)} are known: metrics.json has none."


def _commands(inputs: Inputs) -> list[tuple[str, str]]:
    found = (
        ("Training command", inputs.record.get("command")),
        ("Evaluation command", inputs.evaluation.get("command")),
        ("Weights", ", ".join(inputs.evaluation.get("weights") or [])),
    )
    return [(term, text) for term, text in found if text]


def _parts(inputs: Inputs) -> dict[str, Any] | None:
    """Images per class and part, with totals, and the patients of each part where all are known."""
    split = inputs.split
    if split is None:
        return None
    names = [part for part in SPLITS if (split["split"] == part).any()]
    rows = [
        (name, [int(((split["label"] == name) & (split["split"] == part)).sum()) for part in names])
        for name in sorted(split["label"].unique())
    ]
    rows.append(("all classes", [int((split["split"] == part).sum()) for part in names]))
    if patients_named(split):
        rows.append(("patients", [split["group"][split["split"] == part].nunique() for part in names]))
    return {"names": names, "rows": rows}


def _learning_curves(inputs: Inputs) -> dict[str, Any] | None:
    if inputs.history is None:
        return None
    history = [row | {"epoch": int(row["epoch"])} for row in inputs.history]
    best = best_epoch(history)
    label = (
        f"Learning curves over {count(len(history), 'epoch')}: the lowest validation loss, {best['valid_loss']:.3f}, "
        f"is that of epoch {best['epoch']}, with a validation accuracy of {best['valid_accuracy']:.3f}."
    )
    return {"svg": figure_svg(learning_curves_figure(history, best["epoch"]), label), "label": label}


def _confusion(metrics: dict[str, Any]) -> dict[str, Any]:
    """The matrix with each cell's share of its row, which is None for a class that does not occur."""
    counts = np.array(metrics["confusion"])
    totals = counts.sum(1)
    rows = [
        (name, int(total), [(int(cell), cell / total if total else None) for cell in row])
        for name, total, row in zip(metrics["classes"], totals, counts, strict=True)
    ]
    return {"rows": rows, "columns": [int(total) for total in counts.sum(0)], "total": int(totals.sum())}


def _ranking_figures(inputs: Inputs) -> list[dict[str, Any]]:
    metrics = inputs.metrics
    curves = class_curves(inputs.predictions, metrics)
    kinds = (
        ("ROC curves", roc_figure, "roc", "AUROC"),
        ("Precision and recall", precision_recall_figure, "precision_recall", "average precision"),
    )
    found = []
    for title, draw, kind, name in kinds:
        shown, left_out = shown_curves(curves[kind])
        areas = [f"{curve.name} {with_limits(curve.area)}" for curve in shown]
        label = f"{title}, one class against the rest: {name} {join(areas)}." if shown else f"{title}: none."
        lacking = [c for c in metrics["classes"] if c not in {curve.name for curve in curves[kind]}]
        notes = []
        if left_out:
            share = f"{len(left_out)} of {len(curves[kind]) - 1} classes"
            notes.append(f"For want of room {share} are not drawn: {join(left_out)}.")
        if lacking:
            notes.append(f"No curve of {join(lacking)}: these images cannot give one.")
        found.append({"title": title, "svg": figure_svg(draw(curves[kind]), " ".join([label, *notes])), "notes": notes})
    return found


def _reliability_figures(inputs: Inputs) -> list[dict[str, Any]]:
    """The diagram as predicted and, where a temperature is known, with it; each with its ECE."""
    temperature = inputs.metrics.get("temperature")
    plain, scaled = before_and_after(inputs.predictions.probabilities, temperature)
    panels = [("As predicted", plain)]
    if scaled is not None:
        after = f"After, with temperature {temperature['value']:.2f}"
        panels = [("Before temperature scaling", plain), (after, scaled)]
    found = []
    for title, probabilities in panels:
        confidence, correct = probabilities.max(1), inputs.predictions.correct
        bins = calibration.equal_width(confidence)
        error = calibration.expected_calibration_error(confidence, correct, bins)
        figure = reliability_figure(calibration.reliability(confidence, correct, bins), None)
        figure.axes[0].set_title("")  # the page says it
        found.append(
            {"title": title, "ece": error, "svg": figure_svg(figure, f"Reliability, {title}: ECE {error:.3f}.")}
        )
    return found


def _checklist(facts: Facts) -> list[dict[str, Any]]:
    """The standards of checklist.yaml with their items' answers; an item's `answer` is None where it is blank."""
    standards = yaml.safe_load((HERE / "checklist.yaml").read_text(encoding="utf-8"))["standards"]
    found = []
    for standard in standards:
        items = [item | {"answer": fill(item["fill"], facts) if "fill" in item else None} for item in standard["items"]]
        filled = [item for item in items if item["answer"] is not None]
        found.append(
            {
                "name": standard["name"],
                "reference": standard["reference"],
                "items": items,
                "filled": len(filled),
                "partly": sum("author" in item for item in filled),
            }
        )
    return found


def figure_svg(figure: Figure, label: str) -> Markup:
    """A figure as inline SVG that takes the page's colours and font; `label` says what it shows to who cannot see it.

    What is black becomes the text's colour, the background transparent, the legends' that of the page. Its ids are made
    its own, so that several figures can stand on one page.
    """
    from matplotlib import rc_context

    for ax in figure.axes:
        if ax.get_legend() is not None:
            ax.get_legend().get_frame().set_facecolor(SURFACE)
    text = BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "report"}):  # the same figure gives the same bytes
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(text.getvalue())
    own = f"f{hashlib.sha256(label.encode() + text.getvalue()).hexdigest()[:8]}-"
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):  # that style sheet would be the whole page's
                parent.remove(child)
        parent.tag = parent.tag.rpartition("}")[2]
        attributes = [(name.rpartition("}")[2], value) for name, value in parent.attrib.items()]
        parent.attrib = {name: _own_value(name, value, own) for name, value in attributes}
    _, _, width, height = root.get("viewBox").split()
    root.attrib = {
        "viewBox": f"0 0 {width} {height}",
        "width": "100%",
        "role": "img",
        "aria-label": label,
        "fill": "currentColor",
        "stroke-linejoin": "round",
        "style": f"min-width: {0.85 * float(width):.0f}px; max-width: {1.4 * float(width):.0f}px",
    }
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _own_value(name: str, value: str, own: str) -> str:
    """An SVG attribute's value with the page's colours and font, and with ids and references that begin with `own`."""
    if name == "id":
        return own + value
    if name == "style":
        value = re.sub(r"font-family:[^;]*;?", "", value)
        return re.sub("|".join(PAGE_COLOURS), lambda match: PAGE_COLOURS[match[0]], value)
    return re.sub(r"^(url\()?#", rf"\1#{own}", value) if name in ("href", "clip-path") else value
