"""Grad-CAM by a graph that is cut at the target activation: one forward pass, one backward pass of the tail alone.

No backward hooks, no gradients of parameters, a batch at a time; the model is left as it was found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from pretrained_models import CamLayer
from utils import UserError, autocast

# The smallest lift that makes 0 positive without changing any other activation: see `cut`.
_ABOVE_ZERO = 1e-30


@dataclass
class CutPass:
    """What one pass through a cut model gives.

    Attributes:
        activations: (n, channels, h, w) float32, the target layer's output after its ReLU.
        gradients: the same shape, of each picture's target score with respect to them.
        scores: (n, classes) float32, before the softmax.
        targets: (n,) int64, the class explained in each picture.
    """

    activations: torch.Tensor
    gradients: torch.Tensor
    scores: torch.Tensor
    targets: torch.Tensor


def grad_cam(cut: CutPass) -> torch.Tensor:
    """Grad-CAM (Selvaraju 2017, eq. 1 and 2): ReLU(Σ_k α_k A_k), α_k the spatial mean of the gradient of channel k.

    Returns: (n, h, w) float32 on the feature grid, ≥ 0, not rescaled.
    """
    weights = cut.gradients.mean((2, 3), keepdim=True)
    return F.relu((weights * cut.activations).sum(1))


METHODS: dict[str, Callable[[CutPass], torch.Tensor]] = {"gradcam": grad_cam}


@contextmanager
def cut(model: nn.Module, layer: CamLayer) -> Iterator[list[torch.Tensor]]:
    """Cut `model` at `layer` while the block runs: each forward pass appends its activations, a leaf of a new graph.

    What the layer passes on is a copy, so that an in-place ReLU behind it (VGG's, DenseNet's) cannot change what was
    kept. Where `forward` itself rectifies the layer's output (`relu_after`, DenseNet), the rectified map is the target:
    the copy is then raised by 1e-30, which changes no sum in float32 or bfloat16, but lets the second ReLU, whose
    derivative at exactly 0 is 0, pass the gradient on as if it were not there.
    """
    kept: list[torch.Tensor] = []

    def hook(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        if not isinstance(output, torch.Tensor) or output.ndim != 4:
            raise UserError(f"Grad-CAM: layer {layer.name} gives no feature map (n, channels, h, w)")
        activation = (F.relu(output) if layer.relu_after else output).detach().float().requires_grad_()
        kept.append(activation)
        passed = activation + _ABOVE_ZERO if layer.relu_after else activation.clone()
        return passed.to(output.dtype)

    learning = [p for p in model.parameters() if p.requires_grad]
    training = [module for module in model.modules() if module.training]
    handle = model.get_submodule(layer.name).register_forward_hook(hook)
    try:
        for parameter in learning:  # else the graph would hold the gradients of every parameter as well
            parameter.requires_grad_(False)
        model.eval()
        yield kept
    finally:
        handle.remove()
        for parameter in learning:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True


def cut_pass(
    model: nn.Module,
    layer: CamLayer,
    inputs: torch.Tensor,
    targets: torch.Tensor | None = None,
    precision: str = "fp32",
) -> CutPass:
    """One forward pass and the gradient of the target scores with respect to the layer's activations.

    Args:
        inputs: (n, channels, side, side) float32, normalised, on the model's device.
        targets: (n,) int64 classes to explain; None: the predicted ones.
        precision: of the autocast.

    Works inside callers' `no_grad` and `inference_mode`.
    """
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        cut(model, layer) as kept,
        autocast(inputs.device, precision),
    ):
        scores = model(inputs.clone() if inputs.is_inference() else inputs).float()
        targets = scores.argmax(1) if targets is None else targets.to(scores.device)
        activations = kept[-1]
        # The pictures of a batch do not see each other in evaluation mode: the gradient of the sum is each one's own.
        (gradients,) = torch.autograd.grad(scores.gather(1, targets[:, None]).sum(), activations)
    return CutPass(activations.detach(), gradients.float(), scores.detach(), targets)
