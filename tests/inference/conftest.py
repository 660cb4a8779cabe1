"""Fixtures of the inference tests: the tiny run as an ensemble of one, and images of its test split."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from inference.ensemble import Ensemble


@pytest.fixture(scope="session")
def ensemble(tiny_run: Path) -> Ensemble:
    """The tiny run as an ensemble of one."""
    return Ensemble.load([tiny_run], device="cpu")


@pytest.fixture(scope="session")
def files(tiny_run: Path) -> list[Path]:
    """Three images of the run's test split."""
    split = pd.read_csv(tiny_run / "split.csv")
    return [Path(path) for path in split[split["split"] == "test"]["path"].head(3)]
