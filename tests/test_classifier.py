"""load_classifier: what a notebook gets is what the verbs write."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from classifier import Classifier, load_classifier
from dataset.readers import read_image
from localization import METHODS
from localization.states import MapState
from tests.helpers.verbs import TINY, Verb, ok
from utils import UserError, log


@pytest.fixture(scope="module")
def classifier(tiny_run: Path) -> Classifier:
    return load_classifier(str(tiny_run))


@pytest.fixture(scope="module")
def files(tiny_run: Path) -> list[str]:
    split = pd.read_csv(tiny_run / "split.csv")
    return list(split["path"][split["split"] == "test"].head(5))


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    log.addHandler(caplog.handler)
    yield caplog
    log.removeHandler(caplog.handler)


def probabilities(table: pd.DataFrame) -> np.ndarray:
    return table.filter(regex="^p_").to_numpy()


@pytest.mark.slow
def test_predictions_and_maps_are_those_of_the_verbs(
    verb: Verb, tiny_run: Path, classifier: Classifier, tmp_path: Path
) -> None:
    ok(verb("test.py", "--weights", tiny_run, "--quick", "--output", tmp_path / "test"))
    written = pd.read_csv(tmp_path / "test" / "predictions.csv", keep_default_na=False)
    table = classifier.predict(list(written["path"]))
    assert list(table.columns) == ["path", "predicted", "confidence", *(f"p_{name}" for name in classifier.classes)]
    assert list(table["path"]) == list(written["path"]) and list(table["predicted"]) == list(written["predicted"])
    # The batches are the same, so the numbers are, to the last bit.
    assert np.array_equal(probabilities(table), written[table.columns].filter(regex="^p_").to_numpy())
    for method in ("gradcam", "layercam"):
        words = ("--weights", tiny_run, "--count", 2, "--method", method, "--output", tmp_path / method, "--save")
        ok(verb("draw_cam.py", *words))
        cams = pd.read_csv(tmp_path / method / "cams.csv", keep_default_na=False)
        maps = classifier.explain(list(cams["path"]), method=METHODS[method].title)
        for row, one in zip(cams.itertuples(), maps, strict=True):
            assert (row.path, row.target, row.predicted, row.status) == (one.path, one.target, one.predicted, one.state)
            saved = np.load(tmp_path / method / row.file.replace(".png", ".npy"))
            np.testing.assert_allclose(one.map, saved, rtol=1e-4, atol=1e-6 * max(one.peak, 1))
            assert one.peak == pytest.approx(saved.max(), rel=1e-4)
            assert (one.method, one.model) == (method, tiny_run.name)


def test_a_folder_and_its_files_and_their_pixels_predict_alike(
    classifier: Classifier, files: list[str], tmp_path: Path
) -> None:
    for file in files:
        shutil.copy(file, tmp_path)
    table = classifier.predict(tmp_path)
    assert [Path(path).name for path in table["path"]] == sorted(Path(file).name for file in files)
    paths = [tmp_path / Path(path).name for path in table["path"]]
    assert classifier.predict(paths).equals(table)
    pixels = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in paths]
    for arrays in (pixels, np.stack(pixels), [read_image(path) for path in paths], [p / 255 for p in pixels]):
        of_arrays = classifier.predict(arrays)
        assert list(of_arrays["path"]) == [f"array-{i}" for i in range(len(paths))]
        np.testing.assert_allclose(probabilities(of_arrays), probabilities(table), atol=1e-6)
    np.testing.assert_allclose(probabilities(classifier.predict(pixels[0])), probabilities(table)[:1], atol=1e-6)
    maps, of_files = classifier.explain(pixels), classifier.explain(paths)
    assert all(np.allclose(a.map, b.map, atol=1e-6) and a.state == b.state for a, b in zip(maps, of_files, strict=True))


def test_several_checkpoints_are_an_ensemble(tiny_run: Path, files: list[str]) -> None:
    both = [tiny_run / "best.pt", tiny_run / "last.pt"]
    single = [load_classifier(path).predict(files) for path in both]
    mean = (probabilities(single[0]) + probabilities(single[1])) / 2
    together = load_classifier(both)
    np.testing.assert_allclose(probabilities(together.predict(files)), mean, atol=1e-7)
    maps = together.explain(files[:2], target="Normal")
    assert [one.model for one in maps] == [tiny_run.name] * 2 + [f"{tiny_run.name}-last"] * 2
    assert {one.target for one in maps} == {"Normal"}


def test_a_target_is_explained_whatever_is_predicted(classifier: Classifier, files: list[str]) -> None:
    by_class = {name: classifier.explain(files[:1], method="smoothgrad", target=name)[0] for name in classifier.classes}
    assert [one.target for one in by_class.values()] == classifier.classes
    assert len({one.predicted for one in by_class.values()}) == 1
    assert not np.allclose(*(by_class[name].map for name in classifier.classes[:2]))
    assert all(one.state in MapState and one.map.dtype == np.float32 for one in by_class.values())


def test_flat_and_unreadable_images_are_left_out_with_a_warning(
    classifier: Classifier, files: list[str], tmp_path: Path, messages: pytest.LogCaptureFixture
) -> None:
    shutil.copy(files[0], tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"not an image")
    cv2.imwrite(str(tmp_path / "c.png"), np.full((40, 40), 7, np.uint8))
    assert [Path(path).name for path in classifier.predict(tmp_path)["path"]] == ["a.png", "c.png"]
    assert [Path(one.path).name for one in classifier.explain(tmp_path)] == ["a.png"]
    warnings = [record.getMessage() for record in messages.records if "left out" in record.getMessage()]
    assert sum("b.png" in line for line in warnings) == 2 and sum("c.png" in line for line in warnings) == 1
    flat = np.zeros((2, 40, 40), np.uint8)
    flat[1, 0, 0] = 255
    assert [one.path for one in classifier.explain(flat)] == ["array-1"]


@pytest.mark.slow
def test_letterboxed_arrays_are_measured_without_their_padding(
    verb: Verb, phantom: Path, tmp_path: Path
) -> None:
    """An array has no file to read its size from."""
    words = ("--data", phantom, "--epochs", 1, "--save", tmp_path, "--name", "a", "data.fit=letterbox")
    ok(verb("train.py", *TINY, *words))
    classifier = load_classifier(tmp_path / "a")
    wide = np.linspace(0, 1, 30 * 90).reshape(30, 90)
    cv2.imwrite(str(tmp_path / "wide.png"), (wide * 65535).round().astype(np.uint16))
    [array], [file] = classifier.explain(wide), classifier.explain(tmp_path / "wide.png")
    assert array.state == file.state and np.allclose(array.map, file.map, atol=1e-6)
    with pytest.raises(UserError, match="all pixels have one value"):
        classifier.explain(np.zeros((30, 90), np.uint8))


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ("absent.png", "absent.png: no such file or folder"),
        ([], "no images given"),
        (np.zeros((4, 4, 4, 4)), "shape"),
        (np.full((4, 4), 2.0), "outside"),
        (np.full((4, 4), np.nan), "outside"),
        (np.zeros((4, 4), np.int64), "int64"),
        (np.zeros((4, 4, 3), np.uint8), "colour"),
        (["a.png", np.zeros((4, 4))], "mixed"),
    ],
)
def test_bad_images_are_refused(classifier: Classifier, images: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        classifier.predict(images)


def test_bad_words_are_refused(classifier: Classifier, files: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"target 'Norml': unknown class \(did you mean Normal\?\)"):
        classifier.explain(files, target="Norml")
    with pytest.raises(UserError, match=r"^method gradcan: .*gradient_rollout$"):  # not "or all": it is refused
        classifier.explain(files, method="gradcan")
    with pytest.raises(UserError, match=r"^method all"):
        classifier.explain(files, method="all")
    with pytest.raises(UserError, match=r"^method rollout"):
        classifier.explain(files, method="rollout")  # a ResNet has no attention
    with pytest.raises(UserError, match="precision 'half'"):
        load_classifier(tmp_path, precision="half")
    with pytest.raises(UserError, match=r"^batch 0: "):
        load_classifier(tmp_path, batch=0)
    with pytest.raises(UserError, match=r"^weights .*absent: no such file"):
        load_classifier(tmp_path / "absent")
    with pytest.raises(UserError, match="none given"):
        load_classifier([])


def test_errors_do_not_name_flags(tiny_run: Path) -> None:
    with pytest.raises(UserError, match=r"^device abacus: not available here"):
        load_classifier(tiny_run, device="abacus")
    with pytest.raises(UserError, match=r"^weights: the same checkpoint is given twice"):
        load_classifier([tiny_run, tiny_run / "best.pt"])


@pytest.mark.parametrize("handlers", [[], [logging.NullHandler()]])
def test_the_logging_of_the_program_is_kept(
    tiny_run: Path, handlers: list[logging.Handler], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"handlers": [*handlers], "level": logging.WARNING, "propagate": True}.items():
        monkeypatch.setattr(log, name, value)
    load_classifier(tiny_run)
    if handlers:
        assert (log.handlers, log.level, log.propagate) == (handlers, logging.WARNING, True)
    else:
        assert len(log.handlers) == 1 and not log.propagate
