"""dvc.yaml with the real DVC, in a git repository made from this working tree."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from config import all_keys, compose_config
from tests.helpers.verbs import ROOT

TINY = ["preset=demo", "model=timm/test_resnet", "precision=fp32", "track=none", "data.phantom_count=40"]
TINY += ["data.size=32", "data.split=0.6,0.2,0.2", "train.epochs=1", "train.batch=16"]


class Clone:
    """A git repository that holds the project's files and runs commands."""

    def __init__(self, path: Path) -> None:
        self.path = path / "clone"
        names = self._output(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], ROOT).split("\0")
        for name in filter(None, names):
            if (ROOT / name).is_file() and name != "dvc.lock":
                (self.path / name).parent.mkdir(parents=True, exist_ok=True)
                (self.path / name).write_bytes((ROOT / name).read_bytes())
        who = {f"GIT_{role}_{what}": "x@example.org" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self.environment = os.environ | who | {"PATH": programs, "DVC_SITE_CACHE_DIR": str(path / "site")}
        self.run("git", "init", "-q")

    @staticmethod
    def _output(command: list[str], folder: Path, environment: dict[str, str] | None = None) -> str:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding="utf-8")
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def run(self, *command: str) -> str:
        return self._output(list(command), self.path, self.environment)

    def dvc(self, *words: str) -> str:
        return self.run(sys.executable, "-m", "dvc", *words)

    def commit(self) -> None:
        self.run("git", "add", "-A")
        self.run("git", "commit", "-q", "-m", "x")

    def json(self, file: str) -> dict[str, Any]:
        return json.loads((self.path / file).read_text())


@pytest.mark.slow
def test_repro_twice_then_an_experiment(tmp_path: Path) -> None:
    clone = Clone(tmp_path)
    config = compose_config([*TINY, "data.path=data/phantom"])
    (clone.path / "params.yaml").write_text(yaml.safe_dump(asdict(config)))
    out = clone.dvc("repro")
    assert [line.split("'")[1] for line in out.splitlines() if line.startswith("Running stage")] == [
        *("phantom", "split", "train", "test", "cams")
    ]
    clone.commit()
    assert clone.run("git", "status", "--short") == ""  # DVC tracks every output, and nothing else is left behind
    split = pd.read_csv(clone.path / "data" / "split.csv").set_index("path")["split"]
    trained = pd.read_csv(clone.path / "runs" / "dvc" / "split.csv").set_index("path")["split"]
    assert {str((clone.path / "data" / path).resolve()): name for path, name in split.items()} == trained.to_dict()

    lock = (clone.path / "dvc.lock").read_bytes()
    assert "Running stage" not in clone.dvc("repro")
    assert (clone.path / "dvc.lock").read_bytes() == lock

    shown = json.loads(clone.dvc("metrics", "show", "--json"))[""]["data"]["runs/dvc/test/metrics.json"]["data"]
    assert shown["accuracy"] == clone.json("runs/dvc/test/metrics.json")["accuracy"]
    before = clone.json("runs/dvc/run.json")["best"]["valid_loss"]
    out = clone.dvc("exp", "run", "-S", "train.lr=0.05", "-S", "train.epochs=2", "train")
    assert [line.split("'")[1] for line in out.splitlines() if line.startswith("Running stage")] == ["train"]
    after = clone.json("runs/dvc/run.json")["best"]["valid_loss"]
    used = yaml.safe_load((clone.path / "runs" / "dvc" / "config.yaml").read_text())["train"]
    assert (used["lr"], used["epochs"]) == (0.05, 2)
    params = json.loads(clone.dvc("params", "diff", "--json"))["params.yaml"]
    assert {key: (change["old"], change["new"]) for key, change in params.items()} == {
        "train.lr": (0.001, 0.05),
        "train.epochs": (1, 2),
    }
    change = json.loads(clone.dvc("metrics", "diff", "--json", "--targets", "runs/dvc/run.json"))
    change = change["runs/dvc/run.json"]["best.valid_loss"]
    assert (change["old"], change["new"]) == (before, after)
    assert before != after


def test_parameters_and_dependencies_exist() -> None:
    """Parameters are keys or groups of the schema; every dependency exists or is the output of a stage."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    made = {next(iter(out)) if isinstance(out, dict) else out for s in stages.values() for out in s.get("outs", [])}
    made |= {file for stage in stages.values() for kind in ("metrics", "plots") for file in stage.get(kind, [])}
    for stage in stages.values():
        for name in stage.get("params", []):
            assert name in all_keys() or any(key.startswith(f"{name}.") for key in all_keys()), name
        for file in stage["deps"]:
            assert file in made or file == "${data.path}" or (ROOT / file).exists(), file


# Imported by a stage's program without changing its results: command lines and, for training, sample CAMs.
NO_RESULT = {Path("command_line.py"), Path("classifier.py")}
NO_RESULT_OF_TRAINING = NO_RESULT | {Path("localization"), Path("training/trackers")}


def _program(command: str) -> Path:
    """Return the file that `python FILE …` or `python -m MODULE …` runs."""
    words = command.split("python ")[1].split()
    return Path(words[1].replace(".", "/"), "__main__.py") if words[0] == "-m" else Path(words[0])


def _imported(program: Path, without: set[Path]) -> set[Path]:
    """Return the project's files that `program` imports, directly or through others, except those in `without`."""
    files: set[Path] = set()
    pending = [program]
    while pending:
        file = pending.pop()
        if not _inside(file, files | without):
            files.add(file)
            pending += _imports(ast.parse((ROOT / file).read_text()))
    return files


def _inside(file: Path, folders: set[Path]) -> bool:
    return bool({file, *file.parents} & folders)


def _imports(tree: ast.Module) -> Iterator[Path]:
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            path = Path(*name.split("."))
            yield from (file for file in (path.with_suffix(".py"), path / "__init__.py") if (ROOT / file).is_file())


@pytest.mark.parametrize("stage", ["phantom", "split", "train", "test", "cams"])
def test_a_stage_depends_on_the_code_that_makes_its_results(stage: str) -> None:
    """Otherwise a change in that code would leave old numbers that dvc repro calls up to date."""
    entry = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]
    program = _program(entry["cmd"])
    files = _imported(program, NO_RESULT_OF_TRAINING if stage == "train" else NO_RESULT)
    assert len(files) > 3
    dependencies = {Path(name) for name in entry["deps"]}
    assert [str(file) for file in sorted(files) if not _inside(file, dependencies)] == []


def test_every_key_can_be_set_in_the_pipeline() -> None:
    """DVC sets only keys that params.yaml has, and a key unknown to the schema would fail later."""
    plain = yaml.safe_load((ROOT / "params.yaml").read_text())
    for key in all_keys():
        value: Any = plain
        for part in key.split("."):
            assert part in value, f"params.yaml has no {key}: compose it again with the command in its first lines"
            value = value[part]
    assert compose_config(file=ROOT / "params.yaml").data.path is not None
