"""Logits and probabilities of a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from dataset.readers import read_image
from inference.ensemble import Ensemble
from inference.images import images_from_arrays
from inference.predict import Runtime, predict_logits, softmax
from utils import UserError


def test_a_mirrored_view_is_that_of_the_mirrored_image(ensemble: Ensemble, files: list[Path]) -> None:
    selection, runtime = ensemble.first, Runtime(torch.device("cpu"), "fp32", 2)
    model, architecture = selection.checkpoint.model(), selection.checkpoint.architecture
    pixels = [read_image(file) for file in files]
    plain, turned = (images_from_arrays([p[:, ::step] for p in pixels], selection.checkpoint) for step in (1, -1))
    mirrored = predict_logits(model, plain, architecture, runtime, mirrored=True)
    np.testing.assert_allclose(mirrored, predict_logits(model, turned, architecture, runtime), atol=1e-3)


def test_scores_that_are_not_finite_name_the_image() -> None:
    records = pd.DataFrame({"path": ["a", "b"]})
    with pytest.raises(UserError, match="first for b"):
        softmax(np.array([[0.0, 1.0], [np.nan, 0.0]]), records)


def test_diverged_scores_are_refused() -> None:
    with pytest.raises(UserError, match="not finite"):
        softmax(np.array([[0.0, 1.0], [np.nan, 0.0]]), pd.DataFrame({"path": ["a", "b"]}))


@pytest.mark.slow
def test_the_last_batch_is_never_dropped(tiny_run: Path) -> None:
    import torch

    from config import load_run_config
    from dataset.loading import load_dataset
    from experiment.checkpoint import load_checkpoint
    from inference.predict import Runtime, predict_logits

    checkpoint = load_checkpoint(tiny_run / "best.pt")
    data = load_run_config(tiny_run / "config.yaml").data
    part = load_dataset(data, 64, run_split=tiny_run / "split.csv").images("test")
    runtimes = [Runtime(torch.device("cpu"), "fp32", batch) for batch in (len(part), 7, 1)]
    logits = [predict_logits(checkpoint.model(), part, checkpoint.architecture, runtime) for runtime in runtimes]
    assert logits[0].shape == (len(part), 4)
    np.testing.assert_allclose(logits[1], logits[0], atol=2e-4)
    np.testing.assert_allclose(logits[2], logits[0], atol=2e-4)
