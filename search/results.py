"""What came out of a search: the table of trials, the best of them as a preset, and the weights that are kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config import Config, all_keys, get_value
from search.metric import Metric
from search.space import says_how_it_learns
from search.study import first_number
from utils import atomic_write, write_csv

if TYPE_CHECKING:
    import pandas as pd
    from optuna.study import Study
    from optuna.trial import FrozenTrial

MOST_ROWS = 40  # of the printed table
STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running", "WAITING": "waiting"}
COLUMNS = ["number", "state", "value", "seconds", "epochs", "best_epoch"]


def best_trial(study: Study, trials: Sequence[FrozenTrial] | None = None) -> FrozenTrial | None:
    """The complete trial with the best value, the first of equals; None while none is complete.

    Args:
        trials: the study's as they were at one moment; None: as they are now.
    """
    found = [t for t in _all(study, trials) if state_of(t) == "complete"]
    sign = 1 if study.direction.name == "MINIMIZE" else -1
    return min(found, key=lambda trial: (sign * trial.value, trial.number), default=None)


def default_trial(study: Study, trials: Sequence[FrozenTrial] | None = None) -> FrozenTrial | None:
    """The complete trial of the configuration itself; None while there is none. `trials` as of `best_trial`."""
    return next((t for t in _all(study, trials) if first_number(t) == 0 and state_of(t) == "complete"), None)


def _all(study: Study, trials: Sequence[FrozenTrial] | None) -> Sequence[FrozenTrial]:
    return study.get_trials(deepcopy=False) if trials is None else trials


def state_of(trial: FrozenTrial) -> str:
    """complete, pruned, failed (for a reason), cut short (its process died), running or waiting."""
    state = STATES[trial.state.name]
    return "cut short" if state == "failed" and "reason" not in trial.user_attrs else state


def rows(study: Study, keys: list[str]) -> list[dict[str, Any]]:
    """A row per trial: `COLUMNS`, the searched keys, worker and reason; what is not known is None.

    The value of a pruned trial is the last that was known of it.
    """
    found = []
    for trial in study.get_trials(deepcopy=False):
        attributes = trial.user_attrs
        if "surplus" in attributes:  # begun by two workers at once, and given up by the second: it never was
            continue
        known = {"number": trial.number, "state": state_of(trial), "value": trial.value, **attributes}
        found.append(
            {name: known.get(name) for name in COLUMNS}
            | {key: trial.params.get(key) for key in keys}
            | {name: known.get(name) for name in ("worker", "reason")}
        )
    return found


def write_table(study: Study, keys: list[str], folder: Path) -> list[dict[str, Any]]:
    """Write `trials.csv`, atomically, and return its rows."""
    found = rows(study, keys)
    write_csv(folder / "trials.csv", found, [*COLUMNS, *keys, "worker", "reason"])
    return found


def format_table(study: Study, found: list[dict[str, Any]], keys: list[str]) -> str:
    """The table for a terminal: the trials in order, of more than `MOST_ROWS` the best."""
    import pandas as pd

    table = pd.DataFrame(found, dtype=object)
    note = ""
    if len(table) > MOST_ROWS:
        order = table["value"].astype(float).sort_values(ascending=study.direction.name == "MINIMIZE")
        note = f"\nthe best {MOST_ROWS} of {len(table)} trials; all: trials.csv"
        table = table.loc[order.index[:MOST_ROWS]]
    shown = pd.DataFrame({"trial": table["number"], "state": table["state"], "value": _texts(table["value"], ".4f")})
    shown["seconds"] = _texts(table["seconds"], ".1f")
    shown["epochs"] = _texts(table["epochs"], "")
    for key in keys:
        shown[key.removeprefix("train.").removeprefix("augment.")] = [short(value) for value in table[key]]
    named = {"default": default_trial(study), "best": best_trial(study)}
    shown[""] = [
        " ".join(name for name, trial in named.items() if trial is not None and trial.number == number)
        for number in table["number"]
    ]
    return shown.to_string(index=False) + note


def _texts(values: pd.Series, form: str) -> list[str]:
    return ["-" if value is None else format(value, form) for value in values]


def short(value: Any) -> str:
    """A parameter's value in few characters."""
    return f"{value:.3g}" if isinstance(value, float) else "-" if value is None else str(value)


def result_line(study: Study, trial: FrozenTrial, metric: Metric) -> str:
    """One finished trial in a line."""
    attributes, best = trial.user_attrs, best_trial(study)
    text = f"trial {trial.number}: "
    if reason := attributes.get("reason"):
        return text + f"failed: {reason}"
    if trial.state.name == "PRUNED":
        text += f"stopped after epoch {attributes['epochs']}, {metric.words} {trial.value:.4f}"
    else:
        text += f"{metric.words} {trial.value:.4f}"
    text += f", {attributes['seconds']:.0f} s  " + " ".join(f"{k}={short(v)}" for k, v in trial.params.items())
    return text + "  *" * (best is not None and best.number == trial.number)


def tidy(study: Study, folder: Path) -> None:
    """Of the trials that are over, keep the weights of the best one and of the default, and no state to resume from.

    What is kept and what is over are read at one moment: a trial of another worker that ends after it is left alone.
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
    """Write the best configuration as a preset, `preset/NAME.yaml` in the study's folder, and return NAME.

    It holds the searched keys, and of the rest what says how a model learns and is not `plain`, the configuration that
    the preset will be added to. `config` is the trial's.
    """
    import yaml

    keys = [key for key in all_keys() if says_how_it_learns(key)]
    nested: dict[str, Any] = {}
    for key in keys:
        value = get_value(config, key)
        if key in trial.params or value != get_value(plain, key):
            *groups, last = key.split(".")
            node = nested
            for group in groups:
                node = node.setdefault(group, {})
            node[last] = value
    (folder / "preset").mkdir(exist_ok=True)
    with atomic_write(folder / "preset" / f"{folder.name}.yaml") as file:
        file.write(
            f"# @package _global_\n# Trial {trial.number} of {folder.name}: {metric.words} {trial.value:.4f} on the "
            "validation images.\n# They chose it: on others expect less.\n"
        )
        yaml.safe_dump(nested, file, sort_keys=False, allow_unicode=True)
    return folder.name
