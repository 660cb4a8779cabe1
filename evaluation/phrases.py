"""Metrics, settings, numbers and lists as they read in a sentence."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import pandas as pd

from config import AugmentConfig, TrainConfig
from evaluation.provenance import Overlap
from intervals import Interval
from utils import count

MOST_NAMES = 8  # values that one phrase lists
# Metrics whose name is not their key with spaces.
WORDS = {
    "macro_f1": "macro F1",
    "mcc": "MCC",
    "macro_auroc": "macro AUROC",
    "macro_average_precision": "macro average precision",
    "ece": "ECE",
    "adaptive_ece": "adaptive ECE",
    "brier": "Brier score",
    "f1": "F1",
    "auroc": "AUROC",
}
SPELLED_OUT = {"mcc": "Matthews correlation (MCC)", "ece": "expected calibration error (ECE)"}


def words(name: str, in_full: bool = False) -> str:
    """Return the name of a metric's key; `in_full` spells abbreviations out; `auroc A` is class A's."""
    key, _, of_class = name.partition(" ")
    named = (SPELLED_OUT if in_full else {}).get(key) or WORDS.get(key, key.replace("_", " "))
    return f"{named} of {of_class}" if of_class else named


def patients_named(table: pd.DataFrame) -> bool:
    """Return whether the patient of every image is known; an unknown one has the path as its `group`."""
    return bool((table["group"] != table["path"]).all())


def of_patients(table: pd.DataFrame) -> str:
    """Return ` of 81 patients`, as far as patients are known; empty if none is."""
    named = table["group"] != table["path"]
    patients = count(table["group"][named].nunique(), "patient")
    if named.all():
        return f" of {patients}"
    return f" ({named.sum():,} of {patients}, {(~named).sum():,} of unknown patients)" if named.any() else ""


def sampling_unit(table: pd.DataFrame) -> str:
    """Return what the intervals treat as independent."""
    named = table["group"] != table["path"]
    if named.all():
        return "the patient"
    return "the patient if known, else the image" if named.any() else "the image (patients unknown)"


def join(items: Iterable[str]) -> str:
    """Return `a`, `a and b`, or `a, b and c`."""
    *first, last = items
    return f"{', '.join(first)} and {last}" if first else last


def counts(values: pd.Series) -> str:
    """Return the number of occurrences of each value, the most frequent first: `site-a 20, site-b 10`."""
    numbers = values.value_counts()
    text = ", ".join(f"{name} {number:,}" for name, number in numbers.head(MOST_NAMES).items())
    return text + (f" and {len(numbers) - MOST_NAMES} more" if len(numbers) > MOST_NAMES else "")


def by_class(labels: pd.Series) -> str:
    """Return the number of images of each class, in the order of their names."""
    return ", ".join(f"{name} {number:,}" for name, number in labels.value_counts().sort_index().items())


def threshold(value: float) -> str:
    """Return a threshold as text; near 1 with enough digits not to round up to 1, which no probability reaches."""
    if not 0.99 <= value < 1:
        return f"{value:.3g}"
    return f"{value:.{2 - math.floor(math.log10(1 - value))}f}".rstrip("0")


def with_limits(entry: Mapping[str, float | None], digits: int = 3) -> str:
    """Return an entry of `metrics.json` as `0.931 [0.880, 0.962]`; see `Interval.text`."""
    return Interval.from_json(entry).text(digits)


def p_text(p: float) -> str:
    """Return `p = 0.51`, `p = 0.0123` or `p < 0.0001`; empty for NaN, where there is no test."""
    if math.isnan(p):
        return ""
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.2f}" if p >= 0.1 else f"p = {p:.3g}"


def schedule(train: TrainConfig) -> str:
    """Return how the learning rate falls."""
    if train.schedule == "step":
        return f"times {train.step_gamma:g} every {count(train.step_epochs, 'epoch')}"
    return f"{train.schedule}, warm-up over {100 * train.warmup:g} % of the steps"


def augmentation(a: AugmentConfig) -> str:
    """Return the augmentation of training images, `none` if there is none."""
    moves = {
        f"rotation ±{a.rotation:g}°": a.rotation,
        f"affine rotation ±{a.affine_rotation:g}°": a.affine_rotation,
        f"translation ±{100 * a.translation:g} %": a.translation,
        f"scale 1 ± {a.scale:g}": a.scale,
        f"shear ±{a.shear:g}°": a.shear,
        f"zoom-out to 1/{a.zoom_out_max:g} (probability {a.zoom_out:g})": a.zoom_out,
    }
    moved = [text for text, amount in moves.items() if amount]
    if moved and a.geometric < 1:
        moved = [f"with probability {a.geometric:g} {join(moved)}"]
    steps = {
        f"a random crop of {a.random_crop} pixels": a.random_crop,
        f"horizontal flip (probability {a.horizontal_flip:g})": a.horizontal_flip,
        f"vertical flip (probability {a.vertical_flip:g})": a.vertical_flip,
        **dict.fromkeys(moved, True),
        f"brightness ±{a.brightness:g}": a.brightness,
        f"contrast 1 ± {a.contrast:g}": a.contrast,
    }
    return ", ".join(text for text, amount in steps.items() if amount) or "none"


def unreadable(data: int | None, evaluated: int | None) -> str | None:
    """Return how many files of the run's data and of the evaluated images were left out; None if neither is known."""
    numbers = {"the run's data": data, "the evaluated images": evaluated}
    phrases = [f"{number:,} of {what}" for what, number in numbers.items() if number is not None]
    return f"unreadable files left out: {join(phrases)}" if phrases else None


def trained_on(overlap: Overlap | None, split: str | None) -> str | None:
    """Return how many of the evaluated images the model was trained on; None if that is unknown."""
    if overlap is None or overlap.trained_on is None:
        return None
    validated = overlap.validated_on
    selected = "all" if split == "val" else "unknown" if validated is None else f"{validated:,}"
    return f"used for training: {overlap.trained_on:,} of these images; to select the checkpoint: {selected}"
