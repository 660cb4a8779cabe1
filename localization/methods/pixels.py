"""Maps of pixels from the score's gradient with respect to the image: along a path, under noise, or guided.

Each method is a function of an `Explanation` and returns maps (n, height, width) float32 ≥ 0, not rescaled, on the
input's own grid. Images are processed one at a time, so that a map does not depend on the other images of its batch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from localization.methods.explanation import Explanation
from localization.methods.gradients import grad_cam, mean_of_layers
from localization.methods.layers import evaluating, noise_image
from pretrained_models import Architecture

NOISE = 0.15  # standard deviation of SmoothGrad's noise as a share of the image's range
COMPLETE = 0.01  # tolerated error of the attributions' sum, as a share of the score's change along the path


def integrated_gradients(explanation: Explanation) -> torch.Tensor:
    """Integrated gradients (Sundararajan 2017) from black to the image, summed over channels, rectified."""
    return F.relu(attributions(explanation).sum(1))


def attributions(explanation: Explanation) -> torch.Tensor:
    """Return (x − black) ∫₀¹ ∂score/∂x at black + t (x − black) dt (eq. 1), (n, channels, height, width), signed.

    The attributions of an image should sum to score(x) − score(black) (completeness). The integral is taken by the
    midpoint rule over `settings.steps` nodes. If that misses completeness by more than 1 %, three times as many nodes
    are used, including the first ones; if that does too, the nodes are reweighted (`_Path.completed`). (The slope of a
    deep network changes sign hundreds of times along the path, above all in dark images, and Gauss-Legendre quadrature,
    which is meant for smooth functions, was less accurate than the midpoint rule with as many nodes.)
    """
    images, targets, steps = explanation.inputs, explanation.targets, explanation.settings.steps
    black = explanation.black.to(images)[:, None, None].expand_as(images[0])
    changes = (explanation.predict(images) - explanation.predict(black[None])).gather(1, targets[:, None])[:, 0]
    coarse = (torch.arange(steps) + 0.5) / steps
    finer = ((torch.arange(3 * steps) + 0.5) / (3 * steps)).view(-1, 3)[:, [0, 2]].flatten()
    results = []
    for image, target, change in zip(images, targets, changes.double(), strict=True):
        path = _Path(explanation, black, image, target)
        path.walk(coarse)
        if path.misses(change):
            path.walk(finer)
        results.append(path.completed(change) if path.misses(change) else path.mean)
    return torch.stack(results)


class _Path:
    """The attributions (x − black) ⊙ ∂score/∂x at nodes of the straight path from black to one image.

    Their sum at a node is the slope of the score there, d score / dt.
    """

    def __init__(
        self, explanation: Explanation, black: torch.Tensor, image: torch.Tensor, target: torch.Tensor
    ) -> None:
        self.explanation, self.black, self.image, self.target = explanation, black, image, target
        self.total = torch.zeros_like(image, dtype=torch.float64)
        self.products = torch.zeros_like(self.total)  # the sum of slope × attributions
        self.slopes = self.total.new_zeros(0)

    def walk(self, nodes: torch.Tensor) -> None:
        """Add the nodes t in [0, 1]."""
        for part in nodes.to(self.image).split(self.explanation.settings.batch):
            points = torch.lerp(self.black, self.image, part[:, None, None, None])
            gradients = self.explanation.score_gradients(points, self.target.expand(len(part)))
            here = gradients.double() * (self.image - self.black)
            slopes = here.sum((1, 2, 3))
            self.total += here.sum(0)
            self.products += torch.einsum("s,schw->chw", slopes, here)
            self.slopes = torch.cat([self.slopes, slopes])

    @property
    def mean(self) -> torch.Tensor:
        """The mean attributions over the nodes, (channels, height, width)."""
        return (self.total / len(self.slopes)).float()

    def misses(self, change: torch.Tensor) -> bool:
        """Return whether the mean slope differs from the score's change by more than completeness allows."""
        return bool((self.slopes.mean() - change).abs() > COMPLETE * change.abs())

    def completed(self, change: torch.Tensor) -> torch.Tensor:
        """Return the mean with nodes weighted by 1 + λ (slope − mean slope), where λ makes the mean slope `change`.

        The slope serves as a control variate, as its integral is known: of all weights that average 1 and make the
        attributions complete, these are the closest to equal weights. None may be negative, which bounds λ.
        """
        offset = self.slopes - self.slopes.mean()
        tiny = torch.finfo(offset.dtype).tiny
        bound = 1 / offset.abs().amax().clamp_min(tiny)
        factor = ((change - self.slopes.mean()) / offset.square().mean().clamp_min(tiny)).clamp(-bound, bound)
        covariance = self.products / len(self.slopes) - self.slopes.mean() * self.total / len(self.slopes)
        return self.mean + (factor * covariance).float()


def smooth_grad(explanation: Explanation) -> torch.Tensor:
    """SmoothGrad (Smilkov 2017): |Σ_channels of the mean gradient over `settings.samples` noisy copies of the image|.

    The noise is normal, with a standard deviation of 15 % of the image's own range. Like radiographs it is grey, one
    plane for all channels. The plane of a sample is a function of (seed, sample) alone, the same for every image.
    """
    images, samples = explanation.inputs, explanation.settings.samples
    planes = torch.cat([_noise(explanation.settings.seed, sample, images) for sample in range(samples)])
    maps = []
    for image, target in zip(images, explanation.targets, strict=True):
        total, spread = torch.zeros_like(image), NOISE * (image.max() - image.min())
        for part in planes.split(explanation.settings.batch):
            total += explanation.score_gradients(image + spread * part, target.expand(len(part))).sum(0)
        # the last term makes the map of an image that is not finite NaN; ReLUs would hide it
        maps.append((total / samples).sum(0).abs() + 0 * spread)
    return torch.stack(maps)


def _noise(seed: int, sample: int, images: torch.Tensor) -> torch.Tensor:
    """Return standard normal noise (1, 1, height, width), the same on every device."""
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence([seed, sample]).generate_state(1)[0]))
    return torch.randn(1, 1, *images.shape[2:], generator=generator).to(images)


def guided_grad_cam(explanation: Explanation) -> torch.Tensor:
    """Guided Grad-CAM (Selvaraju 2017): enlarged Grad-CAM times the guided gradient summed over channels, rectified.

    As the map is the same for all channels, they may be summed before the product.
    """
    size = explanation.inputs.shape[2:]
    cams = mean_of_layers([grad_cam(f.activations, f.gradients) for f in explanation.cut.features])
    large = F.interpolate(cams[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    return large * F.relu(guided_gradients(explanation).sum(1))


def guided_gradients(explanation: Explanation) -> torch.Tensor:
    """Guided backpropagation (Springenberg 2015): (n, channels, height, width), signed."""
    with _Guided():
        return explanation.score_gradients(explanation.inputs, explanation.targets)


def why_not(model: nn.Module, architecture: Architecture, size: int) -> str:
    """Return why guided backpropagation is not possible, found by a pass of one noise image; empty if it is.

    It needs a ReLU on the path of the image: those of Swin V2 are only used for its position biases.
    """
    guided = _Guided()
    with torch.inference_mode(False), torch.enable_grad(), evaluating(model), guided:
        model(noise_image(model, architecture, size).requires_grad_())
    return "" if guided.rectifiers else "guided backpropagation needs ReLUs, and it has none"


_Rectified = tuple[torch.Tensor, float, bool]  # the input of a call, its ceiling, and whether it works in place


class _Rectify(torch.autograd.Function):
    """Clamp x to [0, ceiling]; the backward pass also zeroes negative incoming gradients."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, ceiling: float, inplace: bool) -> torch.Tensor:
        ctx.save_for_backward((x > 0) & (x < ceiling))
        if not inplace:
            return x.clamp(0, ceiling)
        ctx.mark_dirty(x)
        return x.clamp_(0, ceiling)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (passes,) = ctx.saved_tensors
        return F.relu(gradient) * passes, None, None


def _relu(input: torch.Tensor, inplace: bool = False, ceiling: float = torch.inf) -> _Rectified:
    return input, ceiling, inplace


def _hardtanh(
    input: torch.Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> _Rectified | None:
    return (input, float(max_val), inplace) if min_val == 0 else None


# The functions that may rectify → a reader of their arguments; nn.ReLU6 calls F.hardtanh.
_RECTIFIERS: dict[Callable, Callable[..., _Rectified | None]] = {
    **dict.fromkeys((F.relu, torch.relu, torch.Tensor.relu), _relu),
    **dict.fromkeys((torch.relu_, torch.Tensor.relu_), partial(_relu, inplace=True)),
    F.relu6: partial(_relu, ceiling=6.0),
    F.hardtanh: _hardtanh,
    F.hardtanh_: partial(_hardtanh, inplace=True),
}


class _Guided(TorchFunctionMode):
    """Replaces every rectifier that this thread calls by a guided one, functional and in-place ones included.

    Attributes:
        rectifiers: number of calls through which gradients flow.
    """

    rectifiers = 0

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        bounds = _RECTIFIERS[func](*args, **kwargs) if func in _RECTIFIERS else None
        if bounds is None:
            return func(*args, **kwargs)
        self.rectifiers += bounds[0].requires_grad
        return _Rectify.apply(*bounds)
