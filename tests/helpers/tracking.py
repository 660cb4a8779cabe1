"""Tracked runs, read back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

Tracked = Callable[..., Path]


def read_record(run: Path) -> dict[str, Any]:
    """Return the content of `run.json`."""
    return json.loads((run / "run.json").read_text())


def read_history(run: Path) -> pd.DataFrame:
    """Return the table `history.csv`."""
    return pd.read_csv(run / "history.csv")


def one_warning(run: Path, capfd: pytest.CaptureFixture) -> str:
    """Return the only warning about the tracker, of a training that finished without tracebacks and passwords."""
    out, err = capfd.readouterr()
    (warning,) = [line for line in out.splitlines() if "--track" in line]
    assert warning.startswith("WARNING: ") and warning in (run / "train.log").read_text()
    assert not any(word in out + err for word in ("Traceback", "Retrying", "secret"))
    assert read_record(run)["status"] == "finished"
    return warning
