"""The forest plot of a comparison: every run with its interval, every difference about the line of no difference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evaluation.comparison import TESTS, Comparison, Difference
from evaluation.phrases import join, p_text, with_limits, words
from utils import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METRICS = ("accuracy", "macro_f1", "macro_auroc")
LONGEST = 44  # characters of a run's name: MODEL-YYYYMMDD-HHMMSS of timm's usual names
ROW = 0.34  # inches
COLOUR = "#1f4e79"


def plot_forest(found: Comparison, path: Path) -> None:
    """Save `forest_figure` as a PNG."""
    with atomic_write(path, "wb") as file:
        forest_figure(found).savefig(file, format="png", dpi=130)


def forest_figure(found: Comparison) -> Figure:
    """The runs' accuracy, macro F1 and macro AUROC (above) and each pair's differences of them (below).

    A difference that its corrected test tells from 0 is filled; macro F1 has no test, and a mark of its own.
    """
    from matplotlib.figure import Figure

    names = shorten(list(found.runs))
    pairs = [f"{names[pair.a]}\n− {names[pair.b]}" for pair in found.pairs]
    heights = [ROW * len(names), 1.25 * ROW * len(pairs)]  # a pair's name takes two lines
    figure = Figure(figsize=(9 + 0.07 * max(map(len, names.values())), 2.1 + sum(heights)), layout="constrained")
    above, below = figure.subplots(2, len(METRICS), sharey="row", height_ratios=heights)
    everywhere = "s" * len(names), [True] * len(names)
    for upper, lower, metric in zip(above, below, METRICS, strict=True):
        runs = [run[metric] for run in found.runs.values()]
        _draw_rows(upper, list(names.values()), _numbers(runs), [with_limits(run) for run in runs], *everywhere)
        upper.set_title(words(metric), fontsize=10, fontweight="bold")
        _draw_differences(lower, pairs, [pair.differences[metric] for pair in found.pairs])
        lower.set_title(f"difference ({TESTS.get(metric, 'no')} test)", fontsize=9)
    figure.suptitle("\n".join(_heading(found, names)), fontsize=9, parse_math=False)
    return figure


def _heading(found: Comparison, names: dict[str, str]) -> list[str]:
    """What the marks mean, and what not to believe."""
    corrected = ", Holm" * (len(found.pairs) > 1)
    lines = [
        f"{found.images}, 95 % intervals. Differences: filled where told apart (p < 0.05{corrected}), open where not; "
        "diamonds have no test."
    ]
    if found.unknown:
        lines.append("p and intervals assume that images of unknown patients are independent.")
    if found.distrusted:
        lines.append(f"Do not trust {join(names[name] for name in found.distrusted)}: see comparison.json.")
    return lines


def shorten(names: Sequence[str]) -> dict[str, str]:
    """Names of at most `LONGEST` characters: longer ones lose their middle, unless two would then be one."""
    half = LONGEST // 2
    short = {name: name if len(name) <= LONGEST else f"{name[: half - 1]}…{name[-half:]}" for name in names}
    return short if len(set(short.values())) == len(names) else {name: name for name in names}


def _numbers(found: Sequence[dict[str, float | None]]) -> np.ndarray:
    """value, low and high of each, (rows, 3), NaN where unknown."""
    return np.array([[row[part] for part in ("value", "low", "high")] for row in found], np.float64)


def _draw_differences(ax: Axes, labels: Sequence[str], found: Sequence[Difference]) -> None:
    """The differences about the line of no difference, which is in the middle."""
    numbers = np.array([[d.value, d.low, d.high] for d in found])
    texts = [d.text() + (f"\np {p_text(d.p_holm)}" if p_text(d.p_holm) else "") for d in found]
    marks = "".join("D" if np.isnan(d.p_holm) else "s" for d in found)
    _draw_rows(ax, labels, numbers, texts, marks, [d.told_apart for d in found])
    furthest = 1.1 * max(np.nan_to_num(np.abs(numbers)).max(), 1e-3)
    ax.set_xlim(-furthest, furthest)
    ax.axvline(0, color="black", lw=1, zorder=1)
    ax.set_xlabel("second better  ←   →  first better", fontsize=8)


def _draw_rows(
    ax: Axes, labels: Sequence[str], numbers: np.ndarray, texts: Sequence[str], marks: str, filled: Sequence[bool]
) -> None:
    """One row per label, from the top: the value with its limits, and at the right the numbers in words."""
    from matplotlib.ticker import MaxNLocator

    places = np.arange(len(labels))
    for place in places:
        value, *limits = numbers[place]
        if place % 2:
            ax.axhspan(place - 0.5, place + 0.5, color="0.95", zorder=0)
        ax.plot(limits, [place, place], color=COLOUR, lw=1.6, solid_capstyle="butt", zorder=2)
        ax.plot(value, place, marks[place], ms=5.5, color=COLOUR, mfc=COLOUR if filled[place] else "white", zorder=3)
        ax.text(1.02, place, texts[place], transform=ax.get_yaxis_transform(), va="center", fontsize=7.5)
    ax.set_yticks(places, labels, fontsize=8, parse_math=False)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    ax.tick_params(axis="x", labelsize=8)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", alpha=0.3)
    ax.set_axisbelow(True)
    ax.spines[["top", "right", "left"]].set_visible(False)
