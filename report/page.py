"""`report.html`: one evaluation on one page, with everything embedded, made from files alone."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from evaluation.cautions import cautions
from evaluation.metrics.table import SMALL
from evaluation.phrases import of_patients, patients_named, sampling_unit, threshold, with_limits, words
from intervals import LEVEL
from report.gallery import MOST_ERRORS
from report.inputs import Inputs, read_inputs
from report.sections import SECTIONS, if_perfect
from utils import UserError, atomic_write, count, log

TEMPLATES = Path(__file__).resolve().parent / "templates"
HEADLINE = ("balanced_accuracy", "macro_f1", "mcc", "macro_auroc", "ece")


def write_report(folder: Path, run: Path | None) -> Path:
    """Write `folder/report.html`, atomically, and return its path.

    Args:
        folder: an evaluation folder with `predictions.csv` and `metrics.json`.
        run: its run folder; None for an ensemble or the predictions of another program.

    Raises: `UserError` as `read_inputs` does.
    """
    page = _render(read_inputs(folder, run))
    path = folder / "report.html"
    with atomic_write(path) as file:
        file.write(page)
    return path


def try_report(folder: Path, run: Path | None, *ignored: type[Exception]) -> Path | None:
    """Write the report and return its path; None, with a warning, if a file is missing or broken, or if an exception of
    the `ignored` types is raised.
    """
    try:
        return write_report(folder, run)
    except (UserError, *ignored) as error:
        log.warning(f"the report is not written: {error}")
        return None


def renew_report(run: Path) -> None:
    """Write the report of the run's test split again, if there is one, so that it shows new maps."""
    if (run / "test" / "report.html").is_file() and (path := try_report(run / "test", run, OSError)):
        log.info(f"the report now shows the maps: {path}")


def _environment() -> Environment:
    blocks = {"trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, **blocks)
    environment.filters |= {"limits": with_limits, "words": words, "count": count, "threshold": threshold}
    environment.globals |= {"small": SMALL, "level": f"{LEVEL:.0%}".replace("%", " %")}
    environment.globals |= {"headline_metrics": HEADLINE, "most_errors": MOST_ERRORS}
    return environment


def _render(inputs: Inputs) -> str:
    """Render the header, and each section that has something to show."""
    environment = _environment()
    script = (TEMPLATES / "script.js").read_text(encoding="utf-8")
    shared = {
        "provenance": inputs.provenance,
        "metrics": inputs.metrics,
        "maps": inputs.maps,
        "run": inputs.run and inputs.run.resolve().name,
        "if_perfect": if_perfect(inputs.metrics),
    }
    sections = []
    for section in SECTIONS:
        content = section.content(inputs)
        if content is not None:
            body = environment.get_template(f"{section.key}.html.j2").render(shared | content)
            sections.append((section, Markup(body)))
    return environment.get_template("page.html.j2").render(
        **shared,
        **_header(inputs),
        sections=sections,
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _header(inputs: Inputs) -> dict[str, Any]:
    metrics, predictions = inputs.metrics, inputs.predictions
    warnings = metrics["warnings"]
    images = f"{count(len(predictions), 'image')}{of_patients(predictions.table)}"
    accuracy = with_limits(metrics["accuracy"]).replace(" ", "\u00a0")  # stays on one line
    return {
        "title": inputs.provenance.title or (inputs.run or inputs.folder).resolve().name,
        "headline": f"{int(predictions.correct.sum()):,} of {images} correct: accuracy {accuracy}",
        "unit": sampling_unit(predictions.table),
        "per_patient": metrics["per_patient"] if patients_named(predictions.table) else None,
        "warnings": cautions(predictions, metrics, inputs.provenance) if warnings is None else warnings,
    }
