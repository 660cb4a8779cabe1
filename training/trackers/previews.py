"""Images that trackers show: the confusion matrix on the validation images, and sample CAMs."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from dataset.image_set import make_image_set
from evaluation.figures.plots import confusion_figure
from evaluation.metrics.confusion import confusion_matrix, overall_values
from experiment.checkpoint import load_checkpoint
from training.record import Training
from utils import interrupts_wait

MOST_CAMS = 4


def _pixels(file: Path | io.BytesIO) -> np.ndarray:
    return np.asarray(Image.open(file).convert("RGB"))


@interrupts_wait()
def confusion_image(training: Training) -> np.ndarray:
    """Draw the confusion matrix of the newest epoch on the validation images; return the image, (h, w, 3) uint8."""
    images, file = training.validation, io.BytesIO()
    counts = confusion_matrix(images.labels, training.learner.validated.argmax(1), len(images.classes))
    metrics = {name: {"value": float(value)} for name, value in overall_values(counts).items()}
    metrics |= {"confusion": counts, "classes": images.classes, "n": len(images.labels)}
    title = f"{training.run.path.name}, validation, epoch {training.history[-1]['epoch']}"
    confusion_figure(metrics, title).savefig(file, format="png", dpi=100)
    return _pixels(file)


def sample_cams(training: Training) -> dict[str, np.ndarray]:
    """Return Grad-CAM overlays (h, w, 3) uint8, by best.pt, of a few validation images for their predicted classes.

    The seed chooses the images. Their names, the true class and a number, do not depend on the weights.

    Raises: `UserError` for an architecture without Grad-CAM.
    """
    # Imported here because it takes half a second, and only finished trainings with a tracker need it.
    from localization.drawing.maps import ExplainedModel, draw_maps
    from localization.explainer import Explainer
    from localization.methods.explanation import Settings
    from localization.request import ExplanationRequest, Output

    learner, dataset, validation = training.learner, training.dataset, training.validation.records
    order = np.random.default_rng(learner.config.seed).permutation(len(validation))
    chosen = validation.iloc[order].groupby("label").head(max(1, MOST_CAMS // len(dataset.classes)))
    chosen = chosen.sort_values("label", kind="stable").head(MOST_CAMS).reset_index(drop=True)
    images, _ = make_image_set(chosen, dataset.classes, learner.config.data, dataset.side, masks=True)
    model = load_checkpoint(training.run.path / "best.pt").model().to(learner.device)
    settings = Settings(precision=learner.precision)
    explainer = Explainer.from_architecture(model, learner.architecture, dataset.side, settings=settings)
    methods = explainer.choose("gradcam")
    name, fit = learner.architecture.name, learner.config.data.fit
    explained = ExplainedModel(name=name, explainer=explainer, fit=fit, device=learner.device)
    with tempfile.TemporaryDirectory() as folder:
        rows = draw_maps(explained, images, methods, ExplanationRequest(), Output(folder=Path(folder))).rows
        numbers = images.records.groupby("label").cumcount() + 1
        return {f"{row.label} {n}": _pixels(Path(folder) / row.file) for row, n in zip(rows, numbers, strict=True)}
