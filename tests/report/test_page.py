"""The page, read back with an HTML parser and checked against its files."""

from __future__ import annotations

import errno
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from evaluation.predictions import Predictions
from report import page as page_module
from report.facts import collect_facts
from report.inputs import read_inputs
from report.page import write_report
from tests.helpers.report_case import ABOUT, CLASSES, Case, Page, make_case, make_table, write_evaluation, wrong_rows


def test_everything_is_embedded(page: Page) -> None:
    """Nothing on the page can make a request, and its policy would forbid one."""
    for element in page.root.find():
        for name in ("src", "href", "data", "action", "poster", "srcset", "xlink:href"):
            value = element.attributes.get(name, "data:")
            assert value.startswith(("data:", "#")), f"<{element.tag} {name}={value[:60]}>"
        assert not [name for name in element.attributes if name.startswith("on")]
    assert not re.findall(r"@import|url\((?!#)", page.source)
    policy = page.root.find("meta", **{"http-equiv": "Content-Security-Policy"})[0].attributes["content"]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert len(page.root.find("script")) == 1
    assert page.root.find("html")[0].attributes["lang"] == "en"
    assert page.root.find("meta", name="viewport")


def test_ids_are_unique_and_references_resolve(page: Page) -> None:
    ids = [e.attributes["id"] for e in page.root.find() if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    inner = [e.attributes["href"][1:] for e in page.root.find() if e.attributes.get("href", "").startswith("#")]
    clips = re.findall(r"url\(#([^)]+)\)", page.source)
    assert len(inner) > 10 and len(clips) > 10
    assert set(inner) | set(clips) <= set(ids)


def test_every_image_and_figure_has_a_description(page: Page) -> None:
    assert all(len(e.attributes["alt"]) > 10 for e in page.root.find("img"))
    figures = page.root.find("svg")
    assert len(figures) == 5  # curves, ROC, precision-recall, reliability before and after
    assert all(e.attributes["role"] == "img" and len(e.attributes["aria-label"]) > 10 for e in figures)


def test_headline_is_recounted(case: Case, page: Page) -> None:
    right, n = len(case.table) - len(wrong_rows(case.table)), len(case.table)
    accuracy = case.metrics()["accuracy"]
    words = page.root.find("p", class_="headline")[0].words()
    numbers = f"{right / n:.3f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}]"
    assert words == f"{right} of {n} images of {case.table['group'].nunique()} patients correct: accuracy {numbers}"


@pytest.mark.slow
def test_the_calibration_error_has_that_of_a_calibrated_model_beside_it(editable: Case) -> None:
    metrics = editable.metrics(ece_if_perfect={"mean": 0.0312, "p95": 0.0567})
    text = "0.031 if perfectly calibrated (at most 0.057 in 95 % of samples)"
    header = editable.report().root.find("header")[0].find("dl")[0]
    assert text in header.words() and f"{metrics['ece']['value']:.3f}" in header.words()
    for unknown in (None, {"mean": None, "p95": None}):
        editable.metrics(ece_if_perfect=unknown)
        assert "if perfectly" not in editable.report().source


def test_markup_in_names_stays_text(tmp_path: Path) -> None:
    names = ["<script>alert(1)</script>", "A & \"B\" 'c'", "{{7*7}} {x} %s", '$\\alpha$ </svg> id="a"']
    case = make_case(tmp_path, names)
    table = pd.read_csv(case.folder / "predictions.csv", dtype=str)
    evil = '/gone/<img src=x onerror=alert(1)>".png'
    table.loc[int(wrong_rows(case.table).index[0]), "path"] = evil
    table["source"] = table["source"].replace({"site a": "<b>site</b>"})
    table.to_csv(case.folder / "predictions.csv", index=False)
    case.metrics(warnings=[{"level": "severe", "text": "<i>look</i>"}], evaluation={"command": "x <y> && 'z'"})
    page = case.report()
    assert len(page.root.find("script")) == 1
    assert not page.root.find("i") and not [e for e in page.root.find() if "onerror" in e.attributes]
    heads = page.root.find("table", class_="confusion")[0].find("tbody")[0].find("th")
    assert [h.words().removesuffix("20 images") for h in heads] == names
    assert "<img src=x onerror=alert(1)>" in page.root.find("ul", class_="gallery")[0].words()
    assert "49" not in [word for h in heads for word in h.words().split()]
    assert "x <y> && 'z'" in page.root.find("section", id="run")[0].words()
    for figure in page.root.find("svg"):
        assert all(e.tag != "script" for e in figure.find())


@pytest.mark.slow
def test_predictions_of_another_program(case: Case, tmp_path: Path) -> None:
    """Only what the table shows is reported: no run, code, split or maps."""
    table = case.table.drop(columns=["group", "source", "sha256"])
    write_evaluation(Predictions(table, CLASSES), tmp_path, {"title": "theirs.csv"})
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    for key in ("ece_if_perfect", "temperature", "operating_points", "subgroups", "per_patient", "warnings"):
        del metrics[key]
    (tmp_path / "metrics.json").write_text(json.dumps(metrics | {"evaluation": None}))
    page = Page(write_report(tmp_path, None))
    words = page.root.find("p", class_="headline")[0].words()
    assert "patients" not in words and "of 80 images correct" in words
    assert "the sampling unit is the image (patients unknown)" in page.root.find("header")[0].words()
    assert len(page.root.find("svg")) == 3  # no learning curves, no diagram after scaling
    assert "each image counts as one patient" in page.root.find("header")[0].words()
    assert not page.root.find("button", class_="switch")
    facts = collect_facts(read_inputs(tmp_path, None))
    for name in ("data", "split", "disjoint", "model", "init", "code", "overlap", "internal", "synthetic", "commit"):
        assert facts[name] is None
    answers = " ".join(e.words() for e in page.root.find("p", class_="answer"))
    assert "this toolkit" not in answers


def test_warnings_are_shown_by_level(editable: Case) -> None:
    editable.metrics(warnings=[{"level": "severe", "text": "Trained on 3."}, {"level": "caution", "text": "Small."}])
    header = editable.report().root.find("header")[0]
    assert "Trained on 3." in header.find("p", class_="severe")[0].words()
    assert "Small." in header.find("p", class_="caution")[0].words()


@pytest.mark.slow
def test_a_report_is_a_function_of_its_files(editable: Case) -> None:
    first = write_report(editable.folder, editable.run).read_bytes()
    assert write_report(editable.folder, editable.run).read_bytes() == first
    shutil.rmtree(editable.run / "cams")
    assert not editable.report().root.find("button", class_="switch")
    for name in ("history.csv", "config.yaml", "run.json", "split.csv"):
        (editable.run / name).unlink()
    assert "No learning curves" in editable.report().root.find("section", id="training")[0].words()


@pytest.mark.slow
def test_the_size_of_a_report_on_twenty_thousand_predictions(tmp_path: Path) -> None:
    """With twelve errors in images of the size of a detector."""
    table = make_table(21165, CLASSES)
    for i, row in enumerate(wrong_rows(table).index[:12]):
        table.loc[row, "path"] = str(tmp_path / f"{i}.png")
        noise = np.random.default_rng(i).integers(0, 256, (2500, 2000), np.uint8)
        Image.fromarray(noise).save(table.loc[row, "path"], compress_level=1)
        table.loc[row, "sha256"] = ""
    write_evaluation(Predictions(table, CLASSES), tmp_path, ABOUT)
    path = write_report(tmp_path, None)
    assert path.stat().st_size < 8e6
    assert len(Page(path).root.find("img")) == 12


def _luminance(colour: str) -> float:
    colour = "".join(c * 2 for c in colour[1:]) if len(colour) == 4 else colour[1:]
    parts = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def _contrast(first: str, second: str) -> float:
    low, high = sorted((_luminance(first), _luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_colours_reach_wcag_aa(page: Page) -> None:
    """A contrast of 4.5 for all text, in light and dark, including the darkest cell of the confusion matrix."""
    style = page.root.find("style")[0].text
    blocks = [dict(re.findall(r"--([\w-]+): ([^;]+);", b)) for b in re.findall(r"\{([^{}]*--ink:[^{}]*)\}", style)]
    assert len(blocks) == 4  # light, dark by preference, dark by choice, print
    for colours in blocks:
        pairs = [(text, ground) for text in ("ink", "muted", "accent") for ground in ("page", "panel")]
        for text, ground in (*pairs, ("severe", "severe-page"), ("caution", "caution-page")):
            assert _contrast(colours[text], colours[ground]) >= 4.5, (text, ground, colours)
        page_colour = "#ffffff" if colours["page"] == "#fff" else colours["page"]
        tint, ground = ([int(v) for v in colours["tint"].split()], [int(page_colour[i : i + 2], 16) for i in (1, 3, 5)])
        cell = "#" + "".join(f"{round(0.42 * t + 0.58 * g):02x}" for t, g in zip(tint, ground, strict=True))
        assert _contrast(colours["ink"], cell) >= 4.5


def test_a_full_disk_fails_an_evaluation_but_not_the_drawing_of_maps(
    editable: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Maps are whole without the report; an evaluation whose report is missing must not end as a success."""

    def full(folder: Path, run: Path | None) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    (editable.folder / "report.html").write_text("before")
    monkeypatch.setattr(page_module, "write_report", full)
    page_module.renew_report(editable.run)
    with pytest.raises(OSError, match="No space"):
        page_module.try_report(editable.folder, editable.run)
