"""Metrics as files and as text: `metrics.json`, `metrics.csv`, and the tables that a terminal shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evaluation.metrics.table import OVERALL, PER_CLASS, SMALL
from evaluation.phrases import with_limits
from utils import write_csv, write_json

SUFFIXES = {"": "value", "_low": "low", "_high": "high"}


def per_class_table(metrics: dict[str, Any]) -> pd.DataFrame:
    """A row per class: each of `PER_CLASS` with its limits as NAME, NAME_low and NAME_high, and support."""
    rows = {
        name: {
            **{m + suffix: row[m][part] for m in PER_CLASS for suffix, part in SUFFIXES.items()},
            "support": row["support"],
        }
        for name, row in metrics["per_class"].items()
    }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("class")
    return table.astype({column: float for column in table if column != "support"})


def write_metrics(metrics: dict[str, Any], folder: Path) -> None:
    """Write `metrics.json` and the per-class `metrics.csv` into `folder`."""
    write_json(folder / "metrics.json", metrics)
    table = per_class_table(metrics).reset_index()
    write_csv(folder / "metrics.csv", table.astype(object).where(table.notna(), "").to_dict("records"))


def _patients(metrics: dict[str, Any]) -> str:
    unknown = metrics["images_of_unknown_patients"]
    if unknown == metrics["n"]:
        return "patients not known"
    known = f"{metrics['patients'] - unknown} patients"
    return f"{known} and {unknown} images of unknown ones" if unknown else known


def format_metrics(metrics: dict[str, Any]) -> str:
    """The metrics as text for a terminal: the headline, the per-class table and the confusion matrix."""
    correct = int(np.trace(np.array(metrics["confusion"])))
    lines = {name: with_limits(metrics[name]) for name in OVERALL}
    lines["accuracy"] += f"   ({correct} of {metrics['n']} images, {_patients(metrics)})"
    lines["ece"] += f"   ({metrics['ece_bins']} bins"
    if perfect := metrics.get("ece_if_perfect"):
        lines["ece"] += f"; a perfectly calibrated model: {perfect['mean']:.3f}, rarely over {perfect['p95']:.3f}"
    lines["ece"] += ")"
    lines["brier"] += "   (from 0 to 2)"
    head = "\n".join(f"{name.replace('_', ' '):24}{text}" for name, text in lines.items())
    shown = [m for m in PER_CLASS if m != "accuracy"]
    table = pd.DataFrame(
        {
            name + ("*" if row["small"] else ""): [*(with_limits(row[m], 2) for m in shown), row["support"]]
            for name, row in metrics["per_class"].items()
        },
        index=[*(m.replace("_", " ") for m in shown), "images"],
    )
    classes = metrics["classes"]
    counts = pd.DataFrame(metrics["confusion"], index=pd.Index(classes, name="true \\ predicted"), columns=classes)
    small = any(row["small"] for row in metrics["per_class"].values())
    note = [f"* fewer than {SMALL} images: too small to rank"] if small else []
    return "\n\n".join([head, "\n".join([table.to_string(), *note]), counts.to_string()])


def severe_warnings(metrics: dict[str, Any]) -> list[str]:
    """Return the severe warnings of a `metrics.json`: each makes its numbers worthless."""
    return [warning["text"] for warning in metrics.get("warnings") or [] if warning.get("level") == "severe"]
