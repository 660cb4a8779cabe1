"""Pictures of a training for a tracker, as PNG files in memory: the validation's confusion matrix, and sample CAMs."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import numpy as np
import torch

from config import DataConfig
from dataset.image_set import make_image_set
from dataset.loading import Dataset
from evaluation.figures.plots import confusion_figure
from evaluation.metrics.confusion import overall_values
from experiment.checkpoint import Checkpoint
from utils import interrupts_wait

MOST_CAMS = 4
METHOD = "gradcam"


@interrupts_wait()
def confusion_picture(counts: np.ndarray, classes: list[str], title: str) -> bytes:
    """The confusion matrix (classes, classes), rows true and columns predicted, as a PNG."""
    values = overall_values(counts)
    metrics = {
        "confusion": counts,
        "classes": classes,
        "n": int(counts.sum()),
        **{name: {"value": float(values[name])} for name in ("accuracy", "balanced_accuracy")},
    }
    file = io.BytesIO()
    confusion_figure(metrics, title).savefig(file, format="png", dpi=100)
    return file.getvalue()


def sample_cams(
    checkpoint: Checkpoint, dataset: Dataset, data: DataConfig, device: torch.device, seed: int
) -> list[tuple[str, bytes]]:
    """Grad-CAM overlays of a few validation pictures as (name, PNG): the evidence for the class predicted of each.

    The pictures are drawn by `seed`. Their names, the true class and a number, are the same for all weights.
    Raises: `UserError` for an architecture that can have no Grad-CAM.
    """
    from localization.drawing.maps import ExplainedModel, MapJob, Output, draw_maps
    from localization.explainer import Explainer
    from localization.methods.explanation import Settings

    validation = dataset.images("val").records
    order = np.random.default_rng(seed).permutation(len(validation))
    each = max(1, MOST_CAMS // len(dataset.classes))
    chosen = validation.iloc[order].groupby("label").head(each).sort_values("label", kind="stable").head(MOST_CAMS)
    part, _ = make_image_set(chosen.reset_index(drop=True), dataset.classes, data, dataset.side, masks=True)
    explainer = Explainer.from_architecture(
        checkpoint.model().to(device),
        checkpoint.architecture,
        checkpoint.size,
        settings=Settings(precision=checkpoint.precision),
    )
    job, counts = MapJob(methods=explainer.choose(METHOD)), dict.fromkeys(dataset.classes, 0)
    model = ExplainedModel(name=checkpoint.architecture.name, explainer=explainer, fit=checkpoint.fit, device=device)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for row in draw_maps(model, part, job, Output(folder=Path(folder))).rows:
            counts[row.label] += 1
            found.append((f"{row.label} {counts[row.label]}", (Path(folder) / row.file).read_bytes()))
    return found
