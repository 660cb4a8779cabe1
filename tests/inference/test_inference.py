"""Predicting from Python: files, folders and arrays, by one checkpoint or several."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from config import Config
from dataset.readers import read_image
from experiment.selection import select
from inference.ensemble import Ensemble
from inference.images import image_records, images_from_arrays, images_from_paths
from inference.predict import Runtime, predict_logits, softmax
from utils import UserError


@pytest.fixture(scope="module")
def ensemble(tiny_run: Path) -> Ensemble:
    return Ensemble.load([tiny_run], device="cpu")


@pytest.fixture(scope="module")
def files(tiny_run: Path) -> list[Path]:
    """Three images of the run's test split."""
    split = pd.read_csv(tiny_run / "split.csv")
    return [Path(path) for path in split[split["split"] == "test"]["path"].head(3)]


def test_files_folders_and_arrays_are_predicted_alike(ensemble: Ensemble, files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    copies = [Path(shutil.copy(file, tmp_path / "folder" / f"{i}.png")) for i, file in enumerate(files)]
    (tmp_path / "folder" / "notes.txt").write_text("not an image")
    given = [
        ensemble.predict(image_records(ensemble.first, paths), ensemble.first.data)
        for paths in (files, copies, [tmp_path / "folder"])
    ]
    pixels = [read_image(file) for file in files]
    given += [
        ensemble.predict_arrays(arrays) for arrays in (pixels, np.stack(pixels), torch.from_numpy(np.stack(pixels)))
    ]
    for probabilities in given:
        assert probabilities.values.shape == (3, 4)
        np.testing.assert_array_equal(probabilities.values, given[0].values)
        np.testing.assert_allclose(probabilities.values.sum(1), 1)
    np.testing.assert_allclose(ensemble.predict_arrays(pixels[0]).values, given[0].values[:1], atol=1e-5)
    table = given[0].table()
    assert list(table.columns[:5]) == ["path", "sha256", "label", "predicted", "confidence"]
    assert (table["label"] != "").all()  # known to the run by content
    assert list(given[1].table()["label"]) == list(table["label"])
    assert list(given[3].table()["path"]) == ["array-0", "array-1", "array-2"]
    assert given[3].table()["label"].eq("").all()


def test_images_without_a_label_are_predicted(ensemble: Ensemble, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (90, 61), np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), noise)
    (tmp_path / "b.png").write_bytes(b"broken")
    probabilities = ensemble.predict(image_records(ensemble.first, [tmp_path]), ensemble.first.data)
    assert probabilities.table()["label"].tolist() == [""]
    assert probabilities.table()["predicted"].isin(ensemble.classes).all()
    assert list(probabilities.unreadable) == [str(tmp_path / "b.png")]
    with pytest.raises(UserError, match="label ''"):
        probabilities.labelled()
    (tmp_path / "a.png").unlink()
    with pytest.raises(UserError, match="none of 1 images can be read"):
        ensemble.predict(image_records(ensemble.first, [tmp_path]), ensemble.first.data)


@pytest.mark.parametrize("fit", ["squash", "letterbox"])
def test_arrays_of_any_depth_become_the_squares_of_the_cache(ensemble: Ensemble, tmp_path: Path, fit: str) -> None:
    checkpoint = ensemble.first.checkpoint
    deep = np.random.default_rng(1).integers(0, 65536, (90, 61)).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    data = Config().data
    data.cache_dir, data.fit = str(tmp_path / "cache"), fit
    before, checkpoint.fit = checkpoint.fit, fit
    try:
        selection = select(Config(device="cpu"), checkpoint.path, {})
        selection.checkpoint.fit, selection.data = fit, data
        cached = images_from_paths(selection, [tmp_path / "deep.png"]).gather("image", np.arange(1))
        for array in (deep, deep / np.float32(65535), deep / 65535):
            made = images_from_arrays(array, selection.checkpoint).gather("image", np.arange(1))
            assert made.dtype == np.uint8
            np.testing.assert_array_equal(made, cached)
    finally:
        checkpoint.fit = before
    grey = np.full((64, 64), 200, np.uint8)
    np.testing.assert_array_equal(images_from_arrays(grey, checkpoint).gather("image", np.arange(1))[0], grey)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (np.zeros((5, 5, 3), np.uint8), "colour"),
        (np.zeros(5, np.uint8), "shape"),
        ([np.zeros((0, 5), np.uint8)], "shape"),
        (np.full((5, 5), 200.0), r"outside \[0, 1\]"),
        (np.full((5, 5), np.nan), r"outside \[0, 1\]"),
        (np.zeros((5, 5), np.int64), "int64"),
        ([], "no arrays"),
    ],
)
def test_arrays_that_are_not_images_are_refused(ensemble: Ensemble, arrays: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        ensemble.predict_arrays(arrays)


def test_paths_that_do_not_exist_are_refused(ensemble: Ensemble, tmp_path: Path) -> None:
    for paths, words in (([tmp_path / "none.png"], "no such file"), ([tmp_path], "has no images"), ([], "no images")):
        with pytest.raises(UserError, match=f"^images.*{words}"):
            image_records(ensemble.first, paths, flag="images")


def test_several_checkpoints_predict_their_mean(ensemble: Ensemble, tiny_run: Path, files: list[Path]) -> None:
    """The second is the first's last.pt; models that are kept give the same."""
    pixels = [read_image(file) for file in files]
    paths = [tiny_run / "best.pt", tiny_run / "last.pt"]
    alone = [Ensemble.load([path], device="cpu").predict_arrays(pixels).values for path in paths]
    both = Ensemble.load(paths, device="cpu", keep_models=True)
    for _ in range(2):
        np.testing.assert_allclose(both.predict_arrays(pixels).values, np.mean(alone, axis=0), atol=1e-12)
    with pytest.raises(UserError, match="twice"):
        Ensemble.load([tiny_run, tiny_run / "best.pt"], device="cpu")


def test_a_mirrored_view_is_that_of_the_mirrored_image(ensemble: Ensemble, files: list[Path]) -> None:
    selection, runtime = ensemble.first, Runtime(torch.device("cpu"), "fp32", 2)
    model, architecture = selection.checkpoint.model(), selection.checkpoint.architecture
    pixels = [read_image(file) for file in files]
    plain, turned = (images_from_arrays([p[:, ::step] for p in pixels], selection.checkpoint) for step in (1, -1))
    mirrored = predict_logits(model, plain, architecture, runtime, mirrored=True)
    np.testing.assert_allclose(mirrored, predict_logits(model, turned, architecture, runtime), atol=1e-3)


def test_scores_that_are_not_finite_name_the_image() -> None:
    records = pd.DataFrame({"path": ["a", "b"]})
    with pytest.raises(UserError, match="first for b"):
        softmax(np.array([[0.0, 1.0], [np.nan, 0.0]]), records)


def test_diverged_scores_are_refused() -> None:
    with pytest.raises(UserError, match="not finite"):
        softmax(np.array([[0.0, 1.0], [np.nan, 0.0]]), pd.DataFrame({"path": ["a", "b"]}))


def test_the_last_batch_is_never_dropped(tiny_run: Path) -> None:
    import torch

    from config import load_run_config
    from dataset.loading import load_dataset
    from experiment.checkpoint import load_checkpoint
    from inference.predict import Runtime, predict_logits

    checkpoint = load_checkpoint(tiny_run / "best.pt")
    data = load_run_config(tiny_run / "config.yaml").data
    part = load_dataset(data, 64, run_split=tiny_run / "split.csv").images("test")
    runtimes = [Runtime(torch.device("cpu"), "fp32", batch) for batch in (len(part), 7, 1)]
    logits = [predict_logits(checkpoint.model(), part, checkpoint.architecture, runtime) for runtime in runtimes]
    assert logits[0].shape == (len(part), 4)
    np.testing.assert_allclose(logits[1], logits[0], atol=2e-4)
    np.testing.assert_allclose(logits[2], logits[0], atol=2e-4)
