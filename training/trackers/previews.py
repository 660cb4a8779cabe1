"""Images that trackers show: the confusion matrix on the validation images, and sample CAMs."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from config import Config
from dataset.image_set import make_image_set
from dataset.loading import Dataset
from evaluation.figures.plots import confusion_figure
from evaluation.metrics.confusion import overall_values
from experiment.checkpoint import Checkpoint
from utils import interrupts_wait

MOST_CAMS = 4


@interrupts_wait()
def confusion_image(counts: np.ndarray, classes: list[str], title: str) -> np.ndarray:
    """Draw a confusion matrix (rows true, columns predicted) and return the image, (h, w, 3) uint8."""
    metrics = {
        "confusion": counts,
        "classes": classes,
        "n": int(counts.sum()),
        **{name: {"value": float(value)} for name, value in overall_values(counts).items()},
    }
    file = io.BytesIO()
    confusion_figure(metrics, title).savefig(file, format="png", dpi=100)
    return np.asarray(Image.open(file).convert("RGB"))


def sample_cams(
    checkpoint: Checkpoint, dataset: Dataset, config: Config, device: torch.device
) -> list[tuple[str, np.ndarray]]:
    """Return names and Grad-CAM overlays (h, w, 3) uint8 of a few validation images, for their predicted classes.

    The seed chooses the images. Their names, the true class and a number, do not depend on the weights.

    Raises: `UserError` for an architecture without Grad-CAM.
    """
    # Imported here because it takes half a second, and only finished trainings with a tracker need it.
    from localization.drawing.maps import ExplainedModel, draw_maps
    from localization.explainer import Explainer
    from localization.methods.explanation import Settings
    from localization.request import ExplanationRequest, Output

    validation = dataset.images("val").records
    order = np.random.default_rng(config.seed).permutation(len(validation))
    each = max(1, MOST_CAMS // len(dataset.classes))
    chosen = validation.iloc[order].groupby("label").head(each).sort_values("label", kind="stable").head(MOST_CAMS)
    images, _ = make_image_set(chosen.reset_index(drop=True), dataset.classes, config.data, dataset.side, masks=True)
    explainer = Explainer.from_architecture(
        checkpoint.model().to(device),
        checkpoint.architecture,
        checkpoint.size,
        settings=Settings(precision=checkpoint.precision),
    )
    model = ExplainedModel(name=checkpoint.architecture.name, explainer=explainer, fit=checkpoint.fit, device=device)
    with tempfile.TemporaryDirectory() as folder:
        output = Output(folder=Path(folder))
        rows = draw_maps(model, images, explainer.choose("gradcam"), ExplanationRequest(), output).rows
        pixels = [np.asarray(Image.open(Path(folder) / row.file).convert("RGB")) for row in rows]
    labels = [row.label for row in rows]
    return [(f"{label} {labels[: i + 1].count(label)}", pixels[i]) for i, label in enumerate(labels)]
