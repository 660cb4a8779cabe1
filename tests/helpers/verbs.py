"""Verbs run as programs are: what they printed, and what is expected of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
TINY = ("--model", "resnet18", "--init", "none", "--precision", "fp32", "--batch", 16, "data.size=64")


@dataclass
class Result:
    """What a verb did: exit code, screen, and error output."""

    code: int
    out: str
    err: str


Verb = Callable[..., Result]


def ok(result: Result) -> str:
    assert result.code == 0, result.err + result.out
    return result.out


def refused(result: Result, *words: str) -> None:
    """One line on stderr that holds `words`, exit code 2, no traceback."""
    lines = [
        line for line in result.err.replace("\r", "\n").splitlines() if line.strip() and "%|" not in line
    ]  # no bars
    assert result.code == 2, result
    assert len(lines) == 1, result.err
    assert all(word in lines[0] for word in words), lines[0]
    assert "Traceback" not in result.err + result.out


def needs_shared(folder: str) -> pytest.MarkDecorator:
    """Skip, by name, where the optional development data are absent."""
    return pytest.mark.skipif(not (SHARED / folder).exists(), reason=f"../shared/{folder} is absent")
