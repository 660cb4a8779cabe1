"""The checkpoints of one evaluation, one or an ensemble: what they say of the same images, and what they know."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from config import DataConfig
from dataset.batches import Part, make_part
from dataset.data import load_dataset
from evaluation.calibration import fitted
from evaluation.predictions import (
    Predictions,
    predict_logits,
    prediction_table,
    read_predictions,
    softmax,
    write_predictions,
)
from training.run_folder import shown
from training.selection import Selection
from utils import UserError, log, make_folder, write_json


@dataclass
class Members:
    """Selections that answer together: the mean of their probabilities. All know the same classes.

    Args:
        selections: at least one.
        batch: images per forward pass.
        tta: whether each picture's mirror image is averaged in.

    Raises: `UserError` for class sets that differ, or the same checkpoint twice.
    """

    selections: list[Selection]
    batch: int
    tta: bool = False

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
        for number, selection in enumerate(self.selections):
            part = self._part(selection, records if part is None else part.records, data)
            bar = title if len(self.selections) == 1 else f"{title}, model {number + 1} of {len(self.selections)}"
            own = self._probabilities(selection, part, bar)
            total = total + own[:, [selection.checkpoint.classes.index(name) for name in self.classes]]
        return Predictions(
            prediction_table(part.records, total / len(self.selections), self.classes), list(self.classes)
        )

    def _part(self, selection: Selection, records: pd.DataFrame, data: DataConfig) -> Part:
        checkpoint = selection.checkpoint
        part, unreadable = make_part(records, checkpoint.classes, replace(data, fit=checkpoint.fit), checkpoint.size)
        for path, reason in unreadable.items():
            log.warning(f"WARNING: {path}: left out ({reason})")
        if not len(part):
            raise UserError(f"none of {len(records)} images can be read, for example {records['path'].iloc[0]}")
        return part

    def _probabilities(self, selection: Selection, part: Part, title: str) -> np.ndarray:
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

    def validated_on(self, records: pd.DataFrame) -> int:
        """How many of the images helped to choose a member's epoch, by content; runs alone know that."""
        known: set[str] = set()
        for selection in self.selections:
            if selection.run is not None:
                split = _read_split(selection.run)
                known |= set(split["sha256"][split["split"] == "val"])
        return int(records["sha256"].isin(known).sum())

    def validation(self) -> Predictions | None:
        """Predictions for the first member's validation images: read from its run's `val/` if they are these members',
        else made and, for a single checkpoint, kept there. None, with the reason said, where they cannot be had.
        """
        selection = self.first
        if selection.run is None:
            return None
        file = self.validation_file()
        if file and self.stored_temperature() is not None and file.is_file():
            return read_predictions(file, self.classes)
        try:
            data = replace(selection.data, path=None, subset=False)
            dataset = load_dataset(
                data, selection.checkpoint.size, classes=self.classes, run_split=selection.run / "split.csv"
            )
        except UserError as error:
            log.warning(f"WARNING: no temperature and no operating points, which validation images decide: {error}")
            return None
        records = dataset.part("val").records
        if not file and self.trained_on(records):
            log.warning(
                "WARNING: no temperature and no operating points: a member was trained on another's validation images"
            )
            return None
        found = self.predictions(records, data, "validation")
        if file:
            make_folder(file.parent, "--weights")
            write_predictions(found.table, file)
            self._remember(found)
        return found

    def validation_file(self) -> Path | None:
        """Where a run keeps its predictions for its validation images; None for an ensemble, which keeps none."""
        s = self.first
        if len(self.selections) > 1 or s.run is None:
            return None
        folder = s.output_folder("val", replace(s.data, path=None, subset=False), self.suffixes())
        return folder / "predictions.csv"

    def suffixes(self) -> list[str]:
        """What sets these predictions apart from the plain ones of the same images."""
        return ["tta"] if self.tta else []

    def _key(self) -> dict[str, Any]:
        s = self.first
        return {"weights": s.checkpoint.fingerprint, "tta": self.tta, "precision": s.precision}

    @property
    def _temperature_file(self) -> Path:
        path = self.first.checkpoint.path
        return path.with_name(f"{path.stem}{'-tta' if self.tta else ''}.temperature.json")

    def _remember(self, validation: Predictions) -> None:
        try:
            write_json(self._temperature_file, fitted(validation) | {"key": self._key()})
        except OSError as error:
            log.warning(f"WARNING: {self._temperature_file}: cannot be written ({error.strerror})")

    def stored_temperature(self) -> dict[str, Any] | None:
        """What lies beside a single checkpoint, if it belongs to these very weights, views and precision."""
        if len(self.selections) > 1 or not self._temperature_file.is_file():
            return None
        try:
            found = json.loads(self._temperature_file.read_text())
            float(found["value"])
        except (OSError, ValueError, KeyError, TypeError):
            log.warning(f"WARNING: {self._temperature_file}: cannot be read, it is made anew")
            return None
        return found if found.get("key") == self._key() else None

    def folder_name(self) -> str:
        """`ensemble-A+B`, of the runs' names, cut where it grows too long."""
        names = [s.run.name if s.run else s.checkpoint.path.stem for s in self.selections]
        full = "+".join(names)
        digest = hashlib.sha256("\0".join(str(s.checkpoint.path.resolve()) for s in self.selections).encode())
        return f"ensemble-{full if len(full) <= 100 else full[:90]}-{digest.hexdigest()[:6]}"

    def about(self) -> dict[str, Any]:
        """Who answered, for `metrics.json`."""
        c = self.first.checkpoint
        return {
            "weights": [shown(s.checkpoint.path) for s in self.selections],
            "models": [s.checkpoint.architecture.name for s in self.selections],
            "epoch": c.epoch,
            "size": c.size,
            "fit": c.fit,
            "mean": list(c.architecture.mean),
            "std": list(c.architecture.std),
            "parameters": sum(_parameters(s.checkpoint.state) for s in self.selections),
            "precision": ", ".join(sorted({s.precision for s in self.selections})),
            "tta": self.tta,
        }


def _parameters(state: dict[str, torch.Tensor]) -> int:
    """What is learnt: without the running statistics of batch normalisation."""
    return sum(t.numel() for name, t in state.items() if "running_" not in name and "num_batches" not in name)


def _read_split(run: Path) -> pd.DataFrame:
    return pd.read_csv(run / "split.csv", dtype=str, keep_default_na=False)
