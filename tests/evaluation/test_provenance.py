"""The record of an evaluation in metrics.json, written and read back without a change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evaluation.provenance import FileNote, Overlap, Provenance

MODEL = {  # of two checkpoints of different sizes, with a key that this version does not know
    "kind": "external",
    "weights": ["a.pt", "b.pt"],
    "size": None,
    "mean": [0.5],
    "tta": False,
    "prevalence": ["A=0.1"],
    "unknown_classes": {"TB": 3},
    "of_a_later_version": {"x": 1},
    "unreadable": 2,
    "title": "a + b, hospital",
    "overlap": {"trained_on": 0, "allowed": True, "validated_on": None},
    "validation": {"path": "../best.validation.csv", "sha256": "ab"},
}
TABLE = {"title": "theirs.csv", "data": "theirs.csv", "sensitivity": None, "prevalence": [], "validation": None}


@pytest.mark.parametrize("entry", [MODEL, TABLE, {}, {"overlap": None}])
def test_reading_and_writing_change_nothing(entry: dict) -> None:
    assert json.dumps(Provenance.from_json(entry).to_json()) == json.dumps(entry)


def test_fields_have_their_types_and_defaults() -> None:
    provenance = Provenance.from_json(MODEL)
    assert provenance.overlap == Overlap(trained_on=0, allowed=True, validated_on=None)
    assert provenance.validation == FileNote("../best.validation.csv", "ab")
    assert provenance.size is None and "size" in provenance.recorded  # known to differ
    assert provenance.epoch is None and "epoch" not in provenance.recorded  # unknown
    assert Provenance.from_json(None) == Provenance() and Provenance().weights == ()


def test_what_is_recorded_later_comes_last_and_what_changes_keeps_its_place() -> None:
    first = Provenance().record(kind="test", unreadable=1)
    second = first.record(overlap=Overlap(3), unreadable=2)
    assert list(second.to_json().items())[:2] == [("kind", "test"), ("unreadable", 2)]
    assert second.to_json()["overlap"] == {"trained_on": 3, "allowed": False, "validated_on": None}
    assert first.to_json() == {"kind": "test", "unreadable": 1}


def test_a_noted_file_is_found_while_it_is_the_same(tmp_path: Path) -> None:
    file, folder = tmp_path / "run" / "validation.csv", tmp_path / "run" / "test"
    folder.mkdir(parents=True)
    file.write_text("a")
    note = FileNote.of(file, folder)
    assert note.path == "../validation.csv"
    assert note.find(folder).resolve() == file
    file.write_text("b")
    assert note.find(folder) is None
    file.unlink()
    assert note.find(folder) is None
