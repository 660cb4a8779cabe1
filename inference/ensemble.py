"""One checkpoint, or several that predict the mean of their probabilities; and what metrics.json records of them.

`Ensemble.load(["runs/NAME"])` needs no command line: `ensemble.predict(image_records(ensemble.first, paths), …)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from config import Config, DataConfig, TrainConfig
from dataset.image_set import ImageSet, make_image_set
from dataset.loading import read_split
from evaluation.predictions import Predictions, prediction_table
from experiment.selection import Selection, select
from inference.images import images_from_arrays, separate
from inference.predict import Runtime, predict_logits, softmax
from utils import UserError, joint_name, log, shown


@dataclass(frozen=True)
class Probabilities:
    """Predicted probabilities of the images that could be read.

    Attributes:
        records: one row per image, with `RECORD_COLUMNS`.
        values: (n, classes) float64, in the order of `records` and `classes`.
        unreadable: path → reason of the images that were left out.
    """

    records: pd.DataFrame
    values: np.ndarray
    classes: list[str]
    unreadable: dict[str, str] = field(default_factory=dict)

    def table(self) -> pd.DataFrame:
        """Return the columns of `predictions.csv`; the label of an image without one is empty."""
        return prediction_table(self.records, self.values, self.classes)

    def labelled(self) -> Predictions:
        """Return checked predictions to evaluate. Raises: `UserError` for a label that is not one of the classes."""
        return Predictions(self.table(), list(self.classes))


@dataclass(kw_only=True)
class Ensemble:
    """Checkpoints that predict together, by the mean of their probabilities. All have the same classes.

    Args:
        selections: at least one checkpoint; the first defines the data and the order of the classes.
        batch: images per forward pass.
        tta: test-time augmentation: average each image with its mirror image.
        flag: what errors call the checkpoints.

    Raises: `UserError` for class sets that differ, or the same checkpoint twice.
    """

    selections: list[Selection]
    batch: int = TrainConfig.eval_batch
    tta: bool = False
    flag: str = "--weights"
    _models: dict[Path, nn.Module] = field(init=False, default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for other in self.selections[1:]:
            if set(other.checkpoint.classes) != set(self.classes):
                raise UserError(
                    f"{self.flag} {other.checkpoint.path}: its classes ({', '.join(other.checkpoint.classes)}) differ "
                    f"from those of {self.first.checkpoint.path} ({', '.join(self.classes)}); leave it out"
                )
        paths = [s.checkpoint.path.resolve() for s in self.selections]
        if len(set(paths)) < len(paths):
            raise UserError(f"{self.flag}: the same checkpoint is given twice; leave one out")

    @classmethod
    def load(
        cls, weights: Sequence[Path], *, device: str = "auto", precision: str = "auto", **settings: Any
    ) -> Ensemble:
        """Load checkpoints or run folders (their best.pt), without a command line.

        Args:
            device: `auto`, `cpu`, `cuda`, ….
            precision: `fp32` or `bf16`; `auto`: as each was trained.
            settings: `batch` and `tta` of the ensemble.

        Raises: `UserError` for a file that is not a checkpoint, or an unavailable device.
        """
        config = Config(device=device, precision=precision)
        return cls(selections=[select(config, Path(path), {}, "") for path in weights], flag="weights", **settings)

    @property
    def first(self) -> Selection:
        """The checkpoint that defines the data and the order of the classes."""
        return self.selections[0]

    @property
    def classes(self) -> list[str]:
        """The class names, in the order of the probabilities."""
        return self.first.checkpoint.classes

    @property
    def name(self) -> str:
        """The name of the architecture, or of all of them."""
        return " + ".join(s.checkpoint.architecture.name for s in self.selections)

    def predict(self, records: pd.DataFrame, data: DataConfig, title: str = "") -> Probabilities:
        """Predict the images of `records` (with `sha256`), which `data` says how to decode.

        Unreadable images are left out with a warning. A `title` shows progress bars. Raises: `UserError` where no image
        can be read.
        """
        unreadable: dict[str, str] = {}

        def decode() -> Iterator[ImageSet]:
            kept = records
            for selection in self.selections:
                checkpoint = selection.checkpoint
                decoding = replace(data, fit=checkpoint.fit)
                images, failed = make_image_set(kept, checkpoint.classes, decoding, checkpoint.size)
                for path, reason in failed.items():
                    log.warning(f"{path}: left out ({reason})")
                if not len(images):
                    example = kept["path"].iloc[0]
                    raise UserError(f"none of {len(kept)} images can be read, for example {example}; fix the files")
                unreadable.update(failed)
                kept = images.records
                yield images

        return replace(self._mean(decode(), title), unreadable=unreadable)

    def predict_arrays(self, arrays: np.ndarray | Iterable[np.ndarray], title: str = "") -> Probabilities:
        """Predict images given as pixels, as `inference.images.images_from_arrays` takes them."""
        arrays = separate(arrays)
        return self._mean((images_from_arrays(arrays, s.checkpoint) for s in self.selections), title)

    def _mean(self, image_sets: Iterable[ImageSet], title: str) -> Probabilities:
        """Average the probabilities of all checkpoints, each for its own set of the same images."""
        total: np.ndarray | float = 0.0
        for number, (selection, images) in enumerate(zip(self.selections, image_sets, strict=True), 1):
            bar = f"{title}, model {number} of {len(self.selections)}" if title and len(self.selections) > 1 else title
            probabilities = self._probabilities(selection, images, bar)
            total = total + probabilities[:, [selection.checkpoint.classes.index(name) for name in self.classes]]
        return Probabilities(images.records, total / len(self.selections), self.classes)

    def _probabilities(self, selection: Selection, images: ImageSet, title: str) -> np.ndarray:
        """Return one checkpoint's probabilities, (n, classes) in its own order, averaged over the views."""
        model, architecture = self.model(selection), selection.checkpoint.architecture
        runtime = Runtime(selection.device, selection.precision, self.batch)
        views = []
        for mirrored in (False, True) if self.tta else (False,):
            bar = f"{title}, mirrored" if title and mirrored else title
            logits = predict_logits(model, images, architecture, runtime, title=bar, mirrored=mirrored)
            views.append(softmax(logits, images.records))
        return np.mean(views, axis=0)

    def model(self, selection: Selection) -> nn.Module:
        """Return a checkpoint's model in evaluation mode, on its device; it is kept there for the next call."""
        path = selection.checkpoint.path
        if path not in self._models:
            self._models[path] = selection.checkpoint.model(self.flag).to(selection.device)
        return self._models[path]

    def trained_on(self, records: pd.DataFrame) -> list[str]:
        """Return the paths of the images that a checkpoint was trained on, by content."""
        trained = {bytes(row).hex() for s in self.selections for row in s.checkpoint.train_hashes.numpy()}
        return [path for path, sha in zip(records["path"], records["sha256"], strict=True) if sha in trained]

    def validated_on(self, records: pd.DataFrame) -> int | None:
        """Return how many of the images were used to select a checkpoint, by content.

        None if a checkpoint is outside its run folder, which alone records that.
        """
        if any(selection.run is None for selection in self.selections):
            return None
        validated = set().union(*(validation_hashes(selection.run) for selection in self.selections))
        return int(records["sha256"].isin(validated).sum())

    def folder_name(self) -> str:
        """Return `ensemble-A+B-HASH`, from the names of the runs and a hash of the checkpoints' paths."""
        names = [s.run.name if s.run else s.checkpoint.path.stem for s in self.selections]
        return f"ensemble-{joint_name(names, [s.checkpoint.path for s in self.selections], joint='+')}"

    def about(self) -> dict[str, Any]:
        """Return what metrics.json records of the checkpoints (`evaluation.provenance`)."""
        checkpoints = [s.checkpoint for s in self.selections]
        architectures = [c.architecture for c in checkpoints]
        return {
            "weights": [shown(c.path) for c in checkpoints],
            "fingerprints": [c.fingerprint for c in checkpoints],
            "models": [a.name for a in architectures],
            **{name: _common(getattr(c, name) for c in checkpoints) for name in ("epoch", "size", "fit")},
            **{name: _common(list(getattr(a, name)) for a in architectures) for name in ("mean", "std")},
            "parameters": sum(_parameters(c.state) for c in checkpoints),
            "precision": ", ".join(sorted({s.precision for s in self.selections})),
            "synthetic": any(c.config["data"]["path"] is None for c in checkpoints),
            "tta": self.tta,
        }


def _common(values: Iterable[Any]) -> Any:
    """Return the value that all checkpoints share, else None."""
    first, *others = values
    return first if all(value == first for value in others) else None


def _parameters(state: dict[str, torch.Tensor]) -> int:
    """Return the number of learnable parameters: without the running statistics of batch normalisation."""
    return sum(t.numel() for name, t in state.items() if "running_" not in name and "num_batches" not in name)


def validation_hashes(run: Path) -> set[str]:
    """Return the SHA-256 of a run's validation images."""
    split = read_split(run / "split.csv")
    return set(split["sha256"][split["split"] == "val"])
