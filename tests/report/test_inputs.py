"""Incomplete folders and metrics are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from report.page import write_report
from tests.helpers.report_case import CLASSES, Case
from utils import UserError


@pytest.mark.slow
def test_metrics_of_an_older_version_are_named(editable: Case) -> None:
    """Every part that the report needs from metrics.json, one at a time."""
    file = editable.folder / "metrics.json"
    whole = json.loads(file.read_text())
    parts = [
        (name,) for name in ("n", "classes", "confusion", "ece_bins", "methods", "per_class", "macro_auroc", "ece")
    ]
    parts += [("accuracy", "low"), ("per_class", CLASSES[1]), ("per_class", CLASSES[1], "small")]
    parts += [("per_class", CLASSES[1], "auroc", "high"), ("temperature", "applied"), ("ece_if_perfect", "p95")]
    parts += [("operating_points", 3, "small"), ("subgroups", "source", 1, "missed")]
    for *above, last in parts:
        broken = json.loads(json.dumps(whole))
        part = broken
        for name in above:
            part = part[name]
        del part[last]
        file.write_text(json.dumps(broken))
        with pytest.raises(UserError, match=f"metrics.json: no '{last}' in it .*python test.py again") as error:
            write_report(editable.folder, editable.run)
        assert "\n" not in str(error.value)
    for text in ("[]", "3", '"x"', "null"):
        file.write_text(text)
        with pytest.raises(UserError, match=r"metrics\.json: not a JSON mapping; run python test\.py again"):
            write_report(editable.folder, editable.run)
    file.write_text(json.dumps(whole | {"accuracy": 0.9}))
    with pytest.raises(UserError, match=r"no 'low'"):
        write_report(editable.folder, editable.run)


def test_broken_folders_are_named(editable: Case, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no metrics\.json"):
        write_report(tmp_path, None)
    editable.metrics(n=81)
    with pytest.raises(UserError, match=r"81 images in metrics\.json, but 80 in predictions\.csv"):
        write_report(editable.folder, editable.run)
    (editable.folder / "metrics.json").write_text("{")
    with pytest.raises(UserError, match=r"metrics\.json: cannot be read"):
        write_report(editable.folder, editable.run)
