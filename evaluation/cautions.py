"""When not to believe a number: what a reader of these metrics must be told."""

from __future__ import annotations

from typing import Any

from evaluation.metrics.table import SMALL
from evaluation.phrases import with_limits
from evaluation.predictions import Predictions
from evaluation.provenance import Overlap, Provenance

FEW = 100  # images: below, intervals may cover less than they say (docs/intervals.md)


def cautions(predictions: Predictions, metrics: dict[str, Any], provenance: Provenance) -> list[dict[str, str]]:
    """Return warnings as `{"level": "severe" | "caution", "text": sentence}`, the severe ones first.

    `metrics` is what `compute_metrics` returns with the parts that `evaluation.results` adds.
    """
    found = (
        _of_the_images(predictions, provenance)
        + _of_the_sample(predictions, metrics)
        + _of_calibration(predictions, metrics)
    )
    return sorted(({"level": level, "text": text} for level, text in found), key=lambda w: w["level"] != "severe")


def _of_the_images(predictions: Predictions, provenance: Provenance) -> list[tuple[str, str]]:
    overlap = provenance.overlap or Overlap()
    found = []
    if provenance.kind == "train":
        found.append(("severe", "These are the training images: the result says nothing about other images."))
    elif overlap.trained_on:
        text = f"The model was trained on {overlap.trained_on} of these {len(predictions)} images: the result is "
        found.append(("severe", text + "too good to be true."))
    if provenance.kind == "val":
        text = "The validation images chose the epoch and the temperature: the result is a little too good."
        found.append(("caution", text))
    elif overlap.validated_on:
        text = f"{overlap.validated_on} of these images are validation images of the run: they chose the epoch."
        found.append(("caution", text))
    for name, number in provenance.unknown_classes.items():
        text = f"{number} images of class '{name}', which the model does not know, were left out of every number."
        found.append(("caution", text))
    if provenance.synthetic:
        text = "The training images are synthetic (the phantom): the model knows nothing of patients."
        found.append(("severe" if provenance.kind == "external" else "caution", text))
    return found


def _of_the_sample(predictions: Predictions, metrics: dict[str, Any]) -> list[tuple[str, str]]:
    found = []
    small = [f"{name} ({row['support']})" for name, row in metrics["per_class"].items() if 0 < row["support"] < SMALL]
    absent = [name for name, row in metrics["per_class"].items() if not row["support"]]
    if len(predictions) < FEW:
        text = f"Only {len(predictions)} images: intervals of so small a sample may cover less than 95 %."
        found.append(("caution", text))
    if small:
        text = f"Fewer than {SMALL} images of {', '.join(small)}: too small to rank models or classes by."
        found.append(("caution", text))
    if absent:
        found.append(("caution", f"No image of {', '.join(absent)}: nothing can be said of it here."))
    unknown = predictions.unknown_patients
    if unknown:
        whose = "any image" if unknown == len(predictions) else f"{unknown} of {len(predictions)} images"
        text = (
            f"Nothing says which patient {whose} belongs to: each counts as a patient of its own. If patients have "
            "several images, the intervals are too narrow and the split may leak (--group-pattern)."
        )
        found.append(("caution", text))
    known = predictions.table[predictions.table["source"] != ""]
    source, label = known["source"], known["label"]
    if source.nunique() > 1 and label.groupby(source).nunique().max() == 1:
        text = "Each source has images of one class alone: a model that recognises the source needs no finding."
        found.append(("severe", text))
    return found


def _of_calibration(predictions: Predictions, metrics: dict[str, Any]) -> list[tuple[str, str]]:
    perfect, temperature = metrics.get("ece_if_perfect"), metrics.get("temperature")
    if not perfect or metrics["ece"]["value"] <= perfect["p95"]:
        return []
    sure, right = predictions.confidence.mean(), predictions.correct.mean()
    text = (
        f"The probabilities are not calibrated: ECE {with_limits(metrics['ece'])}, where a perfectly calibrated model "
        f"would show at most {perfect['p95']:.3f} in 95 % of samples. The mean confidence is {sure:.3f}, and "
        f"{right:.3f} of the answers are right: the model is too {'sure' if sure > right else 'unsure'}."
    )
    if temperature and not temperature["applied"]:
        after = temperature["ece_here"]
        text += f" With the temperature {temperature['value']:.2f} that validation decided the ECE here is {after:.3f}"
        text += " (--calibrated)." if after < metrics["ece"]["value"] else ": it does not help."
    return [("caution", text)]
