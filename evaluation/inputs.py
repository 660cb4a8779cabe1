"""The files that a report is made of, read once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from config import Config, load_run_config
from evaluation.predictions import Predictions, read_predictions
from utils import UserError


@dataclass
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
        maps: cams/cams.csv, all columns text.
    """

    folder: Path
    predictions: Predictions
    metrics: dict[str, Any]
    run: Path | None
    record: dict[str, Any]
    config: Config | None
    split: pd.DataFrame | None
    history: list[dict[str, Any]] | None
    maps: pd.DataFrame | None

    @property
    def evaluation(self) -> dict[str, Any]:
        """What test.py noted of the evaluation; empty for the predictions of another program."""
        return self.metrics.get("evaluation") or {}


def read_inputs(folder: Path, run: Path | None) -> Inputs:
    """Read what `folder` and `run` hold.

    Raises: `UserError` for a missing or broken predictions.csv or metrics.json, for two that do not belong together,
        and for a broken file of the run (a missing one is only unknown).
    """
    metrics = _json(folder / "metrics.json")
    if metrics is None:
        raise UserError(f"{folder}: no metrics.json; python test.py writes it")
    try:
        predictions = read_predictions(folder / "predictions.csv", metrics["classes"])
        if metrics["n"] != len(predictions):
            raise UserError(
                f"{folder}: metrics.json is of {metrics['n']} images and predictions.csv of {len(predictions)}; "
                "run test.py again"
            )
    except KeyError as error:
        raise UserError(f"{folder / 'metrics.json'}: no {error}; run test.py again") from None
    history = _table(run and run / "history.csv", float)
    return Inputs(
        folder,
        predictions,
        metrics,
        run,
        (run and _json(run / "run.json")) or {},
        load_run_config(run / "config.yaml") if run and (run / "config.yaml").is_file() else None,
        _table(run and run / "split.csv", str),
        None if history is None else history.to_dict("records"),
        _table(run and run / "cams" / "cams.csv", str),
    )


def _json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from None


def _table(path: Path | None, kind: type) -> pd.DataFrame | None:
    """A CSV file; text is read as it stands, an empty number is NaN. None where the file is missing or has no rows."""
    if path is None or not path.is_file():
        return None
    try:
        table = pd.read_csv(path, dtype=kind, keep_default_na=kind is float)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from None
    return table if len(table) else None
