"""Pictures of a search: what each trial reached, and which keys that depended on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evaluation.figures.palette import COLOURS, MEAN_COLOUR
from evaluation.figures.plots import save_figure
from search.metric import Metric
from search.results import best_trial, default_trial, state_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from optuna.study import Study

LEAST = 4  # complete trials that an importance needs


def importances(study: Study, seed: int) -> dict[str, float]:
    """How much of the value's variance over the space each key explains alone (fANOVA, Hutter, Hoos and Leyton-Brown
    2014), in shares that sum to 1, the largest first; empty for fewer than `LEAST` complete trials, or equal values.
    """
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances
    from optuna.trial import TrialState

    values = [trial.value for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))]
    if len(values) < LEAST or len(set(values)) < 2:
        return {}
    return get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=seed % 2**32))


def importance_figure(found: dict[str, float], metric: Metric, trials: int) -> Figure:
    """A bar per key."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 1.3 + 0.34 * len(found)), layout="constrained")
    ax = figure.subplots()
    names, shares = list(found)[::-1], list(found.values())[::-1]
    bars = ax.barh(names, shares, color=COLOURS[0], height=0.7)
    ax.bar_label(bars, [f"{share:.0%}" for share in shares], padding=3, fontsize=8)
    ax.set_xlim(0, max(0.05, max(shares)) * 1.15)
    ax.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    ax.set_xlabel(f"relative importance for the validation {metric.words}")
    ax.set_title(f"what it depends on (fANOVA, {trials} complete trials)", fontsize=10)
    ax.grid(axis="x", alpha=0.25)
    ax.set_axisbelow(True)
    return figure


def history_figure(study: Study, metric: Metric) -> Figure:
    """Every trial's value in the order of their numbers, the best so far, and the default's."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    ax = figure.subplots()
    trials = [t for t in study.get_trials(deepcopy=False) if t.value is not None]
    complete = [t for t in trials if state_of(t) == "complete"]
    pruned = [t for t in trials if state_of(t) == "pruned"]
    if complete:
        numbers, values = [t.number for t in complete], [t.value for t in complete]
        running = np.minimum if study.direction.name == "MINIMIZE" else np.maximum
        ax.step(numbers, running.accumulate(values), where="post", color=COLOURS[0], lw=1.6, label="best so far")
        ax.plot(numbers, values, "o", ms=5, color=COLOURS[0], label=f"complete ({len(complete)})")
        best = best_trial(study)
        ax.plot(best.number, best.value, "*", ms=14, color=COLOURS[1], label=f"best: trial {best.number}")
    if pruned:
        ax.plot(
            [t.number for t in pruned],
            [t.value for t in pruned],
            "x",
            ms=6,
            color=MEAN_COLOUR,
            label=f"stopped early ({len(pruned)}), last value",
        )
    failed = [t.number for t in study.get_trials(deepcopy=False) if state_of(t) == "failed"]
    if failed:
        bottom = ax.get_xaxis_transform()
        ax.plot(
            failed, [0.02] * len(failed), "v", ms=6, color=COLOURS[3], transform=bottom, label=f"failed ({len(failed)})"
        )
    if (default := default_trial(study)) is not None:
        ax.axhline(default.value, color=MEAN_COLOUR, lw=0.9, ls=":", label=f"default (trial {default.number})")
    ax.set_xlabel("trial")
    ax.set_ylabel(f"validation {metric.words}" + (" (less is better)" if metric.direction == "minimize" else ""))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    return figure


def write_plots(study: Study, metric: Metric, folder: Path, seed: int) -> list[str]:
    """Write `history.png`, and `importance.png` where there is one to tell; the names of the files."""
    save_figure(history_figure(study, metric), folder / "history.png")
    found = importances(study, seed)
    if not found:
        return ["history.png"]
    count = sum(state_of(trial) == "complete" for trial in study.get_trials(deepcopy=False))
    save_figure(importance_figure(found, metric, count), folder / "importance.png")
    return ["history.png", "importance.png"]
