"""The facts of a run: only what its files show, as phrases for the checklist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.phrases import threshold, words
from report.checklist import fill
from report.facts import collect_facts
from report.inputs import read_inputs
from tests.helpers.report_case import CHECKLIST, Case, Page, make_case
from tests.helpers.verbs import ROOT


@pytest.fixture
def editable(tmp_path: Path) -> Case:
    return make_case(tmp_path)


def _answer(page: Page, standard: str, item: str) -> str | None:
    """Return the answer to an item of a standard; None if it is blank."""
    part = next(p for p in page.root.find("details") if p.find("summary")[0].words().startswith(standard))
    entry = next(e for e in part.find("div", class_="item") if e.find("span", class_="id")[0].words() == item)
    answers = entry.find("p", class_="answer")
    return answers[0].words() if answers else None


@pytest.mark.slow
def test_external_images_are_not_internal_testing(editable: Case) -> None:
    page = editable.report()
    assert "the run's own test split" in _answer(page, "CLAIM", "32")
    assert _answer(page, "CLAIM", "33") is None
    assert "every image is synthetic" in _answer(page, "CLAIM", "5")
    table = pd.read_csv(editable.folder / "predictions.csv", dtype=str)
    table["sha256"] = [f"{i:063x}e" for i in range(len(table))]
    table.to_csv(editable.folder / "predictions.csv", index=False)
    editable.metrics(evaluation={"kind": "external", "data": "/data/elsewhere"})
    page = editable.report()
    assert _answer(page, "CLAIM", "32") is None
    assert "/data/elsewhere" in _answer(page, "CLAIM", "33")
    assert _answer(page, "CLAIM", "5") is None  # nothing says that these are synthetic
    assert "the phantom" in _answer(page, "CLAIM", "7")  # the run's own data


def test_facts_of_unknown_patients(editable: Case) -> None:
    """The group of an unknown patient is the path: half of the test patients, then all."""
    split = pd.read_csv(editable.run / "split.csv", dtype=str, keep_default_na=False)
    test = (split["split"] == "test").to_numpy()
    half = test & (np.arange(len(split)) % 4 < 2)
    for chosen, expected in ((half, "40 of 20 patients, 40 of unknown patients"), (np.ones(len(split), bool), None)):
        split.loc[chosen, "group"] = split.loc[chosen, "path"]
        split.to_csv(editable.run / "split.csv", index=False)
        facts = collect_facts(read_inputs(editable.folder, editable.run))
        unit = "patient (40 images of unknown patients split individually)" if expected else "image (patients unknown)"
        assert facts["split"].startswith(f"at random by {unit}, stratified by class")
        if expected:
            assert f"test 80 images ({expected})" in facts["n_by_split"]
        else:
            assert facts["n_by_split"] == "train 160 images, test 80 images"
            assert facts["patients_known"] is None
            assert facts["disjoint"] == "no file is in two splits, and the patients are unknown"


def test_facts_of_leaking_and_ready_made_splits(editable: Case) -> None:
    split = pd.read_csv(editable.run / "split.csv", dtype=str, keep_default_na=False)
    assert collect_facts(read_inputs(editable.folder, editable.run))["split"].startswith("at random by patient")
    split.loc[split["split"] == "train", "group"] = "patient 0"
    split["path"] = ["/data/x/" + s + f"/COVID/{i}.png" for i, s in enumerate(split["split"])]
    split.to_csv(editable.run / "split.csv", index=False)
    record = json.loads((editable.run / "run.json").read_text())
    for data, expected in (("/data/x", "as the folders of the data define it"), ("/data/x.csv", None)):
        (editable.run / "run.json").write_text(json.dumps(record | {"data": data, "unreadable": 3}))
        facts = collect_facts(read_inputs(editable.folder, editable.run))
        assert facts["split"] == expected
        assert facts["disjoint"] == "no file is in two splits, 1 patient in more than one split"
        assert facts["synthetic"] is None


def test_validation_images_from_the_training_folder(editable: Case) -> None:
    """The source is reported if every path shows its folder; otherwise nothing is claimed."""
    split = pd.read_csv(editable.run / "split.csv", dtype=str, keep_default_na=False)
    split["path"] = ["/data/x/" + s + f"/COVID/{i}.png" for i, s in enumerate(split["split"])]
    record = json.loads((editable.run / "run.json").read_text()) | {"data": "/data/x"}
    (editable.run / "run.json").write_text(json.dumps(record))
    trained = split.index[split["split"] == "train"]

    def told(rows: pd.DataFrame) -> str | None:
        rows.to_csv(editable.run / "split.csv", index=False)
        return collect_facts(read_inputs(editable.folder, editable.run))["split"]

    taken = split.copy()
    taken.loc[trained[:10], "split"] = "val"
    split_text = told(taken)
    expected = "as the folders of the data define it, with 10 training images moved to validation, at random by patient"
    assert split_text.startswith(expected)
    moved = taken.copy()
    moved.loc[taken.index[taken["split"] == "test"][0], "split"] = "train"
    assert told(moved) is None
    linked = taken.copy()
    linked.loc[trained[0], "path"] = "/elsewhere/1.png"
    assert told(linked) is None


@pytest.mark.parametrize(
    ("data", "evaluated", "expected"),
    [
        (0, 0, "unreadable files left out: 0 of the run's data and 0 of the evaluated images"),
        (3, 0, "unreadable files left out: 3 of the run's data and 0 of the evaluated images"),
        (0, 1, "unreadable files left out: 0 of the run's data and 1 of the evaluated images"),
        (None, 0, "unreadable files left out: 0 of the evaluated images"),
        (2, None, "unreadable files left out: 2 of the run's data"),
        (None, None, None),
    ],
)
def test_unreadable_files_are_told_of_their_own_set(
    editable: Case, data: int | None, evaluated: int | None, expected: str | None
) -> None:
    record = json.loads((editable.run / "run.json").read_text())
    (editable.run / "run.json").write_text(json.dumps(record | {"unreadable": data}))
    editable.metrics(evaluation={"unreadable": evaluated, "kind": "external", "data": "/data/elsewhere"})
    assert collect_facts(read_inputs(editable.folder, editable.run))["unreadable"] == expected


def test_a_recorded_none_is_unknown(editable: Case) -> None:
    """Members of an ensemble that differ, and images that a checkpoint may or may not have seen, give no fact."""

    def fact(name: str, **evaluation: object) -> str | None:
        editable.metrics(evaluation=evaluation)
        return collect_facts(read_inputs(editable.folder, editable.run))[name]

    assert fact("preprocessing").startswith("8-bit grey, squashed to 64×64")
    for key, value in (("size", 64), ("fit", "squash"), ("mean", [0.5]), ("std", [0.25])):
        assert fact("preprocessing", **{key: None}) is None
        assert fact("preprocessing", **{key: value}) is not None
    seen = {"trained_on": 0, "allowed": False, "validated_on": 0}
    assert fact("overlap", overlap=seen) == "used for training: 0 of these images; to select the checkpoint: 0"
    assert fact("overlap", overlap=seen | {"validated_on": None}).endswith("to select the checkpoint: unknown")
    assert fact("overlap", overlap=seen | {"trained_on": 2, "validated_on": 5}) == (
        "used for training: 2 of these images; to select the checkpoint: 5"
    )
    assert fact("overlap", overlap=seen | {"trained_on": None}) is None
    assert fact("overlap", overlap=None) is None
    editable.metrics(evaluation={"kind": "val"})
    assert "none was" not in fact("overlap", overlap=seen | {"validated_on": None})
    assert fact("operating_points") is None


def test_words_and_thresholds() -> None:
    """One table of names; and no probability below 1 is written as 1."""
    assert words("mcc") == "MCC" and words("mcc", True) == "Matthews correlation (MCC)"
    assert words("auroc Viral Pneumonia_2") == "AUROC of Viral Pneumonia_2"
    assert words("balanced_accuracy") == "balanced accuracy"
    assert [threshold(value) for value in (0.5, 0.98765, 0.995, 0.9999997, 1.0)] == [
        *("0.5", "0.988", "0.995", "0.9999997", "1")
    ]


@given(st.floats(0, 1, exclude_max=True))
def test_a_threshold_below_one_is_written_below_one(value: float) -> None:
    written = float(threshold(value))
    assert written < 1
    assert abs(written - value) <= 0.005 * min(value, 1 - value) or value < 0.99


def test_facts_are_phrases(editable: Case) -> None:
    facts = collect_facts(read_inputs(editable.folder, editable.run))
    known = {name: text for name, text in facts.items() if text is not None}
    assert not [name for name, text in known.items() if text.endswith(".") or not text.strip()]
    assert facts["unreadable"] == "unreadable files left out: 0 of the run's data and 0 of the evaluated images"
    assert fill("{model} and {parameters}", facts) == "resnet18 and 11,178,564 parameters"
    assert fill("{model} and {external}", facts) is None
    assert facts["explainability"].startswith("Grad-CAM of ")
    (editable.run / "cams" / "cams.json").write_text('{"weights": "others", "kind": "test"}')
    assert collect_facts(read_inputs(editable.folder, editable.run))["explainability"] is None
    templates = " ".join(item.get("fill", "") for standard in CHECKLIST for item in standard["items"])
    card = (ROOT / "report" / "templates" / "run.html.j2").read_text()
    assert {*re.findall(r"\{(\w+)\}", templates), *re.findall(r"facts\.(\w+)", card)} <= set(facts)
