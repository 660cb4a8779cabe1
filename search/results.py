"""The results of a search: the table of trials, the plots, the best as a preset, and the weights that are kept."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from matplotlib import pyplot as plt
from optuna.importance import FanovaImportanceEvaluator
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial
from optuna.visualization.matplotlib import plot_optimization_history, plot_param_importances

from config import all_keys, get_value
from evaluation.figures.plots import save_figure
from search.metric import Metric
from search.request import Search, words_beside_preset
from search.space import describes_learning, with_values
from search.study import failure, first_number
from utils import atomic_write, count, interrupts_wait, log, shown

STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running", "WAITING": "waiting"}
MOST_ROWS = 40  # of the printed table
LEAST = 4  # complete trials that importances need


def best_and_default(study: Study, trials: list[FrozenTrial]) -> tuple[FrozenTrial | None, FrozenTrial | None]:
    """Return two of the complete `trials`: the best, the first of equals, and that of the configuration itself."""
    sign = 1 if study.direction == StudyDirection.MINIMIZE else -1
    complete = [trial for trial in trials if state_of(trial) == "complete"]
    best = min(complete, key=lambda trial: sign * trial.value, default=None)
    return best, next((trial for trial in complete if first_number(trial) == 0), None)


def state_of(trial: FrozenTrial) -> str:
    """Return complete, pruned, failed (for a reason), cut short (by its process's end), running or waiting."""
    state = STATES[trial.state.name]
    return "cut short" if state == "failed" and not failure(trial) else state


def trial_table(study: Study, keys: list[str]) -> pd.DataFrame:
    """Return a row per trial with the columns of trials.csv. The value of a pruned trial is its last known one."""
    columns = ["number", "state", "value", "seconds", "epochs", "best_epoch", *keys, "worker", "reason"]
    rows = [
        {"number": t.number, "state": state_of(t), "value": t.value, **t.user_attrs, **t.params, "reason": failure(t)}
        for t in study.get_trials(deepcopy=False)
    ]
    return pd.DataFrame(rows, columns=columns, dtype=object)


def format_table(study: Study, keys: list[str]) -> str:
    """Return the table of trials for a terminal: all of them, or the `MOST_ROWS` best."""
    table = trial_table(study, keys).drop(columns=["best_epoch", "worker", "reason"]).assign(mark="")
    for trial, mark in zip(best_and_default(study, study.get_trials(deepcopy=False)), ("best", "default"), strict=True):
        if trial is not None:
            table.loc[trial.number, "mark"] += f" {mark}"
    note = ""
    if len(table) > MOST_ROWS:
        note = f"\nthe best {MOST_ROWS} of {len(table)} trials; trials.csv has all of them"
        ascending = study.direction == StudyDirection.MINIMIZE
        table = table.sort_values("value", key=lambda value: value.astype(float), ascending=ascending).head(MOST_ROWS)
    titles = {key: key.removeprefix("train.").removeprefix("augment.") for key in keys}
    forms = {"value": "{:.4f}".format, "seconds": "{:.1f}".format} | dict.fromkeys(titles.values(), short)
    table = table.where(table.notna(), math.nan).rename(columns={"number": "trial", "mark": "", **titles})
    return table.to_string(index=False, na_rep="-", formatters=forms) + note


def short(value: Any) -> str:
    """Return a parameter's value in few characters."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def result_line(study: Study, trial: FrozenTrial, metric: Metric) -> str:
    """Return the result of one finished trial in a line; the best so far is starred."""
    if reason := failure(trial):
        return f"trial {trial.number}: failed: {reason}"
    best, _ = best_and_default(study, study.get_trials(deepcopy=False))
    star = "  *" if best is not None and best.number == trial.number else ""
    stopped = f"stopped after epoch {trial.user_attrs['epochs']}, " if state_of(trial) == "pruned" else ""
    value = f"{metric.words} {trial.value:.4f}, {trial.user_attrs['seconds']:.0f} s"
    parameters = " ".join(f"{key}={short(value)}" for key, value in trial.params.items())
    return f"trial {trial.number}: {stopped}{value}  {parameters}{star}"


def tidy(study: Study, folder: Path) -> None:
    """Delete the weights of finished trials except `best.pt` of the best one and of the default.

    The trials are read once, so that one of another worker that ends meanwhile is left alone.
    """
    trials = study.get_trials(deepcopy=False)
    kept = [trial.number for trial in best_and_default(study, trials) if trial is not None]
    for trial in trials:
        if trial.state.is_finished():
            run = run_of(trial, folder)
            (run / "last.pt").unlink(missing_ok=True)
            if trial.number not in kept:
                (run / "best.pt").unlink(missing_ok=True)


def run_of(trial: FrozenTrial, folder: Path) -> Path:
    """Return the run folder of a trial in its study's folder."""
    return folder / "trials" / f"{trial.number:04d}"


def write_results(study: Study, search: Search) -> None:
    """Write and print the table, the plots and the preset of a search, complete or not, and what to do next."""
    keys, folder, words = list(search.space), search.folder, search.metric.words
    with atomic_write(folder / "trials.csv") as file:
        trial_table(study, keys).to_csv(file, index=False)
    log.info(f"\n{format_table(study, keys)}\n")
    tidy(study, folder)
    best, default = best_and_default(study, study.get_trials(deepcopy=False))
    if best is None:
        log.info("no trial is complete yet")
        return
    files = ["trials.csv", *write_plots(study, search)]
    preset = write_preset(best, search)
    log.info(
        f"best: trial {best.number}, {words} {best.value:.4f} on validation"
        + (f" (the default: {default.value:.4f})" if default is not None else "")
        + f"\nwritten: {', '.join(files)}, preset/{preset}.yaml in {shown(folder)}"
    )
    commands = [["train.py", "--config-dir", shown(folder), f"preset={preset}", *words_beside_preset(search)]]
    runs = {trial.number: shown(run_of(trial, folder)) for trial in (best, default) if trial is not None}
    commands += [["test.py", "--weights", run] for run in runs.values()]
    commands += [["compare.py", *runs.values()]] * (len(runs) > 1)
    log.info("next:\n  " + "\n  ".join(shlex.join(["python", *command]) for command in commands))
    for trial in (best, default)[: len(runs)]:  # the same one, if the default is the best
        if not (run_of(trial, folder) / "best.pt").is_file():
            log.info(f"the weights of trial {trial.number} are where it was trained: {trial.user_attrs.get('worker')}")


def write_plots(study: Study, search: Search) -> list[str]:
    """Write `history.png` and return the names of the files.

    `importance.png` (fANOVA, Hutter, Hoos and Leyton-Brown 2014) needs `LEAST` complete trials, not all equal.
    """
    trials, name = study.get_trials(deepcopy=False), f"validation {search.metric.words}"
    _, default = best_and_default(study, trials)
    values = [trial.value for trial in trials if state_of(trial) == "complete"]
    pruned = [(trial.number, trial.value) for trial in trials if state_of(trial) == "pruned"]
    with interrupts_wait(), plt.style.context("default"):  # Optuna changes the style
        axes = {"history.png": plot_optimization_history(study, target_name=name)}
        if pruned:
            axes["history.png"].plot(*zip(*pruned, strict=True), "kx", label="stopped early: last value")
        if default is not None:
            axes["history.png"].axhline(default.value, color="black", ls=":", label="default")
        axes["history.png"].xaxis.get_major_locator().set_params(integer=True)
        axes["history.png"].set_title(f"{count(len(trials), 'trial')} of {search.name}")
        axes["history.png"].legend()
        if len(values) >= LEAST and len(set(values)) > 1:
            evaluator = FanovaImportanceEvaluator(seed=search.config.seed)
            axes["importance.png"] = plot_param_importances(study, evaluator, target_name=name)
            title = f"Importance of the keys (fANOVA, {count(len(values), 'complete trial')})"
            axes["importance.png"].set_title(title, loc="left")
        for file, ax in axes.items():
            ax.figure.set_layout_engine("constrained")
            save_figure(ax.figure, search.folder / file)
            plt.close(ax.figure)
    return list(axes)


def write_preset(trial: FrozenTrial, search: Search) -> str:
    """Write a trial's configuration as a preset, `preset/NAME.yaml` in the study's folder, and return NAME.

    It has the searched keys, and the other keys that describe learning and differ from `search.plain`.
    """
    config, folder = with_values(search.config, trial.params), search.folder
    nested: dict[str, Any] = {}
    for key in filter(describes_learning, all_keys()):
        value = get_value(config, key)
        if key in trial.params or value != get_value(search.plain, key):
            group, _, name = key.rpartition(".")
            (nested.setdefault(group, {}) if group else nested)[name] = value
    (folder / "preset").mkdir(exist_ok=True)
    with atomic_write(folder / "preset" / f"{folder.name}.yaml") as file:
        file.write(
            f"# @package _global_\n# Trial {trial.number} of {folder.name}: {search.metric.words} {trial.value:.4f} on "
            "the validation images.\n# They selected it, so expect less on other images.\n"
        )
        yaml.safe_dump(nested, file, sort_keys=False, allow_unicode=True)
    return folder.name
