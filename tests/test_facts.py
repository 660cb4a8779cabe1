"""The facts of a run: only what its files show, in phrases that the checklist's items take."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_case import CHECKLIST, Case, Page, make_case

from evaluation.facts import collect_facts, fill
from evaluation.inputs import read_inputs


@pytest.fixture
def own(tmp_path: Path) -> Case:
    return make_case(tmp_path)


def _answer(page: Page, standard: str, item: str) -> str | None:
    """The answer to an item of a standard, None where it is blank."""
    part = next(p for p in page.root.find("details") if p.find("summary")[0].words().startswith(standard))
    found = next(e for e in part.find("div", class_="item") if e.find("span", class_="id")[0].words() == item)
    answers = found.find("p", class_="answer")
    return answers[0].words() if answers else None


def test_external_images_are_not_internal_testing(own: Case) -> None:
    page = own.report()
    assert "the run's own test split" in _answer(page, "CLAIM", "32")
    assert _answer(page, "CLAIM", "33") is None
    assert "every image is synthetic" in _answer(page, "CLAIM", "5")
    table = pd.read_csv(own.folder / "predictions.csv", dtype=str)
    table["sha256"] = [f"{i:063x}e" for i in range(len(table))]
    table.to_csv(own.folder / "predictions.csv", index=False)
    own.metrics(evaluation={"kind": "external", "data": "/data/elsewhere"})
    page = own.report()
    assert _answer(page, "CLAIM", "32") is None
    assert "/data/elsewhere" in _answer(page, "CLAIM", "33")
    assert _answer(page, "CLAIM", "5") is None  # nothing says that these are synthetic
    assert "the phantom" in _answer(page, "CLAIM", "7")  # the run's own data


def test_facts_of_unknown_patients(own: Case) -> None:
    """A patient who is not known is one whose group repeats the path: half of them here, then all."""
    split = pd.read_csv(own.run / "split.csv", dtype=str, keep_default_na=False)
    test = (split["split"] == "test").to_numpy()
    half = test & (np.arange(len(split)) % 4 < 2)
    for chosen, wanted in ((half, "40 of 20 patients, 40 of unknown ones"), (np.ones(len(split), bool), None)):
        split.loc[chosen, "group"] = split.loc[chosen, "path"]
        split.to_csv(own.run / "split.csv", index=False)
        facts = collect_facts(read_inputs(own.folder, own.run))
        assert facts["n_patients"] is None
        if wanted:
            assert f"test 80 images ({wanted})" in facts["n_by_part"]
        else:
            assert facts["n_by_part"] == "train 160 images, test 80 images"
            assert facts["patients_known"] is None
            assert facts["disjoint"] == "no file is in two parts, and the patients are not known"


def test_facts_of_leaking_and_ready_made_splits(own: Case) -> None:
    split = pd.read_csv(own.run / "split.csv", dtype=str, keep_default_na=False)
    assert collect_facts(read_inputs(own.folder, own.run))["split"].startswith("at random by patient")
    split.loc[split["split"] == "train", "group"] = "patient 0"
    split["path"] = ["/data/x/" + s + f"/COVID/{i}.png" for i, s in enumerate(split["split"])]
    split.to_csv(own.run / "split.csv", index=False)
    record = json.loads((own.run / "run.json").read_text())
    for data, wanted in (("/data/x", "as the folders of the data have it"), ("/data/x.csv", None)):
        (own.run / "run.json").write_text(json.dumps(record | {"data": data, "unreadable": 3}))
        facts = collect_facts(read_inputs(own.folder, own.run))
        assert facts["split"] == wanted
        assert facts["disjoint"] == "no file is in two parts, 1 patient in more than one part"
        assert facts["unreadable"] == "3 unreadable files left out"
        assert facts["synthetic"] is None


def test_facts_are_phrases(own: Case) -> None:
    facts = collect_facts(read_inputs(own.folder, own.run))
    known = {name: text for name, text in facts.items() if text is not None}
    assert not [name for name, text in known.items() if text.endswith(".") or not text.strip()]
    assert facts["unreadable"] == "no file was unreadable"
    assert fill("{model} and {parameters}", facts) == "resnet18 and 11,178,564 parameters"
    assert fill("{model} and {external}", facts) is None
    templates = " ".join(item.get("fill", "") for standard in CHECKLIST for item in standard["items"])
    assert set(re.findall(r"\{(\w+)\}", templates)) <= set(facts)
