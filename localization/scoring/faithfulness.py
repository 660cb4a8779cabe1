"""Faithfulness of maps: how the explained class's probability changes when pixels are changed as a map ranks them.

    deletion   pixels are removed, highest first: the area under the probability; lower is better (Petsiuk 2018, RISE)
    insertion  pixels return to a blurred image, highest first: the area; higher is better (Petsiuk 2018, RISE)
    drop       share of the probability that is lost if only the pixels that the map shows are kept (Chattopadhay 2018)
    increase   1 if it grows instead, else 0 (Chattopadhay 2018)
    road       half the difference between removing the lowest pixels and removing the highest (Rong 2022, ROAD)

These scores need no mask: a map can be faithful to a model that looks at the wrong place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from localization.scoring.imputation import impute
from localization.scoring.rows import FAITHFULNESS

STEPS = 8  # equal intervals of the deletion and insertion curves; the areas correlate by 0.999 with those of 32
ROAD_SHARES = (0.2, 0.5, 0.8)  # of the pixels, removed and imputed; 0.99 with Rong's nine from 0.1 to 0.9
PASSES = 2 * (STEPS - 1) + 1 + 2 * len(ROAD_SHARES)  # forward passes per map
BLUR = 20 / 224  # standard deviation as a share of the longer side; half of it left ResNet-18 half its probability
NOISE = 0.01  # standard deviation of the noise on imputed pixels, in units of the normalised image
ROUNDING = 1e-5  # of a probability in float32, whatever the batch: growth by less is not an increase
GRAINS = 2**20  # steps up to a map's peak; values in one step tie


class Faithfulness:
    """Scores the faithfulness of maps of a batch of images under one model; any number of maps for each image.

    The maps of an image share the probabilities of the whole, the blank and the blurred image, which are computed here,
    once. Each map costs another `PASSES` forward passes and `2 * len(ROAD_SHARES)` imputations.

    Removed pixels become 0, the mean of the data that the weights were first trained on; in `road` they are imputed.
    `drop` and `increase` blend the image with that same 0 by the map's value. (The paper multiplies "the image": one
    that is not normalised would turn black, and black is air, so evidence.) Ties, such as those of a uniform map or of
    the zeros that a ReLU left, are broken by one random order of the pixels, the same for all maps: broken by position,
    the top left would come first.

    Args:
        probabilities: from images (b, channels, height, width) to class probabilities (b, classes) float32.
        inputs: (n, channels, height, width) float32, normalised.
        targets: (n,) int64, the class explained in each image.
        batch: most images in one call of `probabilities`.
        seed: for the order of ties and for the noise. An image's scores do not depend on the others in the batch.
        rounding: of a probability, by the model's precision: growth by less is not an increase.
    """

    @torch.no_grad()
    def __init__(
        self,
        probabilities: Callable[[torch.Tensor], torch.Tensor],
        inputs: torch.Tensor,
        targets: torch.Tensor,
        batch: int = 32,
        seed: int = 0,
        rounding: float = ROUNDING,
    ) -> None:
        self.probabilities, self.batch, self.rounding = probabilities, batch, rounding
        self.inputs, self.targets = inputs.float(), targets.to(inputs.device)
        height, width = inputs.shape[-2:]
        generator = torch.Generator().manual_seed(seed)  # the CPU's: the same on every device
        self.order = torch.randperm(height * width, generator=generator).to(inputs.device)
        self.noise = NOISE * torch.randn((height, width), generator=generator).to(inputs.device)
        self.blurred = _blur(self.inputs, BLUR * max(height, width))
        self.copies = _affine_copies(self.inputs)
        blank = torch.zeros_like(self.inputs)
        self.ends = np.stack([self._predict(images, self.targets) for images in (self.inputs, blank, self.blurred)])

    @torch.no_grad()
    def scores(self, maps: torch.Tensor) -> dict[str, np.ndarray]:
        """Return each of `FAITHFULNESS` for one map of each image; NaN where a map is not finite or nowhere positive.

        Args:
            maps: (n, h, w) ≥ 0 on any grid; enlarged bilinearly to the images.

        Returns: (n,) float64 each: `deletion`, `insertion` and `drop` in [0, 1], `increase` 0 or 1, `road` in
            [-0.5, 0.5], around 0 for a random map.
        """
        maps = maps.to(self.inputs.device, torch.float32)[:, None]
        peak = maps.amax((1, 2, 3), keepdim=True)
        # In whole grains of the peak before enlarging, so that rounding after it makes a plateau's pixels equal again.
        grains = (maps / peak * GRAINS).round()
        large = F.interpolate(grains, tuple(self.inputs.shape[-2:]), mode="bilinear", align_corners=False)
        usable = maps.isfinite().flatten(1).all(1) & (peak > 0).flatten() & (large.flatten(1).amax(1) > 0)
        scores = np.full((len(maps), len(FAITHFULNESS)), np.nan)
        for part in usable.nonzero()[:, 0].split(max(1, self.batch // PASSES)):
            scores[part.cpu().numpy()] = self._scores(large[part], part)
        return dict(zip(FAITHFULNESS, scores.T, strict=True))

    def _scores(self, large: torch.Tensor, index: torch.Tensor) -> np.ndarray:
        """Return the scores (k, 5) of maps (k, 1, height, width) in grains, of the images `index` (k,)."""
        images, blurred = self.inputs[index], self.blurred[index]
        steps = [step / STEPS for step in range(1, STEPS)]
        masks = self._highest(large, [*steps, *ROAD_SHARES, *(1 - share for share in ROAD_SHARES)])
        first, most, rest = masks[: len(steps)], masks[len(steps) : -len(ROAD_SHARES)], masks[-len(ROAD_SHARES) :]
        imputed = self._without(images, index, torch.stack([*most, *(~mask for mask in rest)]))
        variants = [
            *(images.masked_fill(mask, 0) for mask in first),
            *(torch.where(mask, images, blurred) for mask in first),
            images * (large / large.amax((2, 3), keepdim=True)),
            *imputed,
        ]
        targets = self.targets[index].repeat_interleave(PASSES)
        predicted = self._predict(torch.stack(variants, 1).flatten(0, 1), targets).reshape(-1, PASSES)
        parts = np.cumsum([STEPS - 1, STEPS - 1, 1, len(ROAD_SHARES)])
        deleted, inserted, alone, without_most, without_least = np.split(predicted, parts, 1)
        whole, blank, start = self.ends[:, index.cpu().numpy(), None]
        with np.errstate(invalid="ignore"):  # a probability of 0 cannot drop: NaN
            drop = np.maximum(whole - alone, 0) / whole
        columns = (
            _area(np.hstack([whole, deleted, blank])),
            _area(np.hstack([start, inserted, whole])),
            drop,
            alone > whole + self.rounding,
            (without_least - without_most).mean(1, keepdims=True) / 2,
        )
        return np.hstack(columns)

    def _highest(self, large: torch.Tensor, shares: Sequence[float]) -> list[torch.Tensor]:
        """Return for each share a mask (k, 1, height, width) of that share of the pixels, where the map is highest."""
        keys = large.round().long().flatten(1) * len(self.order) + self.order  # no two are equal
        rising = keys.sort(1).values
        counts = [round(share * len(self.order)) for share in shares]
        return [(keys >= rising[:, -count, None]).reshape(large.shape) for count in counts]

    def _without(self, images: torch.Tensor, index: torch.Tensor, removed: torch.Tensor) -> torch.Tensor:
        """Return the images `index` (k,) with the pixels `removed` (m, k, 1, height, width) imputed, and noise on them.

        Returns: (m, k, channels, height, width).
        """
        channels = images if self.copies is None else images[:, :1]
        filled = impute(channels.repeat(len(removed), 1, 1, 1), removed.flatten(0, 2))
        filled = filled.unflatten(0, removed.shape[:2])
        if self.copies:
            slope, offset = (value[index] for value in self.copies)
            filled = slope * filled + offset
        return torch.where(removed, filled + self.noise, images)

    def _predict(self, images: torch.Tensor, targets: torch.Tensor) -> np.ndarray:
        """Return the targets' probabilities (b,) float64."""
        probabilities = torch.cat([self.probabilities(part) for part in images.split(self.batch)])
        return probabilities.gather(1, targets[:, None])[:, 0].double().cpu().numpy()


def _area(curve: np.ndarray) -> np.ndarray:
    """Return the area (k, 1) under curves (k, points) over [0, 1], by trapezoids."""
    return (curve[:, :-1] + curve[:, 1:]).mean(1, keepdims=True) / 2


def _blur(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Blur images (n, channels, h, w) by a Gaussian cut off at three standard deviations; borders are mirrored."""
    radius = min(math.ceil(3 * sigma), min(images.shape[-2:]) - 1)
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=images.device) / sigma) ** 2)
    taps = (taps / taps.sum())[None, None, None]
    planes = F.pad(images, (radius,) * 4, mode="reflect").flatten(0, 1)[:, None]
    return F.conv2d(F.conv2d(planes, taps), taps.mT)[:, 0].reshape(images.shape)


def _affine_copies(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return slope and offset (n, channels, 1, 1) of each channel on the first; None unless each is affine in it.

    In grey images all are, whatever their normalisation: then one channel's imputation serves all channels.
    """
    mean = images.mean((2, 3), keepdim=True)
    centred = images - mean
    first = centred[:, :1]
    slope = (centred * first).sum((2, 3), keepdim=True) / (first * first).sum((2, 3), keepdim=True)
    slope = slope.nan_to_num(0)  # an image of one value
    if (centred - slope * first).abs().max() > 1e-4 * centred.abs().max():
        return None
    return slope, mean - slope * mean[:, :1]
