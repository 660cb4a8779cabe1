"""The picture of a summary: the lifts of all methods with their intervals, beside the controls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.figures.palette import COLOURS
from localization.scoring.summary import ALL, MASKS, MOST_CLASSES, beats_controls
from utils import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKS = {"gaussian": ("^", "centred Gaussian"), "randomised": ("x", "randomised model"), "oracle": ("d", "oracle")}
WIDE = 6  # the largest number over the smallest: beyond, the axis is logarithmic
LEAST = 0.05  # of a logarithmic axis
LONGEST = 24  # characters of a class in a title


def draw_summary(path: Path, summary: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> None:
    """Save the lifts on lungs and lesions as PNG, a panel per mask and class, a row per method; nothing without a lift.

    Of more than six classes the first ones and `all` are shown. `titles`: what each method is called.
    """
    lifts = [line for line in summary if line["score"].endswith("_lift") and not np.isnan(line["value"])]
    if not lifts:
        path.unlink(missing_ok=True)  # an earlier picture would be read beside this table
        return
    with atomic_write(path, "wb") as file:
        _figure(lifts, titles).savefig(file, format="png", dpi=130)


def _figure(lifts: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> Figure:
    classes, hidden = _shown_classes(lifts)
    masks = [mask for mask in MASKS if any(line["score"] == f"{mask}_lift" for line in lifts)]
    models, methods = ([*dict.fromkeys(line[key] for line in lifts)] for key in ("model", "method"))
    figure, axes = _grid(len(masks), len(classes), 0.7 + max(0.45, len(methods) * max(0.22, 0.14 * len(models))))
    for mask, of_mask in zip(masks, axes, strict=True):
        found = [line for line in lifts if line["score"] == f"{mask}_lift" and line["class"] in classes]
        for ax in of_mask[len(classes) :]:
            ax.set_axis_off()
        for ax, name in zip(of_mask, classes, strict=False):
            lines = [line for line in found if line["class"] == name]
            _scale(ax, found)
            _panel(ax, lines, models, methods)
            short = name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
            images = max((line["n"] for line in lines), default=0)
            ax.set_title(f"{MASKS[mask]}, {short} ({images} image{'s' * (images != 1)})", fontsize=9, parse_math=False)
    axes[0, 0].set_yticks(range(len(methods)), [titles.get(m, m) for m in methods], fontsize=8.5, parse_math=False)
    _legend(figure, lifts, models, hidden)
    return figure


def _grid(masks: int, classes: int, height: float) -> tuple[Figure, np.ndarray]:
    """A figure and its axes (masks, panels), each `height` inches high, at most three in a row.

    Every mask has rows of its own; of one class, the masks stand side by side.
    """
    from matplotlib.figure import Figure

    columns = masks if classes == 1 else 2 if classes in (2, 4) else 3
    rows = 1 if classes == 1 else masks * -(-classes // columns)
    figure = Figure(figsize=(10, 0.9 + rows * height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, sharey=True).reshape(masks, -1)


def _shown_classes(lifts: Iterable[Mapping[str, Any]]) -> tuple[list[str], int]:
    """The classes that get a panel, `all` among them, and how many do not."""
    classes = [*dict.fromkeys(line["class"] for line in lifts)]
    if len(classes) <= MOST_CLASSES:
        return classes, 0
    single = [name for name in classes if name != ALL]
    shown = [*single[: MOST_CLASSES - 1], *([ALL] if ALL in classes else [])]
    return shown, len(classes) - len(shown)


def _panel(ax: Axes, lines: Sequence[Mapping[str, Any]], models: Sequence[str], methods: Sequence[str]) -> None:
    """The rows of one mask and class: a method's models one under the other, the controls a little above each."""
    ax.axvline(1, color="0.35", lw=1, ls="--", zorder=1)
    for place in range(1, len(methods), 2):
        ax.axhspan(place - 0.5, place + 0.5, color="0.95", zorder=0)
    step = 0.8 / len(models)
    for line in lines:
        number = models.index(line["model"])
        y = methods.index(line["method"]) + (number - (len(models) - 1) / 2) * step
        colour = COLOURS[number % len(COLOURS)]
        above = y - 0.28 * step
        for control, (mark, _) in MARKS.items():
            if not np.isnan(line[control]):
                face = "none" if control != "randomised" else "0.35"
                ax.plot(line[control], above, mark, ms=4, color="0.35", mfc=face, mew=0.9, zorder=2)
        ax.plot([line["low"], line["high"]], [y, y], color=colour, lw=1.8, solid_capstyle="butt", zorder=3)
        face = colour if beats_controls(line) else "white"
        least = ax.get_xlim()[0]
        mark = "o" if line["value"] >= least else "<"  # a lift of 0 has no place on a logarithmic axis
        ax.plot(max(line["value"], least), y, mark, ms=5, color=colour, mfc=face, zorder=4, clip_on=False)
    ax.set_ylim(len(methods) - 0.5, -0.5)
    ax.tick_params(axis="both", labelsize=8)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", alpha=0.3)
    ax.set_axisbelow(True)
    ax.spines[["top", "right", "left"]].set_visible(False)


def _scale(ax: Axes, lines: Sequence[Mapping[str, Any]]) -> None:
    """One axis for all classes of a mask, logarithmic where the numbers are far apart."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    numbers = np.array([[line[key] for key in ("value", "low", "high", *MARKS)] for line in lines], np.float64)
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


def _legend(figure: Figure, lifts: Sequence[Mapping[str, Any]], models: Sequence[str], hidden: int) -> None:
    """What the marks mean, above the panels."""
    from matplotlib.lines import Line2D

    ink = COLOURS[0] if len(models) == 1 else "0.2"
    handles = [
        Line2D([], [], color=ink, marker="o", ms=5, lw=1.8, label="better than each control (oracle aside)"),
        Line2D([], [], color=ink, marker="o", ms=5, lw=1.8, mfc="white", label="not better than each of them"),
        Line2D([], [], color="0.35", lw=1, ls="--", label="uniform: 1"),
    ]
    for control, (mark, name) in MARKS.items():
        if any(not np.isnan(line[control]) for line in lifts):
            face = "none" if control != "randomised" else "0.35"
            handles.append(Line2D([], [], color="0.35", marker=mark, ms=4, mfc=face, mew=0.9, lw=0, label=name))
    if len(models) > 1:
        handles += [Line2D([], [], color=COLOURS[i % len(COLOURS)], lw=3, label=name) for i, name in enumerate(models)]
    title = "Lift (share of the map's energy inside ÷ share of the picture) with its 95 % interval, beside the controls"
    title += f"; {hidden} more classes are in scores.csv" if hidden else ""
    place = {"loc": "outside upper center", "ncols": 3, "frameon": False}
    figure.legend(handles=handles, title=title, fontsize=8, title_fontsize=9, **place)
