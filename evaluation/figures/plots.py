"""Pictures of an evaluation and of a training, as matplotlib figures: test.py saves them, the report embeds them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.figures.palette import COLOURS, MEAN_COLOUR
from utils import atomic_write, interrupts_wait

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from evaluation.metrics.calibration import Bins
    from evaluation.metrics.curves import Curve

MOST_PANELS = 24
SHORT = {"AUROC": "AUROC", "average precision": "AP"}  # over a small panel


def save_figure(figure: Figure, path: Path) -> None:
    """Save as PNG, atomically."""
    with interrupts_wait(), atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=130)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def confusion_figure(metrics: dict[str, Any], title: str) -> Figure:
    """The confusion matrix: colour by the share of the true class (row), each cell with its count and share."""
    counts = np.array(metrics["confusion"])
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    classes, size = [_short(name) for name in metrics["classes"]], len(metrics["classes"])
    figure = _figure(2.4 + 1.05 * size, 1.6 + 0.95 * size)
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
        parse_math=False,
    )
    figure.colorbar(image, ax=ax, label="share of the true class", shrink=0.85)
    return figure


def _short(name: str) -> str:
    """A class name of at most 24 characters: longer ones leave no room for the matrix."""
    return name if len(name) <= 24 else name[:23] + "…"


def roc_figure(curves: list[Curve]) -> Figure:
    """ROC curves with their bands, a panel each; `curves` are `class_curves(…)["roc"]`."""
    return _curve_figure(curves, ("1 - specificity", "sensitivity (recall)"), "AUROC")


def precision_recall_figure(curves: list[Curve]) -> Figure:
    """Precision-recall curves with their bands, a panel each; `curves` are `class_curves(…)["precision_recall"]`."""
    return _curve_figure(curves, ("recall (sensitivity)", "precision (PPV)"), "average precision")


def shown_curves(curves: list[Curve]) -> tuple[list[Curve], list[str]]:
    """The curves that a figure has room for, the mean always among them, and the names of the others."""
    if len(curves) <= MOST_PANELS:
        return curves, []
    *classes, mean = curves
    return [*classes[: MOST_PANELS - 1], mean], [curve.name for curve in classes[MOST_PANELS - 1 :]]


def _curve_figure(curves: list[Curve], labels: tuple[str, str], area: str) -> Figure:
    """A panel per curve: three in a row, or five small ones of more than twelve."""
    from evaluation.phrases import with_limits

    shown, left_out = shown_curves(curves)
    columns, side = (5, 2.2) if len(shown) > 12 else (min(3, max(len(shown), 1)), 3.1)
    rows = -(-max(len(shown), 1) // columns)
    figure = _figure(side * columns + 0.3, (side + 0.1) * rows + 0.3 * (1 + bool(left_out)))
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for ax in axes.flat[max(len(shown), 1) :]:
        ax.set_axis_off()
    for number, (ax, curve) in enumerate(zip(axes.flat, shown, strict=False)):
        _curve_panel(ax, curve, area, MEAN_COLOUR if curve.name == "mean" else COLOURS[number % len(COLOURS)])
        if columns == 5:
            name = curve.name if len(curve.name) <= 24 else f"{curve.name[:23]}…"
            ax.set_title(f"{name}\n{SHORT[area]} {with_limits(curve.area)}", fontsize=8, parse_math=False)
        ax.tick_params(labelbottom=number + columns >= len(shown))
    if not shown:
        axes[0, 0].text(0.5, 0.5, "no class has images on both sides", ha="center", transform=axes[0, 0].transAxes)
    if left_out:
        figure.suptitle(f"{len(left_out)} of {len(curves) - 1} classes are not drawn, for want of room", fontsize=10)
    figure.supxlabel(labels[0], fontsize=10)
    figure.supylabel(labels[1], fontsize=10)
    return figure


def _curve_panel(ax: Axes, curve: Curve, area: str, colour: str) -> None:
    from evaluation.metrics.curves import GRID
    from evaluation.phrases import with_limits

    ax.plot(curve.x, curve.y, color=colour, lw=1.6)
    ax.fill_between(GRID, curve.low, curve.high, color=colour, alpha=0.18, lw=0)
    chance = [0, 1] if area == "AUROC" else [curve.chance] * 2
    ax.plot([0, 1], chance, color=MEAN_COLOUR, lw=0.8, ls=(0, (1, 3)))
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    ax.set_aspect("equal")
    ax.grid(alpha=0.25)
    ax.set_title(f"{curve.name}\n{area} {with_limits(curve.area)}", fontsize=9, parse_math=False)


def reliability_figure(before: Bins, after: Bins | None, temperature: float | None = None) -> Figure:
    """Accuracy against confidence per bin with Wilson's limits; below, how many images each bin holds."""
    panels = [("as predicted", before)] + ([(f"temperature {temperature:.2f}", after)] if after is not None else [])
    figure = _figure(4.4 * len(panels), 5.0)
    axes = figure.subplots(2, len(panels), squeeze=False, sharex=True, height_ratios=(4, 1))
    for column, (title, bins) in enumerate(panels):
        top, bottom = axes[:, column]
        _reliability_panel(top, bins)
        top.set_title(title, fontsize=10)
        centres = (np.arange(len(bins.count)) + 0.5) / len(bins.count)
        bottom.bar(centres, bins.count, width=0.9 / len(bins.count), color=MEAN_COLOUR)
        bottom.set(xlim=(0, 1), xlabel="confidence")
        bottom.set_ylabel("images" if column == 0 else "")
    axes[0, 0].set_ylabel("share that is right")
    return figure


def _reliability_panel(ax: Axes, bins: Bins) -> None:
    filled = bins.count > 0
    x, y = bins.confidence[filled], bins.accuracy[filled]
    # a limit may lie a rounding error on the other side of its value
    errors = np.maximum([y - bins.low[filled], bins.high[filled] - y], 0)
    ax.plot([0, 1], [0, 1], color=MEAN_COLOUR, lw=0.8, ls="--", label="perfectly calibrated")
    ax.errorbar(x, y, yerr=errors, fmt="o-", ms=4, lw=1.2, color=COLOURS[0], capsize=2, label="with 95 % intervals")
    ax.set(ylim=(-0.02, 1.02))
    ax.grid(alpha=0.25)
    ax.legend(fontsize=8, loc="best")


def learning_curves_figure(history: list[dict[str, Any]], best_epoch: int) -> Figure:
    """Loss and accuracy per epoch, training against validation, the epoch of `best.pt` marked.

    `history` holds rows of `history.csv` as numbers.
    """
    from matplotlib.ticker import MaxNLocator

    figure = _figure(9, 3.6)
    epochs = [row["epoch"] for row in history]
    panels = (("loss", "cross entropy (nats)"), ("accuracy", "accuracy"))
    for ax, (name, label) in zip(figure.subplots(1, 2), panels, strict=True):
        for part, colour in (("train", MEAN_COLOUR), ("valid", COLOURS[0])):
            words = "training (augmented)" if part == "train" else "validation"
            ax.plot(epochs, [row[f"{part}_{name}"] for row in history], "o-", ms=3.5, color=colour, label=words)
        if name == "accuracy":
            macro = [row["valid_macro_f1"] for row in history]
            ax.plot(epochs, macro, "s--", ms=3, color=COLOURS[1], label="validation macro F1")
            ax.set_ylim(top=1.0)
        ax.axvline(best_epoch, color=MEAN_COLOUR, lw=0.8, ls=":", label=f"best.pt (epoch {best_epoch})")
        ax.set_xlabel("epoch")
        ax.set_ylabel(label)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
    return figure
