"""Maps of one or several checkpoints: drawn, scored beside controls, checked for sanity, and compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from config import Config
from dataset.image_set import Batch, ImageSet, Schedule
from experiment.run_folder import finished_runs, runs_folder
from experiment.selection import Selection, select
from inference.images import images_from_paths, images_from_split
from localization.drawing.maps import DrawnMaps, ExplainedModel, clear_folder, draw_maps, draw_pairs
from localization.drawing.summary_figure import draw_summary
from localization.explainer import Explainer
from localization.methods.table import METHODS
from localization.request import ExplanationRequest, Output
from localization.sanity.checks import SanitySuite
from localization.sanity.random_weights import MOST_IMAGES, randomised
from localization.sanity.verdicts import format_sanity, write_sanity
from localization.scoring.measure import Controls
from localization.scoring.summary import SummaryRow, summarise, write_summary
from localization.scoring.summary_text import format_summary, verdict_lines
from localization.states import count_flawed
from utils import UserError, count, derived_seed, joint_name, log, make_folder, write_json

EVERY_RUN = "all"  # as --model


class _FlagExplainer(Explainer):
    """An explainer whose errors name the flags of draw_cam.py."""

    layers_word, method_word = "--layer", "--method"


def explain_checkpoints(
    config: Config, given: dict[str, Any], weights: Sequence[Path], request: ExplanationRequest
) -> Iterator[tuple[DrawnMaps, Path | None]]:
    """Draw and measure the maps of each checkpoint, then of all together; of two given ones, their differences.

    Args:
        config: `model` chooses among the finished runs where no weights are given; `all` means all of them.
        given: the configuration keys that the command line set.
        weights: checkpoints or run folders; none: the newest finished run.

    Yields: for each checkpoint its maps and the run whose report of the test split now has these maps, or None.
    Raises: `UserError`, before anything is drawn, for a checkpoint that cannot be used or is given twice.
    """
    compared, paths = len(weights) == 2, list(weights) or [None]
    if config.model.lower() == EVERY_RUN:
        given = {key: value for key, value in given.items() if key != "model"}
        paths = _every_run(config, weights)
    several = len(paths) > 1 or config.model.lower() == EVERY_RUN
    names = _name_checkpoints(config, paths, given) if len(paths) > 1 else {"": paths[0]}
    drawn, files = [], {}
    for name, path in names.items():
        selection = select(config, path, given)
        name = name or selection.name
        files[name] = selection.checkpoint.path
        if request.images:
            images = images_from_paths(selection, request.images)
        else:
            images = images_from_split(selection, request.count, request.settings.seed, request.errors)
        output = request.output(selection, name, several, keep=compared)
        drawn.append(explain_model(load_model(selection, name, request), images, request, output))
        yield drawn[-1], _record(selection, drawn[-1], request, output.folder)
    if len(drawn) > 1 and (request.score or compared):
        folder = request.folder or together_folder(runs_folder(config), files)
        clear_folder(make_folder(folder, "--output"))
        if request.score:
            _write_scores(folder, summarise([row for maps in drawn for row in (*maps.rows, *maps.controls)]))
        if compared:
            draw_pairs(folder, (drawn[0], drawn[1]), request.colormap)
        log.info(f"models compared in {folder}")


def _every_run(config: Config, weights: Sequence[Path]) -> list[Path]:
    if weights:
        raise UserError("--model all: uses every run's best.pt; leave --weights out")
    runs = finished_runs(runs_folder(config))
    if not runs:
        raise UserError(f"--model all: no finished run in {runs_folder(config)}; train one (python train.py)")
    return runs


def _name_checkpoints(config: Config, paths: Sequence[Path], given: dict[str, Any]) -> dict[str, Path]:
    """Return several checkpoints by name, which has the parent folder in front where two would have the same name.

    Raises: `UserError` for a checkpoint that cannot be used or is given twice.
    """
    names: dict[str, Path] = {}
    for path in paths:
        name = select(config, path, given).name
        twice = name in names and names[name].resolve() == path.resolve()
        name = f"{path.resolve().parent.name}-{name}" if name in names else name
        if twice or name in names:
            raise UserError(f"--weights {path}: given twice, or named {name} like another; leave it out or rename it")
        names[name] = path
    return names


def together_folder(runs: Path, files: Mapping[str, Path]) -> Path:
    """Return the folder in `runs` that compares the models of these checkpoints, by name: `localization-A-vs-B`."""
    expected = [runs / name / "best.pt" for name in files]
    return runs / f"localization-{joint_name(list(files), list(files.values()), expected)}"


def _record(selection: Selection, drawn: DrawnMaps, request: ExplanationRequest, folder: Path) -> Path | None:
    """Write `cams.json`: which weights drew maps of which split. Return the run whose test report shows them, or None.

    The report shows maps of the weights and the split that it is about.
    """
    tested = not request.images and selection.data.path is None
    record = {"weights": selection.checkpoint.fingerprint, "kind": "test" if tested else None}
    write_json(folder / "cams.json", record | {"methods": {method: METHODS[method].title for method in drawn.means}})
    return selection.run if tested and selection.run and folder == selection.run / "cams" else None


def load_model(selection: Selection, name: str, request: ExplanationRequest) -> ExplainedModel:
    """Load the selected checkpoint with its explainer.

    Raises: `UserError` for a label that is not one of its classes, or a layer that does not exist.
    """
    checkpoint = selection.checkpoint
    if request.label not in (None, *checkpoint.classes):
        raise UserError(f"--label {request.label}: unknown class; choose from {', '.join(checkpoint.classes)}")
    settings = replace(request.settings, precision=selection.precision)
    model, layers = checkpoint.model().to(selection.device), request.layers or None
    explainer = _FlagExplainer.from_architecture(model, checkpoint.architecture, checkpoint.size, layers, settings)
    return ExplainedModel(name=name, explainer=explainer, fit=checkpoint.fit, device=selection.device)


def explain_model(model: ExplainedModel, images: ImageSet, request: ExplanationRequest, output: Output) -> DrawnMaps:
    """Draw, measure and check the maps of one model, and log the results.

    Raises: `UserError` for a method that the architecture does not support, or a folder that cannot be written.
    """
    methods = _choose_methods(model, request)
    controls = _make_controls(model, images, request) if request.score else None
    drawn = draw_maps(model, images, methods, request, output, controls)
    flawed = count_flawed(row.state for row in drawn.rows)
    words = "".join(f", {number} {state.counted}" for state, number in flawed.items() if number)
    log.info(f"{model.name}: {count(len(drawn.rows), 'map')}{words} in {output.folder}")
    summary = summarise([*drawn.rows, *drawn.controls])
    if request.score:
        _write_scores(output.folder, summary)
    if table := format_summary(summary):
        has_patients = (images.records["group"] != images.records["path"]).any()
        unit = "patients" if has_patients else "images, as patients are unknown; see --group-pattern"
        log.info(f"Maps of correctly classified or unlabelled images (lift: 1 is chance; 95 % intervals over {unit}):")
        log.info("\n".join([table, *verdict_lines(summary)]))
    if request.sanity:
        drawn.failed = _check_sanity(model, images, methods, request, output.folder)
    return drawn


def _write_scores(folder: Path, summary: Sequence[SummaryRow]) -> None:
    """Write `scores.csv` and its figure `scores.png`."""
    write_summary(folder / "scores.csv", summary)
    draw_summary(folder / "scores.png", summary)


def _choose_methods(model: ExplainedModel, request: ExplanationRequest) -> list[str]:
    """Return the methods to draw, and log which ones the architecture does not support."""
    explainer = model.explainer
    methods = explainer.available if request.every_method else explainer.choose(",".join(request.methods))
    use_layers = any("layer" in METHODS[method].needs for method in methods)
    if request.layers and not use_layers:
        raise UserError(f"--layer {','.join(request.layers)}: {', '.join(methods)} does not use a layer; leave it out")
    if len(request.layers) > 1 and request.scale != "image":
        raise UserError(f"--scale {request.scale}: cannot apply to the mean of several layers; leave it out")
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


def _make_controls(model: ExplainedModel, images: ImageSet, request: ExplanationRequest) -> Controls:
    explainer, seed = model.explainer, request.settings.seed
    inputs = _sample(model, images, MOST_IMAGES, derived_seed(seed, 1)).inputs
    fresh = randomised(explainer.model, explainer.architecture, inputs, seed=seed)
    faithful = np.random.default_rng(derived_seed(seed, 2)).permutation(len(images))[: request.score_count]
    return Controls(explainer.with_model(fresh), frozenset(map(int, faithful)), seed)


def _check_sanity(
    model: ExplainedModel, images: ImageSet, methods: Sequence[str], request: ExplanationRequest, folder: Path
) -> bool:
    """Write and log the findings of the sanity checks, and return whether a method fails one."""
    seed = request.settings.seed
    batch = _sample(model, images, request.sanity_count, derived_seed(seed, 3))
    targets = None if request.label is None else torch.full_like(batch.labels, images.classes.index(request.label))
    statistics = _sample(model, images, MOST_IMAGES, derived_seed(seed, 1)).inputs
    explanation = model.explainer.explain(batch.inputs, targets)
    findings = SanitySuite(explanation, model.explainer.architecture, methods, statistics, seed).run()
    write_sanity(folder, findings)
    number = count(len(batch.indices), "image")
    log.info(f"Sanity, on {number} (mean and range over them):\n{format_sanity(findings)}")
    return any(finding.verdict == "fail" for finding in findings)
