"""Loading a data set: recorded splits, classes, and files that cannot be read."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from config import DataConfig, compose_config
from dataset.loading import RECORD_COLUMNS, load_dataset, read_split
from tests.helpers.images import write_image
from tests.helpers.verbs import Result
from utils import UserError


@pytest.mark.parametrize("recorded", [False, True])
def test_too_many_unreadable_files_name_the_remedies_that_there_are(tmp_path: Path, recorded: bool) -> None:
    for label in "AB":
        for i in range(3):
            write_image(tmp_path / "data" / label / f"{label}{i}.png", i + 3 * (label == "B"))
        (tmp_path / "data" / label / f"{label}0.png").write_bytes(b"no image")
    data = DataConfig(path=str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"))
    run_split = tmp_path / "split.csv" if recorded else None
    if recorded:
        dataset = load_dataset(replace(data, max_unreadable=1.0, split=[1.0, 0.0, 0.0]), 32)
        dataset.records.to_csv(run_split, index=False)
        (tmp_path / "data" / "A" / "A1.png").unlink()
        data = replace(data, path=None)
    with pytest.raises(UserError, match=r"more than data\.max_unreadable=0\.05") as error:
        load_dataset(data, 32, run_split=run_split)
    assert ("if they were moved, pass --data DIR" in str(error.value)) == recorded


def test_a_written_split_keeps_names_with_spaces(tmp_path: Path) -> None:
    """A run's split.csv is read as it was written: stripped cells would name other classes and files."""
    row = dict.fromkeys(RECORD_COLUMNS, "")
    row |= {"path": str(tmp_path / "a b .png"), "label": " Viral Pneumonia ", "split": "test"}
    pd.DataFrame([row]).to_csv(tmp_path / "split.csv", index=False)
    assert read_split(tmp_path / "split.csv").to_dict("records") == [row]


def test_classes_that_differ_say_on_which_side(phantom: Path, cache_dir: Path) -> None:
    data = DataConfig(path=str(phantom), cache_dir=str(cache_dir))
    classes = ["COVID", "Lung_Opacity", "Normal", "Tuberculosis"]
    with pytest.raises(UserError, match=r"Tuberculosis\): unknown to it: Viral Pneumonia; missing: Tuberculosis"):
        load_dataset(data, 32, classes=classes)


def test_a_written_split_is_the_same_data_elsewhere(verb: Callable[..., Result], phantom: Path, tmp_path: Path) -> None:
    """`--write-split`: moved together with the folder, the CSV names the same images, masks, patients and splits."""
    from dataset.loading import load_dataset

    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(phantom, old / "images")
    words = ["data.size=32", "data.split=0.6,0.2,0.2", "data.split_seed=5", "--output", old / "sheet.png"]
    done = verb("dataset/data.py", "--data", old / "images", "--write-split", old / "split.csv", *words)
    assert done.code == 0, done.err
    table = pd.read_csv(old / "split.csv", keep_default_na=False)
    assert table["path"].str.startswith("images/").all()
    assert (table.groupby("group")["split"].nunique() == 1).all()
    old.rename(new)
    config = compose_config(
        ["data.split_seed=6"], {"data.path": str(new / "split.csv"), "data.cache_dir": str(tmp_path)}
    )
    records = load_dataset(config.data, 32).records
    assert records["path"].tolist() == [str(new / path) for path in table["path"]]
    for column in ("label", "group", "source", "split"):
        assert records[column].tolist() == table[column].tolist()
    for column in ("lung_mask", "lesion_mask"):
        assert records[column].tolist() == [str(new / path) for path in table[column]]
    done = verb("dataset/data.py", "--data", new / "images", "--write-split", new, *words)
    assert (done.code, done.err.count("\n")) == (2, 1)
