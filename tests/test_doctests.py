"""The examples in docstrings run, and every public name has one.

They run in a folder that holds `runs/NAME`, a small run evaluated on its test split, and `folder/of/images`.
"""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.helpers.verbs import ROOT

# What notebooks and other programs import.
PUBLIC = {
    "classifier": ["load_classifier", "Classifier"],
    "evaluation": ["read_predictions", "compute_metrics", "compare"],
    "localization": ["Explainer"],
}
NAMES = [(module, name) for module, names in PUBLIC.items() for name in names]
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
ROOMS = {path.parent for path in ROOT.glob("*/__init__.py") if path.parent.name != "tests"}
FILES = [*ROOT.glob("*.py"), *(file for room in ROOMS for file in room.rglob("*.py"))]
WITH_EXAMPLES = sorted(file.relative_to(ROOT) for file in FILES if ">>> " in file.read_text(encoding="utf-8"))


def module_of(file: Path) -> ModuleType:
    return importlib.import_module(".".join(file.with_suffix("").parts).removesuffix(".__init__"))


def examples(owner: Any, name: str) -> list[doctest.DocTest]:
    return [test for test in doctest.DocTestFinder().find(owner, name) if test.examples]


@pytest.mark.slow
@pytest.mark.parametrize("file", WITH_EXAMPLES, ids=str)
def test_examples_run(file: Path, example_folder: Path) -> None:
    module = module_of(file)
    output: list[str] = []
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    for test in examples(module, module.__name__):
        runner.run(test, out=output.append)
    assert runner.failures == 0, "".join(output)
    assert runner.tries > 0


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_public_names_have_an_example(module: str, name: str) -> None:
    assert examples(getattr(importlib.import_module(module), name), name)
