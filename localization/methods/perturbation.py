"""Maps computed without gradients, from how the score changes when part of the image or of a layer is removed.

Each method is a function of an `Explanation` and returns maps (n, h, w) float32 ≥ 0, not rescaled, on its own grid. The
score is the class score before the softmax. Images are processed one at a time, `settings.batch` copies per forward
pass, so that a map does not depend on the other images of its batch.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from localization.methods.cut import Features
from localization.methods.explanation import Explanation
from localization.methods.gradients import mean_of_layers
from localization.methods.layers import Layer, evaluating


def score_cam(explanation: Explanation) -> torch.Tensor:
    """Score-CAM (Wang 2020, algorithm 1): ReLU(Σ_k α_k A_k), α the softmax over channels of the scores of x ⊙ H_k.

    H_k is channel k, enlarged to the image and rescaled to [0, 1]. x is the normalised image, so that pixels hidden by
    H_k take the mean of the normalisation. The paper's baseline score is common to all channels and cancels in the
    softmax. A constant channel has no H_k and adds nothing. Only the `settings.max_channels` channels with the largest
    Grad-CAM weights are used, and the softmax is over those.
    """
    return mean_of_layers([_score_cam(explanation, features) for features in explanation.cut.features])


def _score_cam(explanation: Explanation, features: Features) -> torch.Tensor:
    maps = []
    for image, target, activations, gradients in zip(
        explanation.inputs, explanation.targets, features.activations, features.gradients, strict=True
    ):
        varies = activations.amax((1, 2)) != activations.amin((1, 2))
        channels = _heaviest(gradients, varies, explanation.settings.max_channels)
        scores = [gradients.new_zeros(0)]
        for part in channels.split(explanation.settings.batch) if len(channels) else ():
            large = F.interpolate(activations[part][None], image.shape[1:], mode="bilinear", align_corners=False)[0]
            low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
            hidden = image * ((large - low) / (high - low))[:, None]
            scores.append(explanation.predict(hidden)[:, target])
        maps.append(F.relu(torch.einsum("k,khw->hw", torch.cat(scores).softmax(0), activations[channels])))
    return torch.stack(maps)


def ablation_cam(explanation: Explanation) -> torch.Tensor:
    """Ablation-CAM (Desai and Ramaswamy 2020, eq. 5): ReLU(Σ_k w_k A_k), w_k = (y − y_k) / |y|, y_k without channel k.

    A channel is removed by setting it to 0 in the layer's output. The paper divides by y, assuming that it is positive;
    a negative y would reverse every sign, hence |y|, which only scales the map. A channel that is 0 everywhere adds
    nothing and is skipped. Everything runs in float32: one channel's share of a score is lost in bfloat16's 8 bits.

    If the model allows it, only the part after the layer runs for each channel. As many channels are then used as cost
    `settings.max_channels` whole forward passes, usually all of a last layer. Otherwise `settings.max_channels` are
    used. Either way those with the largest Grad-CAM weights come first. (In EfficientNet-Lite0, maps from 64 of the
    1,280 channels correlated by only 0.1 to 0.9 with maps from all, and all cost less than Score-CAM's 64.)
    """
    exact = replace(explanation, settings=replace(explanation.settings, precision="fp32"))
    layers = zip(explanation.layers, explanation.cut.features, strict=True)
    return mean_of_layers([_ablation_cam(exact, layer, features, explanation.targets) for layer, features in layers])


def _ablation_cam(explanation: Explanation, layer: Layer, features: Features, targets: torch.Tensor) -> torch.Tensor:
    most, copies = explanation.settings.max_channels, explanation.settings.batch
    tail_only = _takes_copies(explanation, layer, features)
    if tail_only:  # hold as many numbers at the layer as a batch of images does
        copies *= max(1, explanation.inputs[0].numel() // features.activations[0].numel())
        most = max(most, int(most / (_share_behind(explanation, layer) + 1 / copies)))
    maps = []
    for image, target, activations, gradients in zip(
        explanation.inputs, targets, features.activations, features.gradients, strict=True
    ):
        channels = _heaviest(gradients, activations.flatten(1).any(1), most)
        weights = []
        for part in channels.split(max(1, copies - 1)):  # the first row keeps every channel
            kept = torch.ones(1 + len(part), len(activations), dtype=torch.bool, device=part.device)
            kept[torch.arange(1, 1 + len(part), device=part.device), part] = False
            score = _ablated(explanation, layer, image, kept, tail_only)[:, target]
            weights.append((score[0] - score[1:]) / score[0].abs().clamp_min(torch.finfo(score.dtype).tiny))
        maps.append(F.relu(torch.einsum("k,khw->hw", torch.cat(weights), activations[channels])))
    return torch.stack(maps)


def _takes_copies(explanation: Explanation, layer: Layer, features: Features) -> bool:
    """Return whether the part after the layer accepts a batch of edited copies of one image's output.

    It usually does: a branch that bypasses the layer (a transformer's residual) is broadcast. Some code reads the batch
    size earlier, and then raises an error or gives other scores than whole passes do. Both ways are compared here, with
    all channels and with none.
    """
    image, channels = explanation.inputs[0], features.activations.shape[1]
    kept = torch.tensor([[True], [False]], device=image.device).expand(2, channels)
    try:
        short = _ablated(explanation, layer, image, kept, tail_only=True)
    except (RuntimeError, ValueError, AssertionError):  # whatever a model raises for an unexpected batch
        return False
    whole = _ablated(explanation, layer, image, kept, tail_only=False)
    tolerance = 1e-3 * float(whole.nan_to_num().abs().max())
    return short.shape == whole.shape and torch.allclose(short, whole, rtol=1e-3, atol=tolerance, equal_nan=True)


def _ablated(
    explanation: Explanation, layer: Layer, image: torch.Tensor, kept: torch.Tensor, tail_only: bool
) -> torch.Tensor:
    """Return the scores (k, classes) of one image, in row i with only the channels `kept[i]` of the layer.

    Args:
        kept: (k, channels) bool.
        tail_only: run the part before the layer once, and only the part after it for all k rows.
    """

    def edit(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        # with `relu_after` (DenseNet) this happens before the ReLU, which keeps 0 at 0
        return layer.with_maps(output, layer.to_maps(output).masked_fill(~kept[:, :, None, None], 0))

    with explanation.model.get_submodule(layer.name).register_forward_hook(edit):
        return explanation.predict(image[None] if tail_only else image.expand(len(kept), -1, -1, -1))


def _share_behind(explanation: Explanation, layer: Layer) -> float:
    """Return the share of a forward pass's operations that come after the layer, in [0, 1]."""
    model, counter, until = explanation.model, FlopCounterMode(display=False), []
    hook = model.get_submodule(layer.name).register_forward_hook(lambda *_: until.append(counter.get_total_flops()))
    with hook, torch.inference_mode(False), torch.no_grad(), evaluating(model), counter:
        model(torch.zeros_like(explanation.inputs[:1]))
    return 1 - until[-1] / max(1, counter.get_total_flops())


def occlusion(explanation: Explanation) -> torch.Tensor:
    """Occlusion (Zeiler and Fergus 2014): the mean fall of the score over the windows that cover a cell, rectified.

    The grid has `settings.cells` cells along each side; a window of 2 × 2 cells slides by one cell. Covered pixels are
    set to 0 in normalised units, the mean grey of the normalisation; black would look like air, which is a finding.

    Returns: (n, cells, cells).
    """
    batch, places = explanation.settings.batch, explanation.settings.cells - 1
    kept = _windows(explanation.settings.cells, *explanation.inputs.shape[-2:]).to(explanation.inputs.device)
    drops = []
    for image, target in zip(explanation.inputs, explanation.targets, strict=True):
        score = torch.cat([explanation.predict(image.where(part, 0))[:, target] for part in kept.split(batch)])
        drops.append((score[0] - score[1:]).view(1, places, places))
    window = torch.ones(1, 1, 2, 2, device=explanation.inputs.device)
    total = F.conv_transpose2d(torch.stack(drops), window)
    return F.relu(total / F.conv_transpose2d(torch.ones_like(drops[0])[None], window))[:, 0]


def _windows(cells: int, height: int, width: int) -> torch.Tensor:
    """Return the pixels to keep (1 + (cells − 1)², 1, height, width), bool: all, then all but one window, row by row.

    A window has 2 × 2 cells; cells end at whole pixels.
    """
    rows, columns = (torch.linspace(0, side, cells + 1).round().int().tolist() for side in (height, width))
    kept = torch.ones(1 + (cells - 1) ** 2, 1, height, width, dtype=torch.bool)
    for image, (i, j) in zip(kept[1:], product(range(cells - 1), repeat=2), strict=True):
        image[:, rows[i] : rows[i + 2], columns[j] : columns[j + 2]] = False
    return kept


def _heaviest(gradients: torch.Tensor, counted: torch.Tensor, most: int) -> torch.Tensor:
    """Return the `most` channels with the largest Grad-CAM weights |mean gradient| among those that are `counted`.

    Args:
        gradients: (channels, h, w) of one image.
        counted: (channels,) bool.
    """
    channels = counted.nonzero()[:, 0]
    order = gradients[channels].mean((1, 2)).abs().argsort(descending=True, stable=True)
    return channels[order[:most]]
