"""The figure of a summary: the lifts of all methods with their intervals, beside the controls."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from evaluation.figures.palette import COLOURS
from evaluation.figures.plots import save_figure
from localization.methods.table import METHODS
from localization.scoring.rows import MASKS
from localization.scoring.summary import ALL, SummaryRow
from localization.scoring.summary_text import MOST_CLASSES
from utils import count, elide

MARKS = {"gaussian": ("^", "centred Gaussian"), "randomised": ("x", "randomised model"), "oracle": ("d", "oracle")}
MARK = {"color": "0.35", "ms": 4, "mfc": "none", "mew": 0.9}
WIDE = 6  # ratio of the largest number to the smallest above which the axis is logarithmic
LEAST = 0.05  # lower end of a logarithmic axis
LONGEST = 24  # most characters of a class in a title


def draw_summary(path: Path, summary: Sequence[SummaryRow]) -> None:
    """Save the lifts on lungs and lesions as PNG: a panel per mask and class, a row per method.

    Of more than six classes the first ones and `all` have a panel. Without a lift there is no figure, and an earlier
    one is deleted, since it would be read beside this table.
    """
    lifts = [row for row in summary if row.score.endswith("_lift") and not np.isnan(row.value)]
    if not lifts:
        path.unlink(missing_ok=True)
        return
    save_figure(summary_figure(lifts), path)


def summary_figure(lifts: Sequence[SummaryRow]) -> Figure:
    """Return the figure of rows that are lifts with a value.

    At most three panels are side by side, and every mask has rows of its own; with one class, the masks share one.
    """
    classes = shown_classes(row.class_name for row in lifts)
    masks = [mask for mask in MASKS if any(row.score == f"{mask}_lift" for row in lifts)]
    models, methods = ([*dict.fromkeys(getattr(row, name) for row in lifts)] for name in ("model", "method"))
    panels = [[f"{mask} {name}" for name in classes] for mask in masks]
    columns = 2 if len(classes) in (2, 4) else 3
    grid = [[row[0] for row in panels]]
    if len(classes) > 1:
        padded = [row + ["."] * (-len(row) % columns) for row in panels]
        grid = [row[start : start + columns] for row in padded for start in range(0, len(row), columns)]
    height = 0.7 + max(0.45, len(methods) * max(0.22, 0.14 * len(models)))
    figure = Figure(figsize=(10, 0.9 + len(grid) * height), layout="constrained")
    axes = figure.subplot_mosaic(grid, sharey=True)
    for mask in masks:
        mask_rows = [row for row in lifts if row.score == f"{mask}_lift" and row.class_name in classes]
        for name in classes:
            ax, rows = axes[f"{mask} {name}"], [row for row in mask_rows if row.class_name == name]
            _set_axis(ax, mask_rows)
            _draw_panel(ax, rows, models, methods)
            images = count(max((row.n for row in rows), default=0), "image")
            ax.set_title(f"{MASKS[mask]}, {elide(name, LONGEST)} ({images})", fontsize=9, parse_math=False)
    titles = [METHODS[method].title for method in methods]
    axes[grid[0][0]].set_yticks(range(len(methods)), titles, fontsize=8.5, parse_math=False)
    _add_legend(figure, lifts, models, len({row.class_name for row in lifts} - {*classes}))
    return figure


def shown_classes(names: Iterable[str]) -> list[str]:
    """Return the classes that get a panel: at most `MOST_CLASSES`, `all` the last of them."""
    classes = sorted(dict.fromkeys(names), key=ALL.__eq__)
    return classes if len(classes) <= MOST_CLASSES else [*classes[: MOST_CLASSES - 1], classes[-1]]


def _draw_panel(ax: Axes, rows: Sequence[SummaryRow], models: Sequence[str], methods: Sequence[str]) -> None:
    """Draw one mask and class: the models of a method below each other, their controls slightly above them."""
    ax.axvline(1, color="0.35", lw=1, ls="--", zorder=1)
    for place in range(1, len(methods), 2):
        ax.axhspan(place - 0.5, place + 0.5, color="0.95", zorder=0)
    step = 0.8 / len(models)
    for row in rows:
        number = models.index(row.model)
        y = methods.index(row.method) + (number - (len(models) - 1) / 2) * step
        colour = COLOURS[number % len(COLOURS)]
        above = y - 0.28 * step
        for control, (mark, _) in MARKS.items():
            if not np.isnan(row.controls[control]):
                ax.plot(row.controls[control], above, mark, **MARK, zorder=2)
        ax.plot([row.low, row.high], [y, y], color=colour, lw=1.8, solid_capstyle="butt", zorder=3)
        face = colour if row.beats_controls else "white"
        least = ax.get_xlim()[0]
        mark = "o" if row.value >= least else "<"  # a lift of 0 has no place on a logarithmic axis
        ax.plot(max(row.value, least), y, mark, ms=5, color=colour, mfc=face, zorder=4, clip_on=False)
    ax.set_ylim(len(methods) - 0.5, -0.5)
    ax.tick_params(axis="both", labelsize=8)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", alpha=0.3)
    ax.set_axisbelow(True)
    ax.spines[["top", "right", "left"]].set_visible(False)


def _set_axis(ax: Axes, rows: Sequence[SummaryRow]) -> None:
    """Set one axis for all classes of a mask: logarithmic where the numbers are far apart."""
    numbers = np.array([[row.value, row.low, row.high, *map(row.controls.get, MARKS)] for row in rows], np.float64)
    numbers = np.append(numbers[~np.isnan(numbers)], 1)
    low, high = numbers.min(), numbers.max()
    if high <= WIDE * low:
        margin = 0.05 * (high - low) + 0.02
        ax.set_xlim(low - margin, high + margin)
        ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        return
    ax.set_xscale("log")
    ax.set_xlim(max(low, LEAST) / 1.15, high * 1.15)
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5), numticks=12))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def _add_legend(figure: Figure, lifts: Sequence[SummaryRow], models: Sequence[str], hidden: int) -> None:
    """Explain the marks above the panels."""
    ink = COLOURS[0] if len(models) == 1 else "0.2"
    handles = [
        Line2D([], [], color=ink, marker="o", ms=5, lw=1.8, label="better than every control but the oracle"),
        Line2D([], [], color=ink, marker="o", ms=5, lw=1.8, mfc="white", label="not better than every control"),
        Line2D([], [], color="0.35", lw=1, ls="--", label="uniform: 1"),
    ]
    for control, (mark, name) in MARKS.items():
        if any(not np.isnan(row.controls[control]) for row in lifts):
            handles.append(Line2D([], [], marker=mark, lw=0, label=name, **MARK))
    if len(models) > 1:
        handles += [Line2D([], [], color=COLOURS[i % len(COLOURS)], lw=3, label=name) for i, name in enumerate(models)]
    title = "Lift (share of the map's energy in the mask ÷ the mask's share of the image), 95 % interval, and controls"
    title += f"; {hidden} more classes are in scores.csv" if hidden else ""
    place = {"loc": "outside upper center", "ncols": 3, "frameon": False}
    figure.legend(handles=handles, title=title, fontsize=8, title_fontsize=9, **place)
