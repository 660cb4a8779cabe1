"""The forest plot of a comparison: every run with its interval, every difference about the line of no difference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from evaluation.comparison.paired import Difference
from evaluation.comparison.pairs import TESTS, Comparison
from evaluation.comparison.report import HEADLINE
from evaluation.figures.plots import save_figure
from evaluation.phrases import join, p_text, words
from intervals import Interval
from utils import elide

LONGEST = 44  # characters of a run's name: MODEL-YYYYMMDD-HHMMSS of timm's usual names
ROW = 0.34  # inches
COLOUR = "#1f4e79"


def plot_forest(comparison: Comparison, path: Path) -> None:
    """Save `forest_figure` as a PNG."""
    save_figure(forest_figure(comparison), path)


def forest_figure(comparison: Comparison) -> Figure:
    """Draw the runs' accuracy, macro F1 and macro AUROC (above) and every pair's differences in them (below).

    A difference that its corrected test tells from 0 is filled; macro F1 has no test and a different mark.
    """
    names = shorten(list(comparison.runs))
    pairs = [f"{names[pair.a]}\n− {names[pair.b]}" for pair in comparison.pairs]
    heights = [ROW * len(names), 1.25 * ROW * len(pairs)]  # a pair's name takes two lines
    figure = Figure(figsize=(9 + 0.07 * max(map(len, names.values())), 2.1 + sum(heights)), layout="constrained")
    above, below = figure.subplots(2, len(HEADLINE), sharey="row", height_ratios=heights)
    for upper, lower, metric in zip(above, below, HEADLINE, strict=True):
        for y, run in enumerate(comparison.runs.values()):
            _draw_row(upper, y, run[metric], run[metric].text())
        _finish(upper, list(names.values()))
        upper.set_title(words(metric), fontsize=10, fontweight="bold")
        _draw_differences(lower, pairs, [pair.differences[metric] for pair in comparison.pairs])
        lower.set_title(f"difference ({TESTS.get(metric, 'no')} test)", fontsize=9)
    figure.suptitle("\n".join(_heading(comparison, names)), fontsize=9, parse_math=False)
    return figure


def _heading(comparison: Comparison, names: dict[str, str]) -> list[str]:
    """Return what the marks mean, and what not to believe."""
    corrected = ", Holm" * (len(comparison.pairs) > 1)
    lines = [
        f"{comparison.images}, 95 % intervals. Differences: filled if significant (p < 0.05{corrected}), open if not; "
        "diamonds have no test."
    ]
    if comparison.unknown_patients:
        lines.append("p and intervals assume that images of unknown patients are independent.")
    if comparison.distrusted:
        lines.append(f"Do not trust {join(names[name] for name in comparison.distrusted)}: see comparison.json.")
    return lines


def shorten(names: Sequence[str]) -> dict[str, str]:
    """Return the names with at most `LONGEST` characters, unless two would then be alike."""
    short = {name: elide(name, LONGEST) for name in names}
    return short if len(set(short.values())) == len(names) else {name: name for name in names}


def _draw_differences(ax: Axes, labels: Sequence[str], differences: Sequence[Difference]) -> None:
    """Draw the differences about the line of no difference, which is in the middle."""
    intervals = [Interval(d.value, d.low, d.high) for d in differences]
    for y, (d, interval) in enumerate(zip(differences, intervals, strict=True)):
        mark, colour = "D" if np.isnan(d.p_holm) else "s", COLOUR if d.significant else "white"
        _draw_row(ax, y, interval, f"{d.text()}\n{p_text(d.p_holm)}".rstrip(), mark, colour)
    _finish(ax, labels)
    furthest = 1.1 * max(np.nan_to_num(np.abs(intervals)).max(), 1e-3)
    ax.set_xlim(-furthest, furthest)
    ax.axvline(0, color="black", lw=1, zorder=1)
    ax.set_xlabel("second better  ←   →  first better", fontsize=8)


def _draw_row(ax: Axes, y: int, interval: Interval, text: str, mark: str = "s", colour: str = COLOUR) -> None:
    """Draw the value with its limits, and the text at the right; `colour` fills the mark."""
    value, *limits = interval
    if y % 2:
        ax.axhspan(y - 0.5, y + 0.5, color="0.95", zorder=0)
    ax.plot(limits, [y, y], color=COLOUR, lw=1.6, solid_capstyle="butt", zorder=2)
    ax.plot(value, y, mark, ms=5.5, color=COLOUR, mfc=colour, zorder=3)
    ax.text(1.02, y, text, transform=ax.get_yaxis_transform(), va="center", fontsize=7.5)


def _finish(ax: Axes, labels: Sequence[str]) -> None:
    """Label the rows from the top, and draw the grid without a frame."""
    ax.set_yticks(range(len(labels)), labels, fontsize=8, parse_math=False)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    ax.tick_params(axis="x", labelsize=8)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", alpha=0.3)
    ax.set_axisbelow(True)
    ax.spines[["top", "right", "left"]].set_visible(False)
