"""Measures, settings, numbers and lists as a sentence has them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from config import AugmentConfig, TrainConfig
from intervals import Interval
from utils import count

MOST_NAMES = 8  # of sources and groups in one phrase
# Measures as the field names them; the others are called what their key says.
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
    """A measure's key as a reader would say it, abbreviations `in_full` where there is room; `auroc A` is class A's."""
    measure, _, of_class = name.partition(" ")
    named = WORDS.get(measure, measure.replace("_", " "))
    if in_full:
        named = SPELLED_OUT.get(measure, named)
    return f"{named} of {of_class}" if of_class else named


def patients_named(table: pd.DataFrame) -> bool:
    """Whether the patient of every image is known: `group` repeats the path where it is not."""
    return bool((table["group"] != table["path"]).all())


def of_patients(table: pd.DataFrame) -> str:
    """` of 81 patients`, as far as patients are known."""
    named = table["group"] != table["path"]
    patients = count(table["group"][named].nunique(), "patient")
    if named.all():
        return f" of {patients}"
    return f" ({named.sum():,} of {patients}, {(~named).sum():,} of unknown ones)" if named.any() else ""


def sampling_unit(table: pd.DataFrame) -> str:
    """What the intervals take for independent."""
    named = table["group"] != table["path"]
    if named.all():
        return "the patient"
    return "the patient, where known, else the image" if named.any() else "the image (patients not known)"


def join(items: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *first, last = items
    return f"{', '.join(first)} and {last}" if first else last


def counts(values: pd.Series) -> str:
    """How often each value occurs, the most frequent first: `site-a 20, site-b 10`."""
    found = values.value_counts()
    text = ", ".join(f"{name} {number:,}" for name, number in found.head(MOST_NAMES).items())
    return text + (f" and {len(found) - MOST_NAMES} more" if len(found) > MOST_NAMES else "")


def by_class(labels: pd.Series) -> str:
    """How many images each class has, in the order of their names."""
    return ", ".join(f"{name} {number:,}" for name, number in labels.value_counts().sort_index().items())


def threshold(value: float) -> str:
    """A probability to compare with: near 1 with three digits of what is missing, since `1` would never be reached."""
    if not 0.99 <= value < 1:
        return f"{value:.3g}"
    return f"{value:.{2 - math.floor(math.log10(1 - value))}f}".rstrip("0")


def with_limits(entry: Mapping[str, float | None], digits: int = 3) -> str:
    """Return an entry of `metrics.json` as `0.931 [0.880, 0.962]`: see `Interval.text`."""
    return Interval.from_json(entry).text(digits)


def p_text(p: float) -> str:
    """`= 0.51`, `= 0.0123`, `< 0.0001`; empty where there is no test."""
    if math.isnan(p):
        return ""
    return "< 0.0001" if p < 1e-4 else f"= {p:.2f}" if p >= 0.1 else f"= {p:.3g}"


def schedule(train: TrainConfig) -> str:
    """How the learning rate falls."""
    if train.schedule == "step":
        return f"times {train.step_gamma:g} every {train.step_epochs} epochs"
    return f"{train.schedule}, warm-up over {100 * train.warmup:g} % of the steps"


def augmentation(a: AugmentConfig) -> str:
    """What is done to a training image, `none` if nothing."""
    moved = [
        *([f"rotation ±{a.rotation:g}°"] if a.rotation else []),
        *([f"affine rotation ±{a.affine_rotation:g}°"] if a.affine_rotation else []),
        *([f"translation ±{100 * a.translation:g} %"] if a.translation else []),
        *([f"scale 1 ± {a.scale:g}"] if a.scale else []),
        *([f"shear ±{a.shear:g}°"] if a.shear else []),
        *([f"zoom-out to 1/{a.zoom_out_max:g} (probability {a.zoom_out:g})"] if a.zoom_out else []),
    ]
    if moved and a.geometric < 1:
        moved = [f"with probability {a.geometric:g} {join(moved)}"]
    found = [
        *([f"a random crop of {a.random_crop} pixels"] if a.random_crop else []),
        *([f"horizontal flip (probability {a.horizontal_flip:g})"] if a.horizontal_flip else []),
        *([f"vertical flip (probability {a.vertical_flip:g})"] if a.vertical_flip else []),
        *moved,
        *([f"brightness ±{a.brightness:g}"] if a.brightness else []),
        *([f"contrast 1 ± {a.contrast:g}"] if a.contrast else []),
    ]
    return ", ".join(found) or "none"


def unreadable(data: int | None, evaluated: int | None) -> str | None:
    """What was left out of the run's data, and of the images that were to be evaluated: often, not always, the same."""
    if data == evaluated == 0:
        return "no file was unreadable"
    sets = (("of the run's data", data), ("of the evaluated images", evaluated))
    known = [
        f"{count(number, 'unreadable file')} {of} left out" if number else f"no file {of} was unreadable"
        for of, number in sets
        if number is not None
    ]
    return join(known) if known else None


def trained_on(overlap: dict[str, Any], kind: str | None) -> str | None:
    """How many of the evaluated images the model had seen; None where that is not known."""
    trained, validated = overlap.get("trained_on"), overlap.get("validated_on")
    if trained is None:
        return None
    text = f"{trained:,} of these images were trained on" if trained else "no evaluated image was trained on"
    if kind == "val":
        return f"{text}, all of them chose the epoch"
    if validated is None:
        return f"{text}, and whether any chose the epoch is not known"
    return f"{text}, {validated:,} chose the epoch" if validated else f"{text}, and none chose the epoch"
