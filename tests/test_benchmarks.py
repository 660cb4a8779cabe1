"""Benchmarks and tools follow the code: every name that they import from the project exists."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

from tests.helpers.verbs import ROOT

FILES = sorted([*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "tools").glob("*.py")])


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_imported_names_exist(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            path = ROOT.joinpath(*node.module.split("."))
            if path.is_dir() or path.with_suffix(".py").is_file():
                module = importlib.import_module(node.module)
                for alias in node.names:
                    if not (path / f"{alias.name}.py").is_file():
                        assert hasattr(module, alias.name), f"{file.name}:{node.lineno} {node.module}.{alias.name}"
