"""Images from arrays and paths."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from config import Config
from experiment.selection import select
from inference.ensemble import Ensemble
from inference.images import image_records, images_from_arrays, images_from_paths
from utils import UserError


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
