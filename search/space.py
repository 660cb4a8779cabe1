"""The search space: a YAML file of configuration keys, each with the range or the choices that trials draw from.

train.lr: {low: 1e-5, high: 1e-2, log: true}       # log: evenly over the decades
augment.rotation: {low: 0, high: 20, step: 5}
train.batch: {choices: [16, 32, 64]}
"""

from __future__ import annotations

import difflib
import math
from dataclasses import is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config import Config, field_of, get_value, set_key
from utils import PROJECT, UserError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import Trial

SPACES = PROJECT / "configs" / "tune"
WORDS = ("low", "high", "log", "step", "choices")
Space = dict[str, "BaseDistribution"]


def find_space(name: str) -> Path:
    """The file that `--space` means: a path, or the name of a file in `configs/tune/`. Raises: `UserError`."""
    if Path(name).suffix in (".yaml", ".yml") or "/" in name:
        if not Path(name).is_file():
            raise UserError(f"--space {name}: no such file")
        return Path(name)
    known = sorted(path.stem for path in SPACES.glob("*.yaml"))
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f": did you mean {near[0]}?" if near else ""
        raise UserError(f"--space {name}: no such space{hint} (there are {', '.join(known)}; or give a .yaml file)")
    return SPACES / f"{name}.yaml"


def read_space(file: Path) -> Space:
    """The distribution of every key that the file names.

    Both ends of every range and every choice are checked as the configuration itself is.
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
        raise UserError(f"{file}: a mapping is needed, such as train.lr: {{low: 1e-5, high: 1e-2, log: true}}")
    try:
        return {str(key): _distribution(str(key), said) for key, said in plain.items()}
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def _distribution(key: str, said: Any) -> BaseDistribution:
    """What YAML says of one key as a distribution. Raises: `UserError` that names the key."""
    _check_searchable(key)
    if not isinstance(said, dict):
        raise UserError(f"{key}: {said!r} is neither a range, {{low: …, high: …}}, nor {{choices: […]}}")
    for word in said:
        if word not in WORDS:
            near = difflib.get_close_matches(str(word), WORDS, n=1)
            hint = f": did you mean {near[0]}?" if near else ""
            raise UserError(f"{key}: unknown word '{word}'{hint} (there are {', '.join(WORDS)})")
    if "choices" in said:
        return _choices(key, said)
    return _range(key, said)


def says_how_it_learns(key: str) -> bool:
    """Whether a key may be searched and belongs to a preset; the others say on which images and which machine."""
    return key in ("model", "init", "data.size", "data.fit") or key.startswith(("augment.", "train."))


def _check_searchable(key: str) -> None:
    """Only what changes how a model learns, or which model: results on other images or with more luck say nothing."""
    kind = field_of(key)[1]  # an unknown key
    if key == "seed":
        raise UserError("seed: a search over seeds finds luck, which does not come again; search something else")
    if not (says_how_it_learns(key) or is_dataclass(kind)):
        raise UserError(f"{key}: all trials need the same: it does not say how a model learns; search something else")


def _typed(key: str, value: Any) -> Any:
    """`value` as the schema has it. Raises: `UserError` for a wrong type, or outside of the schema's range."""
    from omegaconf import OmegaConf

    config = OmegaConf.structured(Config)
    set_key(config, key, value)
    value = OmegaConf.select(config, key)
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{key}: {value} cannot be drawn; a finite number is needed")
    if key == "model":
        from pretrained_models import canonical_name

        return canonical_name(value)
    return value


def _choices(key: str, said: dict[str, Any]) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution

    if len(said) > 1:
        raise UserError(f"{key}: choices stand alone, without {', '.join(word for word in said if word != 'choices')}")
    if not isinstance(said["choices"], list) or any(isinstance(choice, list | dict) for choice in said["choices"]):
        raise UserError(f"{key}: choices must be a list of single values")
    choices = [_typed(key, choice) for choice in said["choices"]]
    if len(choices) < 2 or len(set(choices)) < len(choices):
        raise UserError(f"{key}: two or more different choices are needed, not {said['choices']}")
    return CategoricalDistribution(choices)


def _range(key: str, said: dict[str, Any]) -> BaseDistribution:
    from optuna.distributions import FloatDistribution, IntDistribution

    if missing := [word for word in ("low", "high") if said.get(word) is None]:
        raise UserError(f"{key}: '{missing[0]}' is missing")
    low, high = (_typed(key, said[word]) for word in ("low", "high"))
    if isinstance(low, bool | str | list):
        raise UserError(f"{key}: it has no range; give it choices")
    if low >= high:
        raise UserError(f"{key}: low {low:g} is not below high {high:g}")
    log, step = said.get("log", False), said.get("step")
    if not isinstance(log, bool):
        raise UserError(f"{key}: log is true or false, not {log!r}")
    if log and (low <= 0 or step is not None):
        raise UserError(f"{key}: " + ("a step has no place on a log scale" if low > 0 else "log needs a low above 0"))
    kind = int if isinstance(low, int) else float
    if step is not None:
        if isinstance(step, bool) or not isinstance(step, int | kind) or not 0 < step < math.inf:
            raise UserError(f"{key}: step {step!r} is no positive {kind.__name__}")
        if not _whole((high - low) / step):
            raise UserError(f"{key}: high {high:g} is no whole number of steps of {step:g} above low {low:g}")
    if kind is int:
        return IntDistribution(low, high, log=log, step=step or 1)
    return FloatDistribution(low, high, log=log, step=step and float(step))


def _whole(number: float) -> bool:
    return abs(number - round(number)) < 1e-8


def holds(distribution: BaseDistribution, value: Any) -> bool:
    """Whether `value` can be drawn."""
    if hasattr(distribution, "choices"):
        return value in distribution.choices
    if value is None or not distribution.low <= value <= distribution.high:
        return False
    return distribution.step is None or _whole((value - distribution.low) / distribution.step)


def own_values(space: Space, config: Config, where: str) -> dict[str, Any]:
    """The configuration's own value of every searched key: trial 0.

    Raises: `UserError` for one that the space does not hold; `where` names the space's file.
    """
    values = {key: get_value(config, key) for key in space}
    for key, value in values.items():
        if not holds(space[key], value):
            shown = "null" if value is None else value
            raise UserError(
                f"{where}: {key}: the configuration's own {shown} is not in it, and trial 0 is the configuration "
                f"itself: widen the space, or start elsewhere ({key}=…)"
            )
    return values


def suggest(trial: Trial, space: Space) -> dict[str, Any]:
    """A value for every key, drawn by the study's sampler."""
    from optuna.distributions import CategoricalDistribution, IntDistribution

    found = {}
    for key, d in space.items():
        if isinstance(d, CategoricalDistribution):
            found[key] = trial.suggest_categorical(key, d.choices)
        elif isinstance(d, IntDistribution):
            found[key] = trial.suggest_int(key, d.low, d.high, log=d.log, step=d.step)
        else:
            found[key] = trial.suggest_float(key, d.low, d.high, log=d.log, step=d.step)
    return found


def with_values(config: Config, values: dict[str, Any]) -> Config:
    """A copy of `config` with other values of dotted keys. Raises: `UserError`."""
    from omegaconf import OmegaConf

    copy = OmegaConf.structured(config)
    for key, value in values.items():
        set_key(copy, key, value, words_for_null=())
    return OmegaConf.to_object(copy)
