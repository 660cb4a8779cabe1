"""Masks and boxes: their images, their shapes, and their place in the square."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from config import Config, DataConfig
from dataset import readers
from dataset.cache import hash_files
from dataset.image_set import ImageSet, make_image_set
from dataset.loading import RECORD_COLUMNS
from dataset.masks import same_shape
from dataset.readers import UnreadableImage, image_size, read_image, square_image, square_mask
from experiment import selection
from experiment.selection import Selection
from inference.images import images_from_paths, images_from_split
from tests.helpers.dicom import write_dicom
from tests.helpers.verbs import Result
from utils import UserError

HEADER = "image,finding,x,y,width,height\n"


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Return the lines logged since the last call, warnings marked."""
    monkeypatch.setattr("utils.log.propagate", True)
    caplog.set_level(logging.INFO, logger="cxr")

    def lines() -> list[str]:
        lines = [("WARNING: " if r.levelno == logging.WARNING else "") + r.getMessage() for r in caplog.records]
        caplog.clear()
        return lines

    return lines


def _write(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)
    return path


def _noise(path: Path, height: int, width: int, seed: int = 0) -> Path:
    return _write(path, np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8))


def _box(height: int, width: int) -> np.ndarray:
    """Return a mask of the upper left quarter."""
    mask = np.zeros((height, width), np.uint8)
    mask[: height // 2, : width // 2] = 255
    return mask


def _image_set(data: DataConfig, side: int, **columns: list[str]) -> ImageSet:
    records = pd.DataFrame(columns).reindex(columns=RECORD_COLUMNS, fill_value="")
    records["sha256"] = hash_files(list(records["path"]), Path(data.cache_dir))
    return make_image_set(records, [], data, side, masks=True)[0]


def _explained(images: list[Path] | None, cache_dir: Path, *, count: int = 8, **keys: object) -> ImageSet:
    """Return the images that draw_cam.py explains with a checkpoint of 64×64 pixels outside a run; val is empty."""
    keys = {key: str(value) if isinstance(value, Path) else value for key, value in keys.items()}
    data = DataConfig(**{"split": [0.5, 0.0, 0.5], "cache_dir": str(cache_dir), **keys})
    checkpoint = SimpleNamespace(size=64, classes=["A", "B"], path=Path("best.pt"))
    chosen = Selection(checkpoint=checkpoint, run=None, data=data, device=torch.device("cpu"), precision="fp32")
    return images_from_split(chosen, count, 0) if images is None else images_from_paths(chosen, images)


def _mask(image_set: ImageSet, name: str, stem: str) -> np.ndarray:
    (index,) = np.flatnonzero(image_set.records["path"].map(lambda p: Path(p).stem) == stem)
    return image_set.gather(name, np.array([index]))[0]


# --- sizes and shapes -------------------------------------------------------------------------------------------------


def test_the_size_in_the_header_is_that_of_the_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In any format; images that are stored rotated, and a DICOM file without extension, are decoded."""
    grey = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 61), np.uint8))
    for name in ("a.png", "a.jpg", "a.bmp", "a.tif"):
        grey.save(tmp_path / name)
    grey.convert("1").save(tmp_path / "bit.png")
    grey.convert("P").save(tmp_path / "palette.png")
    for kind in (np.uint16, np.float32):
        cv2.imwrite(str(tmp_path / f"{kind.__name__}.tiff"), np.asarray(grey).astype(kind))
    write_dicom(tmp_path / "a.dcm", np.arange(40 * 61).reshape(40, 61))
    write_dicom(tmp_path / "bare", np.arange(40 * 61).reshape(40, 61))
    for path in tmp_path.iterdir():
        assert image_size(path) == read_image(path).shape == (40, 61), path
    turned = Image.Exif()
    turned[readers.TIFF_ORIENTATION] = 6  # a quarter turn
    for one_thread in (True, False):  # either PNG decoder
        monkeypatch.setattr(readers, "one_thread", one_thread)
        for name in ("a.png", "a.jpg", "a.tif"):
            grey.save(tmp_path / name, exif=turned)
            assert image_size(tmp_path / name) == read_image(tmp_path / name).shape == (61, 40), name
    monkeypatch.setattr(readers, "read_image", lambda path: pytest.fail(f"{path} was read"))
    grey.save(tmp_path / "a.png")
    assert image_size(tmp_path / "a.png") == image_size(tmp_path / "a.dcm") == (40, 61)


@pytest.mark.parametrize("name", ["a.png", "a.dcm"])
def test_unreadable_files_have_no_size(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnreadableImage):
        image_size(tmp_path / name)
    (tmp_path / name).write_text("not an image")
    with pytest.raises(UnreadableImage):
        image_size(tmp_path / name)


def test_shapes_match_up_to_rounding() -> None:
    """For any rounding, and whichever of the two was resized; three more pixels on the shorter side are too many."""
    rng = np.random.default_rng(0)
    for height, width in rng.integers(40, 4000, (300, 2)):
        scale = rng.uniform(0.1, 1)
        for rounding in (np.floor, np.round, np.ceil):
            small = tuple(int(max(1, rounding(s * scale))) for s in (height, width))
            assert same_shape(small, (height, width))
            assert same_shape((height, width), small)
        wrong = (height + 3, width) if width >= height else (height, width + 3)
        assert not same_shape(wrong, (height, width)) and not same_shape((height, width), wrong)
    assert same_shape((256, 256), (299, 299))
    assert not same_shape((480, 512), (512, 480))


# --- the place of a mask in the square --------------------------------------------------------------------------------


def _cross(height: int, width: int, row: float, column: float) -> np.ndarray:
    """Draw a cross one pixel thick, centred at a fraction of the height and the width."""
    cross = np.zeros((height, width), np.uint8)
    cross[int(row * height)] = cross[:, int(column * width)] = 255
    return cross


def _middle(square: np.ndarray) -> np.ndarray:
    """Return the centre (row, column) of a cross in pixels from the edge, measured to the centres of the pixels."""
    return np.array([np.flatnonzero(sums >= sums.max() * 0.9).mean() + 0.5 for sums in (square.sum(1), square.sum(0))])


@pytest.mark.parametrize("fit", ["squash", "letterbox"])
@pytest.mark.parametrize(("height", "width"), [(75, 51), (50, 77), (63, 63), (31, 90)])
@pytest.mark.parametrize("scale", [0.6, 1.0, 2.3])
def test_masks_land_on_their_images(
    tmp_path: Path, cache_dir: Path, fit: str, height: int, width: int, scale: float
) -> None:
    """A cross in a mask of any size lands on the cross in the image, portrait or landscape.

    In a square of 256 everything is enlarged: a pixel of the image takes at least 2.8 pixels, one of the mask more.
    """
    row, column = 0.3, 0.71
    small = round(height * scale), round(width * scale)
    image = _write(tmp_path / "i.png", _cross(height, width, row, column))
    mask = _write(tmp_path / "m.png", _cross(*small, row, column))
    image_set = _image_set(DataConfig(cache_dir=str(cache_dir), fit=fit), 256, path=[str(image)], lung_mask=[str(mask)])
    drawn, mask_drawn = _mask(image_set, "image", "i"), _mask(image_set, "lung_mask", "i")
    # by hand: pixels of the square per pixel of the image, and the first pixel of the image
    longest = max(height, width)
    frame = np.array([256, 256] if fit == "squash" else [round(s * 256 / longest) for s in (height, width)])
    start = (256 - frame) // 2
    for square, shape in ((drawn, (height, width)), (mask_drawn, small)):
        cell = np.floor(np.array([row, column]) * shape) + 0.5
        np.testing.assert_allclose(_middle(square), start + cell / shape * frame, atol=0.51)
    if scale == 1:  # the same drawing gives the same pixels
        np.testing.assert_array_equal(mask_drawn, drawn >= 128)


def test_a_coarser_mask_uses_the_letterbox_of_its_image(tmp_path: Path, cache_dir: Path) -> None:
    """154×256 is 300×500 rounded, but its own frame in 224×224 is 135 pixels high, not 134. For an image of the mask's
    size the frame stays 135, for a longer one it is 136, whichever was cached first.
    """
    full = _write(tmp_path / "mask.png", np.full((154, 256), 255, np.uint8))
    assert square_mask(full, 224, "letterbox").any(1).sum() == 135
    sizes = {"large": (300, 500), "longer": (605, 1000), "same": (154, 256)}
    images = [str(_write(tmp_path / f"{name}.png", np.full(size, 255, np.uint8))) for name, size in sizes.items()]
    data = DataConfig(cache_dir=str(cache_dir), fit="letterbox")
    for order in (images, images[::-1]):
        image_set = _image_set(data, 224, path=order, lung_mask=[str(full)] * 3)
        for path in order:
            expected = square_image(Path(path), 224, "letterbox") > 0
            np.testing.assert_array_equal(_mask(image_set, "lung_mask", Path(path).stem), expected)
    assert [_mask(image_set, "lung_mask", name).any(1).sum() for name in sizes] == [134, 136, 135]


# --- masks that do not fit --------------------------------------------------------------------------------------------


def test_a_mask_of_another_shape(tmp_path: Path, cache_dir: Path, log: Callable[[], list[str]]) -> None:
    """A mask named by a flag stops the command; one found beside the images is left out, with one line for all."""
    root = tmp_path / "data"
    for i, label in enumerate("AABB"):
        _noise(root / "test" / label / "images" / f"{label}{i}.png", 60, 80, i)
        shape = (60, 60) if label == "B" else (30, 40)
        _write(root / "test" / label / "masks" / f"{label}{i}.png", _box(*shape))
    image_set = _explained(None, cache_dir, path=root)
    assert image_set.has("lung_mask").tolist() == [True, True, False, False]
    (line,) = log()
    folder = root / "test" / "B" / "masks"
    wrong = folder / "B2.png"
    assert line.startswith("WARNING") and f"{wrong} (60×60 pixels" in line and line.endswith("and 1 more")
    assert "80×60 pixels" in line
    for cached in range(2):  # also with the mask in the cache
        with pytest.raises(UserError, match=rf"--lung-masks {wrong} \(60×60 pixels.*fix or delete"):
            _explained(sorted((folder.parent / "images").iterdir()), cache_dir, lung_masks=folder)
        if not cached:
            _image_set(DataConfig(cache_dir=str(cache_dir)), 64, path=[str(wrong)], lung_mask=[str(wrong)])


def test_unreadable_masks(tmp_path: Path, cache_dir: Path, log: Callable[[], list[str]]) -> None:
    images = [_noise(tmp_path / "i" / f"{name}.png", 40, 40, ord(name)) for name in "ab"]
    masks = tmp_path / "m"
    _write(masks / "a.png", _box(40, 40))
    (masks / "b.png").write_text("not an image")
    image_set = _explained(images, cache_dir, lung_masks=masks)
    assert image_set.has("lung_mask").tolist() == [True, False]
    (line,) = log()
    assert line.startswith("WARNING") and str(masks / "b.png") in line
    with pytest.raises(UserError, match=rf"--lung-masks {masks}: no usable mask.*b\.png"):
        _explained(images[1:], cache_dir, lung_masks=masks)


@pytest.mark.parametrize(("kind", "level"), [("lung", "WARNING: "), ("lesion", "")])
def test_empty_masks_are_counted(
    tmp_path: Path, cache_dir: Path, log: Callable[[], list[str]], kind: str, level: str
) -> None:
    images = [_noise(tmp_path / "i" / f"{name}.png", 40, 40, ord(name)) for name in "abcd"]
    masks = tmp_path / "m"
    for image in images[:3]:
        _write(masks / image.name, _box(40, 40) * (image.stem == "a"))
    image_set = _explained(images, cache_dir, **{f"{kind}_masks": masks})
    assert image_set.has(f"{kind}_mask").tolist() == [True, False, False, False]
    assert _mask(image_set, f"{kind}_mask", "a").mean() == 0.25
    first = f"for example {masks / 'b.png'}"
    assert log() == [f"{level}2 empty {kind} masks, {first}: no {kind} scores"]
    with pytest.raises(UserError, match=rf"--{kind}-masks {masks}: .* images \(2\) are empty at \d+×\d+ pixels"):
        _explained(images[1:], cache_dir, **{f"{kind}_masks": masks})


def test_empty_lesion_masks_in_the_data_are_not_a_fault(
    folder: Path, cache_dir: Path, log: Callable[[], list[str]]
) -> None:
    """None of the images has a finding."""
    (folder / "B" / "boxes.csv").unlink()
    mask = _write(folder / "A" / "lesion_masks" / "A0.png", np.zeros((64, 64), np.uint8))
    assert not _explained(None, cache_dir, path=folder.parent).has("lesion_mask").any()
    assert log() == [f"1 empty lesion mask, for example {mask}: no lesion scores"]


# --- boxes ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a data folder's test/: images A0, A1, B2, B3 of 64×64 pixels; A0 has a lesion mask, B2 a box."""
    root = tmp_path / "data" / "test"
    for i, label in enumerate("AABB"):
        _noise(root / label / "images" / f"{label}{i}.png", 64, 64, i)
    _write(root / "A" / "lesion_masks" / "A0.png", _box(64, 64))
    (root / "B" / "boxes.csv").write_text(HEADER + "B2,x,0,0,8,8\n")
    return root


@pytest.mark.parametrize("given", ["the test split", "--image"])
def test_named_boxes_replace_those_of_the_data(
    tmp_path: Path, folder: Path, cache_dir: Path, given: str
) -> None:
    """By stem or file name; a box partly outside is clipped, several are united, boxes of other images are ignored."""
    boxes = tmp_path / "given.csv"
    boxes.write_text(HEADER + "A0.png,x,10,20,5,6\n\nB3,,60,-2,30,6\nB3,x,0,40,2,2\nelsewhere,x,900,900,5,5\n")
    if given == "--image":
        image_set = _explained(sorted(folder.glob("*/images/*")), cache_dir, boxes=boxes)
    else:
        image_set = _explained(None, cache_dir, path=folder.parent, boxes=boxes)
    assert image_set.has("lesion_mask").tolist() == [True, False, False, True]
    expected = np.zeros((2, 64, 64), np.uint8)
    expected[0, 20:26, 10:15] = 1
    expected[1, 0:4, 60:64] = expected[1, 40:42, 0:2] = 1
    np.testing.assert_array_equal(_mask(image_set, "lesion_mask", "A0"), expected[0])
    np.testing.assert_array_equal(_mask(image_set, "lesion_mask", "B3"), expected[1])


def test_boxes_are_in_the_pixels_of_their_image(tmp_path: Path, cache_dir: Path) -> None:
    """An image of 40×80 pixels in a letterbox of 64: coordinates times 0.8, and 16 pixels from the left."""
    image = _noise(tmp_path / "tall.png", 80, 40)
    (tmp_path / "b.csv").write_text(HEADER + "tall,x,10,20,20,40\n")
    image_set = _explained([image], cache_dir, boxes=tmp_path / "b.csv", fit="letterbox")
    expected = np.zeros((64, 64), np.uint8)
    expected[16:48, 16 + 8 : 16 + 24] = 1
    np.testing.assert_array_equal(_mask(image_set, "lesion_mask", "tall"), expected)


@pytest.mark.parametrize("row", ["A1,x,64,0,5,5", "A1,x,0,-9,5,9", "A1,x,1e300,0,1e300,9", "A1.png,x,3,3,0.1,9"])
def test_a_named_box_outside_its_image_is_reported_with_its_line(
    tmp_path: Path, folder: Path, cache_dir: Path, row: str
) -> None:
    boxes = tmp_path / "given.csv"
    boxes.write_text(HEADER + f"A0,x,1,1,5,5\n\n{row}\n")
    with pytest.raises(UserError, match=rf"--boxes {boxes}, line 4 \(the box is outside .*A1\.png, 64×64 pixels\)"):
        _explained(sorted(folder.glob("*/images/*")), cache_dir, boxes=boxes)


def test_a_box_of_the_data_outside_its_image_is_left_out(
    folder: Path, cache_dir: Path, log: Callable[[], list[str]]
) -> None:
    """One of the two boxes of B2 remains; B3 has none left and counts as an image without a mask."""
    (folder / "B" / "boxes.csv").write_text(HEADER + "B2,x,0,0,8,8\nB2,x,99,0,8,8\nB3,x,0,-50,8,8\n")
    image_set = _explained(None, cache_dir, path=folder.parent)
    assert image_set.has("lesion_mask").tolist() == [True, False, True, False]
    assert _mask(image_set, "lesion_mask", "B2").sum() == 64
    (line,) = log()
    assert line.startswith("WARNING") and line.endswith("and 1 more")
    assert "boxes.csv, line 3 (the box is outside" in line


def test_missing_boxes_are_reported(folder: Path, cache_dir: Path, log: Callable[[], list[str]]) -> None:
    """A run's split.csv may name a boxes file that was moved since, or that no longer names the image."""
    data, image = DataConfig(cache_dir=str(cache_dir)), str(folder / "A" / "images" / "A0.png")
    for name, words in (("gone.csv", "no such file"), ("B/boxes.csv", "no box for this image")):
        image_set = _image_set(data, 64, path=[image], lesion_mask=[str(folder / name)])
        assert not image_set.has("lesion_mask").any()
        (line,) = log()
        assert str(folder / name) in line and words in line


@pytest.mark.parametrize(
    ("content", "keys", "words"),
    [
        ("Z9,x,1,1,5,5", {}, "--boxes .*: no box has the name of an image"),
        ("A0,x,1,1,5,5", {"lesion_masks": "A/lesion_masks"}, "--boxes .*--lesion-masks .*pass only one of them"),
        ("A0,x,1,1,5,5", {"boxes": "nope.csv"}, "--boxes .*nope.csv: no such file, or no .csv"),
        ("A0,x,1,1,5,5", {"boxes": "A/images/A0.png"}, "--boxes .*A0.png: no such file, or no .csv"),
        ("A0,x,1,1,0,5", {}, "given.csv, line 2: the image or a number is missing"),
        (",x,1,1,5,5", {}, "given.csv, line 2: the image or a number is missing"),
    ],
)
def test_bad_boxes_flags(folder: Path, cache_dir: Path, content: str, keys: dict[str, str], words: str) -> None:
    (folder / "given.csv").write_text(HEADER + content + "\n")
    keys = {"boxes": "given.csv", **keys}
    with pytest.raises(UserError, match=words) as error:
        _explained(sorted(folder.glob("*/images/*")), cache_dir, **{key: folder / name for key, name in keys.items()})
    assert "\n" not in str(error.value)


def test_boxes_for_none_of_the_chosen_images(
    folder: Path, tmp_path: Path, cache_dir: Path, log: Callable[[], list[str]]
) -> None:
    """The boxes belong to the data, but not to the test images that were drawn."""
    for i, label in enumerate("AB"):
        _noise(folder.parent / "train" / label / "images" / f"{label}8.png", 64, 64, 8 + i)
    (tmp_path / "b.csv").write_text(HEADER + "A8,x,1,1,5,5\n")
    image_set = _explained(None, cache_dir, count=1, boxes=tmp_path / "b.csv", path=folder.parent)
    assert not image_set.has("lesion_mask").any()
    (line,) = [line for line in log() if "--boxes" in line]
    assert line.startswith("WARNING") and "no mask for any of the 2 chosen images" in line


def test_masks_of_the_run_are_not_used_for_other_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """split.csv has them for the run's images; masks named in a command replace them."""
    trained = Config(data=DataConfig(path="d", lung_masks="l", lesion_masks="m"))
    checkpoint = SimpleNamespace(fit="squash", precision="fp32", path=tmp_path / "best.pt")
    (tmp_path / "split.csv").touch()
    monkeypatch.setattr(selection, "load_checkpoint", lambda path, flag: checkpoint)
    monkeypatch.setattr(selection, "load_run_config", lambda path: trained)
    data = selection.select(Config(), tmp_path / "best.pt", {}).data
    assert (data.lung_masks, data.lesion_masks, data.boxes) == (None, None, None)
    given = Config(data=DataConfig(boxes="b.csv"))
    data = selection.select(given, tmp_path / "best.pt", {"data.boxes": "b.csv"}).data
    assert (data.lung_masks, data.lesion_masks, data.boxes) == (None, None, "b.csv")


# --- images of a single value -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", ["squash", "letterbox"])
def test_an_image_of_a_single_value(tmp_path: Path, cache_dir: Path, log: Callable[[], list[str]], fit: str) -> None:
    """Named itself, or without any other image, it is refused; else it is left out. Padding is not a second value."""
    root = tmp_path / "i"
    flat = [
        _write(root / f"flat{v}.png", np.full((40, 70), v, np.uint8 if v < 256 else np.uint16)) for v in (0, 9, 999)
    ]
    for images in ([flat[1]], [root], [flat[2], root]):
        with pytest.raises(UserError, match=r"--image .*flat\d+\.png: all pixels have one value"):
            _explained(images, cache_dir, fit=fit)
    dot = np.full((40, 70), 9, np.uint8)
    dot[10:13, 10:13] = 10
    _write(root / "x.png", dot)  # last: those before it are left out
    image_set = _explained([root], cache_dir, fit=fit)
    assert [Path(path).name for path in image_set.records["path"]] == ["x.png"]
    assert len(np.unique(_mask(image_set, "image", "x"))) > 1 + (fit == "letterbox")
    lines = log()
    assert len(lines) == 3 and all(f"WARNING: {path}: left out" in line for path, line in zip(flat, lines, strict=True))
    # in a test split too
    for i, label in enumerate("AABB"):
        _noise(tmp_path / "d" / "test" / label / f"{label}{i}.png", 40, 40, i)
    _write(tmp_path / "d" / "test" / "A" / "A9.png", dot * 0)
    image_set = _explained(None, cache_dir, path=tmp_path / "d", fit=fit)
    assert len(image_set) == 4 and len(image_set.labels) == 4
    assert ["A9.png: left out" in line for line in log()] == [True]


def test_bad_images_end_draw_cam_with_one_line(
    verb: Callable[..., Result], tiny_run: Path, phantom: Path, tmp_path: Path
) -> None:
    image = next((phantom / "COVID" / "images").iterdir())
    flat = _write(tmp_path / "flat.png", np.full((30, 30), 7, np.uint8))
    pixels = np.linspace(0, 1, 900, dtype=np.float32).reshape(30, 30)
    pixels[3, 3] = np.nan
    nan = _write(tmp_path / "nan.tiff", pixels)
    boxes = tmp_path / "b.csv"
    boxes.write_text(HEADER + f"{image.name},x,-5,0,5,5\n")
    for words, expected in (
        ((flat,), ["--image", "flat.png", "one value"]),
        ((image, nan), ["--image", "nan.tiff", "not finite"]),
        ((image, f"data.boxes={boxes}"), ["--boxes", "b.csv, line 2"]),
    ):
        result = verb("draw_cam.py", "--weights", tiny_run, "--output", tmp_path / "o", "--image", *words)
        assert result.code == 2 and result.err.count("\n") == 1 and all(word in result.err for word in expected)
    assert not (tmp_path / "o").exists()
