"""A small training for tests."""

from __future__ import annotations

from pathlib import Path

from config import Config, compose_config

SMALL = ["data.size=64", "data.split=0.6,0.2,0.2", "init=none", "precision=fp32", "train.epochs=4", "train.batch=16"]


def small_config(phantom: Path, cache_dir: Path, save: Path, *words: str) -> Config:
    """Return the configuration of a training on `phantom`: four epochs of five steps, unless `words` change that."""
    return compose_config(
        [*SMALL, f"data.cache_dir={cache_dir}", *words], {"data.path": str(phantom), "save": str(save)}
    )
