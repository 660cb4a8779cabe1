"""Searches for tests: a space in a file, a study of a function of two parameters."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import optuna
import yaml
from optuna.storages import RDBStorage

from config import Config
from search.metric import read_metric
from search.request import Search
from search.study import open_storage, open_study

TINY = ("--init", "none", "--precision", "fp32", "--batch", 16, "--epochs", 1, "data.size=32", "data.split=0.6,0.2,0.2")


def write_space(folder: Path, **keys: object) -> Path:
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump({name.replace("__", "."): value for name, value in keys.items()}))
    return path


def search_of(folder: Path, default: dict[str, float], **fields: object) -> Search:
    """Return a search that minimises, whose study and run folders are in `folder`."""
    given = {"name": "s", "folder": folder, "config": Config(), "plain": Config(), "metric": read_metric("log_loss")}
    arguments = argparse.Namespace(trials=2, timeout=None, config=None)
    return Search(**{**given, "arguments": arguments, "space": {}, "default": default, **fields})


def open_study_of_bowl(folder: Path, default: dict[str, float], seed: int = 0) -> tuple[optuna.Study, RDBStorage]:
    storage = open_storage(f"sqlite:///{folder / 'study.db'}", 1)
    return open_study(storage, search_of(folder, default, config=Config(seed=seed)), {}, "auto"), storage


def bowl(trial: optuna.Trial) -> float:
    return (trial.suggest_float("x", -5, 5) - 1) ** 2 + trial.suggest_float("y", -5, 5) ** 2


def read_table(study: Path) -> list[dict[str, str]]:
    with (study / "trials.csv").open() as file:
        return list(csv.DictReader(file))
