"""Matching the images of runs, and the names of files and folders."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from evaluation.comparison.inputs import align, default_folder
from tests.helpers.prediction_tables import CLASSES, predictions, table
from utils import UserError


def test_disagreement_about_patients_is_a_warning(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("utils.log.propagate", True)
    a = table(30, 1, images=3)
    b = table(30, 2, images=3).assign(group=[f"p{i // 2}" for i in range(30)])
    runs = align({"a": predictions(a), "b": predictions(b)})
    assert "disagree about the patients" in caplog.text
    assert runs["b"].patients.count == 10
    caplog.clear()
    renamed = a.assign(group=a["group"].str.upper())
    assert align({"a": predictions(a), "b": predictions(renamed)})["b"].patients.count == 10
    assert not caplog.text


A = table(30, 1)


FALSE = [CLASSES[CLASSES.index(A["label"][0]) - 1], *A["label"][1:]]


@pytest.mark.parametrize(
    ("wrong", "classes", "expected"),
    [
        (A.iloc[2:], CLASSES, ("(matched by sha256)", "2 only in a (such as /data/00000.png)", "0 only in b")),
        (
            A.drop(columns="sha256").assign(path=A["path"] + "x"),
            CLASSES,
            ("(matched by path)", "30 only in a", "30 only in b"),
        ),
        (A.assign(label=FALSE), CLASSES, ("the true class of 1 of 30 images", "/data/00000.png is")),
        (
            A.rename(columns={"p_COVID": "p_x"}).replace("COVID", "x"),
            ["x", *CLASSES[1:]],
            ("only a: COVID; only b: x",),
        ),
    ],
    ids=["fewer", "others", "labels", "classes"],
)
def test_runs_that_cannot_be_compared(wrong: pd.DataFrame, classes: list[str], expected: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as error:
        align({"a": predictions(A), "b": predictions(wrong, classes)})
    assert all(words in str(error.value) for words in (*expected, "a and b")), error.value


def test_the_default_folder_has_a_valid_distinct_name() -> None:
    """Three names of 40 CJK letters are 360 bytes; names that only differ at their ends keep two folders."""
    for letter in ("x", "影"):
        sets = [[letter * 40, letter * 39, letter * 38 + end] for end in "ab"]
        folders = {_folder(*names, split="val", baseline=names[0]) for names in sets}
        assert len(folders) == 2
        assert all(len(folder.encode()) <= 255 and folder.endswith("-val-baseline") for folder in folders)


def _folder(*names: str, runs: str = "runs", split: str = "test", baseline: str | None = None) -> str:
    """Return the name of the folder in `runs` that compares runs of these names in the folder `runs`."""
    files = {name: Path(runs, name, split, "predictions.csv") for name in names}
    return default_folder(Path("runs"), files, split, baseline).name


def test_the_default_folder_is_about_these_runs_only() -> None:
    """Two runs of the runs folder need no hash. Others may have the same names: then the second replaced the first."""
    assert _folder("a", "b") == "compare-a-vs-b"
    others = [
        _folder("a", "b"),
        _folder("a", "b", runs="old"),
        _folder("a", "b", runs="new"),
        _folder("a", "b", split="val"),
        _folder("a", "b-val"),
        _folder("a", "b", baseline="a"),
        _folder("a", "b", baseline="b"),
        _folder("a/b", "c"),
        _folder("a-b", "c"),
        _folder("a-vs-b", "c"),
        _folder("a", "b-vs-c"),
        _folder("a-vs", "b"),
        _folder("a", "vs-b"),
    ]
    assert len(set(others)) == len(others)
    assert all("/" not in folder for folder in others)
