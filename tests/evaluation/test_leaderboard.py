"""The leaderboard of hand-made run folders and of a real run."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from sklearn.metrics import accuracy_score

from command_line import start_logging
from evaluation.leaderboard import format_leaderboard, groups, read_runs
from tests.helpers.verbs import Verb

IMAGES = [("aa", "COVID"), ("bb", "Normal"), ("cc", "Normal")]


def _make(
    parent: Path,
    name: str,
    accuracy: float | None = None,
    images: Sequence[tuple[str, str]] = IMAGES,
    valid: Sequence[tuple[float, float]] = ((1.0, 0.5),),
    severe: Sequence[str] = (),
    tested: str = "2026-01-02T00:00:00Z",
    **record: object,
) -> Path:
    """Write a run folder with this accuracy; `valid` has (loss, accuracy) of its epochs of 30 seconds."""
    run = parent / name
    run.mkdir(parents=True)
    facts = {"status": "finished", "model": "resnet18", "init": "none", "data": "here", "commit": "abc"}
    (run / "run.json").write_text(json.dumps(facts | {"finished": "2026-01-01T00:00:00Z"} | record))
    rows = [{"valid_loss": loss, "valid_accuracy": value, "seconds": 30} for loss, value in valid]
    pd.DataFrame(rows).to_csv(run / "history.csv", index=False)
    split = [{"sha256": sha, "label": label, "split": "test"} for sha, label in images]
    pd.DataFrame([*split, {"sha256": name, "label": "Normal", "split": "train"}]).to_csv(run / "split.csv", index=False)
    if accuracy is not None:
        (run / "test").mkdir()
        metrics = {
            "accuracy": {"value": accuracy, "low": accuracy - 0.1, "high": accuracy + 0.1},
            "warnings": [{"level": "severe", "text": text} for text in severe] + [{"level": "caution", "text": "eh"}],
            "evaluation": {"finished": tested},
        }
        (run / "test" / "metrics.json").write_text(json.dumps(metrics))
        pd.DataFrame(images, columns=["sha256", "label"]).to_csv(run / "test" / "predictions.csv", index=False)
    return run


def _names(parent: Path) -> list[str]:
    return [entry.name for entry in read_runs(parent)]


def test_sorted_by_accuracy_then_by_validation(tmp_path: Path) -> None:
    _make(tmp_path, "b", 0.7, valid=[(1.0, 0.99)])
    _make(tmp_path, "a", 0.8)
    _make(tmp_path, "untested", valid=[(1.0, 0.6)])
    _make(tmp_path, "untested-best", valid=[(1.0, 0.9), (2.0, 0.1)])
    assert _names(tmp_path) == ["a", "b", "untested-best", "untested"]


def test_the_contents_of_a_row(tmp_path: Path) -> None:
    _make(tmp_path, "a", 0.8, valid=[(2.0, 0.1), (0.5, 0.75), (0.6, 0.9)], model="vgg16", init="w.pt", commit="c0ffee")
    (entry,) = read_runs(tmp_path)
    assert (entry.model, entry.init, entry.commit, entry.status, entry.n) == ("vgg16", "w.pt", "c0ffee", "finished", 3)
    assert entry.valid_accuracy == 0.75  # of best.pt, not the highest
    assert entry.seconds == 90
    text = format_leaderboard([entry])
    for part in ("0.800 [0.700, 0.900]", "0.750", "1.5 min", "vgg16", "w.pt", "here", "c0ffee", "1 run on 3 test"):
        assert part in text
    assert "means nothing" not in text and "not evaluated" not in text
    assert entry.warnings == []


def test_an_interrupted_run_has_a_row(tmp_path: Path) -> None:
    _make(tmp_path, "a", status="interrupted", commit=None, finished=None)
    early = _make(tmp_path, "b", status="running")
    (early / "history.csv").unlink()
    a, b = read_runs(tmp_path)
    assert (a.status, a.commit, a.seconds, b.seconds, b.valid_accuracy) == ("interrupted", "-", 30, None, None)
    text = format_leaderboard([a, b])
    assert f"python test.py --weights {tmp_path / 'a'} --kind test" in text
    assert a.warnings == b.warnings == []


def test_different_images_have_separate_tables(tmp_path: Path) -> None:
    _make(tmp_path, "a", 0.5)
    _make(tmp_path, "same", images=IMAGES[::-1])  # the split is the same, in another order
    _make(tmp_path, "other", 0.99, images=[*IMAGES[:2], ("dd", "Normal")])
    _make(tmp_path, "labels", 0.98, images=[*IMAGES[:2], ("cc", "COVID")])
    entries = read_runs(tmp_path)
    names = [[entry.path.name for entry in group] for group in groups(entries)]
    assert names == [["a", "same"], ["other"], ["labels"]]
    text = format_leaderboard(entries)
    assert "2 runs on the same 3 test images" in text
    assert "a ranking across them means nothing" in text
    assert "python compare.py" not in text  # nowhere are there two to compare


def test_groups_follow_the_evaluated_images_not_the_split(tmp_path: Path) -> None:
    _make(tmp_path, "a", 0.5)
    fewer = _make(tmp_path, "b", 0.5)
    pd.DataFrame(IMAGES[:2], columns=["sha256", "label"]).to_csv(fewer / "test" / "predictions.csv", index=False)
    assert len(groups(read_runs(tmp_path))) == 2


def test_unknown_images_are_not_comparable(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (_make(tmp_path, name, 0.5) / "test" / "predictions.csv").write_text("label\nNormal\n")
    text = format_leaderboard(read_runs(tmp_path))
    assert "2 runs whose test images are unknown, so not comparable" in text
    assert "python compare.py" not in text


def test_two_runs_on_the_same_images_suggest_a_comparison(tmp_path: Path) -> None:
    _make(tmp_path, "a", 0.5)
    _make(tmp_path, "b", 0.6)
    assert "python compare.py RUN RUN" in format_leaderboard(read_runs(tmp_path))


def test_severe_warnings_are_printed(verb: Verb, tmp_path: Path) -> None:
    _make(tmp_path, "a", 0.99, severe=["trained on these"])
    result = verb("compare.py", "--list", "--save", tmp_path)
    assert result.code == 0, result.err
    assert "WARNING: a: trained on these" in result.out and "eh" not in result.out.split()


def test_an_evaluation_of_earlier_weights_does_not_count(tmp_path: Path) -> None:
    resumed = {"resumed": [{"epoch": 1, "time": "2026-01-01T12:00:00Z"}], "finished": "2026-01-03T00:00:00Z"}
    _make(tmp_path, "a", 0.9, **resumed)
    _make(tmp_path, "b", 0.8, tested="2026-01-04T00:00:00Z", **resumed)
    killed = {"resumed": [{"epoch": 1, "time": "2026-01-03T00:00:00Z"}], "status": "running"}  # and `finished` before
    _make(tmp_path, "c", 0.7, **killed)
    entries = read_runs(tmp_path)
    values = [(entry.name, entry.accuracy.to_json()["value"]) for entry in entries]
    assert values == [("b", 0.8), ("a", None), ("c", None)]
    for entry in entries[1:]:
        assert "it was trained further after its evaluation" in entry.warnings[0]


def test_trials_with_weights_are_listed(tmp_path: Path) -> None:
    _make(tmp_path, "alone", 0.5)
    for number in ("0000", "0001", "0007"):
        _make(tmp_path / "tune-x" / "trials", number, 0.9 if number == "0007" else None)
    for number in ("0000", "0007"):
        (tmp_path / "tune-x" / "trials" / number / "best.pt").touch()
    assert _names(tmp_path) == ["tune-x/0007", "alone", "tune-x/0000"]


@pytest.mark.parametrize("content", ["{", "[]", '{"status": "finished"}', '{"status": 3, "model": "x"}'])
def test_an_unreadable_run_is_left_out_with_one_line(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    start_logging()
    _make(tmp_path, "good", 0.5)
    (_make(tmp_path, "bad", 0.9) / "run.json").write_text(content)
    assert _names(tmp_path) == ["good"]
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "WARNING" in line]
    assert str(tmp_path / "bad" / "run.json") in line and "left out" in line


def test_broken_parts_of_a_run_are_warned_of(tmp_path: Path) -> None:
    run = _make(tmp_path, "a", 0.5)
    (run / "test" / "metrics.json").write_text('{"accuracy": {}}')
    (run / "history.csv").write_text("epoch\n")
    entries = read_runs(tmp_path)
    assert not entries[0].evaluated and entries[0].valid_accuracy is None
    assert [text.split(";")[0] for text in entries[0].warnings] == [
        "its history.csv is missing or cannot be read",
        "its test/metrics.json cannot be read",
    ]


def test_a_real_run(verb: Verb, tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run, tmp_path / "runs" / "tiny")
    _make(tmp_path / "runs", "made", 0.0)
    assert verb("test.py", "--weights", tmp_path / "runs" / "tiny", "--quick").code == 0
    result = verb("compare.py", "--list", "--save", tmp_path / "runs", "--output", tmp_path / "out")
    assert result.code == 0 and result.err == ""
    predictions = pd.read_csv(tmp_path / "runs" / "tiny" / "test" / "predictions.csv")
    accuracy = accuracy_score(predictions["label"], predictions["predicted"])
    (line,) = [line for line in result.out.splitlines() if line.startswith("tiny ")]
    assert f"{accuracy:.3f} [" in line and "random weights" in line
    assert f"1 run on {len(predictions)} test images" in result.out and "means nothing" in result.out
    rows = {row["run"]: row for row in csv.DictReader((tmp_path / "out" / "leaderboard.csv").open())}
    assert float(rows["tiny"]["accuracy"]) == pytest.approx(accuracy)
    assert float(rows["tiny"]["low"]) < accuracy < float(rows["tiny"]["high"])
    record = json.loads((tiny_run / "run.json").read_text())
    assert float(rows["tiny"]["valid_accuracy"]) == pytest.approx(record["best"]["valid_accuracy"])
    assert float(rows["tiny"]["train_seconds"]) == pytest.approx(record["timings"]["train_seconds"], abs=0.01)
    assert rows["tiny"]["images"] != rows["made"]["images"]


def test_bad_input(verb: Verb, tmp_path: Path) -> None:
    for words, part in (
        (["--list", "--save", tmp_path], "no runs in"),
        (["--list", "runs/A"], "leave runs/A out"),
        (["--list", "--baseline", "runs/A"], "leave runs/A out"),
        ([], "no RUN given"),
    ):
        result = verb("compare.py", *words)
        assert result.code == 2
        assert part in result.err and result.err.count("\n") == 1
