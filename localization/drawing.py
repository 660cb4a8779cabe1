"""A part's maps: computed a batch at a time, scored, drawn and tabulated into a CAM folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch

from dataset.batches import MASKS, Part
from dataset.readers import read_image, to_uint8
from localization.cam import METHODS, cut_pass
from localization.overlay import OverlayDrawer, draw_means
from localization.scoring import map_status, mask_scores
from pretrained_models import cam_layer
from utils import atomic_write, log, make_folder, write_csv

if TYPE_CHECKING:
    from training.checkpoints import Checkpoint

SCORES = ("energy", "area", "lift", "hit")
COLUMNS = [
    "file",
    "path",
    "label",
    "predicted",
    "target",
    "method",
    "status",
    "peak",
    *(f"{mask.removesuffix('_mask')}_{score}" for mask in MASKS for score in SCORES),
]
_METHOD = "(" + "|".join(METHODS) + ")"
OURS = re.compile(rf"\d{{4,}}_.*__(raw|{_METHOD}__.*)\.(png|npy)|mean_{_METHOD}\.png|cams\.json")


def draw_maps(
    checkpoint: Checkpoint,
    part: Part,
    folder: Path,
    save: Path | None,
    *,
    label: str | None,
    device: torch.device,
    precision: str,
    batch: int,
) -> list[dict[str, Any]]:
    """Draw and score every picture of `part` into `folder`, and return its rows, those of `cams.csv` and `group`.

    Args:
        save: where the raw pictures and the maps (.npy) go, or None.
        label: the class of the checkpoint to explain; None: the predicted one of each picture.

    Raises: `UserError` for a folder that cannot be written, or a model without a spatial feature map.
    """
    from tqdm import tqdm

    classes, architecture = checkpoint.classes, checkpoint.architecture
    for path, flag in ((folder, "--output"), (save, "--save")):
        if path is not None:
            _clear(make_folder(path, flag))
    model = checkpoint.model().to(device)
    layer = cam_layer(model, architecture, checkpoint.size)
    drawer, rows, means = OverlayDrawer(), [], {method: _Means(part) for method in METHODS}
    with tqdm(total=len(part), desc="Grad-CAM", unit="image", leave=False) as bar:
        for item in part.batches(device, batch, part.side, architecture.mean, architecture.std):
            targets = None if label is None else torch.full((len(item.indices),), classes.index(label), device=device)
            cut = cut_pass(model, layer, item.inputs, targets, precision)
            probabilities = cut.scores.softmax(1).cpu().numpy()
            for method, function in METHODS.items():
                maps = function(cut).cpu().numpy()
                for i, index in enumerate(item.indices):
                    target = int(cut.targets[i])
                    row = _row(part, int(index), maps[i], method, classes, probabilities[i], target)
                    _write(
                        drawer,
                        part,
                        int(index),
                        maps[i],
                        row,
                        checkpoint.fit,
                        float(probabilities[i, target]),
                        folder,
                        save,
                    )
                    rows.append(row)
                    means[method].add(int(index), maps[i], row)
                    bar.update(1 / len(METHODS))
    for method, mean in means.items():
        mean.draw(folder / f"mean_{method}.png")
    write_csv(folder / "cams.csv", [{k: "" if row[k] != row[k] else row[k] for k in COLUMNS} for row in rows], COLUMNS)
    return rows


class _Means:
    """The mean map and the mean picture per class explained: of maps with positive evidence for the true class, or for
    any class where the true one is not known.
    """

    def __init__(self, part: Part) -> None:
        self.part = part
        self.maps: dict[str, np.ndarray] = {}
        self.pictures: dict[str, np.ndarray] = {}
        self.counts: dict[str, int] = {}

    def add(self, index: int, cam: np.ndarray, row: dict[str, Any]) -> None:
        """Count the map of one picture in, whatever its peak: each has a mean of 1."""
        if row["status"] == "ok" and row["label"] in ("", row["target"]):
            name = row["target"]
            picture = self.part.gather("image", np.array([index]))[0]
            self.maps[name] = self.maps.get(name, 0) + cam / cam.mean(dtype=np.float64)
            self.pictures[name] = self.pictures.get(name, 0) + picture.astype(np.float64)
            self.counts[name] = self.counts.get(name, 0) + 1

    def draw(self, path: Path) -> None:
        """Save the picture of the means; nothing where no map had positive evidence."""
        if self.counts:
            names = sorted(self.counts)
            pictures = {name: self.pictures[name] / self.counts[name] for name in names}
            draw_means(path, pictures, {name: self.maps[name] / self.counts[name] for name in names}, self.counts)


def _clear(folder: Path) -> None:
    """Take away what an earlier call drew here: pictures of two calls under one table would be misread."""
    earlier = [file for file in folder.iterdir() if OURS.fullmatch(file.name)]
    if earlier:
        log.info(f"replacing the earlier maps in {folder}")
    for file in earlier:
        file.unlink()


def _row(
    part: Part,
    index: int,
    cam: np.ndarray,
    method: str,
    classes: list[str],
    probabilities: np.ndarray,
    target: int,
) -> dict[str, Any]:
    record = part.records.iloc[index]
    status = map_status(cam[None])[0]
    stem = f"{index:04d}_{Path(record['path']).stem[:100]}__{method}__{classes[target]}".replace("/", "_")
    row = {
        "file": f"{stem}.png",
        "path": record["path"],
        "group": record["group"],
        "label": record["label"],
        "predicted": classes[int(probabilities.argmax())],
        "target": classes[target],
        "method": method,
        "status": status,
        "peak": float(cam.max()),
    }
    for mask in MASKS:
        scores = dict.fromkeys(SCORES, float("nan"))
        if status == "ok" and part.has(mask)[index]:
            scores = mask_scores(cam, part.gather(mask, np.array([index]))[0].astype(bool))
        row |= {f"{mask.removesuffix('_mask')}_{name}": value for name, value in scores.items()}
    return row


def _write(
    drawer: OverlayDrawer,
    part: Part,
    index: int,
    cam: np.ndarray,
    row: dict[str, Any],
    fit: str,
    probability: float,
    folder: Path,
    save: Path | None,
) -> None:
    path = Path(row["path"])
    radiograph = to_uint8(read_image(path))
    title = f"{path.stem}\nevidence for {row['target']} (probability {probability:.2f})"
    if row["label"]:
        title += f"; true class {row['label']}"
    drawer.draw(folder / row["file"], radiograph, cam, fit, row["status"], title)
    if save is not None:
        stem = row["file"].removesuffix(".png")
        with atomic_write(save / f"{stem}.npy", "wb") as file:
            np.save(file, cam.astype(np.float32))
        with atomic_write(save / f"{index:04d}_{path.stem[:100]}__raw.png", "wb") as file:
            file.write(cv2.imencode(".png", radiograph)[1].tobytes())
