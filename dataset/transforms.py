"""Augmentation and normalisation on the device, a batch at a time.

Every geometric key of `configs/augment/` becomes a 3×3 matrix per image, and their product one bilinear resampling: no
pixel is interpolated twice, and masks move exactly with their image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F

from config import AugmentConfig
from dataset.sampling import uniforms
from utils import UserError

# The random numbers of one image, in a fixed order: switching one key off does not change the numbers of the others.
DRAWS = (
    *("crop_x", "crop_y", "horizontal_flip", "vertical_flip", "rotation", "affine_rotation", "shift_x", "shift_y"),
    *("scale", "shear", "zoom", "zoom_side", "zoom_x", "zoom_y", "brightness", "contrast", "geometric"),
)


def _matrix(a=1.0, b=0.0, c=0.0, d=0.0, e=1.0, f=0.0, *, n: int) -> np.ndarray:
    """Return n matrices [[a, b, c], [d, e, f], [0, 0, 1]]; each entry is a number or an (n,) array."""
    out = np.zeros((n, 3, 3))
    for (row, column), value in zip(((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)), (a, b, c, d, e, f), strict=True):
        out[:, row, column] = value
    out[:, 2, 2] = 1
    return out


class Augment:
    """The random transform of training images, a function of (seed, epoch, position in the epoch).

    Args:
        config: the `augment` keys.
        seed: the run's seed.
        source_side, side: sides in pixels of the cached images and of the model's input.

    Raises: `UserError` for a crop larger than the resized image.
    """

    def __init__(self, config: AugmentConfig, seed: int, source_side: int, side: int) -> None:
        if config.random_crop and config.random_crop > source_side:
            larger = f"larger than the image ({source_side} pixels); lower it or raise augment.resize"
            raise UserError(f"augment.random_crop={config.random_crop}: {larger}")
        self.config, self.seed, self.source_side, self.side = config, seed, source_side, side

    def matrices(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """Return the matrices from output to input coordinates, both in [-1, 1], x right and y down: (n, 3, 3) float64.

        The steps follow the seed project's pipeline: crop, flips, rotation, affine (rotation, shear, scale,
        translation), zoom-out. Pixels from outside the image are black.
        """
        c, n = self.config, len(positions)
        u, signed = self._draws(epoch, positions)
        kept = (c.random_crop or self.source_side) / self.source_side
        crop = _matrix(kept, 0, (1 - kept) * signed["crop_x"], 0, kept, (1 - kept) * signed["crop_y"], n=n)
        mirror_x, mirror_y = (np.where(u[key] < getattr(c, key), -1, 1) for key in ("horizontal_flip", "vertical_flip"))
        flip = _matrix(mirror_x, e=mirror_y, n=n)
        turn = _rotation(np.deg2rad(c.rotation) * signed["rotation"])
        # out = R(angle)·Shear·scale·in + shift, so in = 1/scale·Shear⁻¹·R(-angle)·(out - shift)
        shift = _matrix(c=-2 * c.translation * signed["shift_x"], f=-2 * c.translation * signed["shift_y"], n=n)
        shrink = 1 / (1 + c.scale * signed["scale"])
        shear = _matrix(shrink, -shrink * np.tan(np.deg2rad(c.shear) * signed["shear"]), e=shrink, n=n)
        affine = shear @ _rotation(-np.deg2rad(c.affine_rotation) * signed["affine_rotation"]) @ shift
        canvas = np.where(u["zoom"] < c.zoom_out, 1 + (c.zoom_out_max - 1) * u["zoom_side"], 1)
        zoom = _matrix(canvas, 0, (canvas - 1) * signed["zoom_x"], 0, canvas, (canvas - 1) * signed["zoom_y"], n=n)
        geometric = turn @ affine @ zoom
        geometric[u["geometric"] >= c.geometric] = np.eye(3)
        return crop @ flip @ geometric

    def _draws(self, epoch: int, positions: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Return the random numbers of each position by name, (n,) in [0, 1), and the same in [-1, 1)."""
        numbers = uniforms(self.seed, epoch, positions, len(DRAWS))
        return dict(zip(DRAWS, numbers.T, strict=True)), dict(zip(DRAWS, (2 * numbers - 1).T, strict=True))

    def __call__(
        self, pixels: torch.Tensor, epoch: int, positions: np.ndarray, masks: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Transform a batch on its device.

        Args:
            pixels: (n, source_side, source_side) uint8.
            epoch: from 1.
            positions: (n,) positions in the epoch's order.
            masks: (n, k, source_side, source_side) uint8 of 0 and 1, or None.

        Returns: pixels (n, side, side) float32 in [0, 1], and masks (n, k, side, side) uint8 or None.
        """
        matrices = self.matrices(epoch, positions)
        pixels = pixels.float().div_(255)
        # A crop that is reduced to the input size is averaged first, as images are when they enter the cache.
        fitting = round(self.side * self.source_side / (self.config.random_crop or self.source_side))
        if fitting < self.source_side:
            size = (fitting, fitting)
            pixels = F.interpolate(pixels[:, None], size, mode="bilinear", antialias=True, align_corners=False)[:, 0]
        pixels = self._resample(pixels[:, None], matrices, "bilinear")[:, 0]
        if masks is not None:
            masks = self._resample(masks.float(), matrices, "nearest").to(torch.uint8)
        return self._expose(pixels, epoch, positions), masks

    def _resample(self, planes: torch.Tensor, matrices: np.ndarray, mode: str) -> torch.Tensor:
        """Return the planes transformed by their matrices: (n, k, side, side).

        On a CPU, images that are at most flipped are not resampled, which is exact and much cheaper; a GPU resamples
        all of them in one kernel.
        """
        flipped_only = (np.abs(matrices) == np.eye(3)).all((1, 2)) & (planes.shape[-1] == self.side)
        if flipped_only.all() and (matrices == np.eye(3)).all():
            return planes
        if planes.device.type != "cpu" or not flipped_only.any():
            return self._sample(planes, matrices, mode)
        out = torch.empty((*planes.shape[:2], self.side, self.side), dtype=planes.dtype, device=planes.device)
        for dims in ((), (-1,), (-2,), (-2, -1)):
            signs = [-1 if -1 in dims else 1, -1 if -2 in dims else 1]
            chosen = np.flatnonzero(flipped_only & (matrices[:, (0, 1), (0, 1)] == signs).all(1))
            out[chosen] = planes[chosen].flip(dims)
        turned = np.flatnonzero(~flipped_only)
        out[turned] = self._sample(planes[turned], matrices[turned], mode)
        return out

    def _sample(self, planes: torch.Tensor, matrices: np.ndarray, mode: str) -> torch.Tensor:
        """Resample the planes bilinearly or to the nearest pixel: (n, k, side, side)."""
        theta = _send(matrices[:, :2], planes.device)
        centres = (torch.arange(self.side, device=planes.device) * 2 + 1) / self.side - 1
        grid = torch.empty((len(planes), self.side, self.side, 2), device=planes.device)
        for axis in (0, 1):  # as F.affine_grid, but with two outer sums instead of a matrix product per pixel
            along_y = theta[:, axis, 1, None] * centres + theta[:, axis, 2, None]
            torch.add(along_y[:, :, None], (theta[:, axis, 0, None] * centres)[:, None, :], out=grid[..., axis])
        return F.grid_sample(planes, grid, mode=mode, padding_mode="zeros", align_corners=False)

    def _expose(self, pixels: torch.Tensor, epoch: int, positions: np.ndarray) -> torch.Tensor:
        """Change brightness and contrast; the result stays in [0, 1]."""
        c = self.config
        if not c.brightness and not c.contrast:
            return pixels
        _, signed = self._draws(epoch, positions)
        signed = _send(np.stack([signed["brightness"], signed["contrast"]]), pixels.device)[..., None, None]
        gain = 1 + c.contrast * signed[1]
        offset = pixels.mean((1, 2), keepdim=True) * (1 - gain) + c.brightness * signed[0]
        return torch.addcmul(offset, pixels, gain).clamp_(0, 1)


def _send(numbers: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return `numbers` as float32 on the device. Pinned memory lets the copy to a GPU run asynchronously."""
    tensor = torch.from_numpy(numbers.astype(np.float32))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _rotation(angle: np.ndarray) -> np.ndarray:
    cos, sin = np.cos(angle), np.sin(angle)
    return _matrix(cos, -sin, 0, sin, cos, 0, n=len(angle))


@dataclass(frozen=True)
class Normalisation:
    """The mean and the standard deviation per channel of the model's input, for pixels in [0, 1]."""

    mean: Sequence[float]
    std: Sequence[float]


def normalise(pixels: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Return grey pixels, (n, side, side) in [0, 1], as the model's input: (n, channels, side, side), channels last.

    The grey is repeated for each channel that the weights expect (three for ImageNet), then (x - mean) / std.
    """
    mean_, std_ = (_per_channel(tuple(v), pixels.device) for v in (mean, std))
    return (pixels[:, None] - mean_).div_(std_).contiguous(memory_format=torch.channels_last)


@lru_cache(maxsize=32)
def _per_channel(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """Return the values as (channels, 1, 1) on the device; cached, because each copy would wait for the device."""
    with torch.inference_mode(False):  # an inference tensor could not be used in training
        return torch.tensor(values, device=device)[:, None, None]
