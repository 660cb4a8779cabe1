"""Everything that is asked about one model: its maps drawn, measured beside controls, and their sanity checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from dataset.image_set import Batch, ImageSet, Schedule
from localization.drawing.maps import Drawn, Style, draw_maps
from localization.explainer import Explainer
from localization.methods.explanation import Settings
from localization.methods.table import METHODS
from localization.sanity.checks import run_sanity
from localization.sanity.findings import Finding
from localization.sanity.randomise import MOST_PICTURES, fully_randomised
from localization.sanity.verdicts import format_sanity, write_sanity
from localization.scoring.measure import Controls
from localization.scoring.summary import format_summary, summarise, verdict_lines, write_summary
from localization.states import count_flawed
from utils import UserError, derived_seed, log

if TYPE_CHECKING:
    from experiment.checkpoint import Checkpoint

TITLES = {name: method.title for name, method in METHODS.items()}


@dataclass(frozen=True)
class Wanted:
    """What is asked about a model.

    Attributes:
        methods: `a,b,c` or `all`.
        layers: the target layers; none: the architecture's own.
        label: the class to explain; None: the predicted one of each picture.
        score: controls beside every map, faithfulness on `score_count` pictures.
        sanity: the sanity suite, on `sanity_count` pictures.
        batch: pictures at a time.
    """

    methods: str = "gradcam"
    layers: Sequence[str] = ()
    label: str | None = None
    style: Style = field(default_factory=Style)
    score: bool = False
    score_count: int = 16
    sanity: bool = False
    sanity_count: int = 4
    max_channels: int = Settings.max_channels
    batch: int = 32
    seed: int = 0


def inspect_model(
    checkpoint: Checkpoint,
    part: ImageSet,
    wanted: Wanted,
    name: str,
    folder: Path,
    save: Path | None,
    device: torch.device,
    precision: str,
    keep: bool = False,
) -> tuple[Drawn, list[Finding]]:
    """Draw, measure and check the maps of one model on `part` into `folder`, and say what came out.

    Args:
        name: of the model, for tables.
        save, keep: as `draw_maps` takes them.

    Raises: `UserError` for a method that the architecture cannot have, a layer that is not there, a label that is no
        class, or a folder that cannot be written.
    """
    if wanted.label not in (None, *checkpoint.classes):
        raise UserError(f"--label {wanted.label}: no class of the checkpoint (it has {', '.join(checkpoint.classes)})")
    explainer = Explainer.from_architecture(
        checkpoint.model().to(device),
        checkpoint.architecture,
        checkpoint.size,
        wanted.layers or None,
        Settings(precision=precision, seed=wanted.seed, batch=wanted.batch, max_channels=wanted.max_channels),
    )
    methods = explainer.choose(wanted.methods)
    if wanted.layers and not any("layer" in METHODS[method].needs for method in methods):
        raise UserError(f"--layer {','.join(wanted.layers)}: {', '.join(methods)} has no layer; leave it out")
    if len(wanted.layers) > 1 and wanted.style.scale != "image":
        raise UserError(
            f"--scale {wanted.style.scale}: maps of several layers are each divided by their peak; leave it out"
        )
    _say_what_is_lacking(explainer, methods, wanted, name)
    controls = _controls(explainer, part, wanted, device) if wanted.score else None
    drawn = draw_maps(
        checkpoint,
        explainer,
        part,
        methods,
        name,
        folder,
        save,
        label=wanted.label,
        device=device,
        batch=wanted.batch,
        style=replace(wanted.style, rescaled=len(explainer.layers) > 1),
        controls=controls,
        keep=keep,
    )
    counts = count_flawed(row["status"] for row in drawn.rows)
    said = "".join(f", {count} {state.counted}" for state, count in counts.items() if count)
    log.info(f"{name}: {len(drawn.rows)} maps{said} in {folder}")
    summary = summarise([*drawn.rows, *drawn.controls])
    if wanted.score:
        write_summary(folder, summary, TITLES)
    table = format_summary(summary, TITLES)
    if table:
        log.info(
            "Maps of correctly classified images, or of unlabelled ones (lift: 1 is chance; 95 % intervals over "
            f"{_unit(part)}):\n{table}"
        )
        for line in verdict_lines(summary, TITLES):
            log.info(line)
    findings = _check_sanity(explainer, part, methods, wanted, folder, device) if wanted.sanity else []
    return drawn, findings


def _unit(part: ImageSet) -> str:
    """What the intervals take as independent."""
    known = (part.records["group"] != part.records["path"]).any()
    return "patients" if known else "images, as the patients are not known: --group-pattern"


def _say_what_is_lacking(explainer: Explainer, methods: Sequence[str], wanted: Wanted, name: str) -> None:
    lacking = [method for method in METHODS if explainer.why_not(method)]
    if lacking and wanted.methods.strip().lower() == "all":
        reasons = "; ".join(dict.fromkeys(explainer.why_not(method) for method in lacking))
        log.info(f"{name}: without {', '.join(TITLES[method] for method in lacking)}: {reasons}")
    if any("layer" in METHODS[method].needs for method in methods):
        several = ", averaged, each map divided by its peak" if len(explainer.layers) > 1 else ""
        log.info(f"{name}: target layer {', '.join(layer.name for layer in explainer.layers)}{several}")


def _pictures(part: ImageSet, explainer: Explainer, count: int, seed: int, device: torch.device) -> Batch:
    """`count` pictures of the part, drawn by seed, as one batch."""
    drawn = np.sort(np.random.default_rng(seed).permutation(len(part))[:count])
    (batch,) = part.batches(device, len(drawn), explainer.architecture, Schedule(order=drawn))
    return batch


def _controls(explainer: Explainer, part: ImageSet, wanted: Wanted, device: torch.device) -> Controls:
    seed = derived_seed(wanted.seed, 1)
    sample = _pictures(part, explainer, MOST_PICTURES, seed, device)
    model = fully_randomised(explainer.model, explainer.architecture, sample.inputs, wanted.seed)
    random = explainer.with_model(model)
    faithful = np.random.default_rng(derived_seed(wanted.seed, 2)).permutation(len(part))[: wanted.score_count]
    return Controls(random, frozenset(map(int, faithful)), wanted.seed)


def _check_sanity(
    explainer: Explainer, part: ImageSet, methods: Sequence[str], wanted: Wanted, folder: Path, device: torch.device
) -> list[Finding]:
    batch = _pictures(part, explainer, wanted.sanity_count, derived_seed(wanted.seed, 3), device)
    statistics = _pictures(part, explainer, MOST_PICTURES, derived_seed(wanted.seed, 1), device).inputs
    targets = None
    if wanted.label is not None:
        targets = torch.full((len(batch.indices),), part.classes.index(wanted.label), device=device)
    findings = run_sanity(explainer, batch.inputs, targets, methods, wanted.seed, statistics)
    write_sanity(folder, findings)
    log.info(f"Sanity, on {len(batch.indices)} images (mean and range over them):\n{format_sanity(findings)}")
    return findings
