"""Predictions for a run's validation images, and the temperature fitted on them: kept beside the checkpoint.

Beside `best.pt` they are `best.validation.csv` and `best.temperature.json` (`best-tta.…` with test-time augmentation).
The second records the weights, views and precision that it belongs to; other files are ignored.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from evaluation.metrics.temperature import Temperature, temperature_from_validation
from evaluation.predictions import Predictions, read_predictions, write_predictions
from inference.ensemble import Ensemble, validation_hashes
from utils import UserError, file_sha256, log, read_json, write_json

NEITHER = "no temperature and no operating points"


class ValidationFiles:
    """The validation predictions and the temperature of an ensemble, on disk for a single checkpoint only."""

    def __init__(self, ensemble: Ensemble) -> None:
        self.ensemble = ensemble
        self.selection = ensemble.first
        self.single = len(ensemble.selections) == 1

    def predictions(self) -> Predictions | None:
        """Return predictions for the first run's validation images: the kept ones, else new ones, which are then kept.

        None, with a warning, if they are unavailable.
        """
        file = self.predictions_file()
        if file is not None:
            return read_predictions(file, self.ensemble.classes)
        records = self._records()
        if records is None:
            return None
        if self.ensemble.trained_on(records):
            log.warning(f"{NEITHER}: one checkpoint was trained on validation images of another")
            return None
        data = replace(self.selection.data, path=None, subset=False)
        predictions = self.ensemble.predict(records, data, "validation").labelled()
        if self.single:
            self._keep(predictions)
        return predictions

    def predictions_file(self) -> Path | None:
        """Return the file of kept predictions, if they belong to these weights, views and precision."""
        file, record = self._beside("validation.csv"), self._record()
        whole = record is not None and file.is_file() and record.get("predictions") == file_sha256(file)
        return file if whole and self.selection.run is not None else None

    def temperature(self, predictions: Predictions | None) -> Temperature | None:
        """Return the kept temperature, if it belongs to these weights, else the one that `predictions` give."""
        record = self._record()
        if record is not None:
            return None if record["value"] is None else Temperature.from_json(record)
        return None if predictions is None else temperature_from_validation(predictions)

    def _records(self) -> pd.DataFrame | None:
        """Return the first run's validation images: where its split.csv has them, else where `--data` says."""
        selection = self.selection
        if selection.run is None:
            log.warning(f"{NEITHER}: {selection.checkpoint.path} is not in a run folder")
            return None
        hashes, reasons = validation_hashes(selection.run), []
        for path in dict.fromkeys((None, selection.data.path)):
            data = replace(selection.data, path=path, subset=False)
            try:
                records = replace(selection, data=data).dataset().records
            except UserError as error:
                reasons.append(str(error))
                continue
            records = records[records["sha256"].isin(hashes)]
            if len(records):
                return records.reset_index(drop=True)
        log.warning(f"{NEITHER}: {reasons[0] if reasons else 'the run has no validation images'}")
        return None

    def _keep(self, predictions: Predictions) -> None:
        """Write the predictions and their temperature beside the checkpoint; if that fails, warn."""
        file = self._beside("validation.csv")
        try:
            write_predictions(predictions.table, file)
            temperature = temperature_from_validation(predictions)
            entry = temperature.to_json() if temperature else {"value": None}
            mark = {"key": self._key(), "predictions": file_sha256(file)}
            write_json(self._beside("temperature.json"), entry | mark)
        except OSError as error:
            log.warning(f"{file}: the validation predictions cannot be kept ({error.strerror})")

    def _key(self) -> dict[str, Any]:
        weights = self.selection.checkpoint.fingerprint
        return {"weights": weights, "tta": self.ensemble.tta, "precision": self.selection.precision}

    def _beside(self, name: str) -> Path:
        path = self.selection.checkpoint.path
        return path.with_name(f"{path.stem}{'-tta' if self.ensemble.tta else ''}.{name}")

    def _record(self) -> dict[str, Any] | None:
        """Return the `.temperature.json` beside a single checkpoint; None if it has another key or cannot be read."""
        file = self._beside("temperature.json")
        if not self.single or not file.is_file():
            return None
        try:
            record = read_json(file, "it is ignored")
            usable = record["value"] is None or float(record["value"])
        except (UserError, ValueError, KeyError, TypeError):
            log.warning(f"{file}: cannot be read; it is ignored")
            return None
        return record if usable and record.get("key") == self._key() else None
