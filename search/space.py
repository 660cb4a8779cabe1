"""The search space: a YAML file of configuration keys, each with a range or choices to draw from.

train.lr: {low: 1e-5, high: 1e-2, log: true}       # log: uniform on the log scale
augment.rotation: {low: 0, high: 20, step: 5}
train.batch: {choices: [16, 32, 64]}
"""

from __future__ import annotations

import copy
import math
import warnings
from pathlib import Path
from typing import Any

import optuna
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial
from yaml import YAMLError

from config import Config, checked, field_of, get_value, set_value
from pretrained_models import canonical_name
from utils import PROJECT, UserError, did_you_mean

SPACES = PROJECT / "configs" / "tune"
Space = dict[str, BaseDistribution]


def find_space(name: str) -> Path:
    """Return the file that `--space` names: a path, or a file of `configs/tune/`. Raises: `UserError`."""
    file = Path(name) if Path(name).suffix in (".yaml", ".yml") else SPACES / f"{name}.yaml"
    if not file.is_file():
        names = sorted(path.stem for path in SPACES.glob("*.yaml"))
        near = did_you_mean(name, names)
        raise UserError(f"--space {name}: no such space{near}; choose from {', '.join(names)}, or give a .yaml file")
    return file


def read_space(file: Path) -> Space:
    """Return the distribution of every key in a file. All limits and choices are checked against the schema.

    Raises: `UserError` that names the file and the key.
    """
    try:
        plain = OmegaConf.to_container(OmegaConf.load(file))
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{file}: cannot be read as YAML ({str(error).strip().splitlines()[0]})") from None
    if not isinstance(plain, dict) or not plain:
        raise UserError(f"{file}: expected a mapping, such as train.lr: {{low: 1e-5, high: 1e-2, log: true}}")
    space = {}
    for key, options in plain.items():
        try:
            space[str(key)] = _distribution(str(key), options)
        except (UserError, ValueError, TypeError, UserWarning) as error:
            place = file if str(key) in str(error) else f"{file}: {key}"  # Optuna's errors do not name the key
            raise UserError(f"{place}: {error}") from None
    return space


def describes_learning(key: str) -> bool:
    """Return whether a key may be searched and belongs in a preset; other keys choose images or a machine."""
    return key in ("model", "init", "data.size", "data.fit") or key.startswith(("augment.", "train."))


def _distribution(key: str, options: Any) -> BaseDistribution:
    """Return the distribution that a file gives for one key.

    Raises: `UserError` for a key that would make trials incomparable, or better only by luck, and for options that the
    schema does not allow; `ValueError` or `TypeError` for those that Optuna does not allow.
    """
    field_of(key)
    if not describes_learning(key):
        raise UserError(
            f"{key}: cannot be searched; all trials must use the same images, and a seed wins only by luck; search "
            "train.*, augment.*, model, init, data.size or data.fit"
        )
    words = set(options) if isinstance(options, dict) else set()
    of_choices = words == {"choices"} and isinstance(options["choices"], list)
    if not of_choices and not {"low", "high"} <= words <= {"low", "high", "log", "step"}:
        expected = "{low: …, high: …}, perhaps with log or step, or {choices: […]}"
        raise UserError(f"{key}: expected {expected}, not {options}")
    if of_choices:
        choices = [checked(key, choice) for choice in options["choices"]]
        choices = map(canonical_name, choices) if key == "model" else choices
        distribution = CategoricalDistribution(list(dict.fromkeys(choices)))
    else:
        low, high = (checked(key, options[word]) for word in ("low", "high"))
        if isinstance(low, bool) or not isinstance(low, int | float) or not math.isfinite(high - low):
            raise UserError(f"{key}: low and high must be finite numbers, else give choices, not {options}")
        kind = IntDistribution if isinstance(low, int) else FloatDistribution
        with warnings.catch_warnings(action="error", category=UserWarning):  # where steps from low miss high
            distribution = kind(**{**options, "low": low, "high": high})
        if not isinstance(distribution.log, bool) or distribution.step != options.get("step", distribution.step):
            raise UserError(f"{key}: expected true or false as log and a {type(low).__name__} as step, not {options}")
    if distribution.single():
        raise UserError(f"{key}: expected two or more different values, not {options}")
    return distribution


def default_values(space: Space, config: Config, where: str) -> dict[str, Any]:
    """Return the configuration's value of every searched key: the parameters of trial 0.

    Raises: `UserError` for a value outside the space; `where` names the space's file.
    """
    values = {key: get_value(config, key) for key in space}
    for key, value in values.items():
        try:
            optuna.create_trial(value=0, params={key: value}, distributions={key: space[key]})
        except ValueError:
            raise UserError(
                f"{where}: {key}: the configuration's value, {'null' if value is None else value}, is not in the space,"
                f" so trial 0 cannot be the configuration itself; widen the space, or set {key}=…"
            ) from None
    return values


def suggest(trial: Trial, space: Space) -> dict[str, Any]:
    """Return a value for every key, drawn by the study's sampler."""
    values = {}
    for key, d in space.items():
        if isinstance(d, CategoricalDistribution):
            values[key] = trial.suggest_categorical(key, d.choices)
        else:
            draw = trial.suggest_int if isinstance(d, IntDistribution) else trial.suggest_float
            values[key] = draw(key, d.low, d.high, log=d.log, step=d.step)
    return values


def with_values(config: Config, values: dict[str, Any]) -> Config:
    """Return a copy of `config` with other values of dotted keys."""
    config = copy.deepcopy(config)
    for key, value in values.items():
        set_value(config, key, value)
    return config
