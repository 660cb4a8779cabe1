"""Figures of an evaluation and of a training, with matplotlib: test.py saves them, the report embeds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from evaluation.figures.palette import COLOURS, MEAN_COLOUR
from evaluation.metrics.calibration import Bins
from evaluation.metrics.curves import GRID, Curve
from evaluation.phrases import with_limits
from utils import atomic_write, elide, interrupts_wait

MOST_PANELS = 24
LONGEST = 24  # characters of a class name: a longer one leaves no room for the matrix or the panel
SHORT = {"AUROC": "AUROC", "average precision": "AP"}  # over a small panel


def save_figure(figure: Figure, path: Path) -> None:
    """Save as PNG, atomically."""
    with interrupts_wait(), atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=130)


def confusion_figure(metrics: dict[str, Any], title: str) -> Figure:
    """Draw the confusion matrix: colour by the share of the true class (row), each cell with its count and share."""
    counts = np.array(metrics["confusion"])
    totals, size = counts.sum(1), len(counts)
    share = counts / np.maximum(totals[:, None], 1)
    classes = [elide(name, LONGEST) for name in metrics["classes"]]
    figure = Figure(figsize=(2.4 + 1.05 * size, 1.6 + 0.95 * size), layout="constrained")
    ax = figure.subplots()
    image = ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(size, size):
        text = f"{counts[row, column]}\n{share[row, column]:.1%}"
        colour = "white" if share[row, column] > 0.55 else "black"
        ax.text(column, row, text, ha="center", va="center", fontsize=9, color=colour)
    ax.set_xticks(range(size), classes, rotation=30, ha="right", rotation_mode="anchor", parse_math=False)
    ax.set_yticks(range(size), [f"{name} (n={n})" for name, n in zip(classes, totals, strict=True)], parse_math=False)
    ax.set(xlabel="predicted", ylabel="true")
    accuracy, balanced = (metrics[name]["value"] for name in ("accuracy", "balanced_accuracy"))
    numbers = f"accuracy {accuracy:.3f}, balanced {balanced:.3f}, n={metrics['n']}"
    ax.set_title(f"{title}\n{numbers}", fontsize=10, parse_math=False)
    figure.colorbar(image, ax=ax, label="share of the true class", shrink=0.85)
    return figure


def roc_figure(curves: list[Curve]) -> Figure:
    """Draw ROC curves with their bands, a panel each; `curves` are `class_curves(…)["roc"]`."""
    return _curve_figure(curves, ("1 - specificity", "sensitivity (recall)"), "AUROC")


def precision_recall_figure(curves: list[Curve]) -> Figure:
    """Draw precision-recall curves, a panel each, with bands; `curves` are `class_curves(…)["precision_recall"]`."""
    return _curve_figure(curves, ("recall (sensitivity)", "precision (PPV)"), "average precision")


def shown_curves(curves: list[Curve]) -> tuple[list[Curve], list[str]]:
    """Return the curves that a figure has room for, the mean always among them, and the names of the others."""
    if len(curves) <= MOST_PANELS:
        return curves, []
    *classes, mean = curves
    return [*classes[: MOST_PANELS - 1], mean], [curve.name for curve in classes[MOST_PANELS - 1 :]]


def _curve_figure(curves: list[Curve], labels: tuple[str, str], area: str) -> Figure:
    """Draw a panel per curve: three in a row, or, of more than twelve, five small ones."""
    shown, left_out = shown_curves(curves)
    panels, small = max(len(shown), 1), len(shown) > 12
    columns, side = (5, 2.2) if small else (min(3, panels), 3.1)
    rows = -(-panels // columns)
    height = (side + 0.1) * rows + 0.3 * (1 + bool(left_out))
    figure = Figure(figsize=(side * columns + 0.3, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for ax in axes.flat[panels:]:
        ax.set_axis_off()
    for number, (ax, curve) in enumerate(zip(axes.flat, shown, strict=False)):
        _draw_curve(ax, curve, MEAN_COLOUR if curve.name == "mean" else COLOURS[number % len(COLOURS)])
        ax.plot([0, 1], [0, 1] if area == "AUROC" else [curve.chance] * 2, color=MEAN_COLOUR, lw=0.8, ls=(0, (1, 3)))
        heading = f"{elide(curve.name, LONGEST)}\n{SHORT[area]}" if small else f"{curve.name}\n{area}"
        ax.set_title(f"{heading} {with_limits(curve.area)}", fontsize=8 if small else 9, parse_math=False)
        ax.tick_params(labelbottom=number + columns >= len(shown))
    if not shown:
        axes[0, 0].text(0.5, 0.5, "no class has images on both sides", ha="center", transform=axes[0, 0].transAxes)
    if left_out:
        figure.suptitle(f"not shown (no room): {len(left_out)} of {len(curves) - 1} classes", fontsize=10)
    figure.supxlabel(labels[0], fontsize=10)
    figure.supylabel(labels[1], fontsize=10)
    return figure


def _draw_curve(ax: Axes, curve: Curve, colour: str) -> None:
    ax.plot(curve.x, curve.y, color=colour, lw=1.6)
    ax.fill_between(GRID, curve.low, curve.high, color=colour, alpha=0.18, lw=0)
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    ax.set_aspect("equal")
    ax.grid(alpha=0.25)


def reliability_figure(before: Bins, after: Bins | None, temperature: float | None = None) -> Figure:
    """Draw accuracy against confidence per bin with Wilson's limits; below, how many images each bin holds."""
    panels = [("as predicted", before)] + ([(f"temperature {temperature:.2f}", after)] if after is not None else [])
    figure = Figure(figsize=(4.4 * len(panels), 5.0), layout="constrained")
    axes = figure.subplots(2, len(panels), squeeze=False, sharex=True, height_ratios=(4, 1))
    for (top, bottom), (title, bins) in zip(axes.T, panels, strict=True):
        _draw_reliability(top, bins)
        top.set_title(title, fontsize=10)
        centres = (np.arange(len(bins.count)) + 0.5) / len(bins.count)
        bottom.bar(centres, bins.count, width=0.9 / len(bins.count), color=MEAN_COLOUR)
        bottom.set(xlim=(0, 1), xlabel="confidence")
    axes[0, 0].set_ylabel("accuracy")
    axes[1, 0].set_ylabel("images")
    return figure


def _draw_reliability(ax: Axes, bins: Bins) -> None:
    filled = bins.count > 0
    x, y = bins.confidence[filled], bins.accuracy[filled]
    # rounding may put a limit on the other side of its value
    errors = np.maximum([y - bins.low[filled], bins.high[filled] - y], 0)
    ax.plot([0, 1], [0, 1], color=MEAN_COLOUR, lw=0.8, ls="--", label="perfectly calibrated")
    ax.errorbar(x, y, yerr=errors, fmt="o-", ms=4, lw=1.2, color=COLOURS[0], capsize=2, label="with 95 % intervals")
    ax.set(ylim=(-0.02, 1.02))
    ax.grid(alpha=0.25)
    ax.legend(fontsize=8, loc="best")


def learning_curves_figure(history: list[dict[str, Any]], best_epoch: int) -> Figure:
    """Draw loss and accuracy per epoch, training against validation, with the epoch of `best.pt` marked.

    `history` holds rows of `history.csv` as numbers.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    epochs = [row["epoch"] for row in history]
    panels = (("loss", "cross entropy (nats)"), ("accuracy", "accuracy"))
    lines = (("train", MEAN_COLOUR, "training (augmented)"), ("valid", COLOURS[0], "validation"))
    for ax, (name, title) in zip(figure.subplots(1, 2), panels, strict=True):
        for prefix, colour, label in lines:
            ax.plot(epochs, [row[f"{prefix}_{name}"] for row in history], "o-", ms=3.5, color=colour, label=label)
        if name == "accuracy":
            macro = [row["valid_macro_f1"] for row in history]
            ax.plot(epochs, macro, "s--", ms=3, color=COLOURS[1], label="validation macro F1")
            ax.set_ylim(top=1.0)
        ax.axvline(best_epoch, color=MEAN_COLOUR, lw=0.8, ls=":", label=f"best.pt (epoch {best_epoch})")
        ax.set(xlabel="epoch", ylabel=title)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
    return figure
