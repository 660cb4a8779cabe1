"""Run folders: their names, and the newest finished one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiment.run_folder import RunFolder, newest_run
from utils import UserError


def test_names_of_runs(tmp_path: Path) -> None:
    first = RunFolder.create(tmp_path, "timm/x", None)
    assert first.path.name.startswith("timm-x-2")
    assert RunFolder.create(tmp_path, "timm/x", None).path != first.path
    RunFolder.create(tmp_path, "m", "mine")
    with pytest.raises(UserError, match=r"--name mine: .* exists"):
        RunFolder.create(tmp_path, "m", "mine")
    with pytest.raises(UserError, match="plain name"):
        RunFolder.create(tmp_path, "m", "a/b")


def test_the_newest_finished_run(tmp_path: Path) -> None:
    for name, status, finished, model in (
        ("a", "finished", "2026-01-02", "vgg16"),
        ("b", "finished", "2026-01-01", "resnet18"),
        ("c", "failed", "2026-01-03", "vgg16"),
        ("d", "running", "", "vgg16"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps({"status": status, "finished": finished, "model": model}))
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "run.json").write_text("{")
    assert newest_run(tmp_path).name == "a"
    assert newest_run(tmp_path, "resnet18").name == "b"
    with pytest.raises(UserError, match="no finished run of densenet121"):
        newest_run(tmp_path, "densenet121")
