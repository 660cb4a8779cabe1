"""An ensemble: files, folders and arrays, the mean of several checkpoints, and the folder of its results."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from dataset.readers import read_image
from inference.ensemble import Ensemble
from inference.images import image_records
from utils import UserError


def _ensemble(runs: list[Path]) -> Ensemble:
    checkpoints = [SimpleNamespace(path=run / "best.pt", classes=["A", "B"]) for run in runs]
    return Ensemble(
        selections=[SimpleNamespace(run=run, checkpoint=c) for run, c in zip(runs, checkpoints, strict=True)]
    )


def test_a_folder_of_long_names_can_be_created(tmp_path: Path) -> None:
    """A name on a disk has at most 255 bytes; a Chinese character has three."""
    names = [character * 40 for character in "肺炎片"]
    ensembles = [_ensemble([tmp_path / name for name in [*names, last]]) for last in ("", "x", "y")]
    folders = {ensemble.folder_name() for ensemble in ensembles}
    assert len(folders) == 3
    for folder in folders:
        assert len(folder.encode()) <= 255
        (tmp_path / folder).mkdir()


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


def test_several_checkpoints_predict_their_mean(ensemble: Ensemble, tiny_run: Path, files: list[Path]) -> None:
    """The second is the first's last.pt; models that are kept give the same."""
    pixels = [read_image(file) for file in files]
    paths = [tiny_run / "best.pt", tiny_run / "last.pt"]
    alone = [Ensemble.load([path], device="cpu").predict_arrays(pixels).values for path in paths]
    both = Ensemble.load(paths, device="cpu")
    for _ in range(2):
        np.testing.assert_allclose(both.predict_arrays(pixels).values, np.mean(alone, axis=0), atol=1e-12)
    with pytest.raises(UserError, match="twice"):
        Ensemble.load([tiny_run, tiny_run / "best.pt"], device="cpu")
