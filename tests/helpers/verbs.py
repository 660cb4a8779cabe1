"""The programs, run in the tests' own process, and what is expected of them."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
TINY = ("--model", "resnet18", "--init", "none", "--precision", "fp32", "--batch", 16, "data.size=64")


@dataclass
class Result:
    """The outcome of a program: exit code, standard output, error output."""

    code: int
    out: str
    err: str


Verb = Callable[..., Result]


class RunsCommand:
    """An object that writes a file named `executed` to the working folder when it is unpickled."""

    def __reduce__(self) -> tuple:
        return os.system, ("touch executed",)


def load_program(monkeypatch: pytest.MonkeyPatch, file: str) -> ModuleType:
    """Load a program as a module of its own, whose `main` can then be called."""
    spec = importlib.util.spec_from_file_location("program_" + Path(file).stem, ROOT / file)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec.loader.exec_module(module)
    return module


def ok(result: Result) -> str:
    """Assert that a program succeeded, and return its output."""
    assert result.code == 0, result.err + result.out
    return result.out


def refused(result: Result, *words: str) -> None:
    """Assert exit code 2 and one line of error output that contains `words`; progress bars do not count."""
    lines = [s for s in result.err.replace("\r", "\n").splitlines() if s.strip() and "%|" not in s]
    assert result.code == 2, result
    assert len(lines) == 1, result.err
    assert all(word in lines[0] for word in words), lines[0]
    assert "Traceback" not in result.err + result.out


def needs_shared(folder: str) -> pytest.MarkDecorator:
    """Skip, with a reason, if the optional development data are absent."""
    return pytest.mark.skipif(not (SHARED / folder).exists(), reason=f"../shared/{folder} is absent")
