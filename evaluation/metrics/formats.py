"""Metrics as files and as text: `metrics.json`, `metrics.csv`, and the tables that the terminal shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evaluation.metrics.table import OVERALL, PER_CLASS, SMALL
from evaluation.phrases import with_limits
from utils import count, write_csv, write_json

SUFFIXES = {"": "value", "_low": "low", "_high": "high"}


def per_class_rows(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row per class: each of `PER_CLASS` with its limits as NAME, NAME_low and NAME_high, and support."""
    return [
        {"class": name}
        | {key + suffix: row[key][part] for key in PER_CLASS for suffix, part in SUFFIXES.items()}
        | {"support": row["support"]}
        for name, row in metrics["per_class"].items()
    ]


def write_metrics(metrics: dict[str, Any], folder: Path) -> None:
    """Write `metrics.json` and the per-class `metrics.csv` into `folder`."""
    write_json(folder / "metrics.json", metrics)
    write_csv(folder / "metrics.csv", per_class_rows(metrics))


def severe_warnings(metrics: dict[str, Any]) -> list[str]:
    """Return the severe warnings of a `metrics.json`: each makes its numbers worthless."""
    return [warning["text"] for warning in metrics.get("warnings") or [] if warning.get("level") == "severe"]


def format_metrics(metrics: dict[str, Any]) -> str:
    """Return the metrics as text for a terminal: the headline, the per-class table and the confusion matrix."""
    classes, per_class = metrics["classes"], metrics["per_class"]
    perfect = metrics.get("ece_if_perfect")
    error = "; a perfectly calibrated model: {mean:.3f}, rarely over {p95:.3f}".format(**perfect) if perfect else ""
    notes = dict.fromkeys(OVERALL, "") | {
        "accuracy": f"   ({np.trace(np.array(metrics['confusion']))} of {metrics['n']} images, {_patients(metrics)})",
        "ece": f"   ({metrics['ece_bins']} bins{error})",
        "brier": "   (from 0 to 2)",
    }
    head = "\n".join(f"{name.replace('_', ' '):24}{with_limits(metrics[name])}{note}" for name, note in notes.items())
    keys = [key for key in PER_CLASS if key != "accuracy"]
    columns = {
        name + "*" * row["small"]: [*(with_limits(row[key], 2) for key in keys), row["support"]]
        for name, row in per_class.items()
    }
    table = pd.DataFrame(columns, index=[*(key.replace("_", " ") for key in keys), "images"]).to_string()
    if any(row["small"] for row in per_class.values()):
        table += f"\n* fewer than {SMALL} images: too small to rank"
    counts = pd.DataFrame(metrics["confusion"], index=pd.Index(classes, name="true \\ predicted"), columns=classes)
    return "\n\n".join([head, table, counts.to_string()])


def _patients(metrics: dict[str, Any]) -> str:
    unknown = metrics["images_of_unknown_patients"]
    if unknown == metrics["n"]:
        return "patients unknown"
    known = count(metrics["patients"] - unknown, "patient")
    return f"{known} and {count(unknown, 'image')} of unknown patients" if unknown else known
