"""Which checkpoint a verb works on, and on which data: what is given, else what the run says, else the newest run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from config import Config, DataConfig, config_from_plain, load_run_config
from dataset.loading import Dataset, load_dataset
from experiment.checkpoint import Checkpoint, load_checkpoint
from experiment.run_folder import newest_run, runs_folder
from pretrained_models import canonical_name
from utils import UserError, log, pick_device, shown

# What may be said of a trained model's use: where the images are, how they are split, on what machine, how fast.
CHANGEABLE = (
    *("model", "device", "precision", "save", "seed", "train.eval_batch"),
    *("data.path", "data.subset", "data.workers", "data.cache_dir", "data.device_memory", "data.group_pattern"),
    *("data.lung_masks", "data.lesion_masks", "data.boxes", "data.max_unreadable"),
    *("data.split", "data.split_seed", "data.val_per_class", "data.test_per_class"),
)


@dataclass
class Selection:
    """A checkpoint, its run folder (None where it lies elsewhere), and the data that go with them."""

    checkpoint: Checkpoint
    run: Path | None
    data: DataConfig
    device: torch.device
    precision: str
    pattern_given: bool = False  # whether --group-pattern was

    def dataset(self) -> Dataset:
        """The images as the checkpoint expects them, its classes in its order. Raises: `UserError`."""
        if self.run is None and self.data.path is None:
            raise UserError(
                f"--weights {self.checkpoint.path}: it lies in no run folder, so its images are unknown; "
                "give --data DIR"
            )
        return load_dataset(
            self.data,
            self.checkpoint.size,
            classes=self.checkpoint.classes,
            run_split=self.run and self.run / "split.csv",
        )

    def output_folder(self, kind: str, data: DataConfig | None = None, suffixes: Sequence[str] = ()) -> Path:
        """Where the results of `kind` go: its folder in the run, with the name of other data where data was named."""
        data = data or self.data
        name = "-".join([f"{kind}-subset" if data.subset else kind, *suffixes])
        if data.path is not None:
            other = Path(data.path).resolve()
            name += "-" + (other.stem if other.is_file() else other.name)
        path = self.checkpoint.path
        if self.run is not None:
            return self.run / (name if path.name == "best.pt" else f"{name}-{path.stem}")
        return path.parent / f"{path.stem}-{name}"


def select(config: Config, weights: Path | None, given: dict[str, Any]) -> Selection:
    """Choose the checkpoint and the data.

    Args:
        config: the composed configuration; it says the device, the workers and the cache folder.
        weights: a checkpoint, a run folder, or None for the newest finished run (of `model`, where that was given).
        given: the configuration keys that the command line set: only those override what the run says of the data.

    Raises: `UserError` for no such checkpoint, or one of another model than the given one.
    """
    model = canonical_name(config.model) if "model" in given else None
    if weights is None:
        run = newest_run(runs_folder(config), model)
        log.info(f"--weights not given: taking the newest finished run{f' of {model}' if model else ''}, {shown(run)}")
        weights = run / "best.pt"
    elif weights.is_dir():
        weights = weights / "best.pt"
    checkpoint = load_checkpoint(weights)
    if model is not None and model != checkpoint.architecture.name:
        raise UserError(f"--model {config.model}: the checkpoint {weights} is of {checkpoint.architecture.name}")
    run = weights.parent if (weights.parent / "split.csv").is_file() else None
    base = load_run_config(run / "config.yaml").data if run else config_from_plain(checkpoint.config, str(weights)).data
    # The run's images and masks are those of its split.csv; their folders count only where they are named again.
    foreign = sorted(key for key in given if key not in CHANGEABLE)
    if foreign:
        raise UserError(
            f"{foreign[0]}: the checkpoint's run has decided it; only {', '.join(CHANGEABLE)} can be given here"
        )
    keys = {
        dotted.removeprefix("data."): getattr(config.data, dotted.removeprefix("data."))
        for dotted in given
        if dotted.startswith("data.")
    }
    forgotten = {"path": None, "subset": False, "lung_masks": None, "lesion_masks": None, "boxes": None}
    data = replace(base, **{**forgotten, "workers": config.data.workers, **keys, "fit": checkpoint.fit})
    if (
        data.path is not None
        and "group_pattern" not in keys
        and (base.path is None or _real(data.path) != _real(base.path))
    ):
        data.group_pattern = None  # the patients of other data are not named as in the run's
    precision = checkpoint.precision if config.precision == "auto" else config.precision
    return Selection(checkpoint, run, data, pick_device(config.device), precision, "group_pattern" in keys)


def _real(path: str) -> Path:
    return Path(path).expanduser().resolve()
