"""Matching the images of runs, and the names of files and folders."""

from __future__ import annotations

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
        folders = {default_folder([letter * 40, letter * 39, letter * 38 + end], "val", "b") for end in "ab"}
        assert len(folders) == 2
        assert all(len(folder.encode()) <= 255 and folder.endswith("-val-baseline") for folder in folders)
    assert default_folder(["a", "x/b"], "test", None) == "compare-a-vs-x-b"
