"""compare.py on run folders and tables, and bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from scipy import stats

from evaluation import compare
from evaluation.figures.forest import forest_figure
from tests.helpers.prediction_tables import CLASSES, table, two
from tests.helpers.verbs import Verb, refused


def write_run(folder: Path, frame: pd.DataFrame, split: str = "test") -> Path:
    (folder / split).mkdir(parents=True)
    frame.to_csv(folder / split / "predictions.csv", index=False)
    (folder / "config.yaml").touch()
    return folder


def test_the_verb(verb: Verb, tmp_path: Path) -> None:
    a = write_run(tmp_path / "run a", table(80, 1, 3.0))
    b = write_run(tmp_path / "b", table(80, 2, 0.5))
    other = tmp_path / "other.csv"
    table(80, 3, 1.0)[["path", "label", *(f"p_{name}" for name in CLASSES)]].to_csv(other, index=False)
    result = verb("compare.py", a, b / "test", other, "--save", tmp_path / "runs")
    assert result.code == 0, result.err
    (folder,) = (tmp_path / "runs").glob("compare-run a-vs-b-vs-other-????????")  # not runs of the runs folder
    assert {path.name for path in folder.iterdir()} == {"comparison.csv", "comparison.json", "forest.png"}
    assert "run a is better than b in accuracy and macro AUROC" in result.out
    assert "Caution: only 80 images; fewer than 30 images of" in result.out
    assert "replacing" not in result.out
    rows = pd.read_csv(folder / "comparison.csv")
    assert rows.columns.tolist() == ["a", "b", "metric", "difference", "low", "high", "p", "p_holm"]
    assert len(rows) == 3 * (5 + len(CLASSES))
    content = json.loads((folder / "comparison.json").read_text())
    assert [(pair["a"], pair["b"]) for pair in content["pairs"]] == [("run a", "b"), ("run a", "other"), ("b", "other")]
    first = content["pairs"][0]
    right = {
        name: (part["label"] == part.filter(like="p_").idxmax(axis=1).str[2:])
        for name, part in (("a", table(80, 1, 3.0)), ("b", table(80, 2, 0.5)))
    }
    counts = int((right["a"] & ~right["b"]).sum()), int((right["b"] & ~right["a"]).sum())
    assert (first["only_a_right"], first["only_b_right"]) == counts
    row = rows.set_index(["a", "b", "metric"]).loc[("run a", "b", "accuracy")]
    assert row["p"] == pytest.approx(stats.binomtest(counts[0], sum(counts)).pvalue)
    assert row["difference"] == pytest.approx(right["a"].mean() - right["b"].mean())
    assert row["low"] == first["differences"]["accuracy"]["low"]
    again = verb("compare.py", b, a, "--output", folder, "--baseline", b)
    assert "replacing the earlier comparison" in again.out
    assert json.loads((folder / "comparison.json").read_text())["baseline"] == "b"
    assert "p (Holm)" in result.out
    assert "p (Holm)" not in again.out


def test_a_run_trained_on_the_images_is_not_called_better(verb: Verb, tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a", table(160, 1, 3.0)), write_run(tmp_path / "b", table(160, 2, 0.5))
    severe, mild = "The model was trained on 9 of these 160 images.", "Small."
    warnings = [{"level": "caution", "text": mild}, {"level": "severe", "text": severe}]
    (a / "test" / "metrics.json").write_text(json.dumps({"warnings": warnings}))
    out = tmp_path / "out"
    for order in ((a, b), (b, a)):
        result = verb("compare.py", *order, "--output", out)
        assert f"WARNING: a: {severe}" in result.out and mild not in result.out
        assert "better than" not in result.out and "a scores higher than b in accuracy" in result.out
    content = json.loads((out / "comparison.json").read_text())
    assert content["warnings"] == {"a": [severe]}
    assert "do not trust a" in content["pairs"][0]["verdict"]
    figure = forest_figure(compare(two(60), resamples=50, distrusted={"a": [severe]}))
    assert "Do not trust a" in figure.get_suptitle()
    (a / "test" / "metrics.json").write_text(json.dumps({"warnings": []}))
    (b / "test" / "metrics.json").write_text(json.dumps({"warnings": warnings}))
    assert "a is better than b" in verb("compare.py", a, b, "--output", out).out  # in spite of what b had seen
    (b / "test" / "metrics.json").write_text("[]")
    refused(verb("compare.py", a, b, "--output", out), "b/test/metrics.json")


def test_names_are_as_short_as_possible(verb: Verb, tmp_path: Path) -> None:
    paths = [write_run(tmp_path / name, table(40, i)) for i, name in enumerate(("x/one", "y/one", "y/two"))]
    out = tmp_path / "out"
    assert verb("compare.py", *paths, "--output", out).code == 0
    assert list(json.loads((out / "comparison.json").read_text())["runs"]) == ["x/one", "y/one", "two"]
    table(40, 9).to_csv(tmp_path / "one.csv", index=False)
    table(40, 8).to_csv(tmp_path / "x" / "one" / "predictions.csv", index=False)
    paths = [tmp_path / "one.csv", tmp_path / "x" / "one" / "predictions.csv", tmp_path / "x" / "one" / "test"]
    assert verb("compare.py", *paths, "--output", out).code == 0
    assert len(json.loads((out / "comparison.json").read_text())["runs"]) == 3


def test_bad_input_is_one_line(verb: Verb, tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a", table(40, 1)), write_run(tmp_path / "b", table(40, 2))
    (tmp_path / "empty").mkdir()
    refused(verb("compare.py", a, tmp_path / "no"), "no such run folder or file")
    refused(verb("compare.py", a, tmp_path / "empty"), "has no predictions.csv and no test/predictions.csv")
    refused(verb("compare.py", a, b, "--kind", "val"), f"python test.py --weights {a} --kind val")
    refused(verb("compare.py", a), "only one run given")
    refused(verb("compare.py", a, "--baseline", a), "only one run given")
    refused(verb("compare.py"), "RUN")
    refused(verb("compare.py", a, b, a / "test"), "given twice")
    twice = table(40, 1)
    write_run(tmp_path / "twice", twice.assign(path=[twice["path"][1], *twice["path"][1:]]))
    refused(verb("compare.py", a, tmp_path / "twice"), "occurs twice")
    write_run(tmp_path / "fewer", twice.iloc[1:])
    refused(verb("compare.py", a, tmp_path / "fewer"), "a and fewer", "1 only in a", "/data/00000.png")
    write_run(tmp_path / "labels", twice.assign(label="Normal"))
    refused(verb("compare.py", a, tmp_path / "labels"), "a and labels", "true class")
    write_run(tmp_path / "classes", twice.rename(columns={"p_COVID": "p_x"}).replace({"COVID": "x"}))
    refused(verb("compare.py", a, tmp_path / "classes"), "only a: COVID", "only classes: x")
    (tmp_path / "empty" / "notes.txt").touch()
    refused(verb("compare.py", a, b, "--output", tmp_path / "empty"), "contains other files")
    refused(verb("compare.py", a, b, "--output", tmp_path / "empty", "sed=3"), "did you mean seed")
    refused(verb("compare.py", a, b, "train.lr=0.1"), "train.lr=0.1", "save and seed")
    assert not (tmp_path / "empty" / "comparison.json").exists()
