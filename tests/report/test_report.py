"""The report, read back with an HTML parser and checked against its files."""

from __future__ import annotations

import base64
import errno
import itertools
import json
import re
import shutil
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn import metrics as sk

from evaluation.figures.plots import precision_recall_figure, roc_figure, shown_curves
from evaluation.metrics.curves import class_curves
from evaluation.metrics.table import compute_metrics
from evaluation.predictions import Predictions
from report import page as page_module
from report.facts import collect_facts
from report.gallery import error_tiles
from report.inputs import read_inputs
from report.page import write_report
from report.svg import figure_svg
from tests.helpers.report_case import (
    ABOUT,
    CHECKLIST,
    CLASSES,
    Case,
    Element,
    Page,
    draw_image,
    draw_overlay,
    make_case,
    make_table,
    sha256,
    write_evaluation,
    wrong_rows,
)
from utils import UserError


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("report"))


@pytest.fixture
def editable(case: Case, tmp_path: Path) -> Case:
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


def test_gallery_shows_the_surest_errors(case: Case, page: Page) -> None:
    expected = wrong_rows(case.table)
    assert len(expected) > 12
    tiles = page.root.find("ul", class_="gallery")[0].find("li")
    assert len(tiles) == 12
    for tile, (_, row) in zip(tiles, expected.iterrows(), strict=False):
        words = tile.words()
        assert f"{row['label']} predicted as {row['predicted']}" in words
        assert f"{row['confidence']:.3f}" in words
        assert Path(row["path"]).name in words and row["group"] in words


def _image(element: Element) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(element.attributes["src"].split(",")[1])))


def test_raw_and_overlay_lie_exactly_on_each_other(page: Page) -> None:
    """The overlays of the case have no map: cropped to their box and shrunk, they equal the images."""
    buttons = page.root.find("button", class_="switch")
    assert len(buttons) == 12
    for button in buttons:
        raw, overlay = (_image(image) for image in button.find("img"))
        assert raw.size == overlay.size == (96, 64)
        difference = np.asarray(raw.convert("L"), float) - np.asarray(overlay.convert("L"), float)
        assert np.abs(difference).max() < 12  # of JPEG; a shift of one pixel makes 20 and more
        assert button.attributes["aria-pressed"] == "false"


def test_maps_that_cannot_be_laid_over(editable: Case) -> None:
    """Without a box the overlay stands alone; an empty map, or a missing image or map, gets a note and no switch."""
    maps = pd.read_csv(editable.run / "cams" / "cams.csv")
    unboxed, empty, gone, mapless = wrong_rows(editable.table)["path"][:4]
    (editable.run / "cams" / maps.loc[maps["path"] == mapless, "file"].item()).unlink()
    pixels = np.full((64, 96), 90, np.uint8)
    draw_overlay(editable.run / "cams" / maps.loc[maps["path"] == unboxed, "file"].item(), pixels, boxed=False)
    maps.loc[maps["path"] == empty, "status"] = "empty"
    elsewhere = "C:\\images\\" + Path(gone).name
    for name in ("cams/cams.csv", "test/predictions.csv"):
        table = pd.read_csv(editable.run / name) if name.startswith("test") else maps
        table.replace({"path": {gone: elsewhere}}).to_csv(editable.run / name, index=False)
    tiles = editable.report().root.find("ul", class_="gallery")[0].find("li")
    assert [bool(tile.find("button")) for tile in tiles[:5]] == [False, False, False, False, True]
    assert _image(tiles[0].find("img")[0]).size == (2 * 96 + 130, 2 * 64 + 50)
    assert "no positive evidence" in tiles[1].words()
    assert "cannot be read here" in tiles[2].words() and Path(gone).name in tiles[2].words()
    assert "C:" not in tiles[2].words()
    assert "its map cannot be read" in tiles[3].words() and len(tiles[3].find("img")) == 1


def test_an_image_that_a_map_explains_for_another_class(editable: Case) -> None:
    """The map of the predicted class is preferred; a map of another class is labelled."""
    first = wrong_rows(editable.table).iloc[0]
    maps = pd.read_csv(editable.run / "cams" / "cams.csv")
    other = next(c for c in CLASSES if c not in (first["label"], first["predicted"]))
    maps.loc[maps["path"] == first["path"], "target"] = other
    maps.to_csv(editable.run / "cams" / "cams.csv", index=False)
    assert f"map of {other}" in editable.report().root.find("ul", class_="gallery")[0].find("li")[0].words()


def test_a_doubtful_map_is_shown_with_a_word_of_caution(editable: Case) -> None:
    maps = pd.read_csv(editable.run / "cams" / "cams.csv").set_index("path")
    states = ["ok", "diffuse", "border", "nan", "of a later version"]
    first = wrong_rows(editable.table).iloc[: len(states)]
    maps.loc[first["path"], "status"] = states
    maps.reset_index().to_csv(editable.run / "cams" / "cams.csv", index=False)
    tiles = editable.report().root.find("ul", class_="gallery")[0].find("li")[: len(states)]
    assert [bool(tile.find("button")) for tile in tiles] == [True, True, True, False, False]
    notes = ["", "is spread out like a uniform one", "lies at the image's edge", "is not finite", "no map"]
    for tile, words, target in zip(tiles, notes, first["predicted"], strict=True):
        assert words in tile.words()
        assert (f"map of {target}" in tile.words()) == (words not in ("", "no map"))


def test_of_several_maps_that_of_the_wrong_answer_by_grad_cam_is_shown(editable: Case) -> None:
    """The overlays differ in grey; the order of the file only decides between other methods."""
    path = editable.run / "cams" / "cams.csv"
    maps, first = pd.read_csv(path), wrong_rows(editable.table).iloc[0]
    other = next(c for c in CLASSES if c not in (first["label"], first["predicted"]))
    greys = {(other, "gradcam"): 40, (first["predicted"], "layercam"): 90, (first["predicted"], "gradcam"): 140}
    rows = []
    for (target, method), grey in greys.items():
        name = f"{target}-{method}.png"
        draw_overlay(editable.run / "cams" / name, np.full((64, 96), grey, np.uint8))
        rows.append({"file": name, "path": first["path"], "target": target, "method": method, "status": "ok"})
    rest = maps[maps["path"] != first["path"]]
    for left_out, expected in ((None, 140), ("gradcam", 90)):
        kept = [row for row in rows if (row["target"], row["method"]) != (first["predicted"], left_out)]
        pd.concat([pd.DataFrame(kept), rest]).to_csv(path, index=False)
        inputs = read_inputs(editable.folder, editable.run)
        overlay = error_tiles(inputs.predictions, inputs.maps, [])[0].overlay
        with Image.open(BytesIO(base64.b64decode(overlay.split(",")[1]))) as image:
            assert np.asarray(image.convert("L")).mean() == pytest.approx(expected, abs=2)


@pytest.mark.slow
def test_maps_of_other_weights_or_images_are_left_out(editable: Case) -> None:
    """With a sentence that says why. The maps of errors match by path, so `kind` does not matter to them."""
    record = editable.run / "cams" / "cams.json"

    def shown() -> tuple[bool, bool, str, str]:
        root = editable.report().root
        errors, means = (root.find("section", id=name)[0] for name in ("errors", "maps"))
        return bool(errors.find("button")), bool(means.find("img")), errors.words(), means.words()

    assert shown()[:2] == (True, True)
    for text, reason in (
        (None, "nothing records which weights drew them"),
        ('{"weights": "f2", "kind": "test"}', "other weights drew them"),
    ):
        record.unlink() if text is None else record.write_text(text)
        with_map, mean, errors, means = shown()
        assert not with_map and not mean
        assert f"left out: {reason}" in errors and f"left out: {reason}" in means
        assert "draw_cam.py --weights runs/case/best.pt --errors 12" in errors
    record.write_text('{"weights": "f1", "kind": null}')
    with_map, mean, errors, means = shown()
    assert with_map and not mean and "left out" not in errors
    assert "they show other images" in means
    record.write_text('{"weights": "f1", "kind": "test"}')
    editable.metrics(evaluation={"kind": "external", "data": "/elsewhere"})
    assert shown()[:2] == (True, False)
    for fingerprints in (["f1", "f2"], []):
        editable.metrics(evaluation={"kind": "test", "fingerprints": fingerprints})
        assert shown()[:2] == (False, False)
    shutil.rmtree(editable.run / "cams")
    assert "left out" not in " ".join(shown()[2:])


@pytest.mark.slow
def test_images_at_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images beside the table are shown, never those in the working folder or others of the same name."""
    elsewhere, work = tmp_path / "theirs", tmp_path / "work"
    table = make_table(40, CLASSES).drop(columns="sha256")
    beside, decoy, changed = wrong_rows(table).index[:3]
    for row in (beside, decoy, changed):
        table.loc[row, "path"] = f"{row}.png"
        draw_image((work if row == decoy else elsewhere) / f"{row}.png", row, 96, 64)
    table["sha256"] = [sha256(elsewhere / f"{row}.png") if row == beside else f"{row:064x}" for row in table.index]
    monkeypatch.chdir(work)
    folder = elsewhere / "theirs-evaluation"
    folder.mkdir()
    write_evaluation(Predictions(table, CLASSES), folder, {"title": "t", "data": str(elsewhere / "theirs.csv")})
    tiles = Page(write_report(folder, None)).root.find("ul", class_="gallery")[0].find("li")
    assert [len(tile.find("img")) for tile in tiles[:3]] == [1, 0, 0]
    assert "cannot be read here" in tiles[1].words() and "another image" in tiles[2].words()
    draw_image(folder / f"{changed}.png", 1, 96, 64)  # the folder of the evaluation comes first
    table["sha256"] = ""
    write_evaluation(Predictions(table, CLASSES), folder, {"title": "t", "data": str(elsewhere / "theirs.csv")})
    page = Page(write_report(folder, None))
    tile = page.root.find("ul", class_="gallery")[0].find("li")[2]
    expected = np.asarray(Image.open(folder / f"{changed}.png"), float)
    assert np.abs(np.asarray(_image(tile.find("img")[0]).convert("L"), float) - expected).max() < 12


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
@pytest.mark.parametrize(("size", "panels", "left_out"), [(2, 3, 0), (14, 15, 0), (23, 24, 0), (30, 24, 7)])
def test_every_class_has_its_curve_up_to_a_limit(size: int, panels: int, left_out: int) -> None:
    """The figure says how many it leaves out, and the label names what is drawn."""
    names = [f"finding {i:02d}" for i in range(size)]
    predictions = Predictions(make_table(size * 4, names), names)
    curves = class_curves(predictions, compute_metrics(predictions, resamples=0))["roc"]
    shown, rest = shown_curves(curves)
    figure = roc_figure(curves)
    titles = [ax.get_title().split("\n")[0] for ax in figure.axes if ax.get_title()]
    assert titles == [curve.name for curve in shown] == [*names[: panels - 1], "mean"]
    assert rest == names[panels - 1 :] and len(rest) == left_out
    for drawn in (figure, precision_recall_figure(curves)):
        drawn.draw_without_rendering()
        boxes = [ax.title.get_window_extent() for ax in drawn.axes if ax.get_title()]
        assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    heading = figure.get_suptitle()
    assert heading == (f"not shown (no room): {left_out} of {size} classes" if left_out else "")


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
def test_the_calibration_error_has_that_of_a_calibrated_model_beside_it(editable: Case) -> None:
    metrics = editable.metrics(ece_if_perfect={"mean": 0.0312, "p95": 0.0567})
    text = "0.031 if perfectly calibrated (at most 0.057 in 95 % of samples)"
    header = editable.report().root.find("header")[0].find("dl")[0]
    assert text in header.words() and f"{metrics['ece']['value']:.3f}" in header.words()
    for unknown in (None, {"mean": None, "p95": None}):
        editable.metrics(ece_if_perfect=unknown)
        assert "if perfectly" not in editable.report().source


@pytest.mark.slow
def test_validation_images_do_not_assess_their_own_thresholds(editable: Case) -> None:
    assert editable.report().root.find("section", id="thresholds")
    editable.metrics(evaluation={"kind": "val"})
    page = editable.report()
    assert not page.root.find("section", id="thresholds")
    assert not page.root.find("a", href="#thresholds")
    editable.metrics(operating_points=[])
    assert editable.report().source == page.source


def test_metrics_of_an_older_version_are_named(editable: Case) -> None:
    """Every part that the report needs from metrics.json, one at a time."""
    file = editable.folder / "metrics.json"
    whole = json.loads(file.read_text())
    parts = [
        (name,) for name in ("n", "classes", "confusion", "ece_bins", "methods", "per_class", "macro_auroc", "ece")
    ]
    parts += [("accuracy", "low"), ("per_class", CLASSES[1]), ("per_class", CLASSES[1], "small")]
    parts += [("per_class", CLASSES[1], "auroc", "high"), ("temperature", "applied"), ("ece_if_perfect", "p95")]
    parts += [("operating_points", 3, "small"), ("subgroups", "source", 1, "missed")]
    for *above, last in parts:
        broken = json.loads(json.dumps(whole))
        part = broken
        for name in above:
            part = part[name]
        del part[last]
        file.write_text(json.dumps(broken))
        with pytest.raises(UserError, match=f"metrics.json: no '{last}' in it .*python test.py again") as error:
            write_report(editable.folder, editable.run)
        assert "\n" not in str(error.value)
    for text in ("[]", "3", '"x"', "null"):
        file.write_text(text)
        with pytest.raises(UserError, match=r"metrics\.json: not a JSON mapping; run python test\.py again"):
            write_report(editable.folder, editable.run)
    file.write_text(json.dumps(whole | {"accuracy": 0.9}))
    with pytest.raises(UserError, match=r"no 'low'"):
        write_report(editable.folder, editable.run)


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
@pytest.mark.parametrize("size", [2, 20])
def test_few_and_many_classes(tmp_path: Path, size: int) -> None:
    case = make_case(tmp_path, [f"finding {i:02d}" for i in range(size)], n=120)
    page = case.report()
    body = page.root.find("table", class_="confusion")[0].find("tbody")[0]
    assert [len(row.find("td")) for row in body.find("tr")] == [size] * size


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
def test_temperature_that_is_applied(editable: Case) -> None:
    """The diagram without scaling always comes first; which of the two shows predictions.csv depends on `applied`."""

    def errors() -> list[float]:
        headings = editable.report().root.find("section", id="calibration")[0].find("h3")
        return [float(h.words().rsplit("ECE ", 1)[1]) for h in headings]

    ece = editable.metrics()["ece"]["value"]
    assert errors()[0] == pytest.approx(ece, abs=6e-4)
    editable.metrics(temperature={"value": 1.31, "fitted_on": "val", "n": 40, "applied": True, "ece_here": ece})
    assert errors()[1] == pytest.approx(ece, abs=6e-4)


@pytest.mark.slow
def test_a_report_is_a_function_of_its_files(editable: Case) -> None:
    first = write_report(editable.folder, editable.run).read_bytes()
    assert write_report(editable.folder, editable.run).read_bytes() == first
    shutil.rmtree(editable.run / "cams")
    assert not editable.report().root.find("button", class_="switch")
    for name in ("history.csv", "config.yaml", "run.json", "split.csv"):
        (editable.run / name).unlink()
    assert "No learning curves" in editable.report().root.find("section", id="training")[0].words()


def test_broken_folders_are_named(editable: Case, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no metrics\.json"):
        write_report(tmp_path, None)
    editable.metrics(n=81)
    with pytest.raises(UserError, match=r"of 81 images and predictions\.csv of 80"):
        write_report(editable.folder, editable.run)
    (editable.folder / "metrics.json").write_text("{")
    with pytest.raises(UserError, match=r"metrics\.json: cannot be read"):
        write_report(editable.folder, editable.run)


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
