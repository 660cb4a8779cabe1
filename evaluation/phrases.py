"""Numbers and lists as a sentence has them."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

MOST_NAMES = 8  # of sources and groups in one phrase
# Measures as a sentence names them; the others are called what their key says.
WORDS = {
    "macro_f1": "macro F1",
    "mcc": "Matthews correlation",
    "macro_auroc": "macro AUROC",
    "macro_average_precision": "macro average precision",
    "ece": "expected calibration error (ECE)",
    "adaptive_ece": "adaptive ECE",
    "brier": "Brier score",
    "f1": "F1",
    "auroc": "AUROC",
}


def count(number: int, noun: str) -> str:
    """`1 image`, `1,600 images`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def words(name: str) -> str:
    """A measure's key as a reader would say it."""
    return WORDS.get(name, name.replace("_", " "))


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
    """A probability to compare with: more digits near 1, where `1` would never be reached."""
    return f"{value:.3g}" if value < 0.99 else f"{value:.5f}"
