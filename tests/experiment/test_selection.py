"""Selections: what may be given for a trained model, and where its results go."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from config import Config, DataConfig
from experiment.selection import Selection, select
from utils import UserError


def _select(weights: Path, **keys: object) -> Selection:
    """Select with some `data` keys, as a command line gives them."""
    given = {f"data.{name}": value for name, value in keys.items()}
    return select(Config(device="cpu", data=DataConfig(**keys)), weights, given)


def test_the_data_are_the_runs_but_for_what_is_given(tiny_run: Path) -> None:
    chosen = select(Config(device="cpu"), tiny_run, {})
    assert chosen.run == tiny_run and chosen.checkpoint.path == tiny_run / "best.pt"
    assert chosen.data.split == [0.6, 0.2, 0.2] and chosen.data.path is None
    assert chosen.precision == "fp32"
    assert _select(tiny_run, workers=3, subset=True).data.subset
    with pytest.raises(UserError, match=r"data\.size: fixed"):
        select(Config(device="cpu"), tiny_run, {"data.size": "96"})
    with pytest.raises(UserError, match=r"the checkpoint .* is a resnet18"):
        select(Config(model="vgg16", device="cpu"), tiny_run, {"model": "vgg16"})


def test_patients_of_other_data_are_not_named_by_the_runs_pattern(tiny_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("group_pattern: null", "group_pattern: ^(P)"))
    assert "^(P)" in (run / "config.yaml").read_text()
    assert _select(run).data.group_pattern == "^(P)"
    assert _select(run, path=str(tmp_path)).data.group_pattern is None
    given = _select(run, path=str(tmp_path), group_pattern="^(Q)")
    assert given.data.group_pattern == "^(Q)" and given.pattern_given


def test_names_and_folders_say_which_checkpoint_and_which_data(tiny_run: Path, tmp_path: Path) -> None:
    assert select(Config(device="cpu"), tiny_run, {}).name == "tiny"
    last = select(Config(device="cpu"), tiny_run / "last.pt", {})
    assert last.name == "tiny-last"
    assert last.output_folder("test", ["tta"]) == tiny_run / "test-tta-last"
    other = _select(tiny_run, path=str(tmp_path / "hospital"), subset=True)
    assert other.output_folder("val") == tiny_run / "val-subset-hospital"
    shutil.copy(tiny_run / "best.pt", tmp_path / "model.pt")
    moved = select(Config(device="cpu"), tmp_path / "model.pt", {})
    assert moved.name == "model" and moved.output_folder("test") == tmp_path / "model-test"
    with pytest.raises(UserError, match=r"model\.pt: .*--data DIR"):
        moved.dataset()
