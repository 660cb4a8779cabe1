"""Which checkpoint a verb works on, and on which data: what is given, else what the run says, else the newest run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from config import Config, DataConfig, config_from_plain, load_run_config
from dataset.batches import MASKS, Part, cache_folder, make_part
from dataset.cache import hash_files
from dataset.data import RECORD_COLUMNS, Dataset, load_dataset, read_split
from dataset.layouts import name_groups
from dataset.masks import give_masks, without_empty_masks
from dataset.readers import image_size, is_image_file, letterbox_frame
from evaluation.predictions import read_predictions
from pretrained_models import canonical_name
from training.checkpoints import Checkpoint, load_checkpoint
from training.run_folder import newest_run, runs_folder, shown
from utils import UserError, log, pick_device

# What may be said of a trained model's use: where the images are, how they are split, on what machine, how fast.
CHANGEABLE = (
    *("model", "device", "precision", "save", "seed", "train.eval_batch"),
    *("data.path", "data.subset", "data.workers", "data.cache_dir", "data.device_memory", "data.group_pattern"),
    *("data.lung_masks", "data.lesion_masks", "data.boxes", "data.max_unreadable"),
    *("data.split", "data.split_seed", "data.val_per_class", "data.test_per_class"),
)
FLAT = "one value only: nothing to explain"


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


def chosen_images(chosen: Selection, images: list[Path] | None, count: int, seed: int, errors: int = 0) -> Part:
    """The pictures to explain, with their masks: the given files and folders, else `count` per class of the test split
    and the `errors` most confident errors that the run's `test/predictions.csv` holds.

    Given files that the run knows by content have its label. A picture of one value only is left out, as an unreadable
    one is. Raises: `UserError` for a file that is no image or has one value only, a folder without any other, a test
    split without images, masks that cannot be the pictures', or errors asked for before test.py has run.
    """
    checkpoint, data = chosen.checkpoint, chosen.data
    if images is not None:
        return _given_images(chosen, images)
    dataset = chosen.dataset()
    test = dataset.records[dataset.records["split"] == "test"]
    if test.empty:
        raise UserError("the test split has no images; give --image PATH, or --data DIR")
    drawn = [rows.sample(min(count, len(rows)), random_state=seed) for _, rows in test.groupby("label")]
    if errors:
        drawn.append(test[test["sha256"].isin(_worst(chosen, errors))])
    records = pd.concat(drawn).sort_index()
    records = records[~records.index.duplicated()].reset_index(drop=True)
    part, flat = _without_flat(make_part(records, checkpoint.classes, data, checkpoint.size, masks=True)[0], data)
    for path in flat:
        log.warning(f"WARNING: {path}: left out ({FLAT})")
    if not len(part):
        raise UserError(f"the chosen test images: {FLAT}; give --image PATH, or --data DIR")
    return without_empty_masks(part, data)


def _without_flat(part: Part, data: DataConfig) -> tuple[Part, list[str]]:
    """The part without the pictures that have one value only, as the model sees them, and the paths of those."""

    def flat(index: int, path: str) -> bool:
        pixels = part.gather("image", np.array([index]))[0]
        if data.fit == "letterbox":  # the padding is no part of the picture
            top, left, height, width = letterbox_frame(*image_size(Path(path)), part.side)
            pixels = pixels[top : top + height, left : left + width]
        return bool(pixels.min() == pixels.max())

    kept = np.array([not flat(index, path) for index, path in enumerate(part.records["path"])], bool)
    return part.take(kept), list(part.records["path"][~kept])


def _worst(chosen: Selection, count: int) -> list[str]:
    """The hashes of the `count` wrong answers with the highest confidence in the run's test predictions."""
    path = chosen.output_folder("test") / "predictions.csv"
    if not path.is_file():
        raise UserError(f"--errors {count}: {path} is not there; run python test.py --weights {chosen.checkpoint.path}")
    found = read_predictions(path, chosen.checkpoint.classes)
    wrong = found.table[~found.correct].sort_values("confidence", ascending=False, kind="stable")
    return list(wrong["sha256"].head(count))


def _patients(records: pd.DataFrame, chosen: Selection) -> pd.Series:
    """The patient of each given image: as the run knows it, else by `--group-pattern`, else by the run's own pattern
    where the names are like that (other images may be named otherwise), else the image alone.
    """
    try:
        return name_groups(records, chosen.data.group_pattern)
    except UserError:
        if chosen.pattern_given:
            raise
        return name_groups(records, None)


def _given_images(chosen: Selection, images: list[Path]) -> Part:
    checkpoint, data = chosen.checkpoint, chosen.data
    for path in images:
        if not path.exists():
            raise UserError(f"--image {path}: no such file or folder")
    files = [
        file.resolve()
        for path in images
        for file in (sorted(p for p in path.iterdir() if is_image_file(p)) if path.is_dir() else [path])
    ]
    if not files:
        raise UserError(f"--image {images[0]}: no images in it")
    records = pd.DataFrame({"path": [str(f) for f in files]}).reindex(columns=RECORD_COLUMNS, fill_value="")
    records["sha256"] = hash_files(list(records["path"]), cache_folder(data), data.workers)
    if chosen.run is not None:
        known = read_split(chosen.run / "split.csv").drop_duplicates("sha256")
        known = records[["sha256"]].merge(known, how="left", on="sha256").fillna("")
        for column in ("label", "group", "source", *MASKS):
            records[column] = known[column].to_numpy()
    records["group"] = _patients(records, chosen)
    part, unreadable = make_part(give_masks(records, data), checkpoint.classes, data, checkpoint.size, masks=True)
    part, flat = _without_flat(part, data)
    reasons = {path: f"no readable image: {reason}" for path, reason in unreadable.items()} | dict.fromkeys(flat, FLAT)
    for path, reason in reasons.items():
        if Path(path) in {p.resolve() for p in images} or not len(part):
            raise UserError(f"--image {path}: {reason}")
        log.warning(f"WARNING: {path}: left out ({reason})")
    return without_empty_masks(part, data)
