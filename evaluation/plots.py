"""Pictures of an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from utils import atomic_write


def plot_confusion(metrics: dict[str, Any], path: Path, title: str) -> None:
    """Save the confusion matrix: colour by the share of the true class (row), each cell with its count and share."""
    from matplotlib.figure import Figure

    counts = np.array(metrics["confusion"])
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    classes, size = metrics["classes"], len(metrics["classes"])
    figure = Figure(figsize=(2.4 + 1.05 * size, 1.6 + 0.95 * size), layout="constrained")
    ax = figure.subplots()
    image = ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(size, size):
        ax.text(
            column,
            row,
            f"{counts[row, column]}\n{share[row, column]:.1%}",
            ha="center",
            va="center",
            fontsize=9,
            color="white" if share[row, column] > 0.55 else "black",
        )
    ax.set_xticks(range(size), classes, rotation=30, ha="right", rotation_mode="anchor", parse_math=False)
    ax.set_yticks(
        range(size), [f"{name} (n={n})" for name, n in zip(classes, counts.sum(1), strict=True)], parse_math=False
    )
    ax.set_xlabel("predicted")
    ax.set_ylabel("true")
    ax.set_title(
        f"{title}\naccuracy {metrics['accuracy']['value']:.3f}, "
        f"balanced {metrics['balanced_accuracy']['value']:.3f}, n={metrics['n']}",
        fontsize=10,
    )
    figure.colorbar(image, ax=ax, label="share of the true class", shrink=0.85)
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=130)
