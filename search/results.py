"""The results of a search: the table of trials, the best trial as a preset, and the weights that are kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial

from config import Config, all_keys, get_value
from search.metric import Metric
from search.space import describes_learning
from search.study import SURPLUS, failure, first_number
from utils import atomic_write, write_csv

MOST_ROWS = 40  # of the printed table
STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running", "WAITING": "waiting"}
COLUMNS = ["number", "state", "value", "seconds", "epochs", "best_epoch"]


def best_trial(study: Study, trials: Sequence[FrozenTrial] | None = None) -> FrozenTrial | None:
    """Return the complete trial with the best value, the first of equals; None while none is complete.

    Args:
        trials: the study's trials at one moment; None: at this moment.
    """
    sign = 1 if study.direction == StudyDirection.MINIMIZE else -1
    return min(_complete(study, trials), key=lambda trial: (sign * trial.value, trial.number), default=None)


def default_trial(study: Study, trials: Sequence[FrozenTrial] | None = None) -> FrozenTrial | None:
    """Return the complete trial of the configuration itself; None while there is none. `trials`: see `best_trial`."""
    return next((trial for trial in _complete(study, trials) if first_number(trial) == 0), None)


def _complete(study: Study, trials: Sequence[FrozenTrial] | None) -> list[FrozenTrial]:
    trials = study.get_trials(deepcopy=False) if trials is None else trials
    return [trial for trial in trials if state_of(trial) == "complete"]


def state_of(trial: FrozenTrial) -> str:
    """Return complete, pruned, failed (for a reason), cut short (by its process's end), running or waiting."""
    state = STATES[trial.state.name]
    return "cut short" if state == "failed" and not failure(trial) else state


def rows(study: Study, keys: list[str]) -> list[dict[str, Any]]:
    """Return a row per trial: `COLUMNS`, the searched keys, worker and reason; None for what is unknown.

    The value of a pruned trial is its last known one. Surplus trials, which never began training, are left out.
    """
    table = []
    for trial in study.get_trials(deepcopy=False):
        if SURPLUS in trial.user_attrs:
            continue
        values = {"number": trial.number, "state": state_of(trial), "value": trial.value, **trial.user_attrs}
        values |= {key: trial.params.get(key) for key in keys} | {"reason": failure(trial)}
        table.append({name: values.get(name) for name in (*COLUMNS, *keys, "worker", "reason")})
    return table


def write_table(study: Study, keys: list[str], folder: Path) -> list[dict[str, Any]]:
    """Write `trials.csv` and return its rows."""
    table = rows(study, keys)
    write_csv(folder / "trials.csv", table, [*COLUMNS, *keys, "worker", "reason"])
    return table


def format_table(study: Study, rows: list[dict[str, Any]], keys: list[str]) -> str:
    """Return the table for a terminal: the trials in order; of more than `MOST_ROWS`, the best."""
    table = pd.DataFrame(rows, dtype=object)
    note = ""
    if len(table) > MOST_ROWS:
        order = table["value"].astype(float).sort_values(ascending=study.direction == StudyDirection.MINIMIZE)
        note = f"\nthe best {MOST_ROWS} of {len(table)} trials; all: trials.csv"
        table = table.loc[order.index[:MOST_ROWS]]
    columns = {"trial": table["number"], "state": table["state"]}
    for name, form in (("value", ".4f"), ("seconds", ".1f"), ("epochs", "")):
        columns[name] = ["-" if value is None else format(value, form) for value in table[name]]
    for key in keys:
        columns[key.removeprefix("train.").removeprefix("augment.")] = [short(value) for value in table[key]]
    marks = [("default", default_trial(study)), ("best", best_trial(study))]
    columns[""] = [
        " ".join(name for name, trial in marks if trial is not None and trial.number == number)
        for number in table["number"]
    ]
    return pd.DataFrame(columns).to_string(index=False) + note


def short(value: Any) -> str:
    """Return a parameter's value in few characters."""
    return f"{value:.3g}" if isinstance(value, float) else "-" if value is None else str(value)


def result_line(study: Study, trial: FrozenTrial, metric: Metric) -> str:
    """Return the result of one finished trial in a line; the best so far is starred."""
    if reason := failure(trial):
        return f"trial {trial.number}: failed: {reason}"
    attributes, best = trial.user_attrs, best_trial(study)
    stopped = f"stopped after epoch {attributes['epochs']}, " if state_of(trial) == "pruned" else ""
    parameters = " ".join(f"{key}={short(value)}" for key, value in trial.params.items())
    return (
        f"trial {trial.number}: {stopped}{metric.words} {trial.value:.4f}, {attributes['seconds']:.0f} s  {parameters}"
        + "  *" * (best is not None and best.number == trial.number)
    )


def tidy(study: Study, folder: Path) -> None:
    """Delete the weights of finished trials except `best.pt` of the best one and of the default.

    The trials are read once, so that one of another worker that ends meanwhile is left alone.
    """
    trials = study.get_trials(deepcopy=False)
    kept = [trial.number for trial in (best_trial(study, trials), default_trial(study, trials)) if trial is not None]
    for run in (folder / "trials").glob("[0-9]*"):
        if not run.name.isdigit() or int(run.name) >= len(trials) or not trials[int(run.name)].state.is_finished():
            continue
        (run / "last.pt").unlink(missing_ok=True)
        if int(run.name) not in kept:
            (run / "best.pt").unlink(missing_ok=True)


def write_preset(trial: FrozenTrial, config: Config, plain: Config, metric: Metric, folder: Path) -> str:
    """Write a trial's configuration as a preset, `preset/NAME.yaml` in the study's folder, and return NAME.

    It has the searched keys, and the other keys that describe learning and differ from `plain`.

    Args:
        config: the trial's configuration.
        plain: the configuration that the preset will be added to.
    """
    nested: dict[str, Any] = {}
    for key in filter(describes_learning, all_keys()):
        value = get_value(config, key)
        if key in trial.params or value != get_value(plain, key):
            group, _, name = key.rpartition(".")
            (nested.setdefault(group, {}) if group else nested)[name] = value
    (folder / "preset").mkdir(exist_ok=True)
    with atomic_write(folder / "preset" / f"{folder.name}.yaml") as file:
        file.write(
            f"# @package _global_\n# Trial {trial.number} of {folder.name}: {metric.words} {trial.value:.4f} on the "
            "validation images.\n# They selected it, so expect less on other images.\n"
        )
        yaml.safe_dump(nested, file, sort_keys=False, allow_unicode=True)
    return folder.name
