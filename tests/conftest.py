"""Shared fixtures: a small phantom, a run trained on it, and a function that runs a program."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.verbs import Result, Verb, load_program, ok


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phantom of 120 images, drawn once."""
    from dataset.phantom.write import write_phantom

    return write_phantom(tmp_path_factory.mktemp("data") / "phantom", count=120, seed=3)


@pytest.fixture
def verb(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, cache_dir: Path) -> Verb:
    """Return a function that runs a program in this process: `verb("train.py", "--epochs", 1)`."""

    def run(file: str, *words: object) -> Result:
        from command_line import run_verb

        main = load_program(monkeypatch, file).main
        monkeypatch.setattr(sys, "argv", [file, *map(str, words), f"data.cache_dir={cache_dir}"])
        capsys.readouterr()
        code = 0
        try:
            run_verb(main)
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture
def ctrl_c() -> Iterator[Callable[[], None]]:
    """Return a function that presses Ctrl-C, and make it work even if the shell ignores it (behind `&`)."""
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


@pytest.fixture
def example_folder(
    verb: Verb, tiny_run: Path, phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Work in a folder with the paths of the documentation: `runs/NAME`, evaluated, and `folder/of/images`."""
    shutil.copytree(tiny_run, tmp_path / "runs" / "NAME")
    images = tmp_path / "folder" / "of" / "images"
    images.mkdir(parents=True)
    for image in sorted((phantom / "COVID" / "images").iterdir())[:3]:
        shutil.copy(image, images)
    ok(verb("test.py", "--weights", tmp_path / "runs" / "NAME", "--quick"))
    monkeypatch.chdir(tmp_path)
    return tmp_path
