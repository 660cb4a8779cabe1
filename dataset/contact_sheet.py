"""The contact sheet of a data set: some images of each class, plain and as training sees them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from config import Config
from dataset.image_set import make_image_set
from dataset.layouts import MASKS
from dataset.loading import Dataset
from dataset.transforms import Augment
from utils import atomic_write

PER_CLASS = 4


def draw_contact_sheet(dataset: Dataset, config: Config, output: Path) -> None:
    """Write a PNG with one row per class: `PER_CLASS` plain images, then the same images augmented.

    If the data has masks, lungs are outlined in blue and lesions in orange.
    """
    from matplotlib.figure import Figure

    side = config.data.size or dataset.side
    source_side = config.augment.resize or side
    groups = (rows for _, rows in dataset.records.groupby("label"))
    seed = config.data.split_seed
    drawn = [rows.sample(PER_CLASS, replace=len(rows) < PER_CLASS, random_state=seed) for rows in groups]
    chosen = pd.concat(drawn, ignore_index=True)
    plain, _ = make_image_set(chosen, dataset.classes, dataset.data, source_side, masks=True)
    indices = np.arange(len(plain))
    pixels = plain.gather("image", indices)
    masks = np.stack([plain.gather(name, indices) for name in MASKS], 1)
    augment = Augment(config.augment, config.seed, source_side, side)
    moved, moved_masks = augment(torch.from_numpy(pixels), 1, indices, torch.from_numpy(masks))

    rows = len(dataset.classes)
    figure = Figure(figsize=(2 * PER_CLASS * 1.6, rows * 1.75), layout="constrained")
    for index, ax in enumerate(figure.subplots(rows, 2 * PER_CLASS, squeeze=False).flat):
        row, column = divmod(index, 2 * PER_CLASS)
        item = row * PER_CLASS + column % PER_CLASS
        grey, outlines = (pixels, masks) if column < PER_CLASS else (moved.numpy() * 255, moved_masks.numpy())
        ax.imshow(grey[item], cmap="gray", vmin=0, vmax=255)
        for outline, colour in zip(outlines[item], ("deepskyblue", "orange"), strict=True):
            if outline.any():
                ax.contour(outline, [0.5], colors=colour, linewidths=0.6)
        ax.set_axis_off()
        if column in (0, PER_CLASS):
            ax.set_title(dataset.classes[row] + (" (augmented)" if column else ""), fontsize=8, loc="left")
    with atomic_write(output, "wb") as file:
        figure.savefig(file, format="png", dpi=110)
