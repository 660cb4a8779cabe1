"""The files that a report is made of, read once."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from config import Config, load_run_config
from evaluation.metrics.table import OVERALL
from evaluation.predictions import Predictions, read_predictions
from evaluation.provenance import Provenance
from utils import UserError, read_json

FIRST_METHOD = "gradcam"  # its maps are preferred if several methods drew some
RERUN = "run python test.py again"
OPTIONAL = ("ece_if_perfect", "temperature", "operating_points", "per_patient", "subgroups", "warnings")


@dataclass(kw_only=True)
class Maps:
    """The maps of the evaluated weights in a run's cams folder.

    Attributes:
        table: cams.csv, all columns text; None if it is missing or other weights drew the maps.
        mean: the figure of the classes' mean maps; None if it is missing or shows other images.
        refused, mean_refused: why existing maps, or the mean maps, are left out: a sentence, else empty.
    """

    folder: Path | None = None
    table: pd.DataFrame | None = None
    mean: Path | None = None
    refused: str = ""
    mean_refused: str = ""


@dataclass(kw_only=True)
class Inputs:
    """An evaluation folder and, if there is one, its run folder.

    Attributes:
        folder: the folder of `predictions.csv` and `metrics.json`.
        predictions, metrics: their contents.
        run: the run folder, or None.
        record, config: run.json and config.yaml; empty and None if missing.
        split: split.csv, all columns text; None if missing.
        history: history.csv, as numbers; None if missing.
        maps: from cams/.
    """

    folder: Path
    predictions: Predictions
    metrics: dict[str, Any]
    run: Path | None
    record: dict[str, Any]
    config: Config | None
    split: pd.DataFrame | None
    history: pd.DataFrame | None
    maps: Maps = field(default_factory=Maps)

    @cached_property
    def provenance(self) -> Provenance:
        """The record that test.py made of the evaluation; all unknown for the predictions of another program."""
        return Provenance.from_json(self.metrics.get("evaluation"))


def read_inputs(folder: Path, run: Path | None) -> Inputs:
    """Read what `folder` and `run` hold.

    Raises: `UserError` if predictions.csv or metrics.json is missing or broken, if they do not belong together, or if a
        file of the run is broken (a missing one is only unknown).
    """
    metrics = _read_metrics(folder / "metrics.json")
    predictions = read_predictions(folder / "predictions.csv", metrics["classes"])
    if metrics["n"] != len(predictions):
        numbers = f"{metrics['n']} images in metrics.json, but {len(predictions)} in predictions.csv"
        raise UserError(f"{folder}: {numbers}; {RERUN}")
    inputs = Inputs(
        folder=folder,
        predictions=predictions,
        metrics=metrics,
        run=run,
        record=_read_record(run / "run.json") if run else {},
        config=load_run_config(run / "config.yaml") if run and (run / "config.yaml").is_file() else None,
        split=_read_table(run and run / "split.csv", str),
        history=_read_table(run and run / "history.csv", float),
    )
    return replace(inputs, maps=read_maps(run / "cams", inputs.provenance)) if run else inputs


def read_maps(folder: Path, provenance: Provenance) -> Maps:
    """Read the maps in `folder`, if its cams.json says that the evaluated weights drew them."""
    if not folder.is_dir():
        return Maps()
    record, weights = _read_record(folder / "cams.json"), provenance.fingerprints
    methods = list(record.get("methods") or [FIRST_METHOD])
    mean = folder / f"mean_{FIRST_METHOD if FIRST_METHOD in methods else methods[0]}.png"
    reason = ""
    if not record.get("weights"):
        reason = "nothing records which weights drew them"
    elif len(weights) != 1:
        reason = "the evaluation does not record the weights of a single model"
    elif record["weights"] != weights[0]:
        reason = "other weights drew them"
    if reason:
        refused = f"The maps in {folder.name}/ are left out: {reason}."
        return Maps(folder=folder, refused=refused, mean_refused=refused if mean.is_file() else "")
    maps = Maps(folder=folder, table=_read_table(folder / "cams.csv", str))
    if mean.is_file() and (record.get("kind") is None or record["kind"] != provenance.kind):
        return replace(maps, mean_refused=f"The mean maps in {folder.name}/ are left out: they show other images.")
    return replace(maps, mean=mean if mean.is_file() else None)


def _read_metrics(path: Path) -> dict[str, Any]:
    """Return metrics.json; parts that may be absent are None, and reading any other missing key raises `UserError`."""
    if not path.is_file():
        raise UserError(f"{path.parent}: no metrics.json; python test.py writes it")

    class Entry(dict):
        def __missing__(self, key: str) -> None:
            raise UserError(f"{path}: no '{key}' in it (written by an older version of test.py?); {RERUN}")

    metrics = dict.fromkeys(OPTIONAL) | read_json(path, RERUN)
    metrics |= {name: {} for name in OVERALL if not isinstance(metrics.get(name, {}), dict)}
    return json.loads(json.dumps(metrics), object_hook=Entry)


def _read_record(path: Path) -> dict[str, Any]:
    """Return a JSON mapping; empty if the file is missing."""
    return read_json(path, "fix or delete it") if path.is_file() else {}


def _read_table(path: Path | None, dtype: type) -> pd.DataFrame | None:
    """Return a CSV file, text as it stands and empty numbers as NaN; None if it is missing or has no rows."""
    if path is None or not path.is_file():
        return None
    try:
        table = pd.read_csv(path, dtype=dtype, keep_default_na=dtype is float)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]}); fix or delete it") from None
    return table if len(table) else None
