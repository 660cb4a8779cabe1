"""Shared fixtures: a small phantom, a run trained on it, and verbs run as programs are."""

from __future__ import annotations

import importlib.util
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.verbs import ROOT, Result


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phantom of 120 images, drawn once."""
    from dataset.phantom.write import write_phantom

    return write_phantom(tmp_path_factory.mktemp("data") / "phantom", count=120, seed=3)


def _run(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, script: str, argv: list[str]) -> Result:
    from command_line import run_verb

    spec = importlib.util.spec_from_file_location("verb_" + Path(script).stem, ROOT / script)
    module = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    sys.path[:] = path
    monkeypatch.setattr(sys, "argv", [script, *argv])
    capsys.readouterr()
    code = 0
    try:
        run_verb(module.main)
    except SystemExit as end:
        code = int(end.code or 0)
    captured = capsys.readouterr()
    return Result(code, captured.out, captured.err)


@pytest.fixture
def verb(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, cache_dir: Path) -> Callable[..., Result]:
    """`verb("train.py", "--epochs", 1)`: run a script in this process, with a cache of the tests' own."""

    def run(script: str, *argv: object) -> Result:
        return _run(capsys, monkeypatch, script, [*map(str, argv), f"data.cache_dir={cache_dir}"])

    return run


@pytest.fixture
def ctrl_c() -> Iterator[Callable[[], None]]:
    """`ctrl_c()`: press it. It is heard also where the shell that started the tests ignores it (behind `&`)."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def tiny_run(phantom: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs at 64 px on the small phantom."""
    from config import compose_config
    from training.trainer import train

    config = compose_config(
        ["data.size=64", f"data.cache_dir={cache_dir}", "data.split=0.6,0.2,0.2"],
        {
            "data.path": str(phantom),
            "init": "none",
            "precision": "fp32",
            "train.epochs": 2,
            "train.batch": 16,
            "save": str(tmp_path_factory.mktemp("runs")),
        },
    )
    return train(config, "tiny")
