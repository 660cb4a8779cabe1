"""The checkpoints of one evaluation, one or an ensemble: what they say of the same images, and what they know."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from config import DataConfig
from dataset.image_set import ImageSet, make_image_set
from dataset.loading import load_dataset, read_split
from evaluation.metrics.temperature import temperature_from_validation
from evaluation.predictions import Predictions, prediction_table, read_predictions, write_predictions
from experiment.selection import Selection
from inference.predict import predict_logits, softmax
from utils import UserError, file_sha256, log, read_json, shortened_name, shown, write_json

NO_VALIDATION = "no temperature and no operating points"


@dataclass
class Ensemble:
    """Selections that answer together: the mean of their probabilities. All know the same classes.

    Args:
        selections: at least one.
        batch: images per forward pass.
        tta: whether each picture's mirror image is averaged in.

    Attributes:
        left_out: unreadable files and why, of the last predictions.

    Raises: `UserError` for class sets that differ, or the same checkpoint twice.
    """

    selections: list[Selection]
    batch: int
    tta: bool = False
    left_out: dict[str, str] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        for other in self.selections[1:]:
            if set(other.checkpoint.classes) != set(self.classes):
                raise UserError(
                    f"--weights {other.checkpoint.path}: its classes ({', '.join(other.checkpoint.classes)}) differ "
                    f"from those of {self.first.checkpoint.path} ({', '.join(self.classes)})"
                )
        paths = [s.checkpoint.path.resolve() for s in self.selections]
        if len(set(paths)) < len(paths):
            raise UserError("--weights: the same checkpoint is named twice")

    @property
    def first(self) -> Selection:
        """The member whose run says which images there are, and in which order the classes stand."""
        return self.selections[0]

    @property
    def classes(self) -> list[str]:
        """The class names, in the order of the probabilities."""
        return self.first.checkpoint.classes

    @property
    def name(self) -> str:
        """The architecture's name, or those of an ensemble."""
        return " + ".join(s.checkpoint.architecture.name for s in self.selections)

    def predictions(self, records: pd.DataFrame, data: DataConfig, title: str) -> Predictions:
        """Checked predictions for the images of `records` (with `sha256`); unreadable ones are left out and said."""
        total: np.ndarray | float = 0.0
        part = None
        self.left_out = {}
        for number, selection in enumerate(self.selections):
            part = self._part(selection, records if part is None else part.records, data)
            bar = title if len(self.selections) == 1 else f"{title}, model {number + 1} of {len(self.selections)}"
            own = self._probabilities(selection, part, bar)
            total = total + own[:, [selection.checkpoint.classes.index(name) for name in self.classes]]
        return Predictions(
            prediction_table(part.records, total / len(self.selections), self.classes), list(self.classes)
        )

    def _part(self, selection: Selection, records: pd.DataFrame, data: DataConfig) -> ImageSet:
        checkpoint = selection.checkpoint
        data = replace(data, fit=checkpoint.fit)
        part, unreadable = make_image_set(records, checkpoint.classes, data, checkpoint.size)
        self.left_out |= unreadable
        for path, reason in unreadable.items():
            log.warning(f"{path}: left out ({reason})")
        if not len(part):
            raise UserError(f"none of {len(records)} images can be read, for example {records['path'].iloc[0]}")
        return part

    def _probabilities(self, selection: Selection, part: ImageSet, title: str) -> np.ndarray:
        checkpoint = selection.checkpoint
        model = checkpoint.model().to(selection.device)
        views = [
            softmax(
                predict_logits(
                    model,
                    part,
                    selection.device,
                    precision=selection.precision,
                    batch=self.batch,
                    mean=checkpoint.architecture.mean,
                    std=checkpoint.architecture.std,
                    title=title + (", mirrored" if mirrored else ""),
                    mirrored=mirrored,
                ),
                part.records,
            )
            for mirrored in ((False, True) if self.tta else (False,))
        ]
        return np.mean(views, axis=0)

    def trained_on(self, records: pd.DataFrame) -> list[str]:
        """The paths of the images that a member was trained on, by content."""
        known = {bytes(row).hex() for s in self.selections for row in s.checkpoint.train_hashes.numpy()}
        return [path for path, sha in zip(records["path"], records["sha256"], strict=True) if sha in known]

    def validated_on(self, records: pd.DataFrame) -> int | None:
        """How many of the images helped to choose a member's epoch, by content; None where a member has no run folder,
        which alone knows that.
        """
        if any(selection.run is None for selection in self.selections):
            return None
        known = set().union(*(_validation_hashes(selection.run) for selection in self.selections))
        return int(records["sha256"].isin(known).sum())

    def validation(self) -> Predictions | None:
        """Predictions for the first member's validation images: those kept beside the checkpoint, if of these weights,
        else made and, for a single checkpoint of a run, kept there with the temperature that they decide. None, with
        the reason said, where they cannot be had.
        """
        file = self.kept_validation()
        if file is not None:
            return read_predictions(file, self.classes)
        records = self._validation_records()
        if records is None:
            return None
        if self.trained_on(records):
            log.warning(f"{NO_VALIDATION}: a member was trained on another's validation images")
            return None
        found = self.predictions(records, replace(self.first.data, path=None, subset=False), "validation")
        if len(self.selections) == 1:
            self._keep(found)
        return found

    def kept_validation(self) -> Path | None:
        """The validation predictions beside a single checkpoint, if of these very weights, views and precision."""
        file, record = self._beside("validation.csv"), self._record()
        whole = record is not None and file.is_file() and record.get("predictions") == file_sha256(file)
        return file if whole and self.first.run is not None else None

    def _validation_records(self) -> pd.DataFrame | None:
        """The first run's validation images: where its split.csv has them, else where they were moved to."""
        selection = self.first
        if selection.run is None:
            log.warning(f"{NO_VALIDATION}: {selection.checkpoint.path} lies in no run folder")
            return None
        own, reasons = _validation_hashes(selection.run), []
        for path in dict.fromkeys((None, selection.data.path)):
            data = replace(selection.data, path=path, subset=False)
            try:
                dataset = load_dataset(
                    data, selection.checkpoint.size, classes=self.classes, run_split=selection.run / "split.csv"
                )
            except UserError as error:
                reasons.append(str(error))
                continue
            records = dataset.records[dataset.records["sha256"].isin(own)]
            if len(records):
                return records.reset_index(drop=True)
        log.warning(f"{NO_VALIDATION}: {reasons[0] if reasons else 'the run has no validation images'}")
        return None

    def _keep(self, validation: Predictions) -> None:
        """Keep the validation predictions and what they decide beside the checkpoint; where that fails, say so."""
        file = self._beside("validation.csv")
        try:
            write_predictions(validation.table, file)
            found = temperature_from_validation(validation) or {"value": None}
            write_json(self._beside("temperature.json"), found | {"key": self._key(), "predictions": file_sha256(file)})
        except OSError as error:
            log.warning(f"{file}: the validation predictions are not kept ({error.strerror})")

    def temperature(self, validation: Predictions | None) -> dict[str, Any] | None:
        """What lies beside a single checkpoint, if it is of these very weights, else what `validation` decides."""
        found = self._record()
        if found is None and validation is not None:
            found = temperature_from_validation(validation)
        return found if found and found["value"] is not None else None

    def suffixes(self) -> list[str]:
        """What sets these predictions apart from the plain ones of the same images."""
        return ["tta"] if self.tta else []

    def _key(self) -> dict[str, Any]:
        s = self.first
        return {"weights": s.checkpoint.fingerprint, "tta": self.tta, "precision": s.precision}

    def _beside(self, name: str) -> Path:
        path = self.first.checkpoint.path
        return path.with_name(f"{path.stem}{'-tta' if self.tta else ''}.{name}")

    def _record(self) -> dict[str, Any] | None:
        """The `.temperature.json` beside a single checkpoint; None if it is of other weights, views or precision."""
        file = self._beside("temperature.json")
        if len(self.selections) > 1 or not file.is_file():
            return None
        try:
            found = read_json(file, "it is made anew")
            value = found["value"] is None or float(found["value"])
        except (UserError, ValueError, KeyError, TypeError):
            log.warning(f"{file}: cannot be read, it is made anew")
            return None
        return found if value and found.get("key") == self._key() else None

    def folder_name(self) -> str:
        """Return `ensemble-A+B-MARK`, of the runs' names; the mark tells apart runs of one name."""
        names = [s.run.name if s.run else s.checkpoint.path.stem for s in self.selections]
        mark = hashlib.sha256("\0".join(str(s.checkpoint.path.resolve()) for s in self.selections).encode())
        return f"{shortened_name('ensemble-' + '+'.join(names))}-{mark.hexdigest()[:6]}"

    def about(self) -> dict[str, Any]:
        """Who answered, for `metrics.json`."""
        checkpoints = [s.checkpoint for s in self.selections]

        def common(values: list[Any]) -> Any:
            """What all members share, else None."""
            return values[0] if all(value == values[0] for value in values) else None

        return {
            "weights": [shown(c.path) for c in checkpoints],
            "fingerprints": [c.fingerprint for c in checkpoints],
            "models": [c.architecture.name for c in checkpoints],
            "epoch": common([c.epoch for c in checkpoints]),
            "size": common([c.size for c in checkpoints]),
            "fit": common([c.fit for c in checkpoints]),
            "mean": common([list(c.architecture.mean) for c in checkpoints]),
            "std": common([list(c.architecture.std) for c in checkpoints]),
            "parameters": sum(_parameters(c.state) for c in checkpoints),
            "precision": ", ".join(sorted({s.precision for s in self.selections})),
            "synthetic": any(c.config["data"]["path"] is None for c in checkpoints),
            "tta": self.tta,
        }


def _parameters(state: dict[str, torch.Tensor]) -> int:
    """What is learnt: without the running statistics of batch normalisation."""
    return sum(t.numel() for name, t in state.items() if "running_" not in name and "num_batches" not in name)


def _validation_hashes(run: Path) -> set[str]:
    split = read_split(run / "split.csv")
    return set(split["sha256"][split["split"] == "val"])
