"""Every run of a folder beside the others: what it was, and how well it did on which images."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from evaluation.phrases import with_limits
from utils import UserError, log, read_json

NOTHING = {"value": None, "low": None, "high": None}
WIDEST = 32  # characters of a cell


@dataclass
class Entry:
    """One run.

    Attributes:
        path: the run folder.
        model, init, data, commit, status: as run.json has them; `-` where it does not.
        accuracy: `value`, `low` and `high` of the evaluation, each None where there is none.
        valid_accuracy, seconds: of the epoch of best.pt, and of the whole training; None: no epoch has ended.
        images: a mark that runs share whose evaluation has the same images with the same labels; empty: not known.
        n: how many those are.
        warnings: the severe ones of the evaluation, and why an evaluation that is there does not count.
    """

    path: Path
    model: str
    init: str
    data: str
    commit: str
    status: str
    accuracy: dict[str, float | None] = field(default_factory=lambda: dict(NOTHING))
    valid_accuracy: float | None = None
    seconds: float | None = None
    images: str = ""
    n: int | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The run folder's name; of a search's trial, the search's too."""
        parent = self.path.parent
        return f"{parent.parent.name}/{self.path.name}" if parent.name == "trials" else self.path.name

    @property
    def merit(self) -> tuple[float, float, str]:
        """Sorts the best first; those without an evaluation come last, by their validation accuracy."""
        values = (self.accuracy["value"], self.valid_accuracy)
        return (*(math.inf if value is None else -value for value in values), self.name)


def read_runs(parent: Path, kind: str = "test") -> list[Entry]:
    """Every run folder in `parent`, with what test.py said of its `kind` split; of a search (`tune-NAME/`) the trials
    whose weights it keeps. Those whose run.json cannot be read are passed over, and said.
    """
    from tqdm import tqdm

    found = []
    kept = [file for file in parent.glob("tune-*/trials/*/run.json") if (file.parent / "best.pt").exists()]
    files = sorted([*parent.glob("*/run.json"), *kept])
    for file in tqdm(files, desc="runs", unit="run", leave=False, delay=1):
        try:
            found.append(_read_run(file, kind))
        except UserError as error:
            log.warning(f"{error}")
    return sorted(found, key=lambda entry: entry.merit)


def _read_run(file: Path, kind: str) -> Entry:
    record = read_json(file, "this run is passed over")
    if not isinstance(record.get("status"), str) or not isinstance(record.get("model"), str):
        raise UserError(f"{file}: no status or no model in it; this run is passed over")
    texts = {name: str(record.get(name) or "-") for name in ("model", "init", "data", "commit", "status")}
    entry = Entry(file.parent, **texts)
    _add_training(entry, record)
    _add_evaluation(entry, record, kind)
    return entry


def _add_training(entry: Entry, record: dict[str, Any]) -> None:
    """From history.csv: a run that was interrupted has one too."""
    try:
        history = pd.read_csv(entry.path / "history.csv")
        entry.valid_accuracy = float(history["valid_accuracy"][history["valid_loss"].idxmin()])
        entry.seconds = float(history["seconds"].sum())
    except FileNotFoundError:
        if record["status"] == "finished":
            entry.warnings.append("its history.csv is gone")
    except (OSError, ValueError, KeyError, TypeError):  # pandas' own errors are ValueErrors
        entry.warnings.append("its history.csv cannot be read")


def _add_evaluation(entry: Entry, record: dict[str, Any], kind: str) -> None:
    folder = entry.path / kind
    if not (folder / "metrics.json").is_file():
        entry.images, entry.n = _mark(entry.path / "split.csv", kind)
        return
    entry.images, entry.n = _mark(folder / "predictions.csv")
    again = f"run test.py --kind {kind} again"
    try:
        metrics = read_json(folder / "metrics.json", again)
        accuracy = {name: metrics["accuracy"][name] for name in NOTHING}
        severe = [warning["text"] for warning in metrics.get("warnings") or [] if warning["level"] == "severe"]
        tested = (metrics.get("evaluation") or {}).get("finished")
        trained_on = max(
            [record.get("finished") or "", *(part.get("time") or "" for part in record.get("resumed") or [])]
        )
    except (UserError, KeyError, TypeError, AttributeError):
        entry.warnings.append(f"its {kind}/metrics.json cannot be read: {again}")
        return
    if tested and record.get("resumed") and tested < trained_on:  # both in UTC, ISO 8601
        entry.warnings.append(f"it was trained on after its evaluation: {again}")
        return
    entry.accuracy = accuracy
    entry.warnings += severe


def _mark(file: Path, kind: str | None = None) -> tuple[str, int | None]:
    """A mark of the images and labels in a predictions.csv, or in the `kind` rows of a split.csv, and their number."""
    columns = ["sha256", "label", *(["split"] if kind else [])]
    try:
        table = pd.read_csv(file, usecols=columns, dtype=str, keep_default_na=False)
    except (OSError, ValueError):
        return "", None
    table = table[table["split"] == kind] if kind else table
    if table.empty or (table["sha256"] == "").any():
        return "", None
    lines = sorted(f"{sha} {label}" for sha, label in zip(table["sha256"], table["label"], strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:8], len(lines)


def groups(entries: Sequence[Entry]) -> list[list[Entry]]:
    """The entries by their images, the largest group first, that of unknown images last; the order within stays."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry.images, []).append(entry)
    return sorted(found.values(), key=lambda group: (not group[0].images, -len(group)))


def format_leaderboard(entries: Sequence[Entry], kind: str = "test") -> str:
    """The leaderboard for a terminal: a table for each set of images, and what may not be read from it."""
    found = groups(entries)
    blocks = [f"{_heading(group, kind)}\n{_table(group).to_string()}" for group in found]
    lines = [f"WARNING: {entry.name}: {text}" for entry in entries for text in entry.warnings]
    if len(found) > 1:
        lines.append(f"The tables are of different {kind} images: a ranking across them means nothing.")
    untested = [entry.path for entry in entries if entry.accuracy["value"] is None]
    if untested:
        lines.append(f"-: not evaluated: python test.py --weights {untested[0]} --kind {kind}")
    if any(sum(entry.accuracy["value"] is not None for entry in group) > 1 for group in found if group[0].images):
        lines.append("Within a table, whether a difference is more than chance: python compare.py RUN RUN")
    return "\n\n".join([*blocks, "\n".join(lines)] if lines else blocks)


def _heading(group: Sequence[Entry], kind: str) -> str:
    first, several = group[0], len(group) > 1
    runs = f"{len(group)} runs" if several else "1 run"
    if not first.images:
        return f"{runs} whose {kind} images are not known" + ", and so not to be compared with each other" * several
    return f"{runs} on {'the same ' * several}{first.n} {kind} images (mark {first.images})"


def _table(group: Sequence[Entry]) -> pd.DataFrame:
    rows = {
        entry.name: {
            "accuracy [95 %]": with_limits(entry.accuracy),
            "validation": "-" if entry.valid_accuracy is None else f"{entry.valid_accuracy:.3f}",
            "training": _duration(entry.seconds),
            "model": entry.model,
            "initial weights": _short(entry.init),
            "data": _short(entry.data),
            "commit": entry.commit,
            "status": entry.status,
        }
        for entry in group
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def _short(text: str) -> str:
    """Without its middle if it is long: weights differ in how they begin, folders in how they end."""
    return text if len(text) <= WIDEST else f"{text[: WIDEST // 2 - 1]}…{text[-WIDEST // 2 :]}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def leaderboard_rows(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """The same as rows of a CSV file, with nothing cut; `images` tells which rows may be compared."""
    return [
        {
            "run": entry.name,
            "model": entry.model,
            "init": entry.init,
            "data": entry.data,
            "images": entry.images,
            "n": entry.n,
            "accuracy": entry.accuracy["value"],
            "low": entry.accuracy["low"],
            "high": entry.accuracy["high"],
            "valid_accuracy": entry.valid_accuracy,
            "train_seconds": entry.seconds,
            "commit": entry.commit,
            "status": entry.status,
            "warnings": " ".join(entry.warnings),
        }
        for entry in entries
    ]
