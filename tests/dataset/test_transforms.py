"""Augmentation against closed forms: flips, rotations, shifts, crops; masks; independence of the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms.functional import InterpolationMode, affine

from config import AugmentConfig, compose_config
from dataset import transforms
from dataset.transforms import Augment, normalise
from utils import UserError

SIDE = 32
OFF = {"horizontal_flip": 0.0}
PIXELS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, SIDE, SIDE)).astype(np.uint8))
POSITIONS = np.arange(6)


def _fixed(monkeypatch: pytest.MonkeyPatch, **columns: float) -> None:
    """Fix the random numbers at 0.5 (no change by a signed key), except for the named ones."""
    values = np.full(len(transforms.DRAWS), 0.5)
    for name, value in columns.items():
        values[transforms.DRAWS.index(name)] = value
    monkeypatch.setattr(
        transforms, "uniforms", lambda seed, epoch, positions, count: np.tile(values, (len(positions), 1))
    )


def _apply(pixels: torch.Tensor = PIXELS, source_side: int = SIDE, side: int = SIDE, **keys: float) -> torch.Tensor:
    return Augment(AugmentConfig(**{**OFF, **keys}), 0, source_side, side)(pixels, 1, np.arange(len(pixels)))[0]


def test_without_keys_nothing_changes() -> None:
    torch.testing.assert_close(_apply(), PIXELS.float() / 255, rtol=0, atol=0)


@pytest.mark.parametrize(("key", "dim"), [("horizontal_flip", -1), ("vertical_flip", -2)])
def test_flips_are_exact(key: str, dim: int) -> None:
    torch.testing.assert_close(_apply(**{key: 1.0}), PIXELS.flip(dim).float() / 255, rtol=0, atol=0)
    # and the same through the resample that other keys force
    torch.testing.assert_close(_apply(**{key: 1.0}, scale=1e-12), PIXELS.flip(dim).float() / 255, atol=1e-4, rtol=0)


def test_flip_probability() -> None:
    many = PIXELS[:1].expand(4000, -1, -1)
    flipped = (_apply(many, horizontal_flip=0.3)[:, 0, 0] != PIXELS[0, 0, 0] / 255).float().mean()
    assert abs(float(flipped) - 0.3) < 5 * np.sqrt(0.21 / 4000)


def test_rotation_by_a_right_angle(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, column in (("rotation", "rotation"), ("affine_rotation", "affine_rotation")):
        _fixed(monkeypatch, **{column: 1.0})
        out = _apply(**{key: 90.0})
        turned = [torch.rot90(PIXELS, k, (1, 2)).float() / 255 for k in (1, -1)]
        assert min(float((out - t).abs().max()) for t in turned) < 1e-3


def test_translation_is_a_fraction_of_the_side(monkeypatch: pytest.MonkeyPatch) -> None:
    _fixed(monkeypatch, shift_x=1.0, shift_y=0.0)
    out = _apply(translation=0.25)  # 8 pixels to the right, 8 up; black comes in
    torch.testing.assert_close(out[:, :-8, 8:], PIXELS[:, 8:, :-8].float() / 255, atol=1e-4, rtol=0)
    assert float(out[:, -7:].abs().max()) < 1e-4
    assert float(out[:, :, :7].abs().max()) < 1e-4


@pytest.mark.parametrize(
    ("keys", "columns", "reference"),
    [
        ({"scale": 0.2}, {"scale": 1.0}, {"scale": 1.2}),
        ({"scale": 0.2}, {"scale": 0.0}, {"scale": 0.8}),
        ({"translation": 0.1}, {"shift_x": 1.0}, {"translate": [0.1 * SIDE, 0]}),
        ({"affine_rotation": 20}, {"affine_rotation": 1.0}, {"angle": 20.0}),
        ({"shear": 10}, {"shear": 1.0}, {"shear": [-10.0, 0.0]}),
    ],
)
def test_against_torchvision(monkeypatch: pytest.MonkeyPatch, keys: dict, columns: dict, reference: dict) -> None:
    """torchvision's affine, one key at a time (its shear has the opposite sign)."""
    _fixed(monkeypatch, **columns)
    smooth = F.avg_pool2d(PIXELS[:, None].float(), 5, 1, 2)  # in smooth images the order of sums matters less
    expected = (
        affine(
            smooth,
            **{"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0], **reference},
            interpolation=InterpolationMode.BILINEAR,
        )[:, 0]
        / 255
    )
    resampled = Augment(AugmentConfig(**{**OFF, **keys}), 0, SIDE, SIDE)._resample(
        smooth / 255, Augment(AugmentConfig(**{**OFF, **keys}), 0, SIDE, SIDE).matrices(1, POSITIONS), "bilinear"
    )[:, 0]
    torch.testing.assert_close(resampled, expected, atol=2e-3, rtol=0)


def test_random_crop_cuts_and_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    _fixed(monkeypatch, crop_x=0.0, crop_y=1.0)  # the left lower corner
    out = _apply(side=16, random_crop=16)
    torch.testing.assert_close(out, PIXELS[:, 16:, :16].float() / 255, atol=1e-4, rtol=0)
    with pytest.raises(UserError, match=r"augment\.random_crop=64"):
        _apply(random_crop=64)


def test_random_crops_differ_and_stay_inside() -> None:
    bright = torch.full((50, SIDE, SIDE), 255, dtype=torch.uint8)
    assert float(_apply(bright, side=24, random_crop=20).min()) > 0.999


def test_zoom_out_puts_the_image_on_black(monkeypatch: pytest.MonkeyPatch) -> None:
    _fixed(monkeypatch, zoom=0.0, zoom_side=1.0, zoom_x=0.0, zoom_y=0.0)
    bright = torch.full((1, SIDE, SIDE), 255, dtype=torch.uint8)
    out = _apply(bright, zoom_out=1.0, zoom_out_max=2.0)[0]
    assert float(out.mean()) == pytest.approx(0.25, abs=0.01)
    corners = [float(out[y : y + 14, x : x + 14].mean()) for y in (0, 18) for x in (0, 18)]
    assert sorted(round(c) for c in corners) == [0, 0, 0, 1]


def test_brightness_and_contrast(monkeypatch: pytest.MonkeyPatch) -> None:
    grey = torch.full((1, SIDE, SIDE), 100, dtype=torch.uint8)
    grey[:, :, : SIDE // 2] = 50
    _fixed(monkeypatch, brightness=1.0)
    torch.testing.assert_close(_apply(grey, brightness=0.1), grey / 255 + 0.1, atol=1e-5, rtol=0)
    _fixed(monkeypatch, contrast=0.0)
    torch.testing.assert_close(_apply(grey, contrast=0.5), (grey / 255 - 75 / 255) * 0.5 + 75 / 255, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "key",
    [
        "horizontal_flip",
        "vertical_flip",
        "rotation",
        "affine_rotation",
        "translation",
        "scale",
        "shear",
        "zoom_out",
        "brightness",
        "contrast",
        "random_crop",
    ],
)
def test_every_key_has_an_effect(key: str) -> None:
    values = {"rotation": 45.0, "affine_rotation": 20.0, "shear": 10.0, "random_crop": 20}
    out = _apply(**{key: values.get(key, 0.5)})
    assert not torch.equal(out, PIXELS.float() / 255)
    assert not torch.equal(out[0], out[1]) or key in ("horizontal_flip", "vertical_flip")


def test_an_image_does_not_depend_on_its_batch() -> None:
    augment = Augment(
        compose_config(["augment=seed", "augment.resize=32", "augment.random_crop=32", "augment.contrast=0.2"]).augment,
        7,
        SIDE,
        SIDE,
    )
    whole, _ = augment(PIXELS, 3, POSITIONS)
    parts = [augment(PIXELS[i : i + 2], 3, POSITIONS[i : i + 2])[0] for i in (0, 2, 4)]
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-6, rtol=0)
    assert not torch.equal(augment(PIXELS, 4, POSITIONS)[0], whole)


def test_masks_move_with_their_image() -> None:
    squares = torch.zeros(40, SIDE, SIDE, dtype=torch.uint8)
    squares[:, 8:20, 6:14] = 1
    config = AugmentConfig(horizontal_flip=0.5, rotation=30, translation=0.1, scale=0.2, shear=5, zoom_out=0.3)
    pixels, masks = Augment(config, 1, SIDE, SIDE)(
        squares * 255, 2, np.arange(40), squares[:, None].expand(-1, 2, -1, -1)
    )
    assert masks.dtype == torch.uint8
    disagree = (pixels > 0.5) != masks[:, 0].bool()
    assert float(disagree.float().mean()) < 0.004
    assert torch.equal(masks[:, 0], masks[:, 1])


def test_normalise_repeats_the_grey() -> None:
    grey = torch.rand(2, 5, 5)
    out = normalise(grey, (0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    assert out.shape == (2, 3, 5, 5)
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out[:, 1], (grey - 0.4) / 0.2)


def test_unchanged_images_stay_sharp() -> None:
    many = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (2000, 8, 8)).astype(np.uint8))
    out = _apply(many, 8, 8, rotation=20.0, zoom_out=0.5, translation=0.1, geometric=0.3)
    spared = ((out - many / 255).abs().amax((1, 2)) < 1e-4).float().mean()
    assert abs(float(spared) - 0.7) < 5 * np.sqrt(0.21 / 2000)


def test_normalise_works_in_training_after_inference() -> None:
    grey = torch.rand(2, 4, 4)
    with torch.inference_mode():
        first = normalise(grey, (0.51, 0.4, 0.3), (0.11, 0.2, 0.3))
    weights = torch.ones(3, requires_grad=True)
    second = normalise(grey, (0.51, 0.4, 0.3), (0.11, 0.2, 0.3))
    (second * weights[:, None, None]).sum().backward()  # a tensor of inference could not be saved for this
    torch.testing.assert_close(weights.grad, first.sum((0, 2, 3)))


def test_flipping_equals_resampling() -> None:
    """On a CPU, images that are only flipped are not resampled; resampling would give the same result."""
    config = AugmentConfig(**{**OFF, "rotation": 20, "horizontal_flip": 0.5, "vertical_flip": 0.5, "geometric": 0.5})
    augment, positions = Augment(config, 3, 24, 24), np.arange(64)
    planes = torch.rand(64, 2, 24, 24)
    matrices = augment.matrices(1, positions)
    only_flipped = (np.abs(matrices) == np.eye(3)).all((1, 2))
    assert 10 < only_flipped.sum() < 54
    mixed, sampled = (f(planes, matrices, "bilinear") for f in (augment._resample, augment._sample))
    torch.testing.assert_close(mixed, sampled, rtol=0, atol=1e-4)
    signs = matrices[:, (0, 1), (0, 1)]
    for i in np.flatnonzero(only_flipped):
        dims = [d for d, sign in ((-1, signs[i, 0]), (-2, signs[i, 1])) if sign < 0]
        assert torch.equal(mixed[i], planes[i].flip(dims))
