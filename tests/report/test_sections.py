"""The sections of the report, checked against scikit-learn and the files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as sk

from evaluation.predictions import Predictions
from report.page import write_report
from tests.helpers.report_case import CHECKLIST, CLASSES, Case, Page, make_case, make_table, write_evaluation


def test_confusion_and_recall_are_scikit_learns(case: Case, page: Page) -> None:
    predicted = case.table[[f"p_{c}" for c in CLASSES]].idxmax(axis=1).str.removeprefix("p_")
    expected = sk.confusion_matrix(case.table["label"], predicted, labels=CLASSES)
    body = page.root.find("table", class_="confusion")[0].find("tbody")[0]
    rows = [[cell.find("b")[0].words() for cell in row.find("td")] for row in body.find("tr")]
    assert np.array_equal(np.array(rows, int), expected)
    shares = [[cell.find("small")[0].words() for cell in row.find("td")] for row in body.find("tr")]
    assert shares == [[f"{100 * v:.1f} %" for v in row] for row in expected / expected.sum(1, keepdims=True)]
    table = page.root.find("section", id="classes")[0].find("table")[0]
    column = [h.words() for h in table.find("thead")[0].find("th")].index("recall") - 1
    shown = [row.find("td")[column].find("b")[0].words() for row in table.find("tbody")[0].find("tr")]
    recalls = sk.recall_score(case.table["label"], predicted, labels=CLASSES, average=None)
    assert shown == [f"{recall:.3f}" for recall in recalls]


def test_checklist_counts_are_those_of_its_items(page: Page) -> None:
    parts = page.root.find("details")
    assert [p.find("summary")[0].words().split(" filled")[0] for p in parts] == [s["name"] for s in CHECKLIST]
    for part, standard in zip(parts, CHECKLIST, strict=True):
        filled, blank = part.find("div", class_="filled"), part.find("div", class_="blank")
        assert len(filled) + len(blank) == len(standard["items"])
        assert f"filled {len(filled)} of {len(standard['items'])}" in part.find("summary")[0].words()
        assert all(b.find("p", class_="todo")[0].words() == "for the author to fill in" for b in blank)
        assert all(f.find("p", class_="answer")[0].words() for f in filled)
        authors = {item["id"] for item in standard["items"] if "author" in item}
        for item in filled:
            told = item.find("p", class_="todo")
            assert bool(told) == (item.find("span", class_="id")[0].words() in authors)


def test_run_card_tells_the_records(page: Page) -> None:
    words = page.root.find("section", id="run")[0].words()
    for part in (
        "resnet18",
        "11,178,564 parameters",
        "random weights (--init none)",
        "bf16 in training, fp32 in the evaluation",
        "python train.py preset=demo",
        "abcdef123456",
        "80 images of 40 patients, the test split",
        "no file is in two splits, no known patient is in two splits",
    ):
        assert part in words
    rows = page.root.find("section", id="run")[0].find("tr")
    assert [cell.words() for cell in rows[-1].find("td")] == ["80", "40"]  # patients in train and test


@pytest.mark.slow
def test_sources_are_many_one_or_none(tmp_path: Path) -> None:
    def groups(sources: list[str]) -> str:
        table = make_table(120, CLASSES).assign(source=[sources[i % len(sources)] for i in range(120)])
        write_evaluation(Predictions(table, CLASSES), tmp_path, {})
        return Page(write_report(tmp_path, None)).root.find("section", id="groups")[0].words()

    many = groups([f"site {i:02d}" for i in range(24)])
    assert "The 20 largest of 24 sources; the others are combined." in many and "(4 others)" in many
    assert "largest" not in groups(["a", "b"]) and "No table" not in groups(["a", "b"])
    assert "all images are from a" in groups(["a"])
    assert "the data do not record a source" in groups([""])


@pytest.mark.slow
def test_curves_that_are_left_out_are_named(tmp_path: Path) -> None:
    names = [f"finding {i:02d}" for i in range(26)]
    table = make_table(104, names)
    table = table[table["label"] != names[0]]  # of which nothing is there
    write_evaluation(Predictions(table, names), tmp_path, {})
    section = Page(write_report(tmp_path, None)).root.find("section", id="ranking")[0]
    for figure in section.find("svg"):
        label = figure.attributes["aria-label"]
        drawn, rest = label.split(" Not drawn for lack of space: ")
        assert names[1] in drawn and "mean " in drawn and names[-1] not in drawn and names[0] not in drawn
        assert rest.startswith(f"2 of 25 classes ({names[-2]} and {names[-1]}).")
        assert f"No curve for {names[0]}" in rest
        assert rest in section.words()


@pytest.mark.slow
def test_validation_images_do_not_assess_their_own_thresholds(editable: Case) -> None:
    assert editable.report().root.find("section", id="thresholds")
    editable.metrics(evaluation={"kind": "val"})
    page = editable.report()
    assert not page.root.find("section", id="thresholds")
    assert not page.root.find("a", href="#thresholds")
    editable.metrics(operating_points=[])
    assert editable.report().source == page.source


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 20])
def test_few_and_many_classes(tmp_path: Path, size: int) -> None:
    case = make_case(tmp_path, [f"finding {i:02d}" for i in range(size)], n=120)
    page = case.report()
    body = page.root.find("table", class_="confusion")[0].find("tbody")[0]
    assert [len(row.find("td")) for row in body.find("tr")] == [size] * size


@pytest.mark.slow
def test_temperature_that_is_applied(editable: Case) -> None:
    """The diagram without scaling always comes first; which of the two shows predictions.csv depends on `applied`."""

    def errors() -> list[float]:
        headings = editable.report().root.find("section", id="calibration")[0].find("h3")
        return [float(h.words().rsplit("ECE ", 1)[1]) for h in headings]

    ece = editable.metrics()["ece"]["value"]
    assert errors()[0] == pytest.approx(ece, abs=6e-4)
    editable.metrics(temperature={"value": 1.31, "fitted_on": "val", "n": 40, "applied": True, "ece_here": ece})
    assert errors()[1] == pytest.approx(ece, abs=6e-4)
