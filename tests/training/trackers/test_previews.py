"""Images for the trackers."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

from evaluation.figures.plots import confusion_figure
from training.trackers.previews import confusion_image


def test_the_confusion_matrix_has_the_predicted_counts() -> None:
    values = {"accuracy": {"value": 0.9}, "balanced_accuracy": {"value": 0.875}}
    metrics, drawn = {"confusion": [[3, 1], [0, 6]], "classes": ["A", "B"], "n": 10, **values}, io.BytesIO()
    confusion_figure(metrics, "r, validation, epoch 2").savefig(drawn, format="png", dpi=100)
    labels, predicted = np.repeat([0, 1], [4, 6]), np.array([0, 0, 0, *[1] * 7])
    training = SimpleNamespace(
        validation=SimpleNamespace(labels=labels, classes=["A", "B"]),
        learner=SimpleNamespace(validated=np.eye(2)[predicted]),
        run=SimpleNamespace(path=Path("r")),
        history=[{"epoch": 2}],
    )
    np.testing.assert_array_equal(confusion_image(training), np.asarray(Image.open(drawn).convert("RGB")))
