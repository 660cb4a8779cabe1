"""Warnings to readers: when there is one, and when not."""

from __future__ import annotations

import numpy as np
import pandas as pd

from evaluation.cautions import cautions
from evaluation.metrics.calibration import equal_width, perfect_error
from evaluation.metrics.table import compute_metrics
from evaluation.predictions import Predictions
from evaluation.provenance import Provenance


def _predictions(n: int, confidence: float, right: float, **columns: object) -> Predictions:
    """Two classes in turns, all with this confidence, the first share of each right."""
    number = np.arange(n)
    truth = number % 2
    answer = np.where(number // 2 < round(right * (n // 2)), truth, 1 - truth)
    p = np.where(answer == 1, confidence, 1 - confidence)
    table = pd.DataFrame({"path": number.astype(str), "label": np.array(["a", "b"])[truth], "p_a": 1 - p, "p_b": p})
    return Predictions(table.assign(group=[f"g{i}" for i in number]).assign(**columns), ["a", "b"])


def _texts(predictions: Predictions, about: dict | None = None, temperature: dict | None = None) -> dict[str, str]:
    metrics = compute_metrics(predictions, resamples=0)
    mean, p95 = perfect_error(predictions.confidence, equal_width(predictions.confidence))
    metrics |= {"ece_if_perfect": {"mean": mean, "p95": p95}, "temperature": temperature}
    warnings = cautions(predictions, metrics, Provenance.from_json(about))
    return {warning["text"]: warning["level"] for warning in warnings}


def test_nothing_is_said_of_a_sound_evaluation() -> None:
    assert _texts(_predictions(400, 0.9, 0.9), {"kind": "test", "overlap": {"trained_on": 0, "validated_on": 0}}) == {}


def test_the_images() -> None:
    predictions = _predictions(400, 0.9, 0.9)
    (text, level), *_ = _texts(predictions, {"kind": "test", "overlap": {"trained_on": 7, "validated_on": 0}}).items()
    assert (level, "trained on 7 of these 400" in text) == ("severe", True)
    texts = _texts(predictions, {"kind": "external", "overlap": {"validated_on": 3}, "unknown_classes": {"TB": 12}})
    assert any("include 3 validation images of the run" in t for t in texts)
    assert any("12 images of class 'TB'" in t for t in texts)
    assert "severe" in _texts(predictions, {"kind": "train"}).values()
    assert list(_texts(predictions, {"kind": "external", "synthetic": True}).values()) == ["severe"]
    assert list(_texts(predictions, {"kind": "test", "synthetic": True}).values()) == ["caution"]


def test_the_sample() -> None:
    texts = " ".join(_texts(_predictions(40, 0.9, 0.9)))
    assert "Only 40 images" in texts
    assert "Fewer than 30 images of a (20), b (20)" in texts
    unknown = _predictions(400, 0.9, 0.9)
    half = [path if i % 2 else "one" for i, path in enumerate(unknown.table["path"])]
    unknown_to_all = _predictions(400, 0.9, 0.9, group=unknown.table["path"])
    assert "The patients of all images are unknown" in " ".join(_texts(unknown_to_all))
    assert "The patients of 200 of 400 images are unknown" in " ".join(_texts(_predictions(400, 0.9, 0.9, group=half)))
    only = unknown.subset(unknown.labels == 0)
    assert "No images of b" in " ".join(_texts(only))


def test_a_source_for_each_class_is_a_shortcut() -> None:
    labels = _predictions(400, 0.9, 0.9).table["label"]
    apart = _texts(_predictions(400, 0.9, 0.9, source=labels.map({"a": "Guangzhou", "b": "NIH"})))
    assert [level for text, level in apart.items() if "source" in text] == ["severe"]
    partly = labels.map({"a": "Guangzhou", "b": ""})
    assert not any("source" in text for text in _texts(_predictions(400, 0.9, 0.9, source=partly)))
    mixed = labels.map({"a": "Guangzhou", "b": "NIH"}).where(np.arange(400) > 5, "NIH")
    assert not any("source" in text for text in _texts(_predictions(400, 0.9, 0.9, source=mixed)))


def test_calibration() -> None:
    temperature = {"value": 2.0, "applied": False, "ece_here": 0.03}
    texts = " ".join(_texts(_predictions(400, 0.95, 0.7), temperature=temperature))
    assert "not calibrated: ECE 0.250" in texts
    assert "overconfident" in texts
    assert "0.030 (--calibrated)" in texts
    worse = " ".join(_texts(_predictions(400, 0.95, 0.7), temperature=temperature | {"ece_here": 0.3}))
    assert "no better" in worse
    assert "--calibrated" not in worse
    assert "underconfident" in " ".join(_texts(_predictions(400, 0.6, 0.95), temperature=temperature))
    applied = temperature | {"applied": True}
    assert "--calibrated" not in " ".join(_texts(_predictions(400, 0.95, 0.7), temperature=applied))
