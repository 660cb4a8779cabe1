"""Every run of a folder beside the others: its model and data, and how well it did on which images."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from evaluation.metrics.formats import severe_warnings
from intervals import UNKNOWN, Interval
from utils import UserError, best_epoch, count, elide, log, read_json

WIDEST = 32  # characters of a cell


@dataclass(kw_only=True)
class Entry:
    """One run.

    Attributes:
        path: the run folder.
        model, init, data, commit, status: as in run.json; `-` if missing there.
        accuracy: of the evaluation; NaN without one.
        valid_accuracy, seconds: of the epoch in best.pt, and of the whole training; None: no epoch has ended.
        images: a mark that two runs share if they were evaluated on the same images with the same labels; empty where
            the images are unknown.
        n: the number of these images.
        warnings: the evaluation's severe ones, and why an existing evaluation does not count.
    """

    path: Path
    model: str
    init: str
    data: str
    commit: str
    status: str
    accuracy: Interval = UNKNOWN
    valid_accuracy: float | None = None
    seconds: float | None = None
    images: str = ""
    n: int | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The run folder's name; for a trial, after the name of its search."""
        parent = self.path.parent
        return f"{parent.parent.name}/{self.path.name}" if parent.name == "trials" else self.path.name

    @property
    def evaluated(self) -> bool:
        """True if there is an evaluation of the current weights."""
        return not math.isnan(self.accuracy.value)

    @property
    def merit(self) -> tuple[float, float, str]:
        """A key that sorts the best first; runs without an evaluation come last, by their validation accuracy."""
        accuracy = -self.accuracy.value if self.evaluated else math.inf
        return accuracy, math.inf if self.valid_accuracy is None else -self.valid_accuracy, self.name

    def read_training(self) -> None:
        """Fill in what history.csv says; an interrupted run has one too."""
        try:
            history = pd.read_csv(self.path / "history.csv")
            self.valid_accuracy = float(best_epoch(history.to_dict("records"))["valid_accuracy"])
            self.seconds = float(history["seconds"].sum())
        except (OSError, ValueError, KeyError, TypeError) as error:  # pandas' own errors are ValueErrors
            if self.status == "finished" or not isinstance(error, FileNotFoundError):
                self.warnings.append("its history.csv is missing or cannot be read")

    def read_evaluation(self, record: dict[str, Any], split: str) -> None:
        """Fill in what the evaluation of `split` says; `record` is run.json."""
        file, remedy = self.path / split / "metrics.json", f"run test.py --kind {split} again"
        if not file.is_file():
            self.images, self.n = _mark(self.path / "split.csv", split)
            return
        self.images, self.n = _mark(file.with_name("predictions.csv"))
        try:
            metrics = read_json(file, remedy)
            accuracy, warnings = Interval.from_json(metrics["accuracy"]), severe_warnings(metrics)
            tested = (metrics.get("evaluation") or {}).get("finished")
            resumed = [part.get("time") or "" for part in record.get("resumed") or []]
            if tested and resumed and tested < max(record.get("finished") or "", *resumed):  # in UTC, ISO 8601
                accuracy, warnings = UNKNOWN, [f"it was trained further after its evaluation; {remedy}"]
        except (UserError, KeyError, TypeError, AttributeError):
            accuracy, warnings = UNKNOWN, [f"its {split}/metrics.json cannot be read; {remedy}"]
        self.accuracy = accuracy
        self.warnings += warnings


def read_runs(parent: Path, split: str = "test") -> list[Entry]:
    """Return every run folder in `parent` with its evaluation on `split`, the best first.

    A search (`tune-NAME/`) contributes the trials that still have weights. A run whose run.json cannot be read is left
    out with a warning.
    """
    trials = [file for file in parent.glob("tune-*/trials/*/run.json") if file.with_name("best.pt").exists()]
    entries = []
    for file in tqdm(sorted([*parent.glob("*/run.json"), *trials]), desc="runs", unit="run", leave=False, delay=1):
        try:
            entries.append(_read_run(file, split))
        except UserError as error:
            log.warning(f"{error}")
    return sorted(entries, key=lambda entry: entry.merit)


def _read_run(file: Path, split: str) -> Entry:
    record = read_json(file, "this run is left out")
    if not isinstance(record.get("status"), str) or not isinstance(record.get("model"), str):
        raise UserError(f"{file}: it has no status or no model; this run is left out")
    texts = {name: str(record.get(name) or "-") for name in ("model", "init", "data", "commit", "status")}
    entry = Entry(path=file.parent, **texts)
    entry.read_training()
    entry.read_evaluation(record, split)
    return entry


def _mark(file: Path, split: str | None = None) -> tuple[str, int | None]:
    """Return a mark of the images and labels in a predictions.csv, or in a split.csv's `split`, and their number."""
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
        table = table[table["split"] == split] if split else table
        lines = sorted(table["sha256"] + " " + table["label"])
    except (OSError, ValueError, KeyError):
        return "", None
    if not lines or (table["sha256"] == "").any():
        return "", None
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:8], len(lines)


def groups(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Return the entries by their images, the largest group first, unknown images last; the order within stays."""
    marks = dict.fromkeys(entry.images for entry in entries)
    tables = [[entry for entry in entries if entry.images == mark] for mark in marks]
    return sorted(tables, key=lambda group: (not group[0].images, -len(group)))


def format_leaderboard(entries: Sequence[Entry], split: str = "test") -> str:
    """Return the leaderboard for a terminal: a table for each set of images, and what must not be read from it."""
    tables = groups(entries)
    blocks = [f"{_heading(group, split)}\n{_table(group).to_string()}" for group in tables]
    notes = []
    if len(tables) > 1:
        notes.append(f"The tables are of different {split} images: a ranking across them means nothing.")
    if untested := [entry.path for entry in entries if not entry.evaluated]:
        notes.append(f"-: not evaluated; run python test.py --weights {untested[0]} --kind {split}")
    if any(sum(entry.evaluated for entry in group) > 1 for group in tables if group[0].images):
        notes.append("To test whether a difference within a table is more than chance: python compare.py RUN RUN")
    return "\n\n".join([*blocks, "\n".join(notes)] if notes else blocks)


def _heading(group: Sequence[Entry], split: str) -> str:
    first, several, runs = group[0], len(group) > 1, count(len(group), "run")
    if not first.images:
        return f"{runs} whose {split} images are unknown" + ", so not comparable with each other" * several
    return f"{runs} on {'the same ' * several}{count(first.n, f'{split} image')} (mark {first.images})"


def _table(group: Sequence[Entry]) -> pd.DataFrame:
    rows = {
        entry.name: {
            "accuracy [95 %]": entry.accuracy.text(),
            "validation": "-" if entry.valid_accuracy is None else f"{entry.valid_accuracy:.3f}",
            "training": _duration(entry.seconds),
            "model": entry.model,
            "initial weights": elide(entry.init, WIDEST),
            "data": elide(entry.data, WIDEST),
            "commit": entry.commit,
            "status": entry.status,
        }
        for entry in group
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    units = (f"{seconds / size:.1f} {unit}" for unit, size in (("h", 3600), ("min", 60)) if seconds >= size)
    return next(units, f"{seconds:.0f} s")


def leaderboard_rows(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Return the rows of leaderboard.csv, nothing shortened; rows with the same `images` may be compared."""
    return [
        {
            "run": entry.name,
            **{name: getattr(entry, name) for name in ("model", "init", "data", "images", "n")},
            **dict(zip(("accuracy", "low", "high"), entry.accuracy.to_json().values(), strict=True)),
            "valid_accuracy": entry.valid_accuracy,
            "train_seconds": entry.seconds,
            "commit": entry.commit,
            "status": entry.status,
            "warnings": " ".join(entry.warnings),
        }
        for entry in entries
    ]
