"""One model: its maps are drawn, scored beside controls, and checked for sanity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dataset.image_set import Batch, ImageSet, Schedule
from experiment.selection import Selection
from localization.drawing.maps import DrawnMaps, ExplainedModel, MapJob, Output, draw_maps
from localization.drawing.summary_figure import draw_summary
from localization.explainer import Explainer
from localization.methods.explanation import Settings
from localization.methods.table import METHODS
from localization.request import ExplanationRequest
from localization.sanity.checks import Finding, SanitySuite
from localization.sanity.randomise import MOST_IMAGES, randomised
from localization.sanity.verdicts import format_sanity, write_sanity
from localization.scoring.measure import Controls
from localization.scoring.summary import SummaryRow, summarise, write_summary
from localization.scoring.summary_text import format_summary, verdict_lines
from localization.states import count_flawed
from utils import UserError, count, derived_seed, log


@dataclass(frozen=True)
class ModelResult:
    """The maps of one model and the findings of its sanity checks."""

    drawn: DrawnMaps
    findings: Sequence[Finding]

    @property
    def failed(self) -> bool:
        """True if a method fails a sanity check."""
        return any(finding.verdict == "fail" for finding in self.findings)


def load_model(selection: Selection, name: str, request: ExplanationRequest) -> ExplainedModel:
    """Load the selected checkpoint with its explainer.

    Raises: `UserError` for a label that is not one of its classes, or a layer that does not exist.
    """
    checkpoint = selection.checkpoint
    if request.label not in (None, *checkpoint.classes):
        raise UserError(f"--label {request.label}: unknown class; choose from {', '.join(checkpoint.classes)}")
    explainer = Explainer.from_architecture(
        checkpoint.model().to(selection.device),
        checkpoint.architecture,
        checkpoint.size,
        request.layers or None,
        Settings(
            precision=selection.precision,
            seed=request.seed,
            batch=request.batch,
            max_channels=request.max_channels,
        ),
    )
    return ExplainedModel(name=name, explainer=explainer, fit=checkpoint.fit, device=selection.device)


def explain_model(model: ExplainedModel, images: ImageSet, request: ExplanationRequest, output: Output) -> ModelResult:
    """Draw, measure and check the maps of one model, and log the results.

    Raises: `UserError` for a method that the architecture does not support, or a folder that cannot be written.
    """
    methods = _choose_methods(model, request)
    controls = _make_controls(model, images, request) if request.score else None
    job = MapJob(methods=methods, label=request.label, style=request.style, controls=controls)
    drawn = draw_maps(model, images, job, output)
    flawed = count_flawed(row.state for row in drawn.rows)
    words = "".join(f", {number} {state.counted}" for state, number in flawed.items() if number)
    log.info(f"{model.name}: {count(len(drawn.rows), 'map')}{words} in {output.folder}")
    summary = summarise([*drawn.rows, *drawn.controls])
    if request.score:
        write_scores(output.folder, summary)
    table = format_summary(summary)
    if table:
        log.info(
            "Maps of correctly classified or unlabelled images (lift: 1 is chance; 95 % intervals over "
            f"{_unit(images)}):\n{table}"
        )
        for line in verdict_lines(summary):
            log.info(line)
    return ModelResult(drawn, _check_sanity(model, images, methods, request, output.folder) if request.sanity else [])


def write_scores(folder: Path, summary: Sequence[SummaryRow]) -> None:
    """Write `scores.csv` and its figure `scores.png`."""
    write_summary(folder / "scores.csv", summary)
    draw_summary(folder / "scores.png", summary)


def _unit(images: ImageSet) -> str:
    """Return the independent unit of the intervals."""
    known = (images.records["group"] != images.records["path"]).any()
    return "patients" if known else "images, as patients are unknown; see --group-pattern"


def _choose_methods(model: ExplainedModel, request: ExplanationRequest) -> list[str]:
    """Return the methods to draw, and log which ones the architecture does not support."""
    explainer = model.explainer
    methods = explainer.available if request.every_method else explainer.choose(",".join(request.methods))
    use_layers = any("layer" in METHODS[method].needs for method in methods)
    if request.layers and not use_layers:
        raise UserError(f"--layer {','.join(request.layers)}: {', '.join(methods)} does not use a layer; leave it out")
    if len(request.layers) > 1 and request.style.scale != "image":
        raise UserError(
            f"--scale {request.style.scale}: it has no meaning for maps of several layers, which are each divided by "
            "their peak; leave it out"
        )
    missing = [method for method in METHODS if explainer.why_not(method)]
    if missing and request.every_method:
        reasons = "; ".join(dict.fromkeys(explainer.why_not(method) for method in missing))
        log.info(f"{model.name}: without {', '.join(METHODS[method].title for method in missing)}: {reasons}")
    if use_layers:
        several = ", averaged, each map divided by its peak" if model.averages_layers else ""
        log.info(f"{model.name}: target layer {', '.join(layer.name for layer in explainer.layers)}{several}")
    return methods


def _sample(model: ExplainedModel, images: ImageSet, count: int, seed: int) -> Batch:
    """Return `count` images, drawn by seed, as one batch."""
    order = np.sort(np.random.default_rng(seed).permutation(len(images))[:count])
    (batch,) = images.batches(model.device, len(order), model.explainer.architecture, Schedule(order=order))
    return batch


def _statistics(model: ExplainedModel, images: ImageSet, seed: int) -> torch.Tensor:
    """Return the inputs from which randomised models estimate the statistics of batch normalisation."""
    return _sample(model, images, MOST_IMAGES, derived_seed(seed, 1)).inputs


def _make_controls(model: ExplainedModel, images: ImageSet, request: ExplanationRequest) -> Controls:
    explainer, seed = model.explainer, request.seed
    inputs = _statistics(model, images, seed)
    fresh = randomised(explainer.model, explainer.architecture, inputs, seed=seed)
    faithful = np.random.default_rng(derived_seed(seed, 2)).permutation(len(images))[: request.score_count]
    return Controls(explainer.with_model(fresh), frozenset(map(int, faithful)), seed)


def _check_sanity(
    model: ExplainedModel, images: ImageSet, methods: Sequence[str], request: ExplanationRequest, folder: Path
) -> list[Finding]:
    batch = _sample(model, images, request.sanity_count, derived_seed(request.seed, 3))
    targets = None
    if request.label is not None:
        targets = torch.full_like(batch.labels, images.classes.index(request.label))
    statistics = _statistics(model, images, request.seed)
    explanation = model.explainer.explain(batch.inputs, targets)
    findings = SanitySuite(explanation, model.explainer.architecture, methods, statistics, request.seed).run()
    write_sanity(folder, findings)
    number = count(len(batch.indices), "image")
    log.info(f"Sanity, on {number} (mean and range over them):\n{format_sanity(findings)}")
    return findings
