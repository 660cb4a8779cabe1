"""A search as requested: its flags and its configuration, checked."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from command_line import Command
from config import Config, all_keys, compose_config, get_value
from experiment.run_folder import runs_folder
from pretrained_models import canonical_name
from search.metric import Metric, read_metric
from search.space import Space, default_values, describes_learning, find_space, read_space
from utils import UserError, file_sha256

# Keys that may differ between the workers of one study: paths and the machine. Data are compared by their content.
OF_THE_MACHINE = {
    *("save", "device", "track", "data.path", "data.cache_dir", "data.workers", "data.device_memory"),
    *("data.lung_masks", "data.lesion_masks", "data.boxes", "data.group_pattern", "data.max_unreadable"),
}


@dataclass(frozen=True, kw_only=True)
class Search:
    """A search that was asked for.

    Attributes:
        name: of the study.
        folder: of the study, for its table, its plots, its preset and the trials' run folders.
        arguments: the flags of tune.py.
        config: of every trial, but for the searched keys. Without `--track` trials have no tracker, as the study
            records their course.
        plain: the configuration that the printed command's preset and `key=value` words are added to.
        default: the parameters of trial 0.
    """

    name: str
    folder: Path
    arguments: argparse.Namespace
    config: Config
    plain: Config
    metric: Metric
    space: Space
    default: dict[str, Any]


def read_search(command: Command) -> Search:
    """Check a command and return its search. Raises: `UserError`."""
    arguments, config, given = command
    metric, file = read_metric(arguments.metric), find_space(arguments.space)
    space, model = read_space(file), canonical_name(config.model)
    name = arguments.study or f"{model}-{file.stem}".replace("/", "-")
    if not re.fullmatch(r"[\w.+-]+", name):
        raise UserError(f"--study {name}: it names a folder and a preset, so use only letters, digits and . + - _")
    folder, track = runs_folder(config) / f"tune-{name}", config.track if "track" in given else "none"
    config = replace(config, model=model, save=str(folder / "trials"), track=track)
    # Naming an image folder chooses its own file of the data group.
    plain = compose_config((), {"data.path": config.data.path} if config.data.path else {}, arguments.config)
    configs = {"config": config, "plain": plain, "default": default_values(space, config, str(file))}
    return Search(name=name, folder=folder, arguments=arguments, metric=metric, space=space, **configs)


def fixed_keys(search: Search) -> dict[str, Any]:
    """Return the keys that all trials of the study share, and their values."""
    keys = [key for key in all_keys() if key not in search.space and key not in OF_THE_MACHINE]
    fixed = {"--metric": search.metric.name} | {key: get_value(search.config, key) for key in keys}
    if "init" in fixed and Path(fixed["init"]).is_file():  # its path may differ on another machine
        fixed["init"] = f"a file with the SHA-256 {file_sha256(fixed['init'])[:16]}…"
    return fixed


def words_beside_preset(search: Search) -> list[str]:
    """Return what train.py needs besides the preset: the images, their split, the seed and the machine's settings."""
    words = ["--config", str(search.arguments.config)] if search.arguments.config else []
    for key in all_keys():
        value = get_value(search.config, key)
        plain = None if key == "data.path" else get_value(search.plain, key)  # no file sets data.path
        if value != plain and key not in ("save", "track") and not describes_learning(key):
            text = ",".join(map(str, value)) if isinstance(value, list) else "null" if value is None else str(value)
            words.append(f"{key}={text}")
    return words
