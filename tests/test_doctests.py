"""The examples in docstrings run, and every public name is documented in full.

They run in a folder that holds `runs/NAME`, a small run evaluated on its test split, and `folder/of/images`.
"""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.helpers.verbs import ROOT

# What notebooks and other programs import.
PUBLIC = {
    "classifier": ["load_classifier", "Classifier"],
    "evaluation": ["read_predictions", "compute_metrics", "compare", "Predictions", "Comparison"],
    "localization": ["Explainer"],
}
RAISING = {
    *("load_classifier", "Classifier.predict", "Classifier.explain"),
    *("Explainer", "Explainer.from_architecture", "Explainer.choose", "Explainer.maps"),
    *("read_predictions", "Predictions", "Predictions.subset", "compare"),
}
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


def public_callables() -> dict[str, Any]:
    """Return the public functions and classes with their public methods, by dotted name."""
    rooms = {importlib.import_module(module): names for module, names in PUBLIC.items()}
    owners = {name: getattr(room, name) for room, names in rooms.items() for name in names}
    classes = {name: owner for name, owner in owners.items() if inspect.isclass(owner)}
    methods = {f"{name}.{key}": getattr(owner, key) for name, owner in classes.items() for key in vars(owner)}
    public = {name: method for name, method in methods.items() if "._" not in name}
    return owners | {name: m for name, m in public.items() if inspect.isfunction(m) or inspect.ismethod(m)}


def sections(text: str) -> dict[str, str]:
    """Return the sections of a docstring in NumPy's form, by title."""
    _, *parts = re.split(r"^(\w+)\n-+$", text, flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.parametrize("name", public_callables())
def test_public_callables_are_documented_in_full(name: str) -> None:
    described = public_callables()[name]
    found = sections(inspect.getdoc(described) or "")
    assert ">>> " in found["Examples"]
    assert ("Raises" in found) == (name in RAISING)
    if inspect.isclass(described):
        assert "Attributes" in found
    else:
        assert found["Returns"].strip()
    parameters = {*inspect.signature(described).parameters} - {"self"}
    listed = re.findall(r"^(\w.*?)(?: : .*)?$", found.get("Parameters", ""), re.MULTILINE)
    if "Parameters" in found or not inspect.isclass(described):  # other classes are made by a function
        assert {word for line in listed for word in line.split(", ")} == parameters
