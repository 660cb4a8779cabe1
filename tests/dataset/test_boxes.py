"""Boxes as lesion masks."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from config import DataConfig
from dataset.boxes import read_boxes
from dataset.loading import load_dataset
from utils import UserError

HEADER = "image,finding,x,y,width,height\n"


def test_boxes_become_masks_of_their_images(tmp_path: Path, cache_dir: Path) -> None:
    """By hand: images of 128×64 pixels; in 64×64 a box keeps its rows and half of its columns."""
    rng = np.random.default_rng(0)
    for label in "AB":
        (tmp_path / label / "images").mkdir(parents=True)
        for i in range(6):
            cv2.imwrite(str(tmp_path / label / "images" / f"{label}{i}.png"), rng.integers(0, 255, (64, 128), np.uint8))
    rows = "A0,x,20,10,40,30\nA1,x,0,0,8,8\nA1,x,64,32,32,16\nA2,x,120,60,100,100\n"
    (tmp_path / "A" / "boxes.csv").write_text(HEADER + rows)
    data = DataConfig(path=str(tmp_path), cache_dir=str(cache_dir), split=[1.0, 0.0, 0.0])
    image_set = load_dataset(data, 64).images("train", masks=True)
    stems = [Path(path).stem for path in image_set.records["path"]]
    masks = dict(zip(stems, image_set.gather("lesion_mask", np.arange(len(stems))), strict=True))
    expected = np.zeros((4, 64, 64), np.uint8)
    expected[0, 10:40, 10:30] = 1
    expected[1, 0:8, 0:4] = 1
    expected[1, 32:48, 32:48] = 1
    expected[2, 60:64, 60:64] = 1  # clipped to the image
    for i in range(4):
        np.testing.assert_array_equal(masks[f"A{i}"], expected[i])
    assert image_set.has("lesion_mask").sum() == 3
    assert not image_set.has("lung_mask").any()


@pytest.mark.parametrize(
    ("content", "words"),
    [("image,x\na,1\n", "no column 'y'"), (HEADER + "a,x,1,2,3,\n", "line 2"), (HEADER + "a,x,1,2,0,4\n", "line 2"),
     (HEADER + "a,x,one,2,3,4\n", "boxes"), ("", "boxes")],
)  # fmt: skip
def test_bad_boxes_are_reported(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "boxes.csv").write_text(content)
    with pytest.raises(UserError, match=words):
        read_boxes(str(tmp_path / "boxes.csv"))
