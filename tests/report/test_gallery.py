"""The gallery of errors: order, overlays, and notes on maps that cannot be shown."""

from __future__ import annotations

import base64
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from evaluation.predictions import Predictions
from report.gallery import error_tiles
from report.inputs import read_inputs
from report.page import write_report
from tests.helpers.report_case import (
    CLASSES,
    Case,
    Element,
    Page,
    draw_image,
    draw_overlay,
    make_table,
    sha256,
    write_evaluation,
    wrong_rows,
)


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
