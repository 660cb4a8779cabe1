"""The files that a report is made of, read once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from config import Config, load_run_config
from evaluation.metrics.table import OVERALL, PER_CLASS
from evaluation.predictions import Predictions, read_predictions
from evaluation.provenance import Provenance
from utils import UserError, read_json

FIRST_METHOD = "gradcam"  # whose maps are shown where several methods drew
ENTRY = ("value", "low", "high")
NEEDED = ("n", "classes", "confusion", "ece_bins", "methods", "per_class", *OVERALL)  # of metrics.json, by the report
OPTIONAL = {  # parts of metrics.json that may be absent or empty, and what each, or each of its rows, then needs
    "ece_if_perfect": ("mean", "p95"),
    "temperature": ("value", "fitted_on", "n", "applied", "ece_here"),
    "operating_points": (
        *("class", "wanted_sensitivity", "threshold", "chosen_on", "sensitivity", "specificity", "ppv", "npv"),
        *("prevalence", "small"),
    ),
    "per_patient": ("n", "mixed", "accuracy"),
    "warnings": ("level", "text"),
}
OF_A_GROUP = ("value", "n", "accuracy", "balanced_accuracy", "macro_f1", "missed", "small")


@dataclass(kw_only=True)
class Maps:
    """What draw_cam.py left in a run's cams folder, as far as it is of the evaluated weights.

    Attributes:
        folder: where the pictures lie.
        table: cams.csv, all columns text. None where it is missing, or where other weights drew the maps.
        mean: the picture of the classes' mean maps; None where it is missing, or of other images.
        refused, mean_refused: why maps, or the mean maps, that are there are left out: a sentence, else empty.
    """

    folder: Path | None = None
    table: pd.DataFrame | None = None
    mean: Path | None = None
    refused: str = ""
    mean_refused: str = ""


@dataclass(kw_only=True)
class Inputs:
    """An evaluation folder and, where there is one, its run folder.

    Attributes:
        folder: where `predictions.csv` and `metrics.json` lie.
        predictions, metrics: what they hold.
        run: the run folder, or None. The following are None (`record`: empty) where the run has no such file.
        record: run.json.
        config: config.yaml.
        split: split.csv, all columns text.
        history: the rows of history.csv, numbers.
        maps: what is in cams/.
    """

    folder: Path
    predictions: Predictions
    metrics: dict[str, Any]
    run: Path | None
    record: dict[str, Any]
    config: Config | None
    split: pd.DataFrame | None
    history: list[dict[str, Any]] | None
    maps: Maps = field(default_factory=Maps)

    @cached_property
    def provenance(self) -> Provenance:
        """What test.py recorded of the evaluation; no field is known for the predictions of another program."""
        return Provenance.from_json(self.metrics.get("evaluation"))


def read_inputs(folder: Path, run: Path | None) -> Inputs:
    """Read what `folder` and `run` hold.

    Raises: `UserError` for a missing or broken predictions.csv or metrics.json, for two that do not belong together,
        and for a broken file of the run (a missing one is only unknown).
    """
    metrics = _read_metrics(folder / "metrics.json")
    predictions = read_predictions(folder / "predictions.csv", metrics["classes"])
    if metrics["n"] != len(predictions):
        raise UserError(
            f"{folder}: metrics.json is of {metrics['n']} images and predictions.csv of {len(predictions)}; "
            "run python test.py again"
        )
    history = _table(run and run / "history.csv", float)
    inputs = Inputs(
        folder=folder,
        predictions=predictions,
        metrics=metrics,
        run=run,
        record=_json(run / "run.json") if run else {},
        config=load_run_config(run / "config.yaml") if run and (run / "config.yaml").is_file() else None,
        split=_table(run and run / "split.csv", str),
        history=None if history is None else history.to_dict("records"),
    )
    return replace(inputs, maps=read_maps(run / "cams", inputs.provenance)) if run else inputs


def read_maps(folder: Path, provenance: Provenance) -> Maps:
    """Return the maps in `folder`, if its cams.json says that the evaluated weights drew them."""
    if not folder.is_dir():
        return Maps()
    record, weights = _json(folder / "cams.json"), provenance.fingerprints
    methods = list(record.get("methods") or [FIRST_METHOD])
    shown = FIRST_METHOD if FIRST_METHOD in methods else methods[0]
    table, mean = _table(folder / "cams.csv", str), folder / f"mean_{shown}.png"
    reason = ""
    if not record.get("weights"):
        reason = "nothing records which weights drew them"
    elif len(weights) != 1:
        reason = "the evaluation does not record that it is of one model's weights"
    elif record["weights"] != weights[0]:
        reason = "other weights drew them"
    if reason:
        refused = f"The maps in {folder.name}/ are left out: {reason}."
        return Maps(folder=folder, refused=refused, mean_refused=refused if mean.is_file() else "")
    if mean.is_file() and (record.get("kind") is None or record["kind"] != provenance.kind):
        of_others = f"The mean maps in {folder.name}/ are left out: they are of other images."
        return Maps(folder=folder, table=table, mean_refused=of_others)
    return Maps(folder=folder, table=table, mean=mean if mean.is_file() else None)


def _read_metrics(path: Path) -> dict[str, Any]:
    """Return metrics.json with everything that the report needs; parts that may be absent are None."""
    if not path.is_file():
        raise UserError(f"{path.parent}: no metrics.json; python test.py writes it")
    remedy = "run python test.py again"
    metrics = {**dict.fromkeys((*OPTIONAL, "subgroups")), **read_json(path, remedy)}
    lacking = next(_lacking(metrics), None)
    if lacking:
        raise UserError(f"{path}: no '{lacking}' in it (an older version of test.py wrote it?); {remedy}")
    return metrics


def _lacking(metrics: dict[str, Any]) -> Iterator[str]:
    """The names of what the report needs and does not find, the first of a part ending it."""

    def absent(where: str, found: Any, names: Iterable[str]) -> Iterator[str]:
        has = found if isinstance(found, dict) else {}
        yield from (f"{where}{name}" for name in names if name not in has)

    yield from absent("", metrics, NEEDED)
    for name in OVERALL:
        yield from absent(f"{name}.", metrics[name], ENTRY)
    for name in metrics["classes"]:
        yield from absent("per_class.", metrics["per_class"], [name])
        row = metrics["per_class"][name]
        yield from absent(f"per_class.{name}.", row, (*PER_CLASS, "support", "small"))
        for measure in PER_CLASS:
            yield from absent(f"per_class.{name}.{measure}.", row[measure], ENTRY)
    parts = [(name, metrics[name], names) for name, names in OPTIONAL.items()]
    parts += [(f"subgroups.{name}", rows, OF_A_GROUP) for name, rows in (metrics["subgroups"] or {}).items()]
    for where, part, names in parts:
        for row in part if isinstance(part, list) else [part] if part else []:
            yield from absent(f"{where}.", row, names)


def _json(path: Path) -> dict[str, Any]:
    """A JSON mapping, empty where the file is missing."""
    return read_json(path, "mend or remove it") if path.is_file() else {}


def _table(path: Path | None, kind: type) -> pd.DataFrame | None:
    """A CSV file; text is read as it stands, an empty number is NaN. None where the file is missing or has no rows."""
    if path is None or not path.is_file():
        return None
    try:
        table = pd.read_csv(path, dtype=kind, keep_default_na=kind is float)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from None
    return table if len(table) else None
