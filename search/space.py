"""The search space: a YAML file of configuration keys, each with a range or choices to draw from.

train.lr: {low: 1e-5, high: 1e-2, log: true}       # log: uniform on the log scale
augment.rotation: {low: 0, high: 20, step: 5}
train.batch: {choices: [16, 32, 64]}
"""

from __future__ import annotations

import math
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

from config import Config, field_of, get_value, set_checked
from pretrained_models import canonical_name
from utils import PROJECT, UserError, did_you_mean

SPACES = PROJECT / "configs" / "tune"
WORDS = ("low", "high", "log", "step", "choices")
Space = dict[str, BaseDistribution]


def find_space(name: str) -> Path:
    """Return the file that `--space` names: a path, or a file of `configs/tune/`. Raises: `UserError`."""
    if Path(name).suffix in (".yaml", ".yml") or "/" in name:
        if not Path(name).is_file():
            raise UserError(f"--space {name}: no such file")
        return Path(name)
    names = sorted(path.stem for path in SPACES.glob("*.yaml"))
    if name not in names:
        near = did_you_mean(name, names)
        raise UserError(f"--space {name}: unknown space{near}; choose from {', '.join(names)}, or give a .yaml file")
    return SPACES / f"{name}.yaml"


def read_space(file: Path) -> Space:
    """Return the distribution of every key in a file. All limits and choices are checked against the schema.

    Raises: `UserError` that names the file and the key.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        plain = OmegaConf.to_container(OmegaConf.load(file))
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{file}: cannot be read as YAML ({str(error).strip().splitlines()[0]})") from None
    if not isinstance(plain, dict) or not plain:
        raise UserError(f"{file}: expected a mapping, such as train.lr: {{low: 1e-5, high: 1e-2, log: true}}")
    try:
        return {str(key): _distribution(str(key), options) for key, options in plain.items()}
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def _distribution(key: str, options: Any) -> BaseDistribution:
    """Return the distribution that a file gives for one key. Raises: `UserError` that names the key."""
    _check_searchable(key)
    if not isinstance(options, dict):
        raise UserError(f"{key}: {options!r} is neither a range, {{low: …, high: …}}, nor {{choices: […]}}")
    for word in options:
        if word not in WORDS:
            near = did_you_mean(str(word), WORDS)
            raise UserError(f"{key}: unknown word '{word}'{near}; choose from {', '.join(WORDS)}")
    return (_choices if "choices" in options else _range)(key, options)


def describes_learning(key: str) -> bool:
    """Return whether a key may be searched and belongs in a preset; other keys choose images or a machine."""
    return key in ("model", "init", "data.size", "data.fit") or key.startswith(("augment.", "train."))


def _check_searchable(key: str) -> None:
    """Refuse keys that would make trials incomparable, or better only by luck. Raises: `UserError`."""
    is_group = is_dataclass(field_of(key)[1])
    if key == "seed":
        raise UserError("seed: a search over seeds finds luck, which does not repeat; search something else")
    if not (describes_learning(key) or is_group):
        raise UserError(f"{key}: must be the same for all trials, as it does not describe learning; search another key")


def _typed(key: str, value: Any) -> Any:
    """Return `value` with the schema's type. Raises: `UserError` for a wrong type or outside the schema's range."""
    from omegaconf import OmegaConf

    config = OmegaConf.structured(Config)
    set_checked(config, key, value)
    value = OmegaConf.select(config, key)
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{key}: {value} cannot be drawn; expected a finite number")
    return canonical_name(value) if key == "model" else value


def _choices(key: str, options: dict[str, Any]) -> CategoricalDistribution:
    choices = options["choices"]
    if len(options) > 1:
        raise UserError(f"{key}: choices exclude {', '.join(word for word in options if word != 'choices')}")
    if not isinstance(choices, list) or any(isinstance(choice, list | dict) for choice in choices):
        raise UserError(f"{key}: choices must be a list of single values")
    typed = [_typed(key, choice) for choice in choices]
    if len(typed) < 2 or len(set(typed)) < len(typed):
        raise UserError(f"{key}: expected two or more different choices, not {choices}")
    return CategoricalDistribution(typed)


def _range(key: str, options: dict[str, Any]) -> IntDistribution | FloatDistribution:
    if missing := [word for word in ("low", "high") if options.get(word) is None]:
        raise UserError(f"{key}: '{missing[0]}' is missing")
    low, high = (_typed(key, options[word]) for word in ("low", "high"))
    if isinstance(low, bool | str | list):
        raise UserError(f"{key}: has no range; give choices")
    if low >= high:
        raise UserError(f"{key}: low {low:g} is not below high {high:g}")
    log, step = options.get("log", False), options.get("step")
    if not isinstance(log, bool):
        raise UserError(f"{key}: log must be true or false, not {log!r}")
    if log and low <= 0:
        raise UserError(f"{key}: log needs a low above 0")
    if log and step is not None:
        raise UserError(f"{key}: a log scale has no steps; leave out log or step")
    kind = int if isinstance(low, int) else float
    if step is not None:
        if isinstance(step, bool) or not isinstance(step, int | kind) or not 0 < step < math.inf:
            raise UserError(f"{key}: step {step!r} must be a positive {kind.__name__}")
        if not _is_whole((high - low) / step):
            raise UserError(f"{key}: high {high:g} is not a whole number of steps of {step:g} above low {low:g}")
    if kind is int:
        return IntDistribution(low, high, log=log, step=step or 1)
    return FloatDistribution(low, high, log=log, step=step and float(step))


def _is_whole(number: float) -> bool:
    return abs(number - round(number)) < 1e-8


def can_draw(distribution: BaseDistribution, value: Any) -> bool:
    """Return whether the distribution contains `value`."""
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    if value is None or not distribution.low <= value <= distribution.high:
        return False
    return distribution.step is None or _is_whole((value - distribution.low) / distribution.step)


def default_values(space: Space, config: Config, where: str) -> dict[str, Any]:
    """Return the configuration's value of every searched key: the parameters of trial 0.

    Raises: `UserError` for a value outside the space; `where` names the space's file.
    """
    values = {key: get_value(config, key) for key in space}
    for key, value in values.items():
        if not can_draw(space[key], value):
            raise UserError(
                f"{where}: {key}: the configuration's value, {'null' if value is None else value}, is not in the space,"
                f" so trial 0 cannot be the configuration itself; widen the space, or set {key}=…"
            )
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
    """Return a copy of `config` with other values of dotted keys. Raises: `UserError`."""
    from omegaconf import OmegaConf

    copy = OmegaConf.structured(config)
    for key, value in values.items():
        set_checked(copy, key, value, null_words=())
    return OmegaConf.to_object(copy)
