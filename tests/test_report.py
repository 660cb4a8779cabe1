"""The report: read back with an HTML parser and recounted from the files that it was made of."""

from __future__ import annotations

import base64
import json
import re
import shutil
import time
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from report_case import ABOUT, CHECKLIST, CLASSES, Case, Element, Page, draw_overlay, make_case, make_table, wrong_rows
from sklearn import metrics as sk

from evaluation.facts import collect_facts
from evaluation.inputs import read_inputs
from evaluation.predictions import Predictions
from evaluation.report import figure_svg, write_report
from evaluation.results import write_results
from utils import UserError


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("report"))


@pytest.fixture
def own(case: Case, tmp_path: Path) -> Case:
    """A copy of the case that a test may change."""
    run = tmp_path / "case"
    shutil.copytree(case.run, run)
    return Case(run, case.table.copy(), run / "test")


@pytest.fixture(scope="module")
def page(case: Case) -> Page:
    return case.report()


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


def test_every_picture_and_figure_says_what_it_shows(page: Page) -> None:
    assert all(len(e.attributes["alt"]) > 10 for e in page.root.find("img"))
    figures = page.root.find("svg")
    assert len(figures) == 5  # curves, ROC, precision-recall, reliability before and after
    assert all(e.attributes["role"] == "img" and len(e.attributes["aria-label"]) > 10 for e in figures)


def test_headline_is_recounted(case: Case, page: Page) -> None:
    right, n = len(case.table) - len(wrong_rows(case.table)), len(case.table)
    accuracy = case.metrics()["accuracy"]
    words = page.root.find("p", class_="headline")[0].words()
    numbers = f"{right / n:.3f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}]"
    assert words == f"{right} of {n} radiographs of {case.table['group'].nunique()} patients right: accuracy {numbers}"


def test_confusion_and_recall_are_scikit_learns(case: Case, page: Page) -> None:
    predicted = case.table[[f"p_{c}" for c in CLASSES]].idxmax(axis=1).str.removeprefix("p_")
    wanted = sk.confusion_matrix(case.table["label"], predicted, labels=CLASSES)
    body = page.root.find("table", class_="confusion")[0].find("tbody")[0]
    rows = [[cell.find("b")[0].words() for cell in row.find("td")] for row in body.find("tr")]
    assert np.array_equal(np.array(rows, int), wanted)
    shares = [[cell.find("small")[0].words() for cell in row.find("td")] for row in body.find("tr")]
    assert shares == [[f"{100 * v:.1f} %" for v in row] for row in wanted / wanted.sum(1, keepdims=True)]
    table = page.root.find("section", id="classes")[0].find("table")[0]
    column = [h.words() for h in table.find("thead")[0].find("th")].index("recall") - 1
    found = [row.find("td")[column].find("b")[0].words() for row in table.find("tbody")[0].find("tr")]
    recalls = sk.recall_score(case.table["label"], predicted, labels=CLASSES, average=None)
    assert found == [f"{recall:.3f}" for recall in recalls]


def test_checklist_counts_are_those_of_its_items(page: Page) -> None:
    parts = page.root.find("details")
    assert [p.find("summary")[0].words().split(" filled")[0] for p in parts] == [s["name"] for s in CHECKLIST]
    for part, standard in zip(parts, CHECKLIST, strict=True):
        filled, blank = part.find("div", class_="filled"), part.find("div", class_="blank")
        assert len(filled) + len(blank) == len(standard["items"])
        assert f"filled {len(filled)} of {len(standard['items'])}" in part.find("summary")[0].words()
        assert all(b.find("p", class_="todo")[0].words() == "the author must fill this" for b in blank)
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
        "no file is in two parts, no known patient is in two parts",
    ):
        assert part in words
    rows = page.root.find("section", id="run")[0].find("tr")
    assert [cell.words() for cell in rows[-1].find("td")] == ["80", "40"]  # patients in train and test


def test_gallery_shows_the_surest_errors(case: Case, page: Page) -> None:
    wanted = wrong_rows(case.table)
    assert len(wanted) > 12
    tiles = page.root.find("ul", class_="gallery")[0].find("li")
    assert len(tiles) == 12
    for tile, (_, row) in zip(tiles, wanted.iterrows(), strict=False):
        words = tile.words()
        assert f"{row['label']} called {row['predicted']}" in words
        assert f"{row['confidence']:.3f}" in words
        assert Path(row["path"]).name in words and row["group"] in words


def _picture(element: Element) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(element.attributes["src"].split(",")[1])))


def test_raw_and_overlay_lie_exactly_on_each_other(page: Page) -> None:
    """The overlays of the case have no map: cut to their box and made smaller, they are the radiographs."""
    buttons = page.root.find("button", class_="switch")
    assert len(buttons) == 12
    for button in buttons:
        raw, overlay = (_picture(image) for image in button.find("img"))
        assert raw.size == overlay.size == (96, 64)
        difference = np.asarray(raw.convert("L"), float) - np.asarray(overlay.convert("L"), float)
        assert np.abs(difference).max() < 12  # of JPEG; a shift of one pixel makes 20 and more
        assert button.attributes["aria-pressed"] == "false"


def test_maps_that_cannot_be_laid_over(own: Case) -> None:
    """No box: the overlay alone. An empty map, a radiograph or a map that is gone: said, no switch."""
    maps = pd.read_csv(own.run / "cams" / "cams.csv")
    unboxed, empty, gone, mapless = wrong_rows(own.table)["path"][:4]
    (own.run / "cams" / maps.loc[maps["path"] == mapless, "file"].item()).unlink()
    pixels = np.full((64, 96), 90, np.uint8)
    draw_overlay(own.run / "cams" / maps.loc[maps["path"] == unboxed, "file"].item(), pixels, boxed=False)
    maps.loc[maps["path"] == empty, "status"] = "empty"
    elsewhere = "C:\\pictures\\" + Path(gone).name
    for name in ("cams/cams.csv", "test/predictions.csv"):
        table = pd.read_csv(own.run / name) if name.startswith("test") else maps
        table.replace({"path": {gone: elsewhere}}).to_csv(own.run / name, index=False)
    tiles = own.report().root.find("ul", class_="gallery")[0].find("li")
    assert [bool(tile.find("button")) for tile in tiles[:5]] == [False, False, False, False, True]
    assert _picture(tiles[0].find("img")[0]).size == (2 * 96 + 130, 2 * 64 + 50)
    assert "no positive evidence" in tiles[1].words()
    assert "cannot be read here" in tiles[2].words() and Path(gone).name in tiles[2].words()
    assert "C:" not in tiles[2].words()
    assert "its map cannot be read" in tiles[3].words() and len(tiles[3].find("img")) == 1


def test_an_image_that_a_map_explains_for_another_class(own: Case) -> None:
    """Of several maps that of the wrong answer is taken; else the tile says whose evidence it is."""
    first = wrong_rows(own.table).iloc[0]
    maps = pd.read_csv(own.run / "cams" / "cams.csv")
    other = next(c for c in CLASSES if c not in (first["label"], first["predicted"]))
    maps.loc[maps["path"] == first["path"], "target"] = other
    maps.to_csv(own.run / "cams" / "cams.csv", index=False)
    assert f"map of {other}" in own.report().root.find("ul", class_="gallery")[0].find("li")[0].words()


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


@pytest.mark.parametrize("size", [2, 20])
def test_few_and_many_classes(tmp_path: Path, size: int) -> None:
    case = make_case(tmp_path, [f"finding {i:02d}" for i in range(size)], n=120)
    page = case.report()
    body = page.root.find("table", class_="confusion")[0].find("tbody")[0]
    assert [len(row.find("td")) for row in body.find("tr")] == [size] * size


def test_predictions_of_another_program(case: Case, tmp_path: Path) -> None:
    """Only what the table shows is told: no run, no code, no split, no maps."""
    table = case.table.drop(columns=["group", "source", "sha256"])
    write_results(Predictions(table, CLASSES), tmp_path, {"title": "theirs.csv"}, quick=True)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    for key in ("ece_if_perfect", "temperature", "operating_points", "subgroups", "per_patient", "warnings"):
        del metrics[key]
    (tmp_path / "metrics.json").write_text(json.dumps(metrics | {"evaluation": None}))
    page = Page(write_report(tmp_path, None))
    words = page.root.find("p", class_="headline")[0].words()
    assert "patients" not in words and "of 80 radiographs right" in words
    assert len(page.root.find("svg")) == 3  # no learning curves, no diagram after scaling
    assert "each counts as a patient of its own" in page.root.find("header")[0].words()
    assert not page.root.find("button", class_="switch")
    facts = collect_facts(read_inputs(tmp_path, None))
    for name in ("data", "split", "disjoint", "model", "init", "code", "overlap", "internal", "synthetic", "commit"):
        assert facts[name] is None
    answers = " ".join(e.words() for e in page.root.find("p", class_="answer"))
    assert "this toolkit" not in answers


def test_warnings_are_shown_by_level(own: Case) -> None:
    own.metrics(warnings=[{"level": "severe", "text": "Trained on 3."}, {"level": "caution", "text": "Small."}])
    header = own.report().root.find("header")[0]
    assert "Trained on 3." in header.find("p", class_="severe")[0].words()
    assert "Small." in header.find("p", class_="caution")[0].words()


def test_temperature_that_is_applied(own: Case) -> None:
    """The diagrams are always plain first: which of them shows predictions.csv changes."""

    def errors() -> list[float]:
        headings = own.report().root.find("section", id="calibration")[0].find("h3")
        return [float(h.words().rsplit("ECE ", 1)[1]) for h in headings]

    ece = own.metrics()["ece"]["value"]
    assert errors()[0] == pytest.approx(ece, abs=6e-4)
    own.metrics(temperature={"value": 1.31, "fitted_on": "val", "n": 40, "applied": True})
    assert errors()[1] == pytest.approx(ece, abs=6e-4)


def test_a_report_is_a_function_of_its_files(own: Case) -> None:
    first = write_report(own.folder, own.run).read_bytes()
    assert write_report(own.folder, own.run).read_bytes() == first
    shutil.rmtree(own.run / "cams")
    assert not own.report().root.find("button", class_="switch")
    for name in ("history.csv", "config.yaml", "run.json", "split.csv"):
        (own.run / name).unlink()
    assert "No learning curves" in own.report().root.find("section", id="training")[0].words()


def test_broken_folders_are_named(own: Case, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no metrics\.json"):
        write_report(tmp_path, None)
    own.metrics(n=81)
    with pytest.raises(UserError, match=r"of 81 images and predictions\.csv of 80"):
        write_report(own.folder, own.run)
    (own.folder / "metrics.json").write_text("{")
    with pytest.raises(UserError, match=r"metrics\.json: cannot be read"):
        write_report(own.folder, own.run)


def test_twenty_thousand_predictions_in_time_and_size(tmp_path: Path) -> None:
    """With twelve errors whose radiographs are as large as a detector's."""
    table = make_table(21165, CLASSES)
    for i, row in enumerate(wrong_rows(table).index[:12]):
        table.loc[row, "path"] = str(tmp_path / f"{i}.png")
        noise = np.random.default_rng(i).integers(0, 256, (2500, 2000), np.uint8)
        Image.fromarray(noise).save(table.loc[row, "path"], compress_level=1)
    write_results(Predictions(table, CLASSES), tmp_path, ABOUT, quick=True)
    began = time.perf_counter()
    path = write_report(tmp_path, None)
    assert time.perf_counter() - began < 15
    assert path.stat().st_size < 8e6
    assert len(Page(path).root.find("img")) == 12


def test_figure_follows_the_page() -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3, 2))
    ax = figure.subplots()
    ax.plot([0, 1], [0, 1], "o", color="black", label="a line < b")
    ax.text(0.5, 0.5, "white", color="white")
    ax.legend()
    svg = figure_svg(figure, 'what "it" shows')
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label") == 'what "it" shows' and root.get("viewBox") == "0 0 216 144"
    assert "#000000" not in svg and "<style" not in svg and "<metadata" not in svg and "DejaVu" not in svg
    texts = {e.text: e.get("style", "") for e in root.iter("text")}
    assert "a line < b" in texts and "fill" not in texts["a line < b"]  # inherits the page's colour
    assert "fill: #ffffff" in texts["white"]
    ids = {e.get("id") for e in root.iter() if e.get("id")}
    other = {e.get("id") for e in ElementTree.fromstring(figure_svg(figure, "another")).iter()} - {None}
    assert ids and not ids & other


def _luminance(colour: str) -> float:
    colour = "".join(c * 2 for c in colour[1:]) if len(colour) == 4 else colour[1:]
    parts = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def _contrast(first: str, second: str) -> float:
    low, high = sorted((_luminance(first), _luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_colours_reach_wcag_aa(page: Page) -> None:
    """4.5 for every text on its ground, in light and in dark; the darkest cell of the confusion matrix included."""
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
