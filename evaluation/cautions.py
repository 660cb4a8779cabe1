"""Reasons not to trust a number, for the readers of these metrics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from evaluation.metrics.table import SMALL
from evaluation.phrases import with_limits
from evaluation.predictions import Predictions
from evaluation.provenance import Overlap, Provenance
from utils import count

FEW = 100  # images: with fewer, intervals may cover less than they claim (docs/intervals.md)
SEVERE, CAUTION = "severe", "caution"


def cautions(predictions: Predictions, metrics: dict[str, Any], provenance: Provenance) -> list[dict[str, str]]:
    """Return warnings as `{"level": "severe" | "caution", "text": sentence}`, the severe ones first.

    `metrics` is what `compute_metrics` returns with the parts that `evaluation.results` adds.
    """
    warnings = (
        *_about_images(len(predictions), provenance),
        *_about_sample(predictions, metrics),
        *_about_calibration(predictions, metrics),
    )
    return [{"level": level, "text": text} for level, text in sorted(warnings, key=lambda w: w[0] != SEVERE)]


def _about_images(n: int, provenance: Provenance) -> Iterator[tuple[str, str]]:
    overlap, kind = provenance.overlap or Overlap(), provenance.kind
    if kind == "train":
        yield SEVERE, "These are the training images: the results say nothing about other images."
    elif overlap.trained_on:
        yield SEVERE, f"The model was trained on {overlap.trained_on} of these {n} images: the results are inflated."
    if kind == "val":
        text = "The checkpoint was selected, and the temperature fitted, on these validation images"
        yield CAUTION, f"{text}: the results are slightly optimistic."
    elif overlap.validated_on:
        number = count(overlap.validated_on, "validation image")
        yield CAUTION, f"These images include {number} of the run, used to select the checkpoint."
    for name, number in provenance.unknown_classes.items():
        images = count(number, "image")
        yield CAUTION, f"Left out of all numbers: {images} of class '{name}', which the model does not have."
    if provenance.synthetic:
        text = "The model was trained on synthetic images (the phantom): the results say nothing about patients."
        yield SEVERE if kind == "external" else CAUTION, text


def _about_sample(predictions: Predictions, metrics: dict[str, Any]) -> Iterator[tuple[str, str]]:
    n, table = len(predictions), predictions.table
    support = {name: row["support"] for name, row in metrics["per_class"].items()}
    if n < FEW:
        yield CAUTION, f"Only {count(n, 'image')}: intervals of such a small sample may cover less than 95 %."
    if small := [f"{name} ({number})" for name, number in support.items() if 0 < number < SMALL]:
        yield CAUTION, f"Fewer than {SMALL} images of {', '.join(small)}: too few to rank models or classes."
    if absent := [name for name, number in support.items() if not number]:
        yield CAUTION, f"No images of {', '.join(absent)}: nothing can be said about recognising them."
    if unknown := predictions.unknown_patients:
        which = "all images" if unknown == n else f"{unknown} of {n} images"
        yield (
            CAUTION,
            f"The patients of {which} are unknown: each image counts as one patient. If patients have several "
            "images, the intervals are too narrow and the split may leak (--group-pattern).",
        )
    known = table[table["source"] != ""]
    if known["source"].nunique() > 1 and known["label"].groupby(known["source"]).nunique().max() == 1:
        yield SEVERE, "Each source has images of one class only: the model may recognise the source, not the finding."


def _about_calibration(predictions: Predictions, metrics: dict[str, Any]) -> Iterator[tuple[str, str]]:
    perfect, temperature = metrics.get("ece_if_perfect"), metrics.get("temperature")
    if not perfect or metrics["ece"]["value"] <= perfect["p95"]:
        return
    confidence, accuracy = predictions.confidence.mean(), predictions.correct.mean()
    text = (
        f"The probabilities are not calibrated: ECE {with_limits(metrics['ece'])}; a perfectly calibrated model would "
        f"have at most {perfect['p95']:.3f} in 95 % of samples. The mean confidence is {confidence:.3f} and the "
        f"accuracy {accuracy:.3f}: the model is {'overconfident' if confidence > accuracy else 'underconfident'}."
    )
    if temperature and not temperature["applied"]:
        after = temperature["ece_here"]
        text += f" With the temperature {temperature['value']:.2f}, fitted on validation images, the ECE is {after:.3f}"
        text += " (--calibrated)." if after < metrics["ece"]["value"] else ", which is no better."
    yield CAUTION, text
