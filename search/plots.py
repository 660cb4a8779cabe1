"""Plots of a search: what each trial reached, and which keys that depended on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial

from evaluation.figures.palette import COLOURS, MEAN_COLOUR
from evaluation.figures.plots import save_figure
from search.metric import Metric
from search.results import best_trial, default_trial, state_of

LEAST = 4  # complete trials that importances need


def importances(study: Study, seed: int) -> dict[str, float]:
    """Return how much of the value's variance over the space each key explains alone, the largest first.

    These are shares that sum to 1 (fANOVA, Hutter, Hoos and Leyton-Brown 2014); empty with fewer than `LEAST` complete
    trials, or equal values.
    """
    values = [trial.value for trial in _trials(study, "complete")]
    if len(values) < LEAST or len(set(values)) < 2:
        return {}
    return get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=seed % 2**32))


def _trials(study: Study, state: str) -> list[FrozenTrial]:
    return [trial for trial in study.get_trials(deepcopy=False) if state_of(trial) == state]


def importance_figure(importances: dict[str, float], metric: Metric, trials: int) -> Figure:
    """Draw a bar per key."""
    figure = Figure(figsize=(6.4, 1.3 + 0.34 * len(importances)), layout="constrained")
    ax = figure.subplots()
    names, shares = list(importances)[::-1], list(importances.values())[::-1]
    bars = ax.barh(names, shares, color=COLOURS[0], height=0.7)
    ax.bar_label(bars, [f"{share:.0%}" for share in shares], padding=3, fontsize=8)
    ax.set_xlim(0, max(0.05, max(shares)) * 1.15)
    ax.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    ax.set_xlabel(f"relative importance for the validation {metric.words}")
    ax.set_title(f"importance of the keys (fANOVA, {trials} complete trials)", fontsize=10)
    ax.grid(axis="x", alpha=0.25)
    ax.set_axisbelow(True)
    return figure


def history_figure(study: Study, metric: Metric) -> Figure:
    """Draw every trial's value in the order of their numbers, the best so far, and the default's."""
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    ax = figure.subplots()
    if complete := _trials(study, "complete"):
        _draw_complete(ax, study, complete)
    if pruned := [trial for trial in _trials(study, "pruned") if trial.value is not None]:
        values, label = [trial.value for trial in pruned], f"stopped early ({len(pruned)}), last value"
        ax.plot([trial.number for trial in pruned], values, "x", ms=6, color=MEAN_COLOUR, label=label)
    if failed := [trial.number for trial in _trials(study, "failed")]:
        bottom, label = [0.02] * len(failed), f"failed ({len(failed)})"
        ax.plot(failed, bottom, "v", ms=6, color=COLOURS[3], transform=ax.get_xaxis_transform(), label=label)
    if (default := default_trial(study)) is not None:
        ax.axhline(default.value, color=MEAN_COLOUR, lw=0.9, ls=":", label=f"default (trial {default.number})")
    ax.set_xlabel("trial")
    ax.set_ylabel(f"validation {metric.words}" + (" (lower is better)" if metric.direction == "minimize" else ""))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    return figure


def _draw_complete(ax: Axes, study: Study, trials: list[FrozenTrial]) -> None:
    numbers, values = [trial.number for trial in trials], [trial.value for trial in trials]
    best_so_far = (np.minimum if study.direction == StudyDirection.MINIMIZE else np.maximum).accumulate(values)
    ax.step(numbers, best_so_far, where="post", color=COLOURS[0], lw=1.6, label="best so far")
    ax.plot(numbers, values, "o", ms=5, color=COLOURS[0], label=f"complete ({len(trials)})")
    best = best_trial(study)
    ax.plot(best.number, best.value, "*", ms=14, color=COLOURS[1], label=f"best: trial {best.number}")


def write_plots(study: Study, metric: Metric, folder: Path, seed: int) -> list[str]:
    """Write `history.png`, and `importance.png` if there are importances, and return the names of the files."""
    save_figure(history_figure(study, metric), folder / "history.png")
    shares = importances(study, seed)
    if not shares:
        return ["history.png"]
    save_figure(importance_figure(shares, metric, len(_trials(study, "complete"))), folder / "importance.png")
    return ["history.png", "importance.png"]
