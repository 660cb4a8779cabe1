"""The learning curves of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from utils import atomic_write


def plot_curves(history: list[dict[str, Any]], best_epoch: int, path: Path, title: str) -> None:
    """Save loss and accuracy per epoch, training against validation, the epoch of `best.pt` marked."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    epochs = [row["epoch"] for row in history]
    for ax, name, label in zip(
        figure.subplots(1, 2), ("loss", "accuracy"), ("cross entropy (nats)", "accuracy"), strict=True
    ):
        for part, colour in (("train", "#7f7f7f"), ("valid", "#1f77b4")):
            words = "training (augmented)" if part == "train" else "validation"
            ax.plot(epochs, [row[f"{part}_{name}"] for row in history], "o-", ms=3.5, color=colour, label=words)
        if name == "accuracy":
            ax.plot(
                epochs,
                [row["valid_macro_f1"] for row in history],
                "s--",
                ms=3,
                color="#d62728",
                label="validation macro F1",
            )
            ax.set_ylim(top=1.0)
        ax.axvline(best_epoch, color="black", lw=0.8, ls=":", label=f"best.pt (epoch {best_epoch})")
        ax.set_xlabel("epoch")
        ax.set_ylabel(label)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=120)
