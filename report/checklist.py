"""The reporting checklist of checklist.yaml, filled in from the facts of a run."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import yaml

from report.facts import Facts

CHECKLIST = Path(__file__).resolve().parent / "checklist.yaml"


def answered_standards(facts: Facts) -> list[dict[str, Any]]:
    """Return the standards; each item has an `answer`, None if it stays blank."""
    standards = []
    for standard in yaml.safe_load(CHECKLIST.read_text(encoding="utf-8"))["standards"]:
        items = [item | {"answer": fill(item["fill"], facts) if "fill" in item else None} for item in standard["items"]]
        filled = [item for item in items if item["answer"] is not None]
        partly = sum("author" in item for item in filled)
        standards.append(standard | {"items": items, "filled": len(filled), "partly": partly})
    return standards


def fill(template: str, facts: Facts) -> str | None:
    """Return `template` with its facts filled in; None if one of them is unknown."""
    names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    values = {name: facts[name] for name in names}
    return None if None in values.values() else template.format(**values)
