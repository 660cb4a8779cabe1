"""The checkpoint and the data that a verb works on: as given, else as the run recorded, else the newest run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

# The keys that may be given for a trained model: where the images are, how they are split, and how it runs.
CHANGEABLE = (
    *("model", "device", "precision", "save", "seed", "train.eval_batch"),
    *("data.path", "data.subset", "data.workers", "data.cache_dir", "data.device_memory", "data.max_unreadable"),
    *("data.lung_masks", "data.lesion_masks", "data.boxes", "data.group_pattern"),
    *("data.split", "data.split_seed", "data.val_per_class", "data.test_per_class"),
)
# The run's images and masks are those of its split.csv: these keys of its configuration count only if given again.
RECORDED = {"path": None, "subset": False, "lung_masks": None, "lesion_masks": None, "boxes": None}


@dataclass(kw_only=True)
class Selection:
    """A checkpoint, its run folder, and the data and the hardware to use it with.

    Attributes:
        run: None for a checkpoint outside a run folder.
        precision: `fp32` or `bf16`.
        pattern_given: whether `--group-pattern` was given here, not recorded by the run.
    """

    checkpoint: Checkpoint
    run: Path | None
    data: DataConfig
    device: torch.device
    precision: str
    pattern_given: bool = False

    @property
    def name(self) -> str:
        """The name of the run, with the checkpoint's if that is not best.pt; outside a run, the checkpoint's alone."""
        path = self.checkpoint.path
        if self.run is None:
            return path.stem
        return self.run.name if path.name == "best.pt" else f"{self.run.name}-{path.stem}"

    def dataset(self) -> Dataset:
        """Return the images as the checkpoint expects them, its classes in its order. Raises: `UserError`."""
        if self.run is None and self.data.path is None:
            raise UserError(
                f"--weights {self.checkpoint.path}: it is not in a run folder, so its images are unknown; "
                "pass --data DIR"
            )
        run_split = self.run and self.run / "split.csv"
        return load_dataset(self.data, self.checkpoint.size, classes=self.checkpoint.classes, run_split=run_split)

    def output_folder(self, kind: str, suffixes: Sequence[str] = ()) -> Path:
        """Return the folder for results of `kind`, in the run or beside the checkpoint; its name says which data."""
        name = "-".join([f"{kind}-subset" if self.data.subset else kind, *suffixes])
        if self.data.path is not None:
            other = Path(self.data.path).resolve()
            name += "-" + (other.stem if other.is_file() else other.name)
        path = self.checkpoint.path
        if self.run is not None:
            return self.run / (name if path.name == "best.pt" else f"{name}-{path.stem}")
        return path.parent / f"{path.stem}-{name}"


def select(config: Config, weights: Path | None, given: Mapping[str, Any], dashes: str = "--") -> Selection:
    """Choose the checkpoint and the data.

    Args:
        config: the composed configuration; it says the device, the workers and the cache folder.
        weights: a checkpoint, a run folder, or None for the newest finished run (of `model`, if that was given).
        given: the configuration keys that the command line set: only these override the run's data configuration.
        dashes: what errors write before `weights` and `device`; nothing where no command line is read.

    Raises: `UserError` for a missing or broken checkpoint, one of another model than the given one, or a key that is
        fixed by the training.
    """
    model = canonical_name(config.model) if "model" in given else None
    path = _checkpoint_path(config, weights, model)
    checkpoint = load_checkpoint(path, f"{dashes}weights")
    if model is not None and model != checkpoint.architecture.name:
        raise UserError(f"--model {config.model}: the checkpoint {path} is a {checkpoint.architecture.name}")
    if foreign := sorted(key for key in given if key not in CHANGEABLE):
        raise UserError(
            f"{foreign[0]}: fixed when the checkpoint was trained; only {', '.join(CHANGEABLE)} can be set here"
        )
    run = path.parent if (path.parent / "split.csv").is_file() else None
    return Selection(
        checkpoint=checkpoint,
        run=run,
        data=_data_config(config.data, checkpoint, run, given),
        device=pick_device(config.device, f"{dashes}device"),
        precision=checkpoint.precision if config.precision == "auto" else config.precision,
        pattern_given="data.group_pattern" in given,
    )


def _checkpoint_path(config: Config, weights: Path | None, model: str | None) -> Path:
    if weights is None:
        run = newest_run(runs_folder(config), model)
        log.info(f"--weights not given: using the newest finished run{f' of {model}' if model else ''}, {shown(run)}")
        return run / "best.pt"
    return weights / "best.pt" if weights.is_dir() else weights


def _data_config(data: DataConfig, checkpoint: Checkpoint, run: Path | None, given: Mapping[str, Any]) -> DataConfig:
    """Return the `data` keys of the run, or of the checkpoint outside one, with those that were given."""
    if run is not None:
        recorded = load_run_config(run / "config.yaml").data
    else:
        recorded = config_from_plain(checkpoint.config, str(checkpoint.path)).data
    keys = {key[5:]: getattr(data, key[5:]) for key in given if key.startswith("data.")}
    chosen = replace(recorded, **{**RECORDED, "workers": data.workers, **keys, "fit": checkpoint.fit})
    paths = [path and Path(path).expanduser().resolve() for path in (chosen.path, recorded.path)]
    if paths[0] not in (None, paths[1]) and "group_pattern" not in keys:
        return replace(chosen, group_pattern=None)  # the run's pattern does not apply to other file names
    return chosen
